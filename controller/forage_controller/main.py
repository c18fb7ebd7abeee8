"""`forage controller`: flags, wiring and exit codes.

0: told to stop (SIGTERM). 1: the store cannot be written. 2: usage, configuration, a state
directory that cannot be used, or another controller rules. 130: interrupted (SIGINT).
"""

import gc
import secrets
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from forage_controller.config import PROGRAM, read_config
from forage_controller.shell.controller import Controller
from forage_controller.shell.store import StoreError
from forage_wire.shell.logs import start_logging

__all__ = ["main"]

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# The saver works beside the loop. At the default of 5 ms each of its steps would wait that long
# for the interpreter while the loop is busy, and a commit takes several.
SWITCH_INTERVAL_S = 0.0005
# A call takes some hundred objects on its way: at the default of 700 the collector would look at
# them every few calls.
GC_THRESHOLDS = (20_000, 20, 20)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a controller until it is told to stop; the answer is the exit code."""
    config = read_config(argv)
    if isinstance(config, int):
        return config
    start_logging(config.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What is loaded now stays, and what tasks are made of is mostly freed by its last reference.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        controller = Controller(
            config, start=secrets.token_hex(8), client_id_part=secrets.token_hex(8)
        )
    except StoreError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return EXIT_USAGE

    def stop(number: int, _frame: FrameType | None) -> None:
        controller.stop(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_DONE)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return controller.run()
    finally:
        controller.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())

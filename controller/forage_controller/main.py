"""`forage controller`: flags, wiring and exit codes.

0: told to stop (SIGTERM). 1: the store cannot be read or written, which may pass. 2: usage,
configuration, a state directory that cannot be used, or another controller rules. 130: interrupted
(SIGINT).

With `--standby` a process has one role after the other: it stands by, rules when nobody else does,
and stands by again where another rules in its place.
"""

import gc
import secrets
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from forage_controller.config import PROGRAM, ControllerConfig, read_config
from forage_controller.shell.controller import Controller
from forage_controller.shell.database import StateInUse
from forage_controller.shell.program import EXIT_OTHER_RULES, Identity
from forage_controller.shell.standby import Standby
from forage_controller.shell.store import StoreError
from forage_wire.shell.logs import start_logging

__all__ = ["main"]

EXIT_DONE = 0
EXIT_FAILED = 1
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
    roles = _Roles(config)

    def stop(number: int, _frame: FrameType | None) -> None:
        roles.stop(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_DONE)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return roles.run()
    except StoreError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return EXIT_FAILED if error.may_pass else EXIT_USAGE
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Roles:
    """What one process is, one after the other."""

    def __init__(self, config: ControllerConfig) -> None:
        self._config = config
        self._identity = Identity(start=secrets.token_hex(8), client_id_part=secrets.token_hex(8))
        self._present: Standby | Controller | None = None
        self._stop_code: int | None = None

    def stop(self, code: int) -> None:
        """End, whatever it is now; from a signal handler."""
        self._stop_code = code
        if self._present is not None:
            self._present.stop(code)

    def run(self) -> int:
        """Serve until the end; the answer is the exit code."""
        gave_way = False
        while True:
            epoch, took_over_ms = 0, None
            if self._config.standby:
                standby = Standby(self._config, self._identity, gave_way=gave_way)
                code = self._serve(standby)
                if not standby.takes_over:
                    return code
                epoch, took_over_ms = standby.epoch, standby.took_over_ms
            try:
                controller = Controller(
                    self._config, self._identity, epoch=epoch, took_over_ms=took_over_ms
                )
            except StateInUse:
                if self._config.standby:
                    continue  # Another that waited for it was quicker.
                raise
            code = self._serve(controller)
            if not self._config.standby or code != EXIT_OTHER_RULES:
                return code
            # Whoever rules in our place may have committed what our store lacks, also where we
            # called a take-over off and never ruled.
            gave_way = True

    def _serve(self, role: Standby | Controller) -> int:
        self._present = role
        if self._stop_code is not None:
            role.stop(self._stop_code)
        try:
            return role.run()
        finally:
            role.close()


if __name__ == "__main__":
    sys.exit(main())

"""The terminal: the command `forage`.

Owns the first look at the command line. The services (`forage broker`, `controller`, `agent`) are
started at once, with nothing of the terminal or the SDK loaded: they have memory to keep to.
Everything else is a command of `forage.cli.app`.
"""

import atexit
import os
import sys
from importlib import import_module

__all__ = ["SERVICES", "main"]

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

SERVICES = {
    "broker": "forage_broker.main",
    "controller": "forage_controller.main",
    "agent": "forage_agent.main",
}
"""Each has a `main(argv) -> int`."""


def main(argv: list[str] | None = None) -> int:
    """Run one command of the terminal.

    Args:
        argv: The words after `forage`; None: this process's own.

    Returns:
        The exit code: 0 done; 1 the task failed; 2 usage or configuration; 3 no eligible device;
        4 not allowed; 5 broker or controller unreachable; 6 partly done; 7 version mismatch;
        124 timeout; 130 interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in SERVICES:
        return run_service(words[0], words[1:])
    code = 0

    def keep_code() -> None:
        # Where Ctrl-C hits code that Python makes from text, such as a dataclass's methods, Python
        # 3.11 ends by a signal in spite of an exit code, though the interrupt was handled. This was
        # registered before all else, so it runs when all else has been put away.
        if code == EXIT_INTERRUPTED:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)

    if argv is None:
        atexit.register(keep_code)
    # Here, as a service needs none of it.
    from forage.cli.app import run

    code = run(words)
    return code


def run_service(name: str, words: list[str]) -> int:
    """Run a service in the foreground until it ends; its exit code."""
    if name != "broker" and not sys.platform.startswith("linux"):
        sys.stderr.write(
            f"forage: The {name} runs on Linux alone (this is {sys.platform}): start it on a Linux "
            "machine; `forage run` and the other commands work from here.\n"
        )
        return EXIT_USAGE
    code: int = import_module(SERVICES[name]).main(words)
    return code

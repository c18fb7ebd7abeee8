"""What a running call can reach of the worker around it: the one thing that the SDK and the agent's
worker, which know nothing of each other, share within a process."""

from collections.abc import Callable

__all__ = ["PROGRESS_TEXT_MAX", "reporter", "set_reporter"]

PROGRESS_TEXT_MAX = 256
"""Characters of a progress text; what is longer is cut."""

Reporter = Callable[[int, str], None]
"""Takes permille and text; never blocks and never fails."""

_reporter: Reporter | None = None


def set_reporter(report: Reporter) -> None:
    """From now on this process is a worker, which takes its calls' progress here."""
    global _reporter
    _reporter = report


def reporter() -> Reporter | None:
    """Where the progress of this process's call goes; None outside of a worker."""
    return _reporter

"""What a running call can reach of the worker around it: the one thing that the SDK and the agent's
worker, which know nothing of each other, share within a process."""

from collections.abc import Callable
from typing import Any, Protocol

__all__ = [
    "PROGRESS_TEXT_MAX",
    "Checkpoints",
    "checkpoints",
    "reporter",
    "set_checkpoints",
    "set_reporter",
]

PROGRESS_TEXT_MAX = 256
"""Characters of a progress text; what is longer is cut."""

Reporter = Callable[[int, str], None]
"""Takes permille and text; never blocks and never fails."""


class Checkpoints(Protocol):
    """The states of the call that this process runs."""

    def keep(self, state: Any) -> None:
        """Send a state on its way. Raises NotSerializable or RuntimeError, in words."""

    def kept(self) -> tuple[Any] | None:
        """What this attempt was given to go on from, alone in a tuple; None: nothing."""


_reporter: Reporter | None = None
_checkpoints: Checkpoints | None = None


def set_reporter(report: Reporter) -> None:
    """From now on this process is a worker, which takes its calls' progress here."""
    global _reporter
    _reporter = report


def reporter() -> Reporter | None:
    """Where the progress of this process's call goes; None outside of a worker."""
    return _reporter


def set_checkpoints(found: Checkpoints) -> None:
    """From now on this process is a worker, which takes its calls' states here."""
    global _checkpoints
    _checkpoints = found


def checkpoints() -> Checkpoints | None:
    """Where the states of this process's call go and come from; None outside of a worker."""
    return _checkpoints

"""Every error that forage raises, in one tree.

    ForageError                     anything that forage itself has to say; exit code 1
    ├── NotConnected                no broker, or no controller behind it; 5
    ├── NoDevice                    no eligible device within the wait; says why, for each device; 3
    ├── DeviceLost                  the device died with the call and it may not run again; 1
    ├── TaskTimeout                 the call ran longer than its limit (also a TimeoutError); 124
    ├── TaskCancelled               cancelled (also a concurrent.futures.CancelledError); 130
    ├── NoQuorum                    too few of the call's replicas agree; 1
    ├── TaskFailed                  the call failed and its own exception cannot be rebuilt here; 1
    ├── DataLost                    an outcome or a handle's data is in no place any more; 1
    ├── NotSerializable             an argument, a function or a result cannot travel; 2
    ├── VersionMismatch             code of one Python minor met another, or a protocol did; 7
    ├── Refused                     broker, controller or device says no: a right, a limit, a name; 4
    └── WireError                   a message breaks the protocol; 1
        └── DecodeError             the peer's fault: count it, drop it, go on; 1

An exception that a user's function raises is not in the tree: it keeps its own type.
`exit_code` is the exit code of the `forage` command where the error ends it.
`concurrent.futures` is imported for `CancelledError` alone; its package loads executors lazily.
"""

from concurrent.futures import CancelledError
from typing import ClassVar

__all__ = [
    "ForageError",
    "NotConnected",
    "NoDevice",
    "DeviceLost",
    "TaskTimeout",
    "TaskCancelled",
    "NoQuorum",
    "TaskFailed",
    "DataLost",
    "NotSerializable",
    "VersionMismatch",
    "Refused",
    "WireError",
    "DecodeError",
]


class ForageError(Exception):
    """The root: `except ForageError` catches whatever forage itself reports."""

    exit_code: ClassVar[int] = 1


class NotConnected(ForageError):
    """There is no broker at the address, or no controller answered through it."""

    exit_code: ClassVar[int] = 5


class NoDevice(ForageError):
    """No eligible device was alive for as long as the call may wait.

    Attributes:
        reasons: For each device known, by name, why it could not take the call.
    """

    exit_code: ClassVar[int] = 3
    reasons: dict[str, str]

    def __init__(self, message: str = "", reasons: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})


class DeviceLost(ForageError):
    """The device that ran the call is gone, and the call may not (or no longer) run again."""


# Mypy cannot see that OSError's layout and a plain exception's agree; CPython does.
class TaskTimeout(ForageError, TimeoutError):
    """The call ran longer than its `timeout_s` and was ended."""

    exit_code: ClassVar[int] = 124


class TaskCancelled(ForageError, CancelledError):
    """The call was cancelled before it ended."""

    exit_code: ClassVar[int] = 130


class NoQuorum(ForageError):
    """The outcomes of a call's replicas differ, and too few of them agree.

    Attributes:
        outcomes: For each device that answered, by name, what its outcome was, in words.
    """

    outcomes: dict[str, str]

    def __init__(self, message: str = "", outcomes: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.outcomes = dict(outcomes or {})


class TaskFailed(ForageError):
    """The call failed, and the exception's own type cannot be rebuilt in this process.

    Attributes:
        type_name: The remote exception's type as `module.qualname`; empty where no exception
            was raised (the worker died).
        reason: The machine-readable reason of a failure that is not an exception, such as
            `worker-died`; empty otherwise.
        details: What the reason comes with (`signal`, `exit_code`, …).
    """

    type_name: str = ""
    reason: str = ""
    details: dict[str, object]

    def __init__(
        self,
        message: str = "",
        *,
        type_name: str = "",
        reason: str = "",
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.type_name = type_name
        self.reason = reason
        self.details = dict(details or {})


class DataLost(ForageError):
    """The data is in no place that still exists."""


class NotSerializable(ForageError):
    """A value cannot travel; the message names the argument and what in it is to blame."""

    exit_code: ClassVar[int] = 2


class VersionMismatch(ForageError):
    """Code that is tied to one Python minor met another; the message says why it is tied."""

    exit_code: ClassVar[int] = 7


class Refused(ForageError):
    """Broker, controller or device refuses; the message says what is not allowed and why."""

    exit_code: ClassVar[int] = 4


class WireError(ForageError):
    """A message breaks the protocol or one of its limits."""


class DecodeError(WireError):
    """Bytes from a peer are not what the protocol allows. Receivers count, drop and go on."""

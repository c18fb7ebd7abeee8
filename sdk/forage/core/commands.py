"""What the client's core orders, beyond what every core orders (`forage_wire.io`)."""

from typing import Any

from forage_wire.io import Note, Publish
from forage_wire.messages import Progress
from forage_wire.ranges import Ranges
from forage_wire.records import dataclass

__all__ = [
    "AnswerReceived",
    "Command",
    "ControllerMissing",
    "NoteAttempts",
    "NoteProgress",
    "NoteStarted",
    "ProtocolRefused",
    "RefuseTask",
    "ReplicasEnded",
    "ResolveCalls",
    "Welcomed",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveCalls:
    """These calls have their outcomes, each for the first and only time."""

    task: str
    device: str
    """Empty where the controller made the outcome and names no device."""
    ranges: Ranges
    items: list[Any]
    """One outcome item for each index of `ranges`, in order (see `forage_wire.values`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasEnded:
    """Replicas of calls have their outcomes; `CallsDecided` says when that is enough."""

    task: str
    device: str
    """Empty where the controller made the outcomes."""
    rows: tuple[tuple[int, Any], ...]
    """(call, outcome item), each run's for the first and only time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteStarted:
    """These calls run on a device."""

    device: str
    rows: tuple[tuple[str, int], ...]
    """(task, index)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteProgress:
    """A running call says how far it is."""

    device: str
    said: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteAttempts:
    """Attempts that ended with an error that is not final: the calls will run again."""

    task: str
    device: str
    rows: tuple[tuple[int, str], ...]
    """(index, reason)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseTask:
    """The controller does not take a task, or no longer has it: its open calls end here."""

    task: str
    reason: str
    text: str
    ranges: Ranges
    """The calls that had no outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReceived:
    """The answer to a query."""

    id: int
    ok: bool
    body: bytes
    """JSON; where not `ok`, a text that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcomed:
    """A controller knows this connection."""

    controller: str
    devices: int
    """Alive now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerMissing:
    """No controller answered in time; the core goes on trying."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolRefused:
    """The controller speaks another version of the protocol."""

    text: str


Command = (
    Publish
    | ResolveCalls
    | ReplicasEnded
    | NoteStarted
    | NoteProgress
    | NoteAttempts
    | RefuseTask
    | AnswerReceived
    | Welcomed
    | ControllerMissing
    | ProtocolRefused
    | Note
)

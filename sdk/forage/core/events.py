"""What the client's core is told, beyond what every core is told (`forage_wire.io`)."""

from forage_wire.io import (
    BatchEnded,
    Connected,
    Disconnected,
    MessageReceived,
    PublishAcknowledged,
)
from forage_wire.messages import Options
from forage_wire.ranges import Ranges
from forage_wire.records import dataclass, field

__all__ = [
    "AttachAsked",
    "CallsCancelled",
    "CallsDecided",
    "CallsSubmitted",
    "CloseAsked",
    "Event",
    "QueryAsked",
    "QueryDropped",
    "TaskOpened",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOpened:
    """The user began a task; its calls follow with `CallsSubmitted`."""

    task: str
    key: bytes
    """16 random bytes, for the tags of its slices."""
    function: bytes | tuple[str, str]
    """SHA-256 of `code`, or (name, version) of a named function."""
    form: str
    """pickle, source or named."""
    label: str = ""
    python_min: int = 11
    code: bytes = b""
    """The function's blob; empty for a named one."""
    options: Options = field(default_factory=Options)
    settle: str = "direct"
    """direct: the first valid outcome counts, wherever it is heard; controller: what the controller
    has committed, of an assignment that was open, and devices tell nobody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsSubmitted:
    """The next calls of an open task, in order: at least one.

    Whoever makes a task of unknown length keeps some calls back until it knows its end: only a
    page that holds calls can say that it is the last.
    """

    task: str
    first: int
    """Index of the first of them: how many were submitted before."""
    calls: tuple[bytes, ...]
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsCancelled:
    """The user no longer wants these calls; they may not have been submitted yet."""

    task: str
    ranges: Ranges
    force: bool = False
    """Kill those that run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsDecided:
    """Of calls with replicas, enough outcomes are here: the rest of their runs is unwanted."""

    task: str
    ranges: Ranges
    """Calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryAsked:
    """A question for the controller; `AnswerReceived` with the same id follows some time."""

    id: int
    what: str
    name: str = ""
    arguments: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryDropped:
    """Nobody waits for this answer any more."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachAsked:
    """The user wants the outcomes of another client's task."""

    task: str
    calls: int
    """How many calls it has, as the controller said."""
    replicas: int = 1
    """Runs of each of them ..."""
    blocks: tuple[int, ...] = ()
    """... and how those are numbered (`forage_wire.replicas`): first calls of its blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseAsked:
    """The client is about to leave: say what is collected. `will` is published after it."""


Event = (
    MessageReceived
    | BatchEnded
    | CallsSubmitted
    | TaskOpened
    | CallsCancelled
    | CallsDecided
    | QueryAsked
    | QueryDropped
    | AttachAsked
    | CloseAsked
    | Connected
    | Disconnected
    | PublishAcknowledged
)

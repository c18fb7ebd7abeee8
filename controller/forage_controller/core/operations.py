"""What the controller's core asks its store to write, and what the store gives back at start.

A `Save` groups operations; the store commits groups in order, several at a time, and answers
`SaveCommitted` with the number of the last one in the commit. What waits for a commit is the
core's business: it sends only after that event.
"""

from forage_wire.ranges import Ranges
from forage_wire.records import dataclass, field

__all__ = [
    "ClosedAssignment",
    "CodeLoaded",
    "ForgetCheckpoints",
    "ForgetCode",
    "LoadCode",
    "LoadOutcomes",
    "LoadPage",
    "MachineTime",
    "Operation",
    "OutcomesLoaded",
    "PageLoaded",
    "RecoveredAssignment",
    "RecoveredCheckpoint",
    "RecoveredPage",
    "RecoveredState",
    "RecoveredTask",
    "Save",
    "SaveAssignment",
    "SaveCheckpoint",
    "SaveCode",
    "SaveCollected",
    "SaveCommitted",
    "SaveCounters",
    "SaveDeadline",
    "SaveEpoch",
    "SaveFailed",
    "SaveOutcomes",
    "SavePage",
    "SaveReleased",
    "SaveTime",
    "StoreFull",
    "StoreHasRoom",
    "StoredOutcomes",
    "TrimAssignment",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveEpoch:
    """This generation's number; committed before it is used."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCode:
    """A function's code, once for each content."""

    hash: bytes
    form: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetCode:
    """A function's code that no task uses any more, and whose place is needed."""

    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SavePage:
    """A page of a task; the first page of a task makes the task. Repeats change nothing."""

    user: str
    client: str
    task: str
    key: bytes
    label: str
    first: int
    n: int
    last: bool
    header: bytes
    calls: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveAssignment:
    """An assignment that is open from now on."""

    assignment: int
    task: str
    first: int
    """Its page."""
    low: int
    high: int
    device: str
    session: str
    tries: int
    deaths: int
    losses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimAssignment:
    """An assignment that lost its tail: it now ends at `high`."""

    assignment: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedAssignment:
    """An assignment that is over (done, trimmed to nothing, or lost)."""

    assignment: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOutcomes:
    """Settled calls of one task, kept as received until collected."""

    task: str
    assignment: int
    device: str
    low: int
    high: int
    tag: bytes
    ranges: Ranges
    """The indices that `data` holds, in its order."""
    settled: Ranges
    """The part of them that these outcomes settle (others had been settled before)."""
    errors: tuple[tuple[int, str, bool], ...]
    run_us: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCounters:
    """Counters of calls that go out again; a later row wins."""

    task: str
    low: int
    high: int
    tries: int
    deaths: int
    losses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCollected:
    """The client has these outcomes: archived ones may go when all of a row are collected."""

    task: str
    ranges: Ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveReleased:
    """Nothing of a task is needed any more but the fact that it ended; `forget` drops that too."""

    task: str
    forget: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCheckpoint:
    """A call's last checkpoint, in place of the one before it."""

    task: str
    index: int
    number: int
    data: bytes
    device: str
    """Whose attempt made it; "" where an older store did not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetCheckpoints:
    """These calls have ended, or begin anew: their checkpoints go."""

    task: str
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveDeadline:
    """When the calls of a page are too late, in the time of `SaveTime`. The first one stays."""

    task: str
    first: int
    due_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveTime:
    """How long controllers have ruled with this store, and a machine's clock at that moment."""

    ran_ms: int
    boot: str
    """Which boot of which machine; "": nobody knows."""
    boot_ms: int
    """Milliseconds since that boot."""


Operation = (
    SaveEpoch
    | SaveCode
    | ForgetCode
    | SavePage
    | SaveAssignment
    | TrimAssignment
    | ClosedAssignment
    | SaveOutcomes
    | SaveCounters
    | SaveCollected
    | SaveReleased
    | SaveCheckpoint
    | ForgetCheckpoints
    | SaveDeadline
    | SaveTime
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Command: commit these operations together, after every earlier `Save`."""

    number: int
    """1, 2, ... within this start."""
    operations: tuple[Operation, ...]
    urgent: bool = False
    """Somebody's work waits for it; else it may be gathered with what comes in the next moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCommitted:
    """Event: every `Save` up to `number` is on the disk."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveFailed:
    """Event: the store cannot write (an input/output error); the process must end."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFull:
    """Event: the disk is full. What was handed over is kept, and tried again until there is room."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHasRoom:
    """Event: it was full, and is not any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPage:
    """Command: read a page's calls back (it left the cache)."""

    task: str
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLoaded:
    """Event: the answer to `LoadPage`; None where the page is gone."""

    task: str
    first: int
    calls: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCode:
    """Command: read a function's code (it left the cache)."""

    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeLoaded:
    """Event: the answer to `LoadCode`; None where it is gone."""

    hash: bytes
    form: str
    data: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOutcomes:
    """Command: read outcomes of these calls from the archive.

    The store answers with every stored row that settles any of them, in one `OutcomesLoaded`
    or, above 1 MiB, several (`more` on all but the last).
    """

    request: int
    task: str
    ranges: Ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOutcomes:
    """One archived row, as saved."""

    assignment: int
    device: str
    low: int
    high: int
    tag: bytes
    ranges: Ranges
    settled: Ranges
    errors: tuple[tuple[int, str, bool], ...]
    run_us: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomesLoaded:
    """Event: the answer to `LoadOutcomes`."""

    request: int
    task: str
    rows: tuple[StoredOutcomes, ...]
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredPage:
    """A stored page without its calls."""

    first: int
    n: int
    last: bool
    header: bytes
    calls_bytes: int
    due_ms: int | None = None
    """When its calls are too late, in the time of `SaveTime`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredTask:
    """A stored task that has not been released."""

    user: str
    client: str
    task: str
    key: bytes
    label: str
    pages: tuple[RecoveredPage, ...]
    settled: Ranges
    failed: int
    """Settled calls whose outcome is an error."""
    collected: Ranges
    counters: tuple[tuple[int, int, int, int, int], ...]
    """(low, high, tries, deaths, losses) of calls that have any, the latest for each call."""
    archive_bytes: int
    answered: tuple[tuple[str, Ranges], ...] = ()
    """Device -> of the calls it settled, those whose outcomes are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredAssignment:
    """A stored assignment that is open."""

    assignment: int
    task: str
    first: int
    low: int
    high: int
    device: str
    session: str
    tries: int
    deaths: int
    losses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredCheckpoint:
    """The last stored checkpoint of a call."""

    task: str
    index: int
    number: int
    data: bytes
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTime:
    """Our machine's clock, and ours, at one moment."""

    boot: str = ""
    """Which boot of which machine; "": that cannot be known, and no other is the same."""
    boot_ms: int = 0
    """Milliseconds since that boot."""
    now_ms: int = 0
    """What the core calls that moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredState:
    """All that the store holds, at start."""

    epoch: int = 0
    tasks: tuple[RecoveredTask, ...] = ()
    assignments: tuple[RecoveredAssignment, ...] = ()
    checkpoints: tuple[RecoveredCheckpoint, ...] = ()
    released: tuple[str, ...] = ()
    """Tasks that ended and of which only the id is kept."""
    codes: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    """hash -> (form, bytes); the code itself is read by `LoadCode`."""
    time: SaveTime | None = None
    """The last that was saved."""

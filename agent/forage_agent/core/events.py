"""What happens to an agent's core, and what it orders: the boundary to its shell.

The core talks to workers by slot. A slot has one worker process at a time:

    StartWorker ──► WorkerReady ──► RunCalls* ──► WorkerOutcomes* ──► WorkerExited ──► StartWorker

- A worker runs the chunks that it was given strictly in order, call by call, and reports outcomes
  in that order; one report covers consecutive calls of one assignment. It may keep finished outcomes
  for a millisecond to report them together, and never while a later call is slow.
- `TakeBack` asks for everything that has not begun. The answer, `WorkerReturned`, comes after the
  reports of all that had ended, also while a call is running.
- `KillWorker` ends the worker with every process it has started. Reports of what it had already
  sent come before `WorkerExited`, which is always the last word of a worker.
"""

from forage_wire.io import (
    BatchEnded,
    Connected,
    Disconnected,
    MessageReceived,
    Note,
    Publish,
    PublishAcknowledged,
)
from forage_wire.messages import DeviceCapabilities
from forage_wire.records import dataclass

__all__ = [
    "CapabilitiesMeasured",
    "Chunk",
    "Command",
    "DrainAsked",
    "Event",
    "ExitAsked",
    "ExitProcess",
    "FunctionCode",
    "InputDropped",
    "KillWorker",
    "LeaseWorker",
    "LoadMeasured",
    "LogLines",
    "RunCalls",
    "StartWorker",
    "TakeBack",
    "WorkerCheckpoint",
    "WorkerExited",
    "WorkerLoaded",
    "WorkerOutcomes",
    "WorkerProgress",
    "WorkerReady",
    "WorkerReturned",
]

# -- events: workers ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady:
    """A worker process waits for its first calls."""

    slot: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoaded:
    """A worker has loaded a function's code; the time of the call itself begins now."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOutcomes:
    """Consecutive calls of one assignment have ended."""

    slot: int
    assignment: int
    first: int
    """Index of the first of them in its task."""
    count: int
    items: bytes
    """`count` outcome items (CBOR), one after the other, unread."""
    errors: tuple[tuple[int, str], ...] = ()
    """(index, reason) of those that are errors: error, version or unreadable."""
    run_us: int = 0
    """Time spent in these calls, in microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProgress:
    """A call says how far it is."""

    slot: int
    assignment: int
    index: int
    permille: int
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCheckpoint:
    """A call wants its state kept; it comes before the report of how the call ended."""

    slot: int
    assignment: int
    index: int
    data: bytes
    """The state, unread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReturned:
    """The answer to `TakeBack`: the worker has nothing more than the call it is in."""

    slot: int
    assignment: int = 0
    """Whose call it is in; 0: none."""
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExited:
    """A worker process is gone, and everything that it had started too."""

    slot: int
    exit_code: int | None = None
    """How it ended, where no signal did it."""
    signal: str = ""
    """The signal that ended it, such as `SIGSEGV`."""
    assignment: int = 0
    """Whose call it was in when it ended; 0: none, or it is not known."""
    index: int = 0
    lease_over: bool = False
    """Its watchdog killed it: see `LeaseWorker`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLines:
    """What a worker and its processes wrote to stdout and stderr."""

    slot: int
    rows: tuple[tuple[int, int, str, str], ...]
    """(assignment or 0 where only the time tells it, index, `out` or `err`, line)."""


# -- events: the rest of the shell ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadMeasured:
    """Fresh readings of the machine."""

    cpu_percent: float
    memory_percent: float
    temperature_c: float | None = None
    throttled: bool | None = None
    battery_percent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilitiesMeasured:
    """What the device is and has was measured (again); the session in it is not used."""

    capabilities: DeviceCapabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAsked:
    """Somebody at the machine itself wants the device drained, or in use again."""

    on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitAsked:
    """The service manager or a person ends the agent."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputDropped:
    """The shell dropped a message unread, for example for its length."""

    topic: str
    reason: str


# -- commands -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionCode:
    """A function for a worker to keep."""

    key: bytes
    """The SHA-256 of its code, or a named function's name and version."""
    form: str
    """`pickle`, `source` or `named`."""
    python: str
    """The Python minor that made it."""
    data: bytes
    """The code; of a named function `module:attribute`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Calls [low, high) of one assignment, for one worker."""

    assignment: int
    low: int
    high: int
    function: bytes
    """The key of a function that this worker has."""
    client_python: str
    calls: bytes
    """A CBOR array of exactly these calls, as the client made them."""
    is_awaited: bool = False
    """Nothing more of the function waits here: the last outcome is to be reported at once."""
    checkpoints: tuple[tuple[int, bytes], ...] = ()
    """(index, state) of those that an earlier attempt has brought on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorker:
    """Make a worker process for this slot, which has none."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCalls:
    """Give a worker calls, behind what it has."""

    slot: int
    may_follow: bool = False
    """Whether more may come before these have ended, or be taken back while one of them runs."""
    drop: tuple[bytes, ...] = ()
    """Functions that it may forget, first."""
    code: tuple[FunctionCode, ...] = ()
    """Functions that it does not have yet."""
    chunks: tuple[Chunk, ...]
    until_ms: int = 0
    """These calls are exclusive, and must not begin any more at this time; 0: they are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeBack:
    """Ask a worker for all that it has not begun."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KillWorker:
    """End a worker and every process that it has started; `WorkerExited` follows."""

    slot: int
    why: str
    """timeout, cancelled, forgotten, fresh or broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseWorker:
    """Kill a worker at this time, whatever becomes of this process, unless told another time."""

    slot: int
    until_ms: int
    """By the core's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitProcess:
    """End the agent with this code, after everything before has been sent."""

    code: int
    reason: str


Event = (
    Connected
    | Disconnected
    | MessageReceived
    | PublishAcknowledged
    | BatchEnded
    | WorkerReady
    | WorkerLoaded
    | WorkerOutcomes
    | WorkerProgress
    | WorkerCheckpoint
    | WorkerReturned
    | WorkerExited
    | LogLines
    | LoadMeasured
    | CapabilitiesMeasured
    | DrainAsked
    | ExitAsked
    | InputDropped
)

Command = (
    Publish | StartWorker | RunCalls | TakeBack | KillWorker | LeaseWorker | ExitProcess | Note
)

"""Every message of the protocol: one frozen class for each rule of `forage.cddl`.

A field is `Annotated[type, key, kind]`: its name in Python, its key on the wire, what it
accepts. A field with a default may be absent on the wire. The codec reads these tables;
nothing else knows the keys. The text documents stand in `forage_wire.documents` and can be
imported from here too.

Messages between a controller and a device or client are `Linked`: they name both sessions
and are numbered (see `forage_wire.link`).
"""

from dataclasses import dataclass, field
from typing import Annotated

from forage_wire import kinds
from forage_wire.documents import (
    JSON_DOCUMENTS,
    SESSION_PATTERN,
    ClientPresence,
    ControllerPresence,
    ControllerStats,
    DeviceCapabilities,
    DeviceLoad,
    DevicePresence,
    DeviceVerdict,
    TaskStatus,
)
from forage_wire.limits import (
    CALL_BYTES_MAX,
    CALLS_PER_PAGE_MAX,
    PACKET_BYTES_MAX,
    PACKET_BYTES_MIN,
    PART_BYTES,
    PARTS_MAX,
    TASK_CALLS_MAX,
    UNFINISHED_PART_BYTES_MAX,
    WAIT_MS_DEFAULT,
)
from forage_wire.ranges import Ranges
from forage_wire.table import table_of
from forage_wire.topics import CLIENT_PATTERN, NAME_PATTERN, TASK_PATTERN

__all__ = [
    "CBOR_MESSAGES",
    "JSON_DOCUMENTS",
    "SESSION_PATTERN",
    "Accepted",
    "Acknowledge",
    "Acknowledged",
    "Answer",
    "Assign",
    "Assignment",
    "AssignmentRefused",
    "Attach",
    "Beat",
    "Cancel",
    "CancelAssigned",
    "ClientInventory",
    "ClientPresence",
    "Code",
    "Collected",
    "ControllerPresence",
    "ControllerStats",
    "DeviceCapabilities",
    "DeviceInventory",
    "DeviceLoad",
    "DevicePresence",
    "DeviceRefused",
    "DeviceVerdict",
    "Drain",
    "Fetch",
    "Forget",
    "Header",
    "Hello",
    "Linked",
    "NeedCode",
    "Options",
    "OutcomeSet",
    "Outcomes",
    "Page",
    "Part",
    "Progress",
    "Query",
    "Released",
    "Report",
    "Seen",
    "Settled",
    "Started",
    "SubmissionRefused",
    "Submit",
    "TaskStatus",
    "Trim",
    "Trimmed",
    "Unusable",
    "Welcome",
]

_SESSION = kinds.pattern(SESSION_PATTERN, "a session")
_SESSION_OR_EMPTY = kinds.pattern(SESSION_PATTERN, "a session", empty=True)
_NAME = kinds.pattern(NAME_PATTERN, "a name")
_NAME_OR_EMPTY = kinds.pattern(NAME_PATTERN, "a name", empty=True)
_CLIENT = kinds.pattern(CLIENT_PATTERN, "a client")
_TASK = kinds.pattern(TASK_PATTERN, "a task id")
_MINOR = kinds.pattern(r"3\.[0-9]{1,3}", "a Python minor such as 3.11")
_PYTHON = kinds.pattern(r"3\.[0-9]{1,3}", "a Python minor such as 3.11", empty=True)
_UINT = kinds.unsigned()
_INDEX = kinds.unsigned(TASK_CALLS_MAX)
_HASH = kinds.data(32, 32)
_RANGES = kinds.ranges()
_TASK_RANGES = kinds.list_of(kinds.row(_TASK, _RANGES))
_BLOB = kinds.data(UNFINISHED_PART_BYTES_MAX)
_SENTENCE = kinds.text(1_024)
_PACKET = kinds.unsigned(PACKET_BYTES_MAX * 1_024, PACKET_BYTES_MIN)
_DURATION = kinds.unsigned(2**53)
_FORM = kinds.one_of("pickle", "source", "named")
_REASON = kinds.text(32)


# -- parts of messages --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a task's calls are to be run (part of a page's header)."""

    requires: Annotated[tuple[str, ...], "rq", kinds.list_of(kinds.text(128), 32)] = ()
    """What a device must have: `label`, `label=value`, or `resource>=number`."""
    devices: Annotated[tuple[str, ...], "d", kinds.list_of(_NAME, 256)] = ()
    """Only these devices; empty: any."""
    retries: Annotated[int, "re", kinds.unsigned(1_000)] = 0
    """Runs after the first that end in an exception or timeout before that is final."""
    timeout_ms: Annotated[int, "to", _DURATION] = 0
    """A call that runs longer is killed; 0: no limit."""
    priority: Annotated[int, "pr", kinds.integer(-100, 100)] = 0
    """Higher goes first."""
    at_most_once: Annotated[bool, "am", kinds.boolean()] = False
    """Never run again after it may have started."""
    fresh: Annotated[bool, "fr", kinds.boolean()] = False
    """Each call in a worker process of its own."""
    wait_ms: Annotated[int, "wa", _DURATION] = WAIT_MS_DEFAULT
    """How long to wait with no eligible device alive before `NoDevice`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is true of every call of a page; carried verbatim, as one byte string, to the device."""

    user: Annotated[str, "u", _NAME]
    client: Annotated[str, "c", _CLIENT]
    task: Annotated[str, "t", _TASK]
    function: Annotated[bytes | tuple[str, str], "f", kinds.name_or_version()]
    """SHA-256 of the code, or (name, version) of a named function."""
    form: Annotated[str, "k", _FORM]
    """`pickle` (only for devices of the client's Python minor), `source` or `named`."""
    label: Annotated[str, "la", kinds.text(64)] = ""
    """The function's name, for people."""
    python: Annotated[str, "p", _PYTHON] = ""
    """The client's Python minor; empty where the client is none."""
    python_min: Annotated[int, "pm", kinds.unsigned(1_000)] = 11
    """Lowest Python 3 minor that can read the source (form `source`)."""
    packet_bytes_max: Annotated[int, "m", _PACKET] = PACKET_BYTES_MAX
    settle: Annotated[str, "s", kinds.one_of("direct", "controller")] = "direct"
    options: Annotated[Options, "o", kinds.record(Options, table_of)] = Options()
    first: Annotated[int, "i", _INDEX]
    """Index of the page's first call in its task."""
    n: Annotated[int, "n", kinds.unsigned(CALLS_PER_PAGE_MAX, 1)]
    """Calls in this page."""
    last: Annotated[bool, "l", kinds.boolean()]
    """Whether the task ends with this page."""
    root: Annotated[bytes | None, "r", kinds.nullable(_HASH)] = None
    """Merkle root over the calls, for signatures (reserved)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Up to 4,096 calls of one task, as a client submits them."""

    header: Annotated[bytes, "h", kinds.data(16 * 1024)]
    """The CBOR of a `Header`."""
    calls: Annotated[bytes, "c", _BLOB]
    """A CBOR array of the calls: each a byte string, or [bytes, references, hints]."""
    key: Annotated[bytes, "k", kinds.data(16, 16)]
    """The task's key for slice tags; never forwarded."""
    collected: Annotated[Ranges, "d", _RANGES] = ()
    """What the client already has (on a repeat): never run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A slice [low, high) of one page, for one device. The number is the fence."""

    assignment: Annotated[int, "a", _UINT]
    header: Annotated[bytes, "h", kinds.data(16 * 1024)]
    low: Annotated[int, "l", _INDEX]
    high: Annotated[int, "u", kinds.unsigned(TASK_CALLS_MAX + 1)]
    tries: Annotated[int, "tr", kinds.unsigned(10_000)] = 0
    deaths: Annotated[int, "de", kinds.unsigned(10_000)] = 0
    losses: Annotated[int, "lo", kinds.unsigned(10_000)] = 0
    beat_ms: Annotated[int, "b", kinds.unsigned(3_600_000, 10)]
    tag: Annotated[bytes, "g", kinds.data(16, 16)]
    announce: Annotated[bool, "an", kinds.boolean()] = False
    """Send `started` and start only after its PUBACK: the call may have killed a device."""
    signature: Annotated[bytes | None, "sg", kinds.nullable(kinds.data(256))] = None
    """Reserved."""
    proof: Annotated[bytes | None, "pf", kinds.nullable(kinds.data(4_096))] = None
    """Range proof against the header's root (reserved)."""
    calls: Annotated[bytes, "c", _BLOB]
    """A CBOR array of the slice's calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeSet:
    """Outcomes of calls of one assignment. The values stay unread on their way."""

    task: Annotated[str, "k", _TASK]
    assignment: Annotated[int, "a", _UINT] = 0
    """0 where the controller made the outcome."""
    low: Annotated[int, "l", _INDEX] = 0
    """The slice as it was assigned (with `high` and `tag`: what the device was given)."""
    high: Annotated[int, "u", kinds.unsigned(TASK_CALLS_MAX + 1)] = 0
    tag: Annotated[bytes, "g", kinds.data(16, 0, 16)] = b""
    device: Annotated[str, "v", _NAME_OR_EMPTY] = ""
    """Only from the controller's archive: on a task topic the topic says it."""
    ranges: Annotated[Ranges, "r", _RANGES]
    """The indices, in the order of the items in `data`."""
    errors: Annotated[
        tuple[tuple[int, str, bool], ...],
        "x",
        kinds.list_of(kinds.row(_INDEX, _REASON, kinds.boolean())),
    ] = ()
    """(index, reason, final) of those that are errors. Reasons: error, timeout, died,
    cancelled, lost, no-device, version, unreadable, exit, refused."""
    run_us: Annotated[int, "us", _UINT] = 0
    """Time spent running these calls, in microseconds."""
    data: Annotated[bytes, "d", _BLOB]
    """A CBOR array of outcome items: [value], [kind, bytes, ...] or an error map."""


# -- linked messages ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """What every message between a controller and a device or client says first.

    `session` is the device's or client's, whether it sends or receives; `controller` is the
    controller's session ("" while its other end does not know it); `epoch` stands only in
    what the controller sends; `n` numbers what must arrive (0: need not); `seen` is the
    highest number without a gap received from the other end.
    """

    session: Annotated[str, "s", _SESSION_OR_EMPTY] = ""
    controller: Annotated[str, "c", _SESSION_OR_EMPTY] = ""
    epoch: Annotated[int, "e", kinds.unsigned(2**23 - 1)] = 0
    n: Annotated[int, "n", _UINT] = 0
    seen: Annotated[int, "q", _UINT] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen(Linked):
    """Nothing but `seen`; `gap` where a later message arrived before a missing one."""

    gap: Annotated[bool, "g", kinds.boolean()] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Linked):
    """A piece of an encoded message above the packet limit."""

    message: Annotated[int, "i", _UINT]
    """Which parted message of this sender's session."""
    index: Annotated[int, "x", kinds.unsigned(PARTS_MAX)]
    count: Annotated[int, "k", kinds.unsigned(PARTS_MAX, 1)]
    digest: Annotated[bytes | None, "h", kinds.nullable(_HASH)] = None
    """SHA-256 of the whole, in part 0."""
    data: Annotated[bytes, "d", kinds.data(PART_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable(Linked):
    """A numbered message that the decoder cannot use: of an unknown type, or wrong in a field.

    Nobody sends one. A link must count it as received, else its other end would repeat it for
    ever and send nothing else once the window is full; cores count it and drop it.
    """

    reason: Annotated[str, "reason", kinds.text()]


# -- controller to device (inbox) ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign(Linked):
    """Work for a device."""

    assignments: Annotated[
        tuple[Assignment, ...], "w", kinds.list_of(kinds.record(Assignment, table_of), 1_024)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim(Linked):
    """Take back unstarted tails: the device keeps [low, high) of each and answers `Trimmed`."""

    rows: Annotated[tuple[tuple[int, int], ...], "r", kinds.list_of(kinds.row(_UINT, _INDEX))]
    """(assignment, high wished for)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAssigned(Linked):
    """Skip calls of an assignment; with `force` kill those that run."""

    assignment: Annotated[int, "a", _UINT]
    ranges: Annotated[Ranges, "r", _RANGES]
    force: Annotated[bool, "f", kinds.boolean()] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledge(Linked):
    """These outcomes are committed: the device may forget them."""

    rows: Annotated[tuple[tuple[int, Ranges], ...], "r", kinds.list_of(kinds.row(_UINT, _RANGES))]
    """(assignment, indices)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Linked):
    """Send your inventory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget(Linked):
    """Kill and drop these assignments, say nothing of them again."""

    assignments: Annotated[tuple[int, ...], "a", kinds.list_of(_UINT)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(Linked):
    """Finish what runs and take nothing new (`on`), or take work again."""

    on: Annotated[bool, "o", kinds.boolean()]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRefused(Linked):
    """Another device holds this name: go away."""

    reason: Annotated[str, "r", _SENTENCE]
    address: Annotated[str, "v", kinds.text(256)] = ""
    """Where the device that holds the name connects from, as it says itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code(Linked):
    """A function's code, by content: client to controller, controller to device."""

    hash: Annotated[bytes, "h", _HASH]
    form: Annotated[str, "k", _FORM]
    data: Annotated[bytes, "d", _BLOB]


# -- device to controller (outbox), and outcomes (task topic) -----------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Linked):
    """Assignments taken that have not ended within the time of a bare `seen`."""

    assignments: Annotated[tuple[int, ...], "a", kinds.list_of(_UINT)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentRefused(Linked):
    """The device does not take an assignment (0: nothing of this controller)."""

    assignment: Annotated[int, "a", _UINT] = 0
    reason: Annotated[str, "r", _REASON]
    """epoch, full, draining, size, function, expired."""
    epoch_bound: Annotated[int, "eb", kinds.unsigned(2**23 - 1)] = 0
    """The epoch the device is bound to."""
    holder: Annotated[str, "ho", _SESSION_OR_EMPTY] = ""
    """The controller session that holds that epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat(Linked):
    """The smallest sign of life: QoS 0, at most 40 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInventory(Linked):
    """All assignments the device holds, and how far it had read its inbox when it looked."""

    received: Annotated[int, "rc", _UINT] = 0
    """The link's highest number without a gap when the rows were made: an assignment in a
    later message may be missing here and still arrive."""
    rows: Annotated[
        tuple[tuple[int, str, int, int, str], ...],
        "r",
        kinds.list_of(
            kinds.row(
                _UINT, _TASK, _INDEX, _INDEX, kinds.one_of("running", "queued", "unacknowledged")
            ),
        ),
    ]
    """(assignment, task, low, high, state); `queued`: nothing of it has started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Linked):
    """A running call's own word on how far it is."""

    task: Annotated[str, "k", _TASK]
    index: Annotated[int, "i", _INDEX]
    permille: Annotated[int, "p", kinds.unsigned(1_000)]
    text: Annotated[str, "x", kinds.text(256)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedCode(Linked):
    """Code by these hashes is not here (any more): device to controller, controller to client."""

    hashes: Annotated[tuple[bytes, ...], "h", kinds.list_of(_HASH)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed(Linked):
    """The answer to `Trim`: the device runs [low, high) of each, no more."""

    rows: Annotated[tuple[tuple[int, int], ...], "r", kinds.list_of(kinds.row(_UINT, _INDEX))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes(Linked):
    """Outcomes: on a task topic from a device, on a client's `to` topic from the controller."""

    sets: Annotated[
        tuple[OutcomeSet, ...], "o", kinds.list_of(kinds.record(OutcomeSet, table_of), 1_024)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Linked):
    """Calls that have run for 5 ms (or are about to, for an announced assignment)."""

    rows: Annotated[
        tuple[tuple[str, int, int], ...], "r", kinds.list_of(kinds.row(_TASK, _INDEX, _UINT))
    ]
    """(task, index, assignment)."""


# -- client to controller (from) ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Linked):
    """A client's first message on a link."""

    minor: Annotated[int, "v", kinds.unsigned(1_000)]
    """Protocol minor it speaks (the major is in the topic)."""
    python: Annotated[str, "p", _PYTHON] = ""
    packet_bytes_max: Annotated[int, "m", _PACKET] = PACKET_BYTES_MAX
    software: Annotated[str, "w", kinds.text(64)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit(Linked):
    """Pages of one or several tasks."""

    pages: Annotated[tuple[Page, ...], "p", kinds.list_of(kinds.record(Page, table_of), 1_024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(Linked):
    """Calls nobody wants any more; `force` kills those that run."""

    task: Annotated[str, "k", _TASK]
    ranges: Annotated[Ranges, "r", _RANGES]
    force: Annotated[bool, "f", kinds.boolean()] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected(Linked):
    """The client has these outcomes: the calls have ended."""

    rows: Annotated[tuple[tuple[str, Ranges], ...], "r", _TASK_RANGES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch(Linked):
    """The client lacks these outcomes; the controller sends them from the archive."""

    rows: Annotated[tuple[tuple[str, Ranges], ...], "r", _TASK_RANGES]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientInventory(Linked):
    """A client's open tasks and what it has of each, first on a new link."""

    rows: Annotated[
        tuple[tuple[str, int, Ranges], ...], "r", kinds.list_of(kinds.row(_TASK, _INDEX, _RANGES))
    ]
    """(task, calls submitted so far, collected)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach(Linked):
    """Send this task's outcomes, present and future, to this client too (same user)."""

    task: Annotated[str, "k", _TASK]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(Linked):
    """A question to the controller, answered by `Answer` with the same id."""

    id: Annotated[int, "i", kinds.unsigned(2**53)]
    what: Annotated[
        str, "w", kinds.one_of("devices", "tasks", "task", "logs", "explain", "history", "drain")
    ]
    name: Annotated[str, "k", kinds.text(64)] = ""
    """A device's name, a task's id or a call's name, as the question needs."""
    arguments: Annotated[dict[str, str], "a", kinds.text_map()] = field(default_factory=dict)


# -- controller to client (to) ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Linked):
    """The controller knows this client session."""

    minor: Annotated[int, "v", kinds.unsigned(1_000)]
    packet_bytes_max: Annotated[int, "m", _PACKET] = PACKET_BYTES_MAX
    devices: Annotated[int, "d", kinds.unsigned()] = 0
    """Devices alive now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged(Linked):
    """These pages are committed."""

    rows: Annotated[tuple[tuple[str, int], ...], "r", kinds.list_of(kinds.row(_TASK, _INDEX))]
    """(task, first index of the page)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Linked):
    """Outcomes committed a second ago that the client has not said it collected."""

    rows: Annotated[tuple[tuple[str, Ranges], ...], "r", _TASK_RANGES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Released(Linked):
    """The controller keeps nothing more of these tasks."""

    tasks: Annotated[tuple[str, ...], "k", kinds.list_of(_TASK)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionRefused(Linked):
    """A task (or an attachment to it) is not taken; its calls end with this sentence."""

    task: Annotated[str, "k", _TASK]
    reason: Annotated[str, "r", _REASON]
    """full, size, version, invalid, unknown, data-lost."""
    text: Annotated[str, "x", _SENTENCE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Linked):
    """What a `Query` asked for, as JSON."""

    id: Annotated[int, "i", kinds.unsigned(2**53)]
    ok: Annotated[bool, "o", kinds.boolean()] = True
    body: Annotated[bytes, "d", kinds.data(CALL_BYTES_MAX)]


# -- tables -------------------------------------------------------------------------------------

CBOR_MESSAGES: dict[str, type[Linked]] = {
    # both ways
    "seen": Seen,
    "part": Part,
    "code": Code,
    "need": NeedCode,
    "outcomes": Outcomes,
    # controller to device
    "assign": Assign,
    "trim": Trim,
    "cancel-assigned": CancelAssigned,
    "acknowledge": Acknowledge,
    "report": Report,
    "forget": Forget,
    "drain": Drain,
    "device-refused": DeviceRefused,
    # device to controller and client
    "accepted": Accepted,
    "assignment-refused": AssignmentRefused,
    "beat": Beat,
    "device-inventory": DeviceInventory,
    "progress": Progress,
    "trimmed": Trimmed,
    "started": Started,
    # client to controller
    "hello": Hello,
    "submit": Submit,
    "cancel": Cancel,
    "collected": Collected,
    "fetch": Fetch,
    "client-inventory": ClientInventory,
    "attach": Attach,
    "query": Query,
    # controller to client
    "welcome": Welcome,
    "acknowledged": Acknowledged,
    "settled": Settled,
    "released": Released,
    "submission-refused": SubmissionRefused,
    "answer": Answer,
}
"""The value of key `t` for each message."""

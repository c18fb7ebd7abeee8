"""What work is made of: pages of calls, assignments of slices, sets of outcomes.

Parts of messages, not messages: one frozen class for each rule of `forage.cddl`, fields as in
`forage_wire.messages`, from where they can be imported too.
"""

from typing import Annotated

from forage_wire import fields, kinds
from forage_wire.limits import (
    BACKOFF_MS_DEFAULT,
    CALL_BYTES_MAX,
    CALLS_PER_PAGE_MAX,
    LEASE_MS_DEFAULT,
    LEASE_MS_MIN,
    PACKET_BYTES_MAX,
    REPLICAS_MAX,
    TASK_CALLS_MAX,
    WAIT_MS_DEFAULT,
)
from forage_wire.ranges import Ranges
from forage_wire.records import dataclass
from forage_wire.table import table_of

__all__ = ["Assignment", "Header", "Options", "OutcomeSet", "Page"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a task's calls are to be run (part of a page's header)."""

    requires: Annotated[tuple[str, ...], "rq", kinds.list_of(kinds.text(128), 32)] = ()
    """What a device must have: `label`, `label=value`, or `resource>=number`."""
    devices: Annotated[tuple[str, ...], "d", kinds.list_of(fields.NAME, 256)] = ()
    """Only these devices; empty: any."""
    retries: Annotated[int, "re", kinds.unsigned(1_000)] = 0
    """Runs after the first that end in an exception or timeout before that is final."""
    timeout_ms: Annotated[int, "to", fields.DURATION] = 0
    """A call that runs longer is killed; 0: no limit."""
    priority: Annotated[int, "pr", kinds.integer(-100, 100)] = 0
    """Higher goes first."""
    at_most_once: Annotated[bool, "am", kinds.boolean()] = False
    """Never run again after it may have started."""
    fresh: Annotated[bool, "fr", kinds.boolean()] = False
    """Each call in a worker process of its own."""
    wait_ms: Annotated[int, "wa", fields.DURATION] = WAIT_MS_DEFAULT
    """How long to wait with no eligible device alive before `NoDevice`."""
    backoff_ms: Annotated[int, "bo", fields.DURATION] = BACKOFF_MS_DEFAULT
    """A call that raised or timed out is run again after half to all of this, then of twice as
    much, and so on up to `BACKOFF_MS_MAX`."""
    deadline_ms: Annotated[int, "dl", fields.DURATION] = 0
    """A call that has not ended so long after the controller got it ends then; 0: no limit."""
    clones: Annotated[bool, "cl", kinds.boolean()] = True
    """Whether a call that takes long may get a second attempt beside the first."""
    exclusive: Annotated[bool, "ex", kinds.boolean()] = False
    """Never two attempts of a call at a time, come what may (needs `settle=controller`)."""
    lease_ms: Annotated[int, "le", kinds.unsigned(3_600_000, LEASE_MS_MIN)] = LEASE_MS_DEFAULT
    """How long a device may run an exclusive call without having heard that it still may."""
    replicas: Annotated[int, "rp", kinds.unsigned(REPLICAS_MAX, 1)] = 1
    """Devices that each call is run on, each of them once: above 1, `settle` is `controller`."""
    quorum: Annotated[int, "qu", kinds.unsigned(REPLICAS_MAX)] = 0
    """Outcomes of a call's replicas that must agree; 0: the majority. The clients' affair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is true of every call of a page; carried verbatim, as one byte string, to the device."""

    user: Annotated[str, "u", fields.NAME]
    client: Annotated[str, "c", fields.CLIENT]
    task: Annotated[str, "t", fields.TASK]
    function: Annotated[bytes | tuple[str, str], "f", kinds.name_or_version()]
    """SHA-256 of the code, or (name, version) of a named function."""
    form: Annotated[str, "k", fields.FORM]
    """`pickle` (only for devices of the client's Python minor), `source` or `named`."""
    label: Annotated[str, "la", kinds.text(64)] = ""
    """The function's name, for people."""
    python: Annotated[str, "p", fields.PYTHON] = ""
    """The client's Python minor; empty where the client is none."""
    python_min: Annotated[int, "pm", kinds.unsigned(1_000)] = 11
    """Lowest Python 3 minor that can read the source (form `source`)."""
    packet_bytes_max: Annotated[int, "m", fields.PACKET] = PACKET_BYTES_MAX
    settle: Annotated[str, "s", kinds.one_of("direct", "controller")] = "direct"
    options: Annotated[Options, "o", kinds.record(Options, table_of)] = Options()
    first: Annotated[int, "i", fields.INDEX]
    """Index of the page's first call in its task."""
    n: Annotated[int, "n", kinds.unsigned(CALLS_PER_PAGE_MAX, 1)]
    """Calls in this page."""
    last: Annotated[bool, "l", kinds.boolean()]
    """Whether the task ends with this page."""
    root: Annotated[bytes | None, "r", kinds.nullable(fields.HASH)] = None
    """Merkle root over the calls, for signatures (reserved)."""
    replica: Annotated[int, "ri", kinds.unsigned(REPLICAS_MAX - 1)] = 0
    """Which of its calls' replicas the page holds (see `forage_wire.replicas`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Up to 4,096 calls of one task, as a client submits them."""

    header: Annotated[bytes, "h", kinds.data(16 * 1024)]
    """The CBOR of a `Header`."""
    calls: Annotated[bytes, "c", fields.BLOB]
    """A CBOR array of the calls: each a byte string, or [bytes, references, hints]."""
    key: Annotated[bytes, "k", kinds.data(16, 16)]
    """The task's key for slice tags; never forwarded."""
    collected: Annotated[Ranges, "d", fields.RANGES] = ()
    """What the client already has (on a repeat): never run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A slice [low, high) of one page, for one device. The number is the fence."""

    assignment: Annotated[int, "a", fields.UINT]
    header: Annotated[bytes, "h", kinds.data(16 * 1024)]
    low: Annotated[int, "l", fields.INDEX]
    high: Annotated[int, "u", kinds.unsigned(TASK_CALLS_MAX + 1)]
    tries: Annotated[int, "tr", kinds.unsigned(10_000)] = 0
    deaths: Annotated[int, "de", kinds.unsigned(10_000)] = 0
    losses: Annotated[int, "lo", kinds.unsigned(10_000)] = 0
    beat_ms: Annotated[int, "b", kinds.unsigned(3_600_000, 10)]
    tag: Annotated[bytes, "g", kinds.data(16, 16)]
    announce: Annotated[bool, "an", kinds.boolean()] = False
    """Send `started` and start only after its PUBACK: the call may have killed a device."""
    checkpoint: Annotated[
        tuple[int, bytes] | None,
        "cp",
        kinds.nullable(kinds.row(fields.UINT, kinds.data(CALL_BYTES_MAX))),
    ] = None
    """(number, data) of the last checkpoint of the slice's only call; null: it begins anew."""
    signature: Annotated[bytes | None, "sg", kinds.nullable(kinds.data(256))] = None
    """Reserved."""
    proof: Annotated[bytes | None, "pf", kinds.nullable(kinds.data(4_096))] = None
    """Range proof against the header's root (reserved)."""
    calls: Annotated[bytes, "c", fields.BLOB]
    """A CBOR array of the slice's calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeSet:
    """Outcomes of calls of one assignment. The values stay unread on their way."""

    task: Annotated[str, "k", fields.TASK]
    assignment: Annotated[int, "a", fields.UINT] = 0
    """0 where the controller made the outcome."""
    low: Annotated[int, "l", fields.INDEX] = 0
    """The slice as it was assigned (with `high` and `tag`: what the device was given)."""
    high: Annotated[int, "u", kinds.unsigned(TASK_CALLS_MAX + 1)] = 0
    tag: Annotated[bytes, "g", kinds.data(16, 0, 16)] = b""
    device: Annotated[str, "v", fields.NAME_OR_EMPTY] = ""
    """Only from the controller's archive: on a task topic the topic says it."""
    ranges: Annotated[Ranges, "r", fields.RANGES]
    """The indices, in the order of the items in `data`."""
    errors: Annotated[
        tuple[tuple[int, str, bool], ...],
        "x",
        kinds.list_of(kinds.row(fields.INDEX, fields.REASON, kinds.boolean())),
    ] = ()
    """(index, reason, final) of those that are errors. Reasons: error, timeout, died,
    cancelled, lost, no-device, version, unreadable, exit, refused."""
    run_us: Annotated[int, "us", fields.UINT] = 0
    """Time spent running these calls, in microseconds."""
    data: Annotated[bytes, "d", fields.BLOB]
    """A CBOR array of outcome items: [value], [kind, bytes, ...] or an error map. One for each
    index, or, where the controller made the outcomes, a single one that stands for all."""

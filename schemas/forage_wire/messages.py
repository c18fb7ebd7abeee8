"""Every message of the protocol: one frozen class for each rule of `forage.cddl`.

A field is `Annotated[type, key, kind]`: its name in Python, its key on the wire, what it
accepts. A field with a default may be absent on the wire. The codec reads these tables;
nothing else knows the keys. The text documents stand in `forage_wire.documents`, the parts that
messages are made of in `forage_wire.work`; both can be imported from here too.

Messages between a controller and a device or client are `Linked`: they name both sessions
and are numbered (see `forage_wire.link`).
"""

from typing import Annotated

from forage_wire import fields, kinds
from forage_wire.documents import (
    JSON_DOCUMENTS,
    ClientPresence,
    ControllerPresence,
    ControllerStats,
    DeviceCapabilities,
    DeviceLoad,
    DevicePresence,
    DeviceVerdict,
    TaskStatus,
)
from forage_wire.fields import SESSION_PATTERN
from forage_wire.limits import CALL_BYTES_MAX, PACKET_BYTES_MAX, PART_BYTES, PARTS_MAX
from forage_wire.ranges import Ranges
from forage_wire.records import dataclass, field
from forage_wire.table import table_of
from forage_wire.work import Assignment, Header, Options, OutcomeSet, Page

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
    "Checkpoint",
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
    "Lease",
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
    "Renew",
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
    "Join",
    "Journal",
    "Replicated",
    "Snapshot",
    "StandbyRefused",
]

# -- linked messages ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """What every message between a controller and a device or client says first.

    `session` is the device's or client's, whether it sends or receives; `controller` is the
    controller's session ("" while its other end does not know it); `epoch` stands only in
    what the controller sends; `n` numbers what must arrive (0: need not); `seen` is the
    highest number without a gap received from the other end.
    """

    session: Annotated[str, "s", fields.SESSION_OR_EMPTY] = ""
    controller: Annotated[str, "c", fields.SESSION_OR_EMPTY] = ""
    epoch: Annotated[int, "e", kinds.unsigned(2**23 - 1)] = 0
    n: Annotated[int, "n", fields.UINT] = 0
    seen: Annotated[int, "q", fields.UINT] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen(Linked):
    """Nothing but `seen`; `gap` where a later message arrived before a missing one."""

    gap: Annotated[bool, "g", kinds.boolean()] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Linked):
    """A piece of an encoded message above the packet limit."""

    message: Annotated[int, "i", fields.UINT]
    """Which parted message of this sender's session."""
    index: Annotated[int, "x", kinds.unsigned(PARTS_MAX)]
    count: Annotated[int, "k", kinds.unsigned(PARTS_MAX, 1)]
    digest: Annotated[bytes | None, "h", kinds.nullable(fields.HASH)] = None
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

    rows: Annotated[
        tuple[tuple[int, int], ...], "r", kinds.list_of(kinds.row(fields.UINT, fields.INDEX))
    ]
    """(assignment, high wished for)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAssigned(Linked):
    """Skip calls of an assignment; with `force` kill those that run."""

    assignment: Annotated[int, "a", fields.UINT]
    ranges: Annotated[Ranges, "r", fields.RANGES]
    force: Annotated[bool, "f", kinds.boolean()] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledge(Linked):
    """These outcomes are committed: the device may forget them."""

    rows: Annotated[
        tuple[tuple[int, Ranges], ...], "r", kinds.list_of(kinds.row(fields.UINT, fields.RANGES))
    ]
    """(assignment, indices)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Linked):
    """Send your inventory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget(Linked):
    """Kill and drop these assignments, say nothing of them again."""

    assignments: Annotated[tuple[int, ...], "a", kinds.list_of(fields.UINT)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(Linked):
    """Finish what runs and take nothing new (`on`), or take work again."""

    on: Annotated[bool, "o", kinds.boolean()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(Linked):
    """The answer to `Renew`: these may be run for `lease_ms` from when that was *sent*."""

    serial: Annotated[int, "i", fields.UINT]
    """Of the `Renew` that it answers."""
    assignments: Annotated[tuple[int, ...], "a", kinds.list_of(fields.UINT)]
    """Those of the asked ones that are open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRefused(Linked):
    """Another device holds this name: go away."""

    reason: Annotated[str, "r", fields.SENTENCE]
    address: Annotated[str, "v", kinds.text(256)] = ""
    """Where the device that holds the name connects from, as it says itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code(Linked):
    """A function's code, by content: client to controller, controller to device."""

    hash: Annotated[bytes, "h", fields.HASH]
    form: Annotated[str, "k", fields.FORM]
    data: Annotated[bytes, "d", fields.BLOB]


# -- device to controller (outbox), and outcomes (task topic) -----------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Linked):
    """Assignments taken that have not ended within the time of a bare `seen`."""

    assignments: Annotated[tuple[int, ...], "a", kinds.list_of(fields.UINT)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentRefused(Linked):
    """The device does not take an assignment (0: nothing of this controller)."""

    assignment: Annotated[int, "a", fields.UINT] = 0
    reason: Annotated[str, "r", fields.REASON]
    """epoch, full, draining, size, function, expired."""
    epoch_bound: Annotated[int, "eb", kinds.unsigned(2**23 - 1)] = 0
    """The epoch the device is bound to."""
    holder: Annotated[str, "ho", fields.SESSION_OR_EMPTY] = ""
    """The controller session that holds that epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat(Linked):
    """The smallest sign of life: QoS 0, at most 40 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew(Linked):
    """The device holds these exclusive assignments and asks whether it may (still) run them."""

    serial: Annotated[int, "i", fields.UINT]
    """Counts these questions of one start."""
    assignments: Annotated[tuple[int, ...], "a", kinds.list_of(fields.UINT)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInventory(Linked):
    """All assignments the device holds, and how far it had read its inbox when it looked."""

    received: Annotated[int, "rc", fields.UINT] = 0
    """The link's highest number without a gap when the rows were made: an assignment in a
    later message may be missing here and still arrive."""
    rows: Annotated[
        tuple[tuple[int, str, int, int, str], ...],
        "r",
        kinds.list_of(
            kinds.row(
                fields.UINT,
                fields.TASK,
                fields.INDEX,
                fields.INDEX,
                kinds.one_of("running", "queued", "unacknowledged"),
            ),
        ),
    ]
    """(assignment, task, low, high, state); `queued`: nothing of it has started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Linked):
    """A running call's own word on how far it is."""

    task: Annotated[str, "k", fields.TASK]
    index: Annotated[int, "i", fields.INDEX]
    permille: Annotated[int, "p", kinds.unsigned(1_000)]
    text: Annotated[str, "x", kinds.text(256)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Linked):
    """A running call's state, from which another attempt of it can go on."""

    task: Annotated[str, "k", fields.TASK]
    index: Annotated[int, "i", fields.INDEX]
    assignment: Annotated[int, "a", fields.UINT]
    number: Annotated[int, "x", kinds.unsigned(minimum=1)]
    """How many checkpoints lie behind the state, those of earlier attempts that it was built on
    included: of two, the higher one is further on."""
    data: Annotated[bytes, "d", kinds.data(CALL_BYTES_MAX)]
    """An outcome item of kind 0 to 3, as the worker made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedCode(Linked):
    """Code by these hashes is not here (any more): device to controller, controller to client."""

    hashes: Annotated[tuple[bytes, ...], "h", kinds.list_of(fields.HASH)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed(Linked):
    """The answer to `Trim`: the device runs [low, high) of each, no more."""

    rows: Annotated[
        tuple[tuple[int, int], ...], "r", kinds.list_of(kinds.row(fields.UINT, fields.INDEX))
    ]


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
        tuple[tuple[str, int, int], ...],
        "r",
        kinds.list_of(kinds.row(fields.TASK, fields.INDEX, fields.UINT)),
    ]
    """(task, index, assignment)."""


# -- client to controller (from) ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Linked):
    """A client's first message on a link."""

    minor: Annotated[int, "v", kinds.unsigned(1_000)]
    """Protocol minor it speaks (the major is in the topic)."""
    python: Annotated[str, "p", fields.PYTHON] = ""
    packet_bytes_max: Annotated[int, "m", fields.PACKET] = PACKET_BYTES_MAX
    software: Annotated[str, "w", kinds.text(64)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit(Linked):
    """Pages of one or several tasks."""

    pages: Annotated[tuple[Page, ...], "p", kinds.list_of(kinds.record(Page, table_of), 1_024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(Linked):
    """Calls nobody wants any more; `force` kills those that run."""

    task: Annotated[str, "k", fields.TASK]
    ranges: Annotated[Ranges, "r", fields.RANGES]
    force: Annotated[bool, "f", kinds.boolean()] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected(Linked):
    """The client has these outcomes: the calls have ended."""

    rows: Annotated[tuple[tuple[str, Ranges], ...], "r", fields.TASK_RANGES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch(Linked):
    """The client lacks these outcomes; the controller sends them from the archive."""

    rows: Annotated[tuple[tuple[str, Ranges], ...], "r", fields.TASK_RANGES]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientInventory(Linked):
    """A client's open tasks and what it has of each, first on a new link."""

    rows: Annotated[
        tuple[tuple[str, int, Ranges], ...],
        "r",
        kinds.list_of(kinds.row(fields.TASK, fields.INDEX, fields.RANGES)),
    ]
    """(task, calls submitted so far, collected)."""
    acknowledged: Annotated[tuple[tuple[str, Ranges], ...], "a", fields.TASK_RANGES] = ()
    """Calls whose pages were acknowledged, so that the client has them no more, and that have no
    outcome: whoever does not know them either has lost them."""
    others: Annotated[tuple[str, ...], "o", kinds.list_of(fields.TASK)] = ()
    """Tasks that are open too and that nobody needs to know: their pages follow."""
    whole: Annotated[bool, "w", kinds.boolean()] = False
    """The last of an inventory's messages: of this client's tasks, those that none of them named
    have ended for it, whoever has brought them back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach(Linked):
    """Send this task's outcomes, present and future, to this client too (same user)."""

    task: Annotated[str, "k", fields.TASK]


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
    packet_bytes_max: Annotated[int, "m", fields.PACKET] = PACKET_BYTES_MAX
    devices: Annotated[int, "d", kinds.unsigned()] = 0
    """Devices alive now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged(Linked):
    """These pages are committed."""

    rows: Annotated[
        tuple[tuple[str, int], ...], "r", kinds.list_of(kinds.row(fields.TASK, fields.INDEX))
    ]
    """(task, first index of the page)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Linked):
    """Outcomes committed a second ago that the client has not said it collected."""

    rows: Annotated[tuple[tuple[str, Ranges], ...], "r", fields.TASK_RANGES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Released(Linked):
    """The controller keeps nothing more of these tasks."""

    tasks: Annotated[tuple[str, ...], "k", kinds.list_of(fields.TASK)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionRefused(Linked):
    """A task (or an attachment to it) is not taken; its calls end with this sentence."""

    task: Annotated[str, "k", fields.TASK]
    reason: Annotated[str, "r", fields.REASON]
    """full, size, version, invalid, unknown, data-lost."""
    text: Annotated[str, "x", fields.SENTENCE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Linked):
    """What a `Query` asked for, as JSON."""

    id: Annotated[int, "i", kinds.unsigned(2**53)]
    ok: Annotated[bool, "o", kinds.boolean()] = True
    body: Annotated[bytes, "d", kinds.data(CALL_BYTES_MAX)]


# -- between controllers (standby, replica) -----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(Linked):
    """A standby's first message on a link: it is to hear of the active controller, and be fed."""

    schema: Annotated[int, "v", fields.UINT]
    """Of its store: another one's snapshot is of no use to it."""
    beat_ms: Annotated[int, "b", fields.DURATION]
    """It wants a sign of life at least this often."""
    copy: Annotated[bool, "k", kinds.boolean()] = True
    """False: it waits for the same disk, and wants signs of life alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicated(Linked):
    """The standby has committed all groups up to this one."""

    position: Annotated[int, "p", fields.UINT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Linked):
    """A piece of the active controller's store, as it was at one position; pieces come in order."""

    position: Annotated[int, "p", fields.UINT]
    offset: Annotated[int, "o", fields.UINT]
    size: Annotated[int, "z", fields.UINT]
    """Of the whole, in bytes."""
    data: Annotated[bytes, "d", fields.BLOB]


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal(Linked):
    """Committed groups, in order, each after all earlier ones; a large one comes in pieces."""

    position: Annotated[int, "p", fields.UINT]
    """Of the last group in it."""
    more: Annotated[bool, "m", kinds.boolean()] = False
    """The next message goes on with the same data."""
    data: Annotated[bytes, "d", fields.BLOB]
    """The CBOR array of operations, or a piece of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandbyRefused(Linked):
    """This standby cannot be fed: why, and what to do."""

    reason: Annotated[str, "r", fields.SENTENCE]


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
    "lease": Lease,
    "device-refused": DeviceRefused,
    # device to controller and client
    "accepted": Accepted,
    "assignment-refused": AssignmentRefused,
    "beat": Beat,
    "renew": Renew,
    "device-inventory": DeviceInventory,
    "progress": Progress,
    "checkpoint": Checkpoint,
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
    # between controllers
    "join": Join,
    "replicated": Replicated,
    "snapshot": Snapshot,
    "journal": Journal,
    "standby-refused": StandbyRefused,
}
"""The value of key `t` for each message."""

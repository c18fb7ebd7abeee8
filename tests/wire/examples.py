"""One realistic example of every message and document, and the bytes that must be refused.

The golden vectors are made from these (see `make_vectors.py`).
"""

import hashlib

import cbor2

from forage_wire import messages as m
from forage_wire.codec import encode_header, join_calls
from forage_wire.messages import Linked
from forage_wire.tags import slice_tag

__all__ = [
    "ASSIGNMENT",
    "CLIENT",
    "CONTROLLER",
    "DOCUMENTS",
    "EPOCH",
    "FULL",
    "HEADER",
    "HEADER_BYTES",
    "KEY",
    "LEAST",
    "OUTCOMES",
    "PAGE",
    "REFUSED_ENVELOPES",
    "SESSION",
    "TASK",
]

SESSION = "0123456789abcdef-1"
CONTROLLER = "fedcba9876543210-3"
CLIENT = "0c4t2v9k1m7ab"
TASK = CLIENT + "-2g"
EPOCH = 3
NUMBER = EPOCH * 2**40 + 17
KEY = bytes(range(16))
CODE = b"\xa1\x64name\x6bhelpers.mix"
CODE_HASH = hashlib.sha256(CODE).digest()
PLAIN_CALL = cbor2.dumps([0, [3, "red"]])
KEYWORD_CALL = cbor2.dumps([0, [], {"size": 2}])
CALLS = join_calls([PLAIN_CALL, [KEYWORD_CALL, [[TASK, 0]], {"out": 512}]])

HEADER = m.Header(
    user="ann",
    client=CLIENT,
    task=TASK,
    function=CODE_HASH,
    form="pickle",
    label="helpers.mix",
    python="3.11",
    python_min=11,
    packet_bytes_max=65_536,
    settle="controller",
    options=m.Options(
        requires=("camera", "site=roof", "memory_mib>=64"),
        devices=("pi-1", "pi-2"),
        retries=2,
        timeout_ms=60_000,
        priority=-5,
        at_most_once=True,
        fresh=True,
        wait_ms=5_000,
        backoff_ms=2_000,
        deadline_ms=90_000,
        clones=False,
        exclusive=True,
        lease_ms=3_000,
        replicas=3,
        quorum=2,
    ),
    first=4_096,
    n=2,
    last=True,
    root=b"\x11" * 32,
    replica=2,
)
HEADER_LEAST = m.Header(
    user="ann",
    client=CLIENT,
    task=TASK,
    function=("org.example.mix", "1.2"),
    form="named",
    first=0,
    n=2,
    last=True,
)
HEADER_BYTES = encode_header(HEADER_LEAST)
PAGE = m.Page(header=HEADER_BYTES, calls=CALLS, key=KEY, collected=((0, 1),))
TAG = slice_tag(KEY, TASK, NUMBER, 0, 2, "pi-1")
ASSIGNMENT = m.Assignment(
    assignment=NUMBER,
    header=HEADER_BYTES,
    low=0,
    high=2,
    tries=1,
    deaths=2,
    losses=3,
    beat_ms=250,
    tag=TAG,
    announce=True,
    checkpoint=(3, cbor2.dumps([{"step": 40}])),
    signature=b"\x22" * 64,
    proof=b"\x33" * 32,
    calls=CALLS,
)
ERROR_ITEM = {"reason": "timeout", "message": "The call ran longer than 60 s."}
OUTCOMES = m.OutcomeSet(
    task=TASK,
    assignment=NUMBER,
    low=0,
    high=2,
    tag=TAG,
    device="pi-1",
    ranges=((0, 2),),
    errors=((1, "timeout", True),),
    run_us=1_500,
    data=cbor2.dumps([[True], ERROR_ITEM]),
)
OUTCOMES_LEAST = m.OutcomeSet(task=TASK, ranges=((1, 2),), data=cbor2.dumps([[None]]))

_ROWS = ((TASK, ((0, 4), (9, 10))), (CLIENT + "-1", ()))

FULL: dict[str, Linked] = {
    "seen": m.Seen(gap=True),
    "part": m.Part(message=1, index=0, count=2, digest=b"\x44" * 32, data=b"first half"),
    "code": m.Code(hash=CODE_HASH, form="source", data=CODE),
    "need": m.NeedCode(hashes=(CODE_HASH,)),
    "outcomes": m.Outcomes(sets=(OUTCOMES, OUTCOMES_LEAST)),
    "assign": m.Assign(assignments=(ASSIGNMENT,)),
    "trim": m.Trim(rows=((NUMBER, 1), (NUMBER + 1, 4))),
    "cancel-assigned": m.CancelAssigned(assignment=NUMBER, ranges=((0, 1),), force=True),
    "acknowledge": m.Acknowledge(rows=((NUMBER, ((0, 2),)), (NUMBER + 1, ((0, 1), (3, 4))))),
    "report": m.Report(),
    "forget": m.Forget(assignments=(NUMBER, NUMBER + 1)),
    "drain": m.Drain(on=True),
    "lease": m.Lease(serial=5, assignments=(NUMBER,)),
    "device-refused": m.DeviceRefused(reason="another device is pi-1", address="192.0.2.7"),
    "accepted": m.Accepted(assignments=(NUMBER,)),
    "assignment-refused": m.AssignmentRefused(
        assignment=NUMBER, reason="epoch", epoch_bound=4, holder="00112233445566aa-12"
    ),
    "beat": m.Beat(),
    "renew": m.Renew(serial=5, assignments=(NUMBER, NUMBER + 1)),
    "device-inventory": m.DeviceInventory(
        received=7, rows=((NUMBER, TASK, 0, 2, "running"), (NUMBER + 1, TASK, 2, 3, "queued"))
    ),
    "progress": m.Progress(task=TASK, index=1, permille=400, text="resizing"),
    "checkpoint": m.Checkpoint(
        task=TASK, index=1, assignment=NUMBER, number=3, data=cbor2.dumps([{"step": 40}])
    ),
    "trimmed": m.Trimmed(rows=((NUMBER, 1),)),
    "started": m.Started(rows=((TASK, 1, NUMBER),)),
    "hello": m.Hello(minor=0, python="3.11", packet_bytes_max=65_536, software="forage 0.1.0"),
    "submit": m.Submit(pages=(PAGE,)),
    "cancel": m.Cancel(task=TASK, ranges=((0, 2),), force=True),
    "collected": m.Collected(rows=_ROWS),
    "fetch": m.Fetch(rows=_ROWS),
    "client-inventory": m.ClientInventory(
        rows=((TASK, 4_098, ((0, 4),)),),
        acknowledged=((TASK, ((4, 4_096),)),),
        others=(TASK,),
        whole=True,
    ),
    "attach": m.Attach(task=TASK),
    "query": m.Query(id=5, what="drain", name="pi-1", arguments={"on": "true"}),
    "welcome": m.Welcome(minor=0, packet_bytes_max=65_536, devices=3),
    "acknowledged": m.Acknowledged(rows=((TASK, 0), (TASK, 4_096))),
    "settled": m.Settled(rows=_ROWS),
    "released": m.Released(tasks=(TASK,)),
    "submission-refused": m.SubmissionRefused(
        task=TASK, reason="full", text="The controller's archive is full."
    ),
    "answer": m.Answer(id=5, ok=False, body=b'"no device pi-9"'),
    "join": m.Join(schema=1, beat_ms=125, copy=False),
    "replicated": m.Replicated(position=41),
    "snapshot": m.Snapshot(position=40, offset=0, size=28_672, data=b"SQLite format 3\x00"),
    "journal": m.Journal(
        position=41,
        more=True,
        data=cbor2.dumps([["ClosedAssignment", NUMBER], ["SaveReleased", TASK, False]]),
    ),
    "standby-refused": m.StandbyRefused(
        reason="its store has schema 2 and this controller's 1: bring both to one version of forage"
    ),
}
"""Every message with each of its own fields off its default."""

LEAST: dict[str, Linked] = {
    "seen": m.Seen(),
    "part": m.Part(message=0, index=1, count=2, data=b""),
    "code": m.Code(hash=CODE_HASH, form="pickle", data=b""),
    "need": m.NeedCode(hashes=()),
    "outcomes": m.Outcomes(sets=(OUTCOMES_LEAST,)),
    "assign": m.Assign(
        assignments=(
            m.Assignment(
                assignment=NUMBER,
                header=HEADER_BYTES,
                low=0,
                high=1,
                beat_ms=10,
                tag=bytes(16),
                calls=join_calls([PLAIN_CALL]),
            ),
        )
    ),
    "assignment-refused": m.AssignmentRefused(reason="full"),
    "device-refused": m.DeviceRefused(reason=""),
    "cancel-assigned": m.CancelAssigned(assignment=NUMBER, ranges=()),
    "device-inventory": m.DeviceInventory(rows=()),
    "progress": m.Progress(task=TASK, index=0, permille=0),
    "checkpoint": m.Checkpoint(task=TASK, index=0, assignment=NUMBER, number=1, data=b""),
    "hello": m.Hello(minor=0),
    "submit": m.Submit(pages=(m.Page(header=HEADER_BYTES, calls=CALLS, key=KEY),)),
    "cancel": m.Cancel(task=TASK, ranges=()),
    "query": m.Query(id=0, what="devices"),
    "welcome": m.Welcome(minor=0),
    "answer": m.Answer(id=0, body=b"[]"),
    "client-inventory": m.ClientInventory(rows=()),
    "join": m.Join(schema=1, beat_ms=3_750),
    "journal": m.Journal(position=1, data=b""),
}
"""Messages with nothing but what is required, where they have optional fields of their own."""

DOCUMENTS: dict[str, object] = {
    "device-presence": m.DevicePresence(
        state="online", session=SESSION, software="forage 0.1.0", uptime_s=12
    ),
    "device-capabilities": m.DeviceCapabilities(
        session=SESSION,
        slots=4,
        cores=4,
        strength=2.5,
        memory_bytes=4 * 2**30,
        queue_bytes_max=2**28,
        arch="aarch64",
        os="Debian 12",
        python="3.11",
        network="LAN1K",
        network_bytes_s=93_750_000,
        address="192.0.2.7",
        broker="mqtt://192.0.2.1:1883",
        labels={"site": "roof", "camera": ""},
        resources={"memory_mib": 4_096},
        functions={"org.example.mix": "1.2"},
    ),
    "device-load": m.DeviceLoad(
        session=SESSION,
        seq=9,
        cpu_percent=12.5,
        memory_percent=40,
        temperature_c=51.5,
        throttled=False,
        battery_percent=80,
        running=1,
        queued=3,
    ),
    "controller-presence": m.ControllerPresence(
        state="active", epoch=EPOCH, session=CONTROLLER, reconnect_spread_ms=500
    ),
    "controller-stats": m.ControllerStats(
        session=CONTROLLER,
        devices=3,
        slots=12,
        clients=1,
        tasks=2,
        queued=100,
        running=12,
        settled=5_000,
        settled_per_s=812.5,
        clones=2,
        clones_first=1,
        dropped=1,
        ignored=2,
        detect_ms=15_000,
        standbys={"attic": 2},
        copying=("shed",),
    ),
    "verdict": m.DeviceVerdict(verdict="suspect", why="silent for 8 s", since_s=8),
    "client-presence": m.ClientPresence(state="online", session=SESSION),
    "status": m.TaskStatus(
        label="helpers.mix",
        calls=100,
        queued=40,
        running=8,
        settled=52,
        failed=1,
        attempts=7,
        devices=("pi-1", "pi-2"),
    ),
}

_SEEN = b"\xa2\x61t\x64seen\x61n\x01"


def _around(value: bytes) -> bytes:
    return b"\xa2\x61t\x64seen\x62zz" + value


REFUSED_ENVELOPES: dict[str, bytes] = {
    "array of 2^64-1 items": b"\x9b" + b"\xff" * 8,
    "map of 2^64-1 items": b"\xbb" + b"\xff" * 8,
    "byte string of 2^64-1 bytes": b"\x5b" + b"\xff" * 8,
    "text of 2^64-1 bytes": b"\x7b" + b"\xff" * 8,
    "text of 2^63 bytes inside a map": _around(b"\x7b\x80" + b"\0" * 7),
    "nine arrays within each other": _around(b"\x81" * 8 + b"\x00"),
    "ends early": _SEEN[:-1],
    "trailing byte": _SEEN + b"\x00",
    "two messages": _SEEN + _SEEN,
    "nothing": b"",
    "shared reference to itself": _around(b"\xd8\x1c\x81\xd8\x1d\x00"),
    "shared reference to nothing": _around(b"\xd8\x1d\x00"),
    "string reference": _around(b"\xd9\x01\x00\x82\x63aaa\xd8\x19\x00"),
    "big number": _around(b"\xc2\x49\x01" + b"\0" * 8),
    "fraction": _around(b"\xd8\x1e\x82\x01\x02"),
    "decimal with a huge exponent": _around(b"\xc4\x82\x1b\x7f" + b"\xff" * 7 + b"\x01"),
    "big float": _around(b"\xc5\x82\x1a\x7f\xff\xff\xff\x01"),
    "unknown tag": _around(b"\xda\x00\x01\x00\x00\x00"),
    "tag for CBOR itself": b"\xd9\xd9\xf7" + _SEEN,
    "map as a key": _around(b"\xa1\xa0\x00"),
    "integer key": b"\xa2\x61t\x64seen\x01\x02",
    "byte string as a key": b"\xa2\x61t\x64seen\x41n\x02",
    "duplicate key": b"\xa3\x61t\x64seen\x61n\x01\x61n\x02",
    "duplicate unknown key": b"\xa3\x61t\x64seen\x62zz\x01\x62zz\x01",
    "indefinite map": b"\xbf\x61t\x64seen\xff",
    "indefinite text": b"\xa1\x61t\x7f\x64seen\xff",
    "indefinite byte string": _around(b"\x5f\x41a\xff"),
    "indefinite array": _around(b"\x9f\xff"),
    "break alone": b"\xff",
    "integer in 1 byte too many": b"\xa2\x61t\x64seen\x61n\x18\x01",
    "integer in 2 bytes that needs 1": b"\xa2\x61t\x64seen\x61n\x19\x00\xff",
    "integer in 4 bytes that needs 2": b"\xa2\x61t\x64seen\x61n\x1a\x00\x00\xff\xff",
    "integer in 8 bytes that needs 4": b"\xa2\x61t\x64seen\x61n\x1b\0\0\0\0\xff\xff\xff\xff",
    "negative integer in 1 byte too many": _around(b"\x38\x01"),
    "text with a longer head than it needs": b"\xa1\x61t\x78\x04seen",
    "byte string with a longer head than it needs": _around(b"\x58\x01a"),
    "the same inside an array": _around(b"\x81\x58\x01a"),
    "array with a longer head than it needs": _around(b"\x98\x00"),
    "map with a longer head than it needs": b"\xb8\x01\x61t\x64seen",
    "reserved length": _around(b"\x1c"),
    "reserved length of a byte string": _around(b"\x5d"),
    "half float": _around(b"\xf9\x3c\x00"),
    "single float": _around(b"\xfa\x3f\x80\x00\x00"),
    "double float": _around(b"\xfb\x3f\xf0" + b"\0" * 6),
    "not a number": _around(b"\xf9\x7e\x00"),
    "undefined": _around(b"\xf7"),
    "simple value": _around(b"\xe0"),
    "simple value in 1 byte": _around(b"\xf8\xff"),
    "text that is not UTF-8": _around(b"\x62\xc3\x28"),
    "lone surrogate": _around(b"\x63\xed\xa0\x80"),
    "key that is not UTF-8": b"\xa2\x61t\x64seen\x61\xff\x00",
    "no type": b"\xa1\x61n\x01",
    "type is a number": b"\xa1\x61t\x01",
    "type is an array": b"\xa1\x61t\x80",
    "unknown type, not numbered": b"\xa1\x61t\x63abc",
    "no map": b"\x80",
    "an integer": b"\x00",
    "true as a number": b"\xa2\x61t\x64seen\x61n\xf5",
    "negative number": b"\xa2\x61t\x64seen\x61n\x20",
    "number of 64 bits": b"\xa2\x61t\x64seen\x61n\x1b" + b"\xff" * 8,
    "JSON": b'{"t":"seen"}',
}
"""What is refused of any message, each for one reason."""

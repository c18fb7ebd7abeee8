"""Every message of every branch is shown, whatever it holds; nothing in it is run."""

import os
import pickle
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forage.cli.reading import Reader, one_line, read_payload
from forage_wire.codec import encode, encode_header, encode_json, join_calls
from forage_wire.documents import JSON_DOCUMENTS, ControllerPresence, DevicePresence
from forage_wire.errors import DecodeError
from forage_wire.messages import (
    Acknowledge,
    Assign,
    Assignment,
    Beat,
    Collected,
    Header,
    Outcomes,
    OutcomeSet,
    Page,
    Part,
    Seen,
    Submit,
)
from forage_wire.parts import cut_parts
from forage_wire.topics import Topics
from forage_wire.values import encode_call, encode_error, encode_outcome_value
from wire import strategies

TOPICS = Topics()
CLIENT = "0123456789abc"
TASK = f"{CLIENT}-1"
SESSION = "0123456789abcdef-1"
EPOCH_2 = 2 << 40

HEADER = Header(
    user="ann", client=CLIENT, task=TASK, function=b"\1" * 32, form="source", label="resize",
    python="3.11", first=0, n=2, last=True,
)  # fmt: skip


def read(topic: str, payload: bytes) -> Any:
    return Reader(TOPICS).read(topic, payload)


def test_a_document_is_shown_with_all_its_fields() -> None:
    presence = DevicePresence(state="online", session=SESSION, uptime_s=5)
    found = read(TOPICS.device_presence("pi-1"), encode_json(presence))
    assert (found.branch, found.kind, found.problem) == ("device-presence", "device-presence", "")
    assert found.topic == "device/pi-1/presence"
    assert one_line(found.content) == (
        f"state=online session={SESSION} protocol=1.0 software='' uptime_s=5"
    )


def test_work_is_shown_with_its_arguments() -> None:
    calls = join_calls([encode_call(("photo.jpg", 0.5), {"keep": True}), encode_call((7,), {})])
    page = Page(header=encode_header(HEADER), calls=calls, key=b"\2" * 16)
    found = read(
        TOPICS.from_client("ann", CLIENT), encode(Submit(pages=(page,), session=SESSION, n=3))
    )
    assert found.kind == "submit"
    assert found.link == {"session": SESSION}
    [shown] = found.content["pages"]
    assert shown["calls"] == ["('photo.jpg', 0.5, keep=True)", "(7)"]
    assert shown["header"]["label"] == "resize"
    assert "020202" not in one_line(found.content)


def test_an_assignment_is_named_by_epoch_and_count() -> None:
    calls = join_calls([encode_call((number,), {}) for number in range(20)])
    work = Assignment(
        assignment=EPOCH_2 + 9, header=encode_header(HEADER), low=0, high=20, beat_ms=100,
        tag=b"\3" * 16, calls=calls,
    )  # fmt: skip
    found = read(TOPICS.inbox("pi-1"), encode(Assign(assignments=(work,), session=SESSION, n=1)))
    [shown] = found.content["assignments"]
    assert shown["assignment"] == "2:9"
    assert shown["calls"][:2] == ["(0)", "(1)"]
    assert shown["calls"][-1] == "… 12 more"


def test_outcomes_are_shown_as_python_writes_them() -> None:
    try:
        raise ValueError("too large")
    except ValueError as error:
        failed = encode_error(error)
    items = [encode_outcome_value({"a": (1, 2)}), failed]
    data = cbor2.dumps([cbor2.loads(item) for item in items])
    outcome = OutcomeSet(
        task=TASK, assignment=EPOCH_2, low=0, high=2, ranges=((0, 2),), data=data,
        errors=((1, "error", True),),
    )  # fmt: skip
    found = read(TOPICS.task("ann", CLIENT, TASK, "pi-1"), encode(Outcomes(sets=(outcome,))))
    [shown] = found.content["sets"]
    assert shown["ranges"] == "0-1"
    assert shown["data"] == ["{'a': (1, 2)}", "ValueError: 'too large'"]


def test_rows_are_shown_with_assignments_and_ranges() -> None:
    rows = ((EPOCH_2 + 5, ((0, 1), (4, 9))),)
    found = read(TOPICS.inbox("pi-1"), encode(Acknowledge(rows=rows, n=(3 << 32) + 4, seen=2)))
    assert one_line(found.content) == "n=3/4 seen=2 rows=[[2:5, 0 4-8]]"
    found = read(TOPICS.from_client("ann", CLIENT), encode(Collected(rows=((TASK, ((0, 3),)),))))
    assert one_line(found.content) == f"rows=[[{TASK}, 0-2]]"


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    data = pickle.dumps(((Trap(str(trap)),), {}))
    body = cbor2.dumps([2, data])
    page = Page(header=encode_header(HEADER), calls=join_calls([body]), key=b"\2" * 16)
    found = read(TOPICS.from_client("ann", CLIENT), encode(Submit(pages=(page,))))
    assert found.content["pages"][0]["calls"] == [f"pickle, {len(data)} bytes"]
    outcome = OutcomeSet(task=TASK, ranges=((0, 1),), data=cbor2.dumps([[2, data]]))
    found = read(TOPICS.task("ann", CLIENT, TASK, "pi-1"), encode(Outcomes(sets=(outcome,))))
    assert found.content["sets"][0]["data"] == [f"pickle, {len(data)} bytes"]
    assert not trap.exists()


def test_parts_are_shown_one_by_one_and_the_last_one_as_the_whole() -> None:
    calls = join_calls([encode_call((b"x" * 100_000,), {})])
    page = Page(header=encode_header(HEADER), calls=calls, key=b"\2" * 16)
    whole = encode(Submit(pages=(page,), session=SESSION))
    reader = Reader(TOPICS)
    topic = TOPICS.from_client("ann", CLIENT)
    parts = cut_parts(whole, 1, 65_536)
    shown = [
        reader.read(topic, encode(part, session=SESSION, n=n)) for n, part in enumerate(parts, 1)
    ]
    assert [reading.kind for reading in shown] == ["part"] * (len(parts) - 1) + ["submit"]
    assert shown[0].content["data"] == f"{len(parts[0].data)} bytes"


def test_output_of_tasks_is_text_as_it_is() -> None:
    found = read(TOPICS.log("ann", CLIENT, TASK, "pi-1"), "17 out grüße\n17 err no".encode())
    assert found.content == "17 out grüße\n17 err no"


def test_an_empty_retained_message_clears_what_was_there() -> None:
    assert read(TOPICS.client_presence("ann", CLIENT), b"").kind == "cleared"


def test_a_foreign_topic_is_shown_too() -> None:
    found = read("home/kitchen/temperature", b"21.5")
    assert (found.branch, found.content, found.problem) == ("", "'21.5'", "not a topic of forage")


def test_what_is_wrong_is_said() -> None:
    found = read(TOPICS.inbox("pi-1"), b"\xff\x00")
    assert found.kind == "unreadable"
    assert found.problem.startswith("a tag, float or other value")
    assert found.content == "2 bytes: ff00"
    found = read(TOPICS.device_presence("pi-1"), b'{"state":"asleep"}')
    assert found.problem


@pytest.mark.parametrize("message_class", strategies.MESSAGE_CLASSES)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_every_message_can_be_shown(message_class: type, data: st.DataObject) -> None:
    message = data.draw(strategies.instances(message_class))
    found = read(TOPICS.outbox("pi-1"), encode(message))
    assert found.problem == "" or isinstance(message, Part)
    assert one_line(found.content) == "" or found.content


@pytest.mark.parametrize("branch", sorted(JSON_DOCUMENTS))
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_every_document_can_be_shown(branch: str, data: st.DataObject) -> None:
    document = data.draw(strategies.instances(JSON_DOCUMENTS[branch]))
    found = read(DOCUMENT_TOPICS[branch], encode_json(document))
    assert (found.branch, found.problem) == (branch, "")
    assert one_line(found.content)


DOCUMENT_TOPICS = {
    "device-presence": TOPICS.device_presence("pi-1"),
    "device-capabilities": TOPICS.device_capabilities("pi-1"),
    "device-load": TOPICS.device_load("pi-1"),
    "controller-presence": TOPICS.controller_presence("main"),
    "controller-stats": TOPICS.controller_stats("main"),
    "verdict": TOPICS.verdict("main", "pi-1"),
    "client-presence": TOPICS.client_presence("ann", CLIENT),
    "status": TOPICS.status("ann", CLIENT, TASK),
}
BRANCHES = [
    TOPICS.device_presence("a"),
    TOPICS.device_load("a"),
    TOPICS.controller_stats("a"),
    TOPICS.inbox("a"),
    TOPICS.log("a", CLIENT, TASK, "a"),
    TOPICS.task("a", CLIENT, "-", "a"),
    "else/where",
]


@settings(deadline=None)
@given(topic=st.sampled_from(BRANCHES), payload=st.binary(max_size=200))
def test_no_bytes_stop_the_reader(topic: str, payload: bytes) -> None:
    one_line(read(topic, payload).content)


@settings(deadline=None)
@given(calls=st.binary(max_size=60), data=st.binary(max_size=60))
def test_no_bytes_inside_of_work_stop_the_reader(calls: bytes, data: bytes) -> None:
    page = Page(header=encode_header(HEADER), calls=join_calls([calls]), key=b"\2" * 16)
    assert read(TOPICS.from_client("a", CLIENT), encode(Submit(pages=(page,)))).kind == "submit"
    outcome = OutcomeSet(task=TASK, ranges=((0, 1),), data=data)
    payload = encode(Outcomes(sets=(outcome,)))
    assert read(TOPICS.task("a", CLIENT, TASK, "a"), payload).kind == "outcomes"


def test_bytes_without_a_topic_are_told_apart() -> None:
    assert read_payload(encode(Beat(session=SESSION))) == ("beat", {"session": SESSION})
    assert read_payload(encode(Seen(seen=4))) == ("seen", {"seen": 4})
    presence = ControllerPresence(state="active", epoch=1, session=SESSION)
    assert read_payload(encode_json(presence))[0] == "controller-presence"
    assert read_payload(encode_header(HEADER))[0] == "header"
    with pytest.raises(DecodeError):
        read_payload(b"\xa1\x61")
    with pytest.raises(DecodeError):
        read_payload(b'{"a": 1}')

"""Sessions, epochs, presence, beats: whom the core obeys, and how it is heard."""

import json

import cbor2
import pytest

from core.agent_harness import (
    CODE,
    CODE_HASH,
    CONTROLLER,
    SESSION,
    Harness,
    assignment,
    number,
    session,
)
from forage_agent.core.events import (
    CapabilitiesMeasured,
    ExitAsked,
    ExitProcess,
    InputDropped,
    LoadMeasured,
)
from forage_agent.core.settings import LOAD_EVERY_MS
from forage_wire.codec import decode, decode_json, encode, encode_json
from forage_wire.io import Connected, Disconnected, MessageReceived, Note
from forage_wire.messages import (
    Acknowledge,
    Assign,
    AssignmentRefused,
    Beat,
    Code,
    DeviceCapabilities,
    DeviceInventory,
    DeviceLoad,
    DevicePresence,
    DeviceRefused,
    Outcomes,
    Report,
    Seen,
)

OTHER = session(0xC1)


@pytest.fixture
def bench() -> Harness:
    harness = Harness()
    harness.start()
    return harness


def states(bench: Harness) -> list[str]:
    """The states of all presence documents published."""
    return [
        decode_json(payload, DevicePresence).state
        for topic, payload in bench.documents
        if topic.endswith("/presence")
    ]


def loads(bench: Harness) -> list[DeviceLoad]:
    return [
        decode_json(payload, DeviceLoad)
        for topic, payload in bench.documents
        if topic.endswith("/load")
    ]


def test_connection_publishes_presence_capabilities_and_load_retained() -> None:
    bench = Harness()
    bench.connect()
    assert [topic.rsplit("/", 1)[1] for topic, _ in bench.documents] == [
        "presence",
        "capabilities",
        "load",
    ]
    assert all(one.retain for one in bench.published)
    assert all(json.loads(payload)["session"] == SESSION for _, payload in bench.documents)


def test_will_says_lost_with_the_session_it_is_for() -> None:
    will = Harness().core.will(SESSION)
    document = decode_json(will.payload, DevicePresence)
    assert (document.state, document.session, will.retain) == ("lost", SESSION, True)


def test_numbered_message_without_gap_is_reported_seen_after_20_ms(bench: Harness) -> None:
    bench.advance(1_000)
    bench.forget_said()
    bench.send(Acknowledge(rows=()))
    bench.advance(20)
    seen = [decode(one.payload) for one in bench.published if one.topic.endswith("outbox/dev")]
    assert [type(message) for message in seen] == [Seen]
    assert seen[0].seen == 3


def test_controllers_presence_is_answered_once_with_inventory(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.put(Connected(session=session(0xD0, 2)))
    bench.session = session(0xD0, 2)
    bench.new_link(CONTROLLER)
    bench.forget_said()
    bench.controller_presence(CONTROLLER)
    [inventory] = bench.messages(DeviceInventory)
    assert (inventory.n, inventory.received) == (1, 0)
    assert [row[0] for row in inventory.rows] == [number(1)]
    assert states(bench) == ["online"]
    bench.controller_presence(CONTROLLER)
    assert len(bench.messages(DeviceInventory)) == 1


def test_restarted_controller_gets_inventory_and_all_outcomes_again(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.finish(1, 0)
    bench.new_link(OTHER, epoch=2)
    bench.forget_said()
    bench.controller_presence(OTHER, epoch=2)
    assert [type(message) for message in bench.said] == [DeviceInventory, Outcomes]


@pytest.mark.parametrize("state", ["starting", "standby", "offline", "lost"])
def test_controller_that_is_not_active_gets_no_answer(state: str) -> None:
    bench = Harness()
    bench.connect()
    bench.forget_said()
    bench.controller_presence(CONTROLLER, state=state)
    assert bench.said == []


def test_epoch_belongs_to_the_first_start_that_uses_it(bench: Harness) -> None:
    bench.new_link(OTHER, epoch=1)
    bench.send(Report())
    [refused] = bench.messages(AssignmentRefused)
    assert (refused.reason, refused.epoch_bound, refused.holder) == ("epoch", 1, CONTROLLER)
    assert refused.controller == OTHER
    assert bench.messages(DeviceInventory) == []


def test_lower_epoch_is_refused_after_a_higher_one(bench: Harness) -> None:
    bench.new_link(OTHER, epoch=3)
    bench.send(Report())
    bench.forget_said()
    bench.new_link(CONTROLLER, epoch=1)
    bench.assign(assignment(1))
    [refused] = bench.messages(AssignmentRefused)
    assert (refused.epoch_bound, refused.holder) == (3, OTHER)
    assert bench.given() == []


def test_controller_that_reconnects_with_its_epoch_gets_a_new_link(bench: Harness) -> None:
    bench.new_link(session(0xC0, 2), epoch=1)
    bench.send(Report())
    assert len(bench.messages(DeviceInventory)) == 1


def test_message_of_a_controllers_older_connection_is_dropped(bench: Harness) -> None:
    bench.new_link(session(0xC0, 2), epoch=1)
    bench.send(Report())
    bench.new_link(CONTROLLER, epoch=1)
    bench.forget_said()
    bench.assign(assignment(1))
    assert bench.given() == []
    assert bench.said == []


def test_presence_of_a_lower_epoch_does_not_take_the_link_away(bench: Harness) -> None:
    bench.new_link(OTHER, epoch=3)
    bench.send(Report())
    bench.forget_said()
    bench.controller_presence(CONTROLLER, epoch=1)
    assert bench.said == []
    bench.assign(assignment(1, epoch=3))
    bench.send(Code(hash=CODE_HASH, form="pickle", data=CODE))
    assert bench.given() == [(0, number(1, 3), 0, 1)]


def test_device_keeps_running_and_keeps_outcomes_without_a_connection(bench: Harness) -> None:
    bench.assign(assignment(1, 0, 2))
    bench.put(Disconnected())
    bench.forget_said()
    bench.finish(1, 0)
    bench.finish(1, 1)
    bench.advance(60_000)
    assert bench.published == []
    bench.connect(session(0xD0, 2))
    bench.send(Report())
    assert bench.outcomes() == {0: 0, 1: 1}


def test_beats_come_at_the_shortest_period_while_work_is_held(bench: Harness) -> None:
    bench.assign(assignment(1, beat_ms=500), assignment(2, beat_ms=200))
    bench.advance(100)
    bench.forget_said()
    bench.advance(1_000)
    # What is repeated unseen is a sign of life too, and stands for a beat.
    assert len(bench.messages(Beat)) >= 4
    assert len([one for one in bench.published if "load" not in one.topic]) >= 5
    beats = [one for one in bench.published if one.topic.endswith("outbox/dev") and one.qos == 0]
    assert max(len(one.payload) for one in beats) <= 40


def test_outcomes_that_are_not_acknowledged_keep_the_beats_going(bench: Harness) -> None:
    bench.assign(assignment(1, beat_ms=200))
    bench.finish(1, 0)
    bench.advance(50)
    bench.forget_said()
    bench.advance(400)
    assert len(bench.messages(Beat)) == 2
    bench.send(Acknowledge(rows=((number(1), ((0, 1),)),)))
    bench.advance(50)
    bench.forget_said()
    bench.advance(2_000)
    assert bench.messages(Beat) == []


def test_idle_device_says_its_load_every_30_s(bench: Harness) -> None:
    bench.advance(LOAD_EVERY_MS)
    bench.forget_said()
    bench.advance(3 * LOAD_EVERY_MS)
    assert len(loads(bench)) == 3


def test_load_is_said_when_work_begins_but_at_most_once_a_second(bench: Harness) -> None:
    bench.advance(5_000)
    bench.forget_said()
    bench.assign(assignment(1))
    assert [load.running for load in loads(bench)] == [1]
    bench.finish(1, 0)
    bench.assign(assignment(2))
    bench.finish(2, 0)
    assert len(loads(bench)) == 1
    bench.advance(1_000)
    assert [load.running for load in loads(bench)] == [1, 0]


def test_measured_change_of_the_load_is_news(bench: Harness) -> None:
    bench.advance(5_000)
    bench.forget_said()
    bench.put(LoadMeasured(cpu_percent=5, memory_percent=1))
    assert loads(bench) == []
    bench.put(LoadMeasured(cpu_percent=80, memory_percent=1, temperature_c=50))
    assert [load.cpu_percent for load in loads(bench)] == [80]


def test_stale_will_is_repaired_at_once_then_once_a_second(bench: Harness) -> None:
    topic = bench.topics.device_presence("dev")
    lost = MessageReceived(topic=topic, payload=bench.core.will(SESSION).payload)
    bench.put(lost)
    bench.put(lost)
    bench.put(lost)
    assert states(bench) == ["online"]
    bench.advance(1_000)
    assert states(bench) == ["online", "online"]


def test_another_starts_online_is_left_alone(bench: Harness) -> None:
    topic = bench.topics.device_presence("dev")
    other = DevicePresence(state="online", session=session(0xDD))
    bench.put(MessageReceived(topic=topic, payload=encode_json(other)))
    bench.advance(5_000)
    assert states(bench) == []


def test_refused_device_says_goodbye_and_exits_2_with_reason_and_address(bench: Harness) -> None:
    bench.send(DeviceRefused(reason="the name is taken", address="10.0.0.7"))
    [end] = [one for one in bench.others if isinstance(one, ExitProcess)]
    assert end.code == 2
    assert "the name is taken" in end.reason
    assert "10.0.0.7" in end.reason
    assert states(bench) == ["offline"]


def test_exit_sends_what_has_ended_then_says_offline(bench: Harness) -> None:
    bench.confirms = False
    bench.assign(assignment(1, 0, 2))
    bench.finish(1, 0)
    bench.finish(1, 1)
    bench.put(ExitAsked(code=0, reason="SIGTERM"))
    assert bench.outcomes() == {0: 0, 1: 1}
    assert states(bench)[-1] == "offline"
    [end] = [one for one in bench.others if isinstance(one, ExitProcess)]
    assert end.code == 0


def test_new_capabilities_are_published(bench: Harness) -> None:
    bench.put(CapabilitiesMeasured(capabilities=DeviceCapabilities(session="", slots=1, cores=9)))
    assert [json.loads(payload)["cores"] for _topic, payload in bench.documents] == [9]


GARBAGE = [
    b"",
    b"\xff" * 50,
    b"{}",
    b"\xa1atfassign",
    encode(Beat(session=SESSION, controller=CONTROLLER, epoch=1)),
    bytes(200_000),
]


@pytest.mark.parametrize("payload", GARBAGE)
def test_bad_input_is_dropped_and_counted(bench: Harness, payload: bytes) -> None:
    topics = [
        bench.topics.inbox("dev"),
        bench.topics.controller_presence("main"),
        bench.topics.device_presence("dev"),
        "forage/1/inbox/somebody-else",
        "something/else",
        "forage/1/" + "x" * 60_000,
    ]
    before = len(bench.said)
    for topic in topics:
        bench.put(MessageReceived(topic=topic, payload=payload))
    assert sum(bench.core.notes.counts.values()) >= 3
    assert len(bench.said) == before
    bench.assign(assignment(1))
    assert bench.given() == [(0, number(1), 0, 1)]


def test_bad_input_makes_one_note_a_second_for_each_kind(bench: Harness) -> None:
    for _ in range(100):
        bench.put(MessageReceived(topic="forage/1/inbox/dev", payload=b"garbage"))
    notes = [one for one in bench.others if isinstance(one, Note)]
    assert len(notes) == 1
    bench.advance(1_000)
    notes = [one for one in bench.others if isinstance(one, Note)]
    assert len(notes) == 2
    assert "count=99" in notes[1].text
    assert bench.core.notes.counts["unreadable"] == 100


def test_message_dropped_by_the_shell_is_counted(bench: Harness) -> None:
    bench.put(InputDropped(topic="forage/1/inbox/dev", reason="5000000 bytes"))
    assert bench.core.notes.counts["dropped"] == 1


def test_message_of_another_kind_in_the_inbox_is_counted(bench: Harness) -> None:
    bench.send(Outcomes(sets=()))
    assert bench.core.notes.counts["unexpected"] == 1


def test_lost_message_is_waited_for_and_order_is_kept(bench: Harness) -> None:
    bench.link.send(Assign(assignments=(assignment(1),)))
    bench.link.send(Assign(assignments=(assignment(2),)))
    first, second = bench.link.poll(bench.now_ms)
    bench.inbox(second.payload)
    assert bench.given() == []
    bench.inbox(first.payload)
    assert bench.given() == [(0, number(1), 0, 1)]


def test_controllers_spread_is_known_to_the_shell(bench: Harness) -> None:
    bench.controller_presence(CONTROLLER)
    assert bench.core.reconnect_spread_ms == 500


def test_keys_of_a_newer_controller_are_ignored_counted_and_told_of_once(bench: Harness) -> None:
    for _ in range(3):
        bench.link.send(Report())
        [out] = bench.link.poll(bench.now_ms)
        bench.inbox(cbor2.dumps({**cbor2.loads(out.payload), "zz": 1}))
    texts = [one.text for one in bench.others if isinstance(one, Note)]
    assert texts == ["unknown keys ignored from=the controller keys='Report.zz'"]
    assert bench.core.ignored.count == 3
    assert len(bench.messages(DeviceInventory)) == 3

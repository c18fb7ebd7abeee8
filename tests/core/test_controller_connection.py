"""The controller's core and its own connection: what does not count while it is away."""

from core.desk import TOPICS, Desk, Disconnected
from core.test_controller_restart import _assignment, _state
from forage_controller.core.config import Limits
from forage_wire.codec import encode, encode_json
from forage_wire.io import Connected, MessageReceived
from forage_wire.messages import (
    Beat,
    ControllerPresence,
    ControllerStats,
    DeviceVerdict,
    Forget,
    Outcomes,
    Submit,
    TaskStatus,
)


def back(desk: Desk, counter: int) -> None:
    """The broker took us again, as the controller's `counter`th connection."""
    desk.handle(Connected(session=f"{desk.start}-{counter}"))
    desk.run()


def test_without_a_broker_nothing_is_ever_due() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(100)
    client.submit(1, requires=("camera",))
    pi.inventory((77, "1" * 13 + "-1", 0, 4, "running"))
    pi.finish(pi.assignments[0])
    assert desk.core.next_wakeup_ms() is not None
    desk.handle(Disconnected())
    desk.run()
    assert desk.core.next_wakeup_ms() is None
    assert task in desk.core.ledger.tasks


def test_devices_not_heard_before_a_broken_connection_have_their_time_again() -> None:
    saved = _assignment(0, 2, "f" * 16 + "-1")
    desk = Desk(recovered=_state(2, assignments=(saved,))).begin()
    desk.advance(1_000)
    desk.handle(Disconnected())
    desk.now_ms += 60_000
    back(desk, 2)
    assert saved.assignment in desk.core.assignments.open
    desk.advance(2_000)
    assert saved.assignment in desk.core.assignments.open
    desk.advance(3_000)
    assert saved.assignment not in desk.core.assignments.open


def test_calls_do_not_wait_for_devices_while_we_hear_none() -> None:
    desk = Desk().begin()
    client = desk.client()
    client.submit(1, wait_ms=5_000)
    desk.advance(1_000)
    desk.handle(Disconnected())
    desk.now_ms += 60_000
    client.link = None
    client.counter = 2
    back(desk, 2)
    client.hello(controller=f"{desk.start}-2")
    client.flush()
    desk.run()
    desk.advance(4_000)
    assert not client.of(Outcomes)
    desk.advance(2_000)
    assert client.of(Outcomes)


def test_what_is_held_for_an_unknown_task_has_its_whole_time_after_we_were_away() -> None:
    desk = Desk(limits=Limits(orphan_ms=5_000)).begin()
    pi = desk.device("pi1", answers=False)
    pi.inventory((99, "1" * 13 + "-1", 0, 4, "running"))
    desk.run()
    desk.handle(Disconnected())
    desk.now_ms += 60_000
    pi.received.clear()
    back(desk, 2)
    desk.advance(4_000)
    assert not pi.of(Forget)
    desk.advance(2_000)
    assert pi.of(Forget)


def test_devices_held_by_a_storm_have_time_to_come_back_with_us() -> None:
    desk = Desk(detect_ms=1_000).begin()
    desk.advance(10_000)
    fleet = [desk.device(f"pi{number}") for number in range(8)]
    desk.client().submit(8)
    for pi in fleet[:4]:
        pi.answers = False
        pi.say("lost")
    held = [pi for pi in fleet[:4] if desk.core.fleet.devices[pi.name].assignments]
    assert len(held) == 3
    desk.handle(Disconnected())
    desk.now_ms += 60_000
    back(desk, 2)
    assert all(desk.core.fleet.devices[pi.name].assignments for pi in held)
    desk.advance(4_000)
    assert not any(desk.core.fleet.devices[pi.name].assignments for pi in held)


def test_what_a_broker_kept_is_said_again_to_one_that_forgot_it() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(10)
    desk.advance(2_500)
    desk.handle(Disconnected())
    desk.published.clear()
    back(desk, 2)
    desk.advance(1_100)
    assert [row.verdict for row in desk.documents("verdict", DeviceVerdict)] == ["alive"]
    assert desk.documents("controller-stats", ControllerStats)
    assert desk.documents("status", TaskStatus)
    assert pi.assignments


def test_a_late_will_of_an_earlier_connection_does_not_stay() -> None:
    desk = Desk().begin(session="c" * 16 + "-1")
    desk.handle(Disconnected())
    back(desk, 2)
    desk.advance(2_000)
    desk.published.clear()
    late = ControllerPresence(state="lost", epoch=1, session="c" * 16 + "-1")
    for _ in range(3):
        desk.publish(TOPICS.controller_presence("main"), encode_json(late))
        desk.run()
    desk.advance(5_000)
    said = desk.documents("controller-presence", ControllerPresence)
    assert [(row.state, row.session) for row in said] == [("active", "c" * 16 + "-2")] * 2


def test_a_loop_that_is_always_a_little_late_still_finds_the_dead() -> None:
    desk = Desk(detect_ms=10_000).begin()
    desk.advance(10_000)
    pi = desk.device("pi1")
    desk.client().submit(1)
    assert pi.assignments
    del desk.devices["pi1"]
    for _ in range(40):
        due = desk.core.next_wakeup_ms()
        assert due is not None
        desk.now_ms = max(desk.now_ms, due) + 1_000
        desk.run()
    assert desk.core.fleet.devices["pi1"].verdict == "dead"


def test_a_long_pause_of_the_loop_does_not_count_as_silence_however_it_went_on() -> None:
    desk = Desk(detect_ms=1_000).begin()
    desk.advance(10_000)
    pi = desk.device("pi1")
    desk.client().submit(1)
    pi.link = None
    desk.core.next_wakeup_ms()
    desk.now_ms += 5_000
    desk.run()
    due = desk.core.next_wakeup_ms()
    assert due is not None
    desk.now_ms = due + 50
    desk.run()
    assert desk.core.fleet.devices["pi1"].verdict != "dead"
    desk.publish(TOPICS.outbox("pi1"), encode(Beat(), session=pi.session))
    desk.run()
    assert desk.core.fleet.devices["pi1"].verdict == "alive"


def test_what_comes_while_starting_is_kept_within_bounds() -> None:
    desk = Desk(limits=Limits(starting_bytes=1_000))
    desk.handle(Connected(session=f"{desk.start}-1"))
    client = desk.client()
    client.hello()
    assert client.link is not None
    client.link.send(Submit(pages=(client.page(2),)))
    payloads = [out.payload for out in client.link.poll(desk.now_ms)]
    topic = TOPICS.from_client(client.user, client.name)
    for payload in payloads:
        desk.handle(MessageReceived(topic=topic, payload=payload))
    desk.handle(MessageReceived(topic=topic, payload=b"x" * 1_000))
    desk.run()
    desk.advance(200)
    assert len(desk.core.ledger.tasks) == 1
    assert not desk.core.effects.dropped


def test_an_epoch_of_the_connection_before_that_is_committed_late_is_the_only_one() -> None:
    desk = Desk()
    desk.commits = False
    desk.handle(Connected(session=f"{desk.start}-1"))
    desk.advance(200)
    desk.handle(Disconnected())
    desk.handle(Connected(session=f"{desk.start}-2"))
    desk.run()
    desk.commit()
    desk.run()
    assert desk.presence[-1] == "active"
    desk.advance(1_000)
    assert desk.presence.count("active") == 1
    assert not desk.uncommitted
    assert desk.core.epoch == 1

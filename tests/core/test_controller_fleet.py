"""The controller's core: who is alive, whose session counts, whose work goes elsewhere."""

from core.desk import TOPICS, Desk, FakeDevice
from forage_controller.core.config import Limits
from forage_wire.codec import encode, encode_json
from forage_wire.io import Connected, Disconnected
from forage_wire.messages import (
    AssignmentRefused,
    Beat,
    ControllerPresence,
    DeviceLoad,
    DeviceRefused,
    DeviceVerdict,
    Forget,
    Outcomes,
    Report,
    Started,
)


def _pair(desk: Desk, calls: int = 4, **options: object) -> tuple[FakeDevice, FakeDevice]:
    """Two devices; the first holds all calls of one task when the second joins."""
    holder = desk.device("pi1")
    desk.client().submit(calls, **options)
    assert len(holder.assignments) == calls
    return holder, desk.device("pi2")


def test_a_will_sends_work_elsewhere_at_once_in_front_and_possible_starts_announced() -> None:
    desk = Desk().begin()
    holder, spare = _pair(desk)
    holder.say("lost")
    assert [row.low for row in spare.assignments] == [0, 1, 2, 3]
    assert [row.announce for row in spare.assignments] == [True] * 4
    assert desk.documents("verdict", DeviceVerdict)[-1].verdict == "dead"


def test_calls_reported_started_count_a_loss() -> None:
    desk = Desk().begin()
    holder, spare = _pair(desk)
    first = holder.assignments[0]
    task = next(iter(desk.core.ledger.tasks))
    topic = TOPICS.task("bob", desk.clients[0].name, task, "pi1")
    holder.send(Started(rows=((task, 0, first.assignment),)), topic)
    desk.run()
    holder.say("lost")
    assert [row.losses for row in spare.assignments] == [1, 0, 0, 0]


def test_what_a_lost_session_sent_before_does_not_revive_it() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    pi.say("lost")
    desk.publish(TOPICS.outbox("pi1"), encode(Beat(), session=pi.session))
    desk.run()
    assert desk.core.fleet.devices["pi1"].verdict == "dead"


def test_a_stale_will_changes_nobodys_view() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    pi.counter = 2
    pi.join()
    pi.counter = 1
    pi.say("lost")
    assert desk.core.fleet.devices["pi1"].verdict == "alive"


def test_at_most_once_is_never_run_again_after_its_device_was_lost() -> None:
    desk = Desk().begin()
    holder = desk.device("pi1")
    client = desk.client()
    client.submit(2, at_most_once=True)
    (given,) = holder.assignments
    spare = desk.device("pi2")
    desk.advance(30)
    holder.say("lost")
    (outcomes,) = client.of(Outcomes)
    assert outcomes.sets[0].ranges == ((given.low, given.high),)
    assert outcomes.sets[0].errors[0][1:] == ("lost", True)
    assert all(row.low != given.low for row in spare.assignments)


def test_silence_of_a_busy_device_is_suspect_at_half_and_dead_at_the_end() -> None:
    desk = Desk(detect_ms=1_000).begin()
    desk.advance(10_000)
    _, spare = _pair(desk)
    del desk.devices["pi1"]
    desk.advance(600)
    assert [row.verdict for row in desk.documents("verdict", DeviceVerdict)][-1] == "suspect"
    desk.advance(500)
    assert desk.core.fleet.devices["pi1"].verdict == "dead"
    assert [row.low for row in spare.assignments] == [0, 1, 2, 3]


def test_a_device_that_never_says_a_word_after_it_was_given_work_is_found_dead() -> None:
    desk = Desk(detect_ms=1_000).begin()
    desk.advance(10_000)
    desk.device("pi1")
    desk.advance(1_000)
    del desk.devices["pi1"]
    desk.client().submit(1)
    desk.advance(900)
    assert desk.core.fleet.devices["pi1"].verdict == "suspect"
    desk.advance(200)
    assert desk.core.fleet.devices["pi1"].verdict == "dead"


def test_a_living_device_that_never_got_its_work_is_asked_when_it_is_given_up_and_is_back() -> None:
    desk = Desk(detect_ms=500).begin()
    desk.advance(10_000)
    pi = desk.device("pi1")
    desk.advance(1_000)
    client = desk.client()
    deaf = desk.devices.pop("pi1")
    client.submit(1)
    desk.devices["pi1"] = deaf
    # What was lost is repeated after a second, and by then it has been called dead.
    desk.advance(600)
    verdicts = [row.verdict for row in desk.documents("verdict", DeviceVerdict)]
    assert verdicts[-2:] == ["dead", "alive"]
    assert [row.low for row in pi.assignments] == [0], "and it has its work now"


def test_a_dead_device_is_asked_for_a_while_and_then_left_alone() -> None:
    desk = Desk(detect_ms=500).begin()
    desk.advance(10_000)
    desk.device("pi1")
    desk.client().submit(1)
    del desk.devices["pi1"]
    desk.advance(20_000)
    said = len([one for one in desk.published if one.topic == TOPICS.inbox("pi1")])
    desk.advance(600_000)
    assert len([one for one in desk.published if one.topic == TOPICS.inbox("pi1")]) == said


def test_beats_keep_a_busy_device_alive() -> None:
    desk = Desk(detect_ms=1_000).begin()
    desk.advance(10_000)
    holder, _spare = _pair(desk)
    holder.link = None
    for _round in range(20):
        desk.publish(TOPICS.outbox("pi1"), encode(Beat(), session=holder.session))
        desk.run()
        desk.advance(200)
    assert desk.core.fleet.devices["pi1"].verdict == "alive"


def _given_up_by_the_broker(desk: Desk) -> FakeDevice:
    """A device that holds work, whose connection the broker has ended after 15 s of silence."""
    holder, _spare = _pair(desk)
    holder.answers = False
    desk.advance(15_500)
    holder.say("lost")
    return holder


def test_a_connection_that_a_broker_ended_for_its_silence_leaves_the_rest_of_the_detection_time() -> (
    None
):
    desk = Desk(detect_ms=60_000).begin()
    desk.advance(10_000)
    holder = _given_up_by_the_broker(desk)
    spare = desk.devices["pi2"]
    device = desk.core.fleet.devices["pi1"]
    assert (device.verdict, device.why) == ("suspect", "its connection broke in its silence")
    assert not spare.assignments
    # What the broker keeps is said again to whoever subscribes again, and tells nothing new.
    holder.say("lost")
    assert device.verdict == "suspect"
    desk.advance(40_000)
    assert device.verdict == "suspect"
    desk.advance(5_000)
    assert device.verdict == "dead"
    assert [row.low for row in spare.assignments] == [0, 1, 2, 3]


def test_a_device_that_is_back_before_the_detection_time_is_over_keeps_its_work() -> None:
    desk = Desk(detect_ms=60_000).begin()
    desk.advance(10_000)
    holder = _given_up_by_the_broker(desk)
    task = next(iter(desk.core.ledger.tasks))
    rows = [(row.assignment, task, row.low, row.high, "running") for row in holder.assignments]
    holder.counter, holder.link = 2, None
    holder.join()
    holder.inventory(*rows)
    desk.run()
    assert desk.core.fleet.devices["pi1"].verdict == "alive"
    assert not desk.devices["pi2"].assignments
    for given in list(holder.assignments):
        holder.finish(given)
    assert desk.core.ledger.settled == 4


def test_a_process_that_dies_is_dead_at_once_however_long_the_detection_time_is() -> None:
    desk = Desk(detect_ms=60_000).begin()
    desk.advance(10_000)
    holder, spare = _pair(desk)
    assert {row.beat_ms for row in holder.assignments} == {5_000}
    holder.link = None
    desk.advance(16_000)
    desk.publish(TOPICS.outbox("pi1"), encode(Beat(), session=holder.session))
    desk.advance(5_000)
    holder.say("lost")
    assert [row.low for row in spare.assignments] == [0, 1, 2, 3]


def test_an_idle_device_is_not_asked_to_beat() -> None:
    desk = Desk(detect_ms=500).begin()
    pi = desk.device("pi1")
    for seq in range(6):
        load = DeviceLoad(session=pi.session, seq=seq)
        desk.publish(TOPICS.device_load("pi1"), encode_json(load))
        desk.run()
        desk.advance(30_000)
    assert desk.core.fleet.devices["pi1"].verdict == "alive"


def test_silence_does_not_count_while_the_controller_was_away() -> None:
    desk = Desk(detect_ms=1_000).begin()
    desk.advance(10_000)
    holder, _spare = _pair(desk)
    holder.link = None
    desk.core.next_wakeup_ms()
    desk.now_ms += 5_000
    desk.run()
    assert desk.core.fleet.devices["pi1"].verdict == "alive"


def test_a_retained_online_gets_no_work_until_its_session_answers() -> None:
    desk = Desk().begin()
    ghost = FakeDevice(name="ghost", desk=desk, start="9" * 16, answers=False)
    desk.devices["ghost"] = ghost
    ghost.join()
    client = desk.client()
    client.submit(1)
    assert ghost.of(Report)
    assert not ghost.assignments
    ghost.inventory()
    desk.run()
    assert ghost.assignments


def test_what_an_inventory_lacks_never_started_and_goes_out_again() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    desk.client().submit(2)
    assert len(pi.assignments) == 2
    before = {row.assignment for row in pi.assignments}
    pi.counter = 2
    pi.link = None
    pi.assignments.clear()
    pi.join()
    assert [row.low for row in pi.assignments] == [0, 1]
    assert not before & {row.assignment for row in pi.assignments}
    assert not any(row.announce for row in pi.assignments)


def test_what_an_inventory_shows_is_kept() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    desk.client().submit(2)
    task = next(iter(desk.core.ledger.tasks))
    rows = [(row.assignment, task, row.low, row.high, "queued") for row in pi.assignments]
    pi.answers = False
    pi.counter = 2
    pi.link = None
    pi.join()
    pi.inventory(*rows)
    desk.run()
    assert len(pi.assignments) == 2
    pi.finish(pi.assignments[0])
    pi.finish(pi.assignments[1])
    assert desk.core.ledger.settled == 2


def test_a_device_started_anew_lost_what_it_had() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    desk.client().submit(2)
    pi.say("lost")
    pi.start = "e" * 16
    pi.link = None
    pi.assignments.clear()
    pi.join()
    assert [(row.low, row.announce) for row in pi.assignments] == [(0, True), (1, True)]


def test_a_connection_that_was_over_long_ago_takes_no_name_even_if_nobody_answers() -> None:
    desk = Desk().begin()
    first = desk.device("pi1")
    first.counter = 2
    first.join()
    first.say("lost")
    second = FakeDevice(name="pi1", desk=desk, start="9".zfill(16))
    desk.devices["pi1"] = second
    second.join()
    assert desk.core.fleet.devices["pi1"].session == second.session
    second.answers = False
    first.counter = 1
    first.say("online")
    desk.advance(2_000)
    assert desk.core.fleet.devices["pi1"].session == second.session
    assert desk.core.fleet.devices["pi1"].verdict == "alive"


def test_a_second_device_of_a_name_at_work_is_refused() -> None:
    desk = Desk().begin()
    first = desk.device("pi1")
    second = FakeDevice(name="pi1", desk=desk, start="f" * 16)
    inboxes: list[bytes] = []
    desk.publish(
        TOPICS.device_presence("pi1"),
        encode_json(_online(second)),
    )
    desk.run()
    inboxes = [
        message.payload for message in desk.published if message.topic == TOPICS.inbox("pi1")
    ]
    from forage_wire.codec import decode

    refused = [message for message in map(decode, inboxes) if isinstance(message, DeviceRefused)]
    assert [message.session for message in refused] == [second.session]
    assert desk.core.fleet.devices["pi1"].session == first.session


def _online(device: FakeDevice) -> object:
    from forage_wire.messages import DevicePresence

    return DevicePresence(state="online", session=device.session)


def test_a_second_start_takes_the_name_when_the_first_does_not_answer() -> None:
    desk = Desk().begin()
    first = desk.device("pi1")
    first.answers = False
    second = FakeDevice(name="pi1", desk=desk, start="f" * 16)
    desk.devices["pi1"] = second
    second.join()
    desk.advance(1_500)
    assert desk.core.fleet.devices["pi1"].session == second.session
    desk.client().submit(1)
    assert second.assignments


def test_whoever_wanted_a_name_before_our_connection_broke_does_not_get_it_by_that() -> None:
    desk = Desk().begin()
    first = desk.device("pi1")
    first.answers = False
    second = FakeDevice(name="pi1", desk=desk, start="f" * 16)
    second.join()
    desk.handle(Disconnected())
    desk.advance(10_000)
    desk.handle(Connected(session=f"{desk.start}-2"))
    desk.advance(3_000)
    assert desk.core.fleet.devices["pi1"].session == first.session


def test_many_devices_gone_at_once_are_the_networks_fault_for_one_window() -> None:
    desk = Desk(detect_ms=1_000).begin()
    desk.advance(10_000)
    fleet = [desk.device(f"pi{number}") for number in range(8)]
    client = desk.client()
    client.submit(8)
    holders = [pi for pi in fleet if pi.assignments]
    assert len(holders) == 8
    for pi in holders[:4]:
        pi.answers = False
        presence = _presence(pi, "lost")
        desk.publish(TOPICS.device_presence(pi.name), presence)
    desk.run()
    alive = holders[4:]
    # The first was taken for dead by itself; from the second on it is a storm.
    assert sum(len(pi.assignments) for pi in alive) == 4 + 1
    for _round in range(6):
        for pi in alive:
            desk.publish(TOPICS.outbox(pi.name), encode(Beat(), session=pi.session))
        desk.run()
        desk.advance(250)
    for pi in alive:
        for given in list(pi.assignments):
            pi.finish(given)
    assert sorted(given.low for pi in alive for given in pi.assignments) == list(range(8))


def _presence(device: FakeDevice, state: str) -> bytes:
    from forage_wire.messages import DevicePresence

    return encode_json(DevicePresence(state=state, session=device.session))


def test_another_active_controller_ends_a_starting_one_in_words() -> None:
    desk = Desk()
    from forage_wire.io import Connected

    desk.handle(Connected(session="c" * 16 + "-1"))
    rival = ControllerPresence(state="active", epoch=7, session="d" * 16 + "-1")
    desk.publish(TOPICS.controller_presence("other"), encode_json(rival))
    desk.run()
    assert [end.code for end in desk.exits] == [2]
    assert "other" in desk.exits[0].reason


def test_a_running_controller_answers_a_starting_one_and_the_lower_epoch_yields() -> None:
    desk = Desk().begin()
    starting = ControllerPresence(state="starting", epoch=0, session="d" * 16 + "-1")
    desk.publish(TOPICS.controller_presence("other"), encode_json(starting))
    desk.run()
    assert desk.presence[-2:] == ["active", "active"]
    higher = ControllerPresence(state="active", epoch=9, session="d" * 16 + "-1")
    desk.publish(TOPICS.controller_presence("other"), encode_json(higher))
    desk.run()
    assert [end.code for end in desk.exits] == [2]


def test_the_epoch_is_above_any_that_is_retained() -> None:
    desk = Desk()
    old = ControllerPresence(state="lost", epoch=41, session="d" * 16 + "-1")
    desk.publish(TOPICS.controller_presence("main"), encode_json(old), retain=True)
    desk.begin()
    assert desk.core.epoch == 42
    assert not desk.exits


def test_an_assignment_of_a_task_nobody_claims_is_forgotten_after_a_minute() -> None:
    desk = Desk(limits=Limits(orphan_ms=5_000)).begin()
    pi = desk.device("pi1")
    pi.inventory((99, "1" * 13 + "-1", 0, 4, "running"))
    desk.run()
    assert not pi.of(Forget)
    desk.advance(6_000)
    assert pi.of(Forget)[0].assignments == (99,)


def test_a_device_bound_to_a_higher_epoch_makes_the_controller_take_the_next() -> None:
    desk = Desk().begin()
    obedient = desk.device("pi1")
    desk.client().submit(1)
    pi = desk.device("pi2")
    assert pi.link is not None
    refusal = AssignmentRefused(
        session=pi.session,
        controller=f"{desk.start}-1",
        reason="epoch",
        epoch_bound=9,
        holder="d" * 16 + "-1",
    )
    pi.received.clear()
    pi.link = None
    desk.publish(TOPICS.outbox("pi2"), encode(refusal))
    desk.run()
    assert desk.presence[-1] == "starting", "it asks whether another rules"
    assert desk.core.epoch == 1
    desk.advance(2_100)
    assert desk.core.epoch == 10
    (report,) = pi.of(Report)
    assert report.epoch == 10
    assert report.n == (1 << 32) + 1, "the first of the second link with this session"
    obedient.finish(obedient.assignments[0])
    assert desk.core.ledger.settled == 1
    desk.clients[0].submit(8)
    given = [row for row in [*obedient.assignments, *pi.assignments] if row.assignment >> 40 == 10]
    assert sum(row.high - row.low for row in given) == 8


def test_what_a_device_has_not_seen_does_not_keep_the_epoch_before() -> None:
    """Nobody else's refusal says that this device obeys a higher epoch too; its own comes late."""
    desk = Desk().begin()
    desk.device("pi1")
    pi = desk.device("pi2", answers=False)
    pi.link = None
    pi.received.clear()
    pi.answers = True
    refusal = AssignmentRefused(
        session=desk.devices["pi1"].session,
        controller=f"{desk.start}-1",
        reason="epoch",
        epoch_bound=9,
        holder="d" * 16 + "-1",
    )
    # Asked under epoch 1, which it does not answer, as who obeys epoch 9 would not.
    assert desk.core.fleet.devices["pi2"].link.unseen
    desk.publish(TOPICS.outbox("pi1"), encode(refusal))
    desk.run()
    desk.advance(2_100)
    assert desk.core.epoch == 10
    report = pi.of(Report)[-1]
    assert report.epoch == 10
    assert report.n == (1 << 32) + 1

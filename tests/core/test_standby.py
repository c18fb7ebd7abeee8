"""A standby's core beside an active one's: what is fed, when it takes over, and who is fenced."""

import pytest

from core.desk import TOPICS
from core.pair import ACTIVE_START, START, Pair, presence
from forage_controller.core.config import Limits
from forage_controller.core.feed import SCHEMA_VERSION
from forage_controller.core.operations import SaveOutcomes, SavePage
from forage_wire.codec import encode
from forage_wire.io import BatchEnded
from forage_wire.messages import (
    Acknowledge,
    Acknowledged,
    Beat,
    ControllerStats,
    Join,
    Linked,
)


def pages(pair: Pair) -> list[str]:
    return [one.task for one in pair.standby.operations if isinstance(one, SavePage)]


def stats(pair: Pair) -> ControllerStats:
    found: ControllerStats = pair.active.documents("controller-stats", ControllerStats)[-1]
    return found


# -- the copy -------------------------------------------------------------------------------------


def test_one_that_joins_late_has_all_that_was_there_and_all_that_comes() -> None:
    pair = Pair()
    pair.active.begin()
    pi = pair.active.device("pi1")
    client = pair.active.client()
    before = client.submit(3)
    pi.finish(pi.assignments[0])
    pair.run()
    pair.join()
    assert pair.standby.core.following.is_whole
    after = client.submit(2)
    pair.run()
    assert pages(pair) == [before, after]
    assert [one.task for one in pair.standby.operations if isinstance(one, SaveOutcomes)] == [
        before
    ]
    assert pair.standby.epoch == pair.active.core.epoch == 1
    assert pair.standby.operations == pair.active.saved, "in the same order, each once"


def test_nothing_is_replicated_that_is_not_committed() -> None:
    pair = Pair().begin()
    pair.active.commits = False
    task = pair.active.client().submit(1)
    pair.run()
    assert pages(pair) == []
    pair.active.commits = True
    pair.active.run()
    pair.run()
    assert pages(pair) == [task]


def test_what_is_larger_than_a_packet_arrives_in_pieces_and_in_order() -> None:
    pair = Pair().begin()
    client = pair.active.client()
    tasks = [client.submit(n) for n in (4_096, 4_096, 1)]
    pair.active.advance(500)
    pair.run()
    assert pages(pair) == tasks
    assert pair.standby.operations == pair.active.saved


def test_the_figures_say_who_follows_and_how_far_behind_it_is() -> None:
    pair = Pair().begin()
    pair.advance(1_200)
    assert (stats(pair).standbys, stats(pair).copying) == ({"attic": 0}, ())
    pair.standby.commits = False
    pair.active.client().submit(1)
    pair.advance(1_200)
    assert stats(pair).standbys["attic"] > 0
    pair.standby.commits = True
    pair.advance(1_200)
    assert stats(pair).standbys == {"attic": 0}


def test_one_without_a_complete_copy_is_named_as_such_and_holds_nothing_up() -> None:
    pair = Pair()
    pair.active.snapshots_fail = "the disk is full"
    pair.begin()
    pair.advance(1_200)
    assert stats(pair).copying == ("attic",)
    assert any("the disk is full" in note for note in pair.active.notes)
    client = pair.active.client()
    client.submit(1, at_most_once=True)
    pi = pair.active.device("pi1")
    assert pi.assignments
    pair.active.snapshots_fail = ""
    pair.advance(31_000)
    assert pair.standby.core.following.is_whole


def test_a_message_that_was_lost_is_repeated() -> None:
    pair = Pair(detect_ms=20_000).begin()
    pair.up = False
    task = pair.active.client().submit(1)
    pair.run()
    assert pages(pair) == []
    pair.up = True
    pair.advance(2_500)
    assert pages(pair) == [task]


def test_one_whose_connection_broke_begins_with_a_new_copy() -> None:
    pair = Pair().begin()
    pair.part()
    task = pair.active.client().submit(1)
    pair.run()
    pair.join(counter=2)
    assert pages(pair) == [task]
    assert pair.standby.operations == pair.active.saved


def test_one_that_falls_too_far_behind_is_let_go_and_begins_with_a_new_copy() -> None:
    pair = Pair(active={"limits": Limits(standby_bytes=20_000)}, detect_ms=20_000).begin()
    pair.down = False
    client = pair.active.client()
    for _ in range(40):
        client.submit(1_000)
        pair.run()
    assert any("must begin with a new copy" in note for note in pair.active.notes)
    pair.down = True
    pair.advance(25_000)
    assert pair.standby.core.following.is_whole
    assert pair.standby.operations == pair.active.saved
    assert not pair.standby.taken


def test_another_schema_is_refused_in_words() -> None:
    pair = Pair().begin()
    pair.advance(20)
    link = pair.standby.core.following.link
    assert link is not None
    later = Join(schema=99, beat_ms=100)
    payload = encode(
        later, session=link.session, controller=link.controller, n=(1 << 32) + 1, seen=1 << 32
    )
    pair.active.publish(TOPICS.replica("attic"), payload)
    pair.active.run()
    assert any(b"schema 99" in message.payload for message in pair.active.to_bus)


# -- what waits for it ----------------------------------------------------------------------------


def test_what_may_run_once_is_assigned_only_when_the_standby_has_it() -> None:
    pair = Pair().begin()
    pi = pair.active.device("pi1")
    pair.run()
    pair.standby.commits = False
    client = pair.active.client()
    client.submit(1, at_most_once=True)
    pair.run()
    assert not pi.assignments
    pair.standby.commits = True
    pair.run()
    assert len(pi.assignments) == 1


@pytest.mark.parametrize("at_most_once", [False, True])
def test_what_may_run_once_is_forgotten_by_its_device_only_when_the_standby_has_it(
    at_most_once: bool,
) -> None:
    pair = Pair().begin()
    pi = pair.active.device("pi1")
    pair.run()
    client = pair.active.client()
    client.submit(1, at_most_once=at_most_once)
    pair.run()
    pair.standby.commits = False
    pi.finish(pi.assignments[0])
    pair.run()
    assert bool(pi.of(Acknowledge)) is not at_most_once
    pair.standby.commits = True
    pair.run()
    assert pi.of(Acknowledge)


def test_by_default_acknowledgements_do_not_wait_for_it_and_synchronous_ones_do() -> None:
    for synchronous in (False, True):
        pair = Pair(active={"synchronous": synchronous}).begin()
        pair.standby.commits = False
        client = pair.active.client()
        client.submit(1)
        pair.run()
        pair.active.advance(50)
        assert bool(client.of(Acknowledged)) is not synchronous
        pair.standby.commits = True
        pair.run()
        pair.active.advance(50)
        assert client.of(Acknowledged)


def test_a_standby_that_is_gone_holds_nothing_up_and_that_is_said() -> None:
    pair = Pair(active={"synchronous": True}).begin()
    pair.down = False
    client = pair.active.client()
    client.submit(1)
    pair.active.advance(1_000)
    assert not client.of(Acknowledged)
    pair.active.advance(2_000)
    assert client.of(Acknowledged)
    assert any("on this controller's disk alone" in note for note in pair.active.notes)


def test_one_that_speaks_and_commits_nothing_does_not_hold_things_up_for_ever() -> None:
    pair = Pair(active={"synchronous": True}, detect_ms=20_000).begin()
    pair.standby.commits = False
    client = pair.active.client()
    client.submit(1)
    pair.advance(9_000)
    assert not client.of(Acknowledged)
    pair.advance(2_000)
    assert client.of(Acknowledged)
    pair.standby.commits = True
    pair.advance(1_000)
    assert pair.standby.core.following.is_whole, "with a new copy"
    assert pair.standby.operations == pair.active.saved


def test_after_its_will_it_may_be_taking_over_and_what_it_lacks_is_acknowledged_later() -> None:
    pair = Pair(active={"synchronous": True}).begin()
    pair.down = False
    client = pair.active.client()
    client.submit(1)
    pair.active.publish(*presence("lost", session=f"{START}-1", name="attic"))
    pair.active.run()
    pair.active.advance(2_000)
    assert not client.of(Acknowledged)
    assert not any("on this controller's disk alone" in note for note in pair.active.notes)
    pair.active.advance(1_500)
    assert client.of(Acknowledged)
    assert any("on this controller's disk alone" in note for note in pair.active.notes)


def test_one_that_starts_is_waited_for_a_little_longer() -> None:
    pair = Pair(active={"synchronous": True}).begin()
    pair.down = False
    client = pair.active.client()
    client.submit(1)
    pair.active.publish(*presence("lost", session=f"{START}-1", name="attic"))
    pair.active.run()
    pair.active.advance(2_900)
    pair.active.publish(*presence("starting", session=f"{START}-2", name="attic"))
    pair.active.run()
    pair.active.advance(1_500)
    assert not client.of(Acknowledged)
    pair.active.advance(1_000)
    assert client.of(Acknowledged)


def test_what_a_standby_takes_over_without_was_not_acknowledged() -> None:
    """It hears nothing, so it begins new links that get through; then it rules with what it has."""
    pair = Pair(active={"synchronous": True}).begin()
    pair.up = False
    client = pair.active.client()
    client.submit(1)
    while not pair.standby.taken:
        pair.advance(20)
    assert pages(pair) == []
    assert not client.of(Acknowledged)


def test_one_that_has_heard_that_it_needs_a_new_copy_holds_nothing_up() -> None:
    pair = Pair(active={"synchronous": True}).begin()
    pair.down = False
    client = pair.active.client()
    client.submit(1)
    link = pair.standby.core.following.link
    assert link is not None
    number = link.number + 1 << 32

    def say(message: Linked, n: int, seen: int) -> None:
        payload = encode(
            message,
            session=link.session,
            controller=link.controller,
            n=number + n if n else 0,
            seen=number + seen,
        )
        pair.active.publish(TOPICS.replica("attic"), payload)
        pair.active.run()
        pair.active.advance(50)

    say(Join(schema=SCHEMA_VERSION, beat_ms=100), 1, 0)
    assert not client.of(Acknowledged)
    say(Beat(), 0, 1)
    assert client.of(Acknowledged)
    assert any("on this controller's disk alone" in note for note in pair.active.notes)


# -- taking over ----------------------------------------------------------------------------------


def test_a_will_makes_it_take_over_at_once() -> None:
    pair = Pair().begin()
    pair.advance(100)
    pair.is_frozen = True
    pair.hear(*presence("lost"))
    pair.advance(0)
    [taken] = pair.standby.taken
    assert taken.epoch == 1
    assert "lost its connection" in taken.reason


def test_a_goodbye_makes_it_take_over_at_once() -> None:
    pair = Pair().begin()
    pair.is_frozen = True
    pair.hear(*presence("offline"))
    pair.advance(0)
    assert pair.standby.taken


def test_an_earlier_connections_will_does_not() -> None:
    pair = Pair().begin()
    pair.hear(*presence("active", session=f"{ACTIVE_START}-2"))
    pair.hear(*presence("lost", session=f"{ACTIVE_START}-1"))
    pair.advance(100)
    assert not pair.standby.taken


def test_silence_makes_it_take_over_after_the_detection_time_and_not_before() -> None:
    pair = Pair(detect_ms=1_000).begin()
    pair.advance(3_000)
    assert not pair.standby.taken, "it has signs of life"
    pair.is_frozen = True
    pair.advance(700)
    assert not pair.standby.taken
    pair.advance(400)
    assert "has said nothing" in pair.standby.taken[0].reason


def test_one_that_was_not_heard_since_we_connected_has_time_to_come_back() -> None:
    pair = Pair(detect_ms=1_000).begin()
    pair.part()
    pair.is_frozen = True
    pair.join(counter=2)
    pair.advance(4_000)
    assert not pair.standby.taken
    pair.advance(40_000)
    assert pair.standby.taken


def test_a_pause_of_its_own_is_nobodys_silence() -> None:
    pair = Pair(detect_ms=1_000).begin()
    pair.advance(5_000)
    pair.standby.core.next_wakeup_ms()
    pair.active.now_ms += 10_000
    pair.advance(500)
    assert not pair.standby.taken


def test_without_a_broker_it_takes_nothing_over() -> None:
    pair = Pair().begin()
    pair.part()
    assert pair.standby.core.next_wakeup_ms() is None
    pair.active.now_ms += 60_000
    pair.standby.handle(BatchEnded(), pair.now_ms)
    assert not pair.standby.taken


def test_one_whose_copy_may_be_old_waits_longer_for_the_controller_that_has_all() -> None:
    pair = Pair(detect_ms=1_000).begin()
    pair.part()
    pair.active.client().submit(1)
    pair.active.run()
    pair.active.snapshots_fail = "the disk is full"
    pair.join(counter=2)
    pair.advance(100)
    pair.is_frozen = True
    pair.hear(*presence("lost"))
    pair.advance(20_000)
    assert not pair.standby.taken
    pair.advance(11_000)
    [taken] = pair.standby.taken
    assert "nobody who has all came back" in taken.reason
    assert not taken.is_current


def test_one_that_followed_to_the_end_does_not_say_that_its_copy_may_be_old() -> None:
    pair = Pair(detect_ms=1_000).begin()
    pair.is_frozen = True
    pair.hear(*presence("lost"))
    pair.advance(1_000)
    [taken] = pair.standby.taken
    assert taken.reason == "controller main lost its connection"
    assert taken.is_current


def test_one_that_stood_still_itself_does_not_take_over_with_what_it_had_before() -> None:
    pair = Pair(detect_ms=1_000).begin()
    pair.advance(5_000)
    pair.standby.core.next_wakeup_ms()
    pair.active.now_ms += 10_000
    pair.is_frozen = True
    pair.advance(20_000)
    assert not pair.standby.taken


def test_one_that_never_had_a_copy_says_so_and_waits() -> None:
    pair = Pair(detect_ms=1_000)
    pair.active.begin()
    pair.active.snapshots_fail = "the disk is full"
    pair.run()
    pair.join()
    pair.advance(100)
    pair.is_frozen = True
    pair.hear(*presence("lost"))
    pair.advance(60_000)
    assert not pair.standby.taken
    said = [note for note in pair.standby.notes if "has no copy" in note]
    assert len(said) == 1, "once"
    assert "--standby" in said[0]


def test_one_whose_own_store_is_as_new_as_any_takes_over_without_a_copy() -> None:
    pair = Pair(detect_ms=1_000, epoch=4)
    pair.is_frozen = True
    pair.join()
    pair.hear(*presence("lost", epoch=4), retain=True)
    pair.advance(4_000)
    assert not pair.standby.taken, "whoever ruled may be coming back"
    pair.advance(1_000)
    assert pair.standby.taken[0].epoch == 4


def test_the_first_by_name_takes_over_and_the_second_waits_its_turn() -> None:
    pair = Pair("barn", detect_ms=1_000).begin()
    pair.hear(*presence("standby", session="d" * 16 + "-1", name="attic"))
    pair.is_frozen = True
    pair.hear(*presence("lost"))
    pair.advance(400)
    assert not pair.standby.taken
    pair.hear(*presence("starting", session="d" * 16 + "-2", name="attic"))
    pair.hear(*presence("active", epoch=2, session="d" * 16 + "-2", name="attic"))
    pair.advance(500)
    assert not pair.standby.taken


def test_another_of_its_name_ends_it_in_words() -> None:
    pair = Pair("main")
    pair.active.begin()
    pair.run()
    pair.join()
    pair.hear(*presence("active"))
    assert pair.standby.exits[0].code == 2
    assert "another --name" in pair.standby.exits[0].reason


def test_one_that_waits_for_the_same_disk_has_a_holder_ended_that_fell_silent() -> None:
    pair = Pair(detect_ms=1_000, copies=False).begin()
    pair.advance(5_000)
    assert not pair.standby.ended
    pair.is_frozen = True
    pair.advance(1_300)
    assert [one.start for one in pair.standby.ended] == [ACTIVE_START]
    assert not pair.standby.taken, "the lock decides"


def test_a_holder_that_was_never_heard_is_left_alone() -> None:
    pair = Pair(detect_ms=1_000, copies=False)
    pair.is_frozen = True
    pair.join()
    pair.hear(*presence("active"), retain=True)
    pair.advance(60_000)
    assert not pair.standby.ended

"""States of running calls: what of them leaves the agent, when, and what an attempt is given."""

import pytest

from core.agent_harness import CONTROLLER, SESSION, TASK, Harness, assignment, number, session
from forage_agent.core.events import (
    ExitAsked,
    KillWorker,
    RunCalls,
    WorkerCheckpoint,
    WorkerOutcomes,
)
from forage_agent.core.settings import CHECKPOINT_EVERY_MS, CHECKPOINTS_AT_ONCE
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.link import link_number
from forage_wire.messages import (
    AssignmentRefused,
    CancelAssigned,
    Checkpoint,
    Forget,
    Options,
    Outcomes,
    Report,
)

RETRIES = Options(retries=3)


@pytest.fixture
def bench() -> Harness:
    harness = Harness(slots=2)
    harness.start()
    return harness


def made(data: bytes, index: int = 7, counter: int = 1, slot: int = 0) -> WorkerCheckpoint:
    return WorkerCheckpoint(slot=slot, assignment=number(counter), index=index, data=data)


def raised(counter: int = 1, index: int = 7) -> WorkerOutcomes:
    return WorkerOutcomes(
        slot=0,
        assignment=number(counter),
        first=index,
        count=1,
        items=b"\xa0",
        errors=((index, "error"),),
        run_us=10,
    )


def said(bench: Harness) -> list[tuple[int, int, bytes]]:
    """(index, number, data) of all states that left."""
    return [(one.index, one.number, one.data) for one in bench.messages(Checkpoint)]


def test_first_state_leaves_at_once_for_the_controller_alone(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    bench.forget_said()
    bench.put(made(b"one"))
    [message] = bench.messages(Checkpoint)
    assert (message.task, message.index, message.assignment) == (TASK, 7, number(1))
    assert (message.number, message.data) == (1, b"one")
    assert message.n > 0
    assert bench.topics_said == [bench.topics.outbox("dev")]


def test_while_one_is_on_its_way_only_the_newest_waits(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    for data in (b"one", b"two", b"three"):
        bench.put(made(data))
    bench.advance(500)
    assert said(bench) == [(7, 1, b"one")]
    bench.say_seen()
    assert said(bench) == [(7, 1, b"one"), (7, 3, b"three")]
    bench.say_seen()
    bench.advance(1_000)
    assert len(said(bench)) == 2
    assert bench.link.received == bench.messages(Checkpoint)[-1].n


def use_up(bench: Harness) -> list[tuple[int, int, bytes]]:
    """A call makes as many states as may leave one after the other; what has left by that."""
    for at in range(CHECKPOINTS_AT_ONCE):
        bench.put(made(b"%d" % at))
        assert said(bench)[-1] == (7, at + 1, b"%d" % at), (
            "it leaves as soon as nothing is before it"
        )
        bench.say_seen()
    return said(bench)


def test_a_state_leaves_at_once_however_shortly_after_the_one_before_it(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    assert len(use_up(bench)) == CHECKPOINTS_AT_ONCE


def test_of_more_than_a_second_takes_each_waits_for_its_turn(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    before = use_up(bench)
    bench.put(made(b"waits"))
    bench.advance(CHECKPOINT_EVERY_MS - 1)
    assert said(bench) == before
    bench.advance(1)
    assert said(bench) == [*before, (7, CHECKPOINTS_AT_ONCE + 1, b"waits")]


def test_a_call_that_never_stops_to_make_states_sends_ten_a_second(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    for at in range(1_000):
        bench.put(made(b"%d" % at))
        bench.say_seen()
        bench.advance(5)
    sent = len(said(bench))
    assert CHECKPOINTS_AT_ONCE + 49 <= sent <= CHECKPOINTS_AT_ONCE + 51


def test_after_a_quiet_second_states_leave_at_once_again(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    use_up(bench)
    bench.advance(CHECKPOINTS_AT_ONCE * CHECKPOINT_EVERY_MS)
    bench.put(made(b"again"))
    assert said(bench)[-1][2] == b"again"


def test_calls_do_not_wait_for_each_others_small_states(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8), assignment(2, 0, 1))
    bench.put(made(b"one"), made(b"other", index=0, counter=2, slot=1))
    assert said(bench) == [(7, 1, b"one"), (0, 1, b"other")]


def test_no_more_is_on_its_way_than_the_largest_state(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8), assignment(2, 0, 1))
    large = bytes(CALL_BYTES_MAX // 2 + 1)
    bench.put(made(large), made(large, index=0, counter=2, slot=1))
    for _ in range(400):
        bench.say_seen()
        bench.advance(5)
    sizes = [len(data) for _index, _number, data in said(bench)]
    assert sizes == [len(large)] * 2
    first, second = bench.messages(Checkpoint)
    assert second.n - first.n > 100, "the second one's parts were numbered after the first's"


def test_state_of_a_call_that_ended_or_is_anothers_goes_nowhere(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    bench.put(made(b"of another", index=8))
    bench.put(made(bytes(CALL_BYTES_MAX + 1)))
    bench.finish(1, 7)
    bench.put(made(b"late"))
    bench.advance(1_000)
    assert said(bench) == []


def test_call_that_has_its_value_takes_the_state_that_waits_with_it(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    bench.put(made(b"one"))
    bench.put(made(b"two"))
    bench.finish(1, 7)
    bench.say_seen()
    bench.advance(1_000)
    assert said(bench) == [(7, 1, b"one")]
    assert list(bench.outcomes()) == [7]


def test_final_error_takes_its_states_with_it(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    bench.put(made(b"one"))
    bench.put(made(b"two"), raised())
    bench.advance(100)
    assert bench.errors() == [(7, "error", True)]
    bench.say_seen()
    bench.advance(1_000)
    assert said(bench) == [(7, 1, b"one")]


def test_error_that_is_tried_again_waits_until_the_last_state_is_seen(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8, options=RETRIES))
    bench.put(made(b"one"))
    bench.put(made(b"two"), raised())
    bench.advance(500)
    assert said(bench) == [(7, 1, b"one")]
    assert bench.errors() == []
    bench.say_seen()
    assert said(bench) == [(7, 1, b"one"), (7, 2, b"two")]
    assert bench.errors() == []
    bench.say_seen()
    bench.advance(100)
    assert bench.errors() == [(7, "error", False)]


def test_death_of_a_worker_waits_for_the_state_that_it_left(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    bench.put(made(bytes(300_000)))
    bench.die(counter=1, index=7)
    bench.advance(50)
    assert bench.errors() == [], "its state is in parts, which the outcome would overtake"
    for _ in range(10):
        bench.say_seen()
        bench.advance(10)
    assert [(index, len(data)) for index, _number, data in said(bench)] == [(7, 300_000)]
    assert bench.errors() == [(7, "died", False)]


def test_held_error_is_in_the_inventory_and_comes_on_a_new_link_behind_its_state(
    bench: Harness,
) -> None:
    bench.assign(assignment(1, 7, 8, options=RETRIES))
    bench.put(made(bytes(200_000)), raised())
    bench.forget_said()
    bench.new_link(session(0xC1), epoch=2)
    bench.send(Report())
    assert bench.errors() == []
    for _ in range(10):
        bench.say_seen()
        bench.advance(10)
    kinds = [type(one) for one in bench.said if isinstance(one, Checkpoint | Outcomes)]
    assert kinds == [Checkpoint, Outcomes]


def test_new_link_gets_the_last_state_of_what_runs_again(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8), assignment(2, 0, 1))
    bench.put(made(b"one"), made(b"other", index=0, counter=2, slot=1))
    bench.say_seen()
    bench.finish(2, 0, slot=1)
    bench.forget_said()
    bench.new_link(session(0xC1), epoch=2)
    bench.send(Report())
    assert said(bench) == [(7, 1, b"one")]
    assert [link_number(one) for one in bench.messages(Checkpoint)] == [0]


def test_attempt_is_given_the_checkpoint_that_it_came_with(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8, checkpoint=(4, b"four")))
    [run] = bench.taken(RunCalls)
    assert [chunk.checkpoints for chunk in run.chunks] == [((7, b"four"),)]
    bench.put(made(b"five"))
    assert said(bench) == [(7, 5, b"five")]


def test_what_came_with_an_assignment_is_not_sent_back(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8, checkpoint=(4, b"four")))
    bench.new_link(session(0xC1), epoch=2)
    bench.send(Report())
    bench.advance(1_000)
    assert said(bench) == []


def test_call_that_this_device_runs_again_goes_on_from_the_state_it_made() -> None:
    bench = Harness()
    bench.start()
    bench.measured_as(100)
    bench.assign(assignment(1, 0, 2))
    bench.taken(RunCalls)
    bench.put(made(b"one", index=0))
    # A worker is killed for a call that it was just about to begin; the one before it was running.
    bench.send(CancelAssigned(assignment=number(1), ranges=((1, 2),), force=True))
    kills = bench.taken(KillWorker)
    for kill in kills:
        bench.die(kill.slot, counter=1, index=0, signal="SIGKILL")
    bench.ready()
    chunks = [chunk for run in bench.taken(RunCalls) for chunk in run.chunks]
    assert kills
    assert [(chunk.low, chunk.high) for chunk in chunks] == [(0, 1)]
    assert chunks[0].checkpoints == ((0, b"one"),)


def test_calls_that_never_run_again_keep_no_state(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8, options=Options(at_most_once=True)))
    bench.put(made(b"one"))
    bench.advance(1_000)
    assert said(bench) == []


def test_forgotten_assignment_takes_its_states_with_it(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8, options=RETRIES))
    bench.put(made(b"one"))
    bench.put(made(b"two"), raised())
    bench.send(Forget(assignments=(number(1),)))
    bench.say_seen()
    bench.advance(1_000)
    assert said(bench) == [(7, 1, b"one")]
    assert bench.errors() == []
    assert not bench.core.is_busy


def test_checkpoint_counts_as_arguments_do() -> None:
    bench = Harness(queue_bytes_max=1_000)
    bench.start()
    bench.assign(assignment(1, 7, 8, checkpoint=(1, bytes(1_000))))
    assert [one.reason for one in bench.messages(AssignmentRefused)] == ["size"]
    bench.assign(assignment(2, 7, 8, checkpoint=(1, bytes(900))))
    bench.assign(assignment(3, 8, 9, checkpoint=(1, bytes(900))))
    assert [one.reason for one in bench.messages(AssignmentRefused)] == ["size", "full"]
    bench.finish(2, 7)
    bench.assign(assignment(4, 8, 9, checkpoint=(1, bytes(900))))
    assert len(bench.messages(AssignmentRefused)) == 2


def test_orderly_end_sends_the_state_that_waits(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    bench.put(made(b"one"))
    bench.put(made(b"two"))
    assert len(said(bench)) == 1
    bench.put(ExitAsked(code=0, reason="asked"))
    assert said(bench)[-1] == (7, 2, b"two")


def test_without_a_connection_the_newest_state_waits(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    bench.connect(session(0xD0, 2))
    bench.put(made(b"one"))
    bench.put(made(b"two"))
    bench.forget_said()
    bench.new_link(CONTROLLER)
    bench.send(Report())
    assert said(bench) == [(7, 2, b"two")]
    assert bench.session != SESSION

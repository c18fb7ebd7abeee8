"""Workers as the core sees them: what they are given, how they die, who is to blame."""

import cbor2
import pytest

from core.agent_harness import CLIENT, TASK, Harness, assignment, number, session
from forage_agent.core.events import (
    KillWorker,
    LogLines,
    RunCalls,
    StartWorker,
    TakeBack,
    WorkerExited,
    WorkerLoaded,
    WorkerProgress,
    WorkerReturned,
)
from forage_agent.core.settings import (
    FUNCTIONS_PER_WORKER_MAX,
    OUTCOMES_AFTER_MS,
    PROGRESS_EVERY_MS,
    RESTART_AFTER_MS,
    STARTED_AFTER_MS,
    UNACKNOWLEDGED_BYTES_MAX,
    WORKER_HOLDS_MS,
    WORKER_REFILL_US,
    WORKER_WORK_US,
)
from forage_wire.io import Note
from forage_wire.limits import CALL_BYTES_MAX, DEATHS_MAX
from forage_wire.messages import (
    CancelAssigned,
    Code,
    Drain,
    Options,
    Outcomes,
    Progress,
    Report,
    Started,
)


@pytest.fixture
def bench() -> Harness:
    harness = Harness()
    harness.start()
    return harness


def test_every_slot_gets_a_worker_before_any_connection() -> None:
    bench = Harness(slots=3)
    bench.put()
    assert [start.slot for start in bench.taken(StartWorker)] == [0, 1, 2]


def test_unmeasured_calls_go_one_at_a_time_then_as_many_as_are_short(bench: Harness) -> None:
    bench.assign(assignment(1, 0, 2_000))
    assert bench.given() == [(0, number(1), 0, 1)]
    bench.finish(1, 0, run_us=100)
    assert bench.given() == [(0, number(1), 1, 1 + WORKER_WORK_US // 100)]


def test_calls_longer_than_the_refill_go_one_at_a_time(bench: Harness) -> None:
    bench.measured_as(6_000)
    bench.assign(assignment(1, 0, 10))
    assert bench.given() == [(0, number(1), 0, 1)]
    bench.finish(1, 0, run_us=6_000)
    assert bench.given() == [(0, number(1), 1, 2)]


def test_worker_gets_more_before_it_runs_dry(bench: Harness) -> None:
    bench.measured_as(1_000)
    most, refill = WORKER_WORK_US // 1_000, WORKER_REFILL_US // 1_000
    bench.assign(assignment(1, 0, 2 * most))
    assert bench.given() == [(0, number(1), 0, most)]
    ended = most - refill - 1
    bench.finish(1, 0, ended, run_us=1_000 * ended)
    assert bench.given() == []
    bench.finish(1, ended, 1, run_us=1_000)
    assert bench.given() == [(0, number(1), most, 2 * most - refill)]


def test_one_order_holds_several_slices(bench: Harness) -> None:
    bench.measured_as(100)
    bench.assign(*[assignment(counter) for counter in range(1, 11)])
    [run] = bench.taken(RunCalls)
    assert [chunk.assignment for chunk in run.chunks] == [number(at) for at in range(1, 11)]


def test_few_long_calls_are_spread_over_all_slots() -> None:
    bench = Harness(slots=4)
    bench.start()
    bench.measured_as(1_000)
    bench.assign(assignment(1, 0, 4))
    assert sorted(bench.given()) == [(slot, number(1), slot, slot + 1) for slot in range(4)]


def test_worker_that_is_slow_gives_back_what_it_has_not_begun(bench: Harness) -> None:
    bench.measured_as(100)
    bench.assign(assignment(1, 0, 10))
    bench.given()
    bench.advance(STARTED_AFTER_MS)
    assert len(bench.taken(TakeBack)) == 1
    bench.put(WorkerReturned(slot=0, assignment=number(1), index=0))
    bench.finish(1, 0, run_us=6_000)
    assert bench.given() == [(0, number(1), 1, 2)]


def test_given_back_calls_run_on_another_slot() -> None:
    bench = Harness(slots=2)
    bench.start()
    bench.measured_as(50)
    bench.assign(assignment(1, 0, 10))
    [(slot, _number, low, high)] = bench.given()
    assert (low, high) == (0, 10)
    bench.advance(STARTED_AFTER_MS)
    bench.put(WorkerReturned(slot=slot, assignment=number(1), index=0))
    assert [(given[0], given[2]) for given in bench.given()] == [(1 - slot, 1)]


def test_nothing_is_given_to_a_worker_that_is_giving_back(bench: Harness) -> None:
    bench.measured_as(100)
    bench.assign(assignment(1, 0, 3))
    bench.given()
    bench.advance(STARTED_AFTER_MS)
    bench.finish(1, 0, 3)
    bench.assign(assignment(2))
    assert bench.given() == []
    bench.put(WorkerReturned(slot=0))
    assert bench.given() == [(0, number(2), 0, 1)]


def test_call_that_runs_5_ms_is_reported_as_started_once(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    bench.advance(STARTED_AFTER_MS - 1)
    assert bench.messages(Started) == []
    bench.advance(1_000)
    [message] = bench.messages(Started)
    assert [(row[1], row[2]) for row in message.rows] == [(7, number(1))]


def progress(permille: int, index: int = 7) -> WorkerProgress:
    return WorkerProgress(
        slot=0, assignment=number(1), index=index, permille=permille, text="at it"
    )


def test_progress_goes_to_the_task_topic_unnumbered_and_the_latest_of_many(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    bench.forget_said()
    bench.put(progress(100))
    bench.put(progress(200))
    bench.put(progress(300))
    [first] = bench.messages(Progress)
    assert (first.task, first.index, first.permille, first.n) == (TASK, 7, 100, 0)
    assert bench.topics_said == [bench.topics.task("user", CLIENT, TASK, "dev")]
    bench.advance(PROGRESS_EVERY_MS)
    assert [message.permille for message in bench.messages(Progress)] == [100, 300]
    bench.advance(10 * PROGRESS_EVERY_MS)
    assert len(bench.messages(Progress)) == 2


def test_progress_of_a_call_that_ended_or_is_anothers_goes_nowhere(bench: Harness) -> None:
    bench.assign(assignment(1, 7, 8))
    bench.put(progress(100, index=8))
    bench.finish(1, 7)
    bench.put(progress(999))
    bench.advance(PROGRESS_EVERY_MS)
    assert bench.messages(Progress) == []


def test_new_link_hears_again_of_what_runs(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.advance(STARTED_AFTER_MS)
    bench.connect(session(0xD0, 2))
    bench.forget_said()
    bench.send(Report())
    bench.advance(1)
    assert len(bench.messages(Started)) == 1


def test_announced_assignment_starts_only_after_the_brokers_answer(bench: Harness) -> None:
    bench.confirms = False
    bench.assign(assignment(1, announce=True))
    [message] = bench.messages(Started)
    assert [row[2] for row in message.rows] == [number(1)]
    assert bench.given() == []
    bench.confirms = True
    bench.put()
    assert bench.given() == [(0, number(1), 0, 1)]


def test_only_as_many_are_announced_as_may_begin(bench: Harness) -> None:
    # What is announced and has not begun would be charged for the death of the device.
    for counter in range(1, 6):
        bench.assign(assignment(counter, announce=True))
    announced = [row[2] for message in bench.messages(Started) for row in message.rows]
    assert announced == [number(counter) for counter in range(1, len(announced) + 1)]
    assert len(announced) == 2 * bench.slots
    assert [given[1] for given in bench.given()] == announced[: bench.slots]
    bench.finish(1, 0, 1)
    announced = [row[2] for message in bench.messages(Started) for row in message.rows]
    assert len(announced) == 2 * bench.slots + 1


def test_announcement_is_repeated_on_a_new_session(bench: Harness) -> None:
    bench.confirms = False
    bench.assign(assignment(1, announce=True))
    bench.receipts.clear()
    bench.connect(session(0xD0, 2))
    bench.confirms = True
    bench.send(Report())
    assert bench.given() == [(0, number(1), 0, 1)]


def test_dead_worker_costs_one_call_and_the_rest_goes_on(bench: Harness) -> None:
    bench.measured_as(100)
    bench.assign(assignment(1, 0, 10))
    bench.given()
    bench.finish(1, 0, 2)
    bench.die(counter=1, index=4)
    assert bench.errors() == [(4, "died", False)]
    details = bench.outcomes()[4]
    assert details["reason"] == "worker-died"
    assert details["details"] == {"deaths": 1, "signal": "SIGSEGV"}
    bench.ready()
    # What had ended in the worker's memory is run again; the call that killed it is not.
    assert bench.given() == [(0, number(1), 2, 4), (0, number(1), 5, 10)]


def test_worker_of_which_nothing_is_known_is_blamed_on_its_first_call(bench: Harness) -> None:
    bench.assign(assignment(1, 0, 3))
    bench.die()
    assert bench.errors() == [(0, "died", False)]


def test_worker_that_dies_between_calls_blames_nobody(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.finish(1, 0)
    bench.assign(assignment(2))
    bench.die(counter=1, index=0)
    assert bench.errors() == []
    bench.ready()
    assert bench.given()[-1] == (0, number(2), 0, 1)


def test_third_death_is_final(bench: Harness) -> None:
    bench.assign(assignment(1, deaths=DEATHS_MAX - 1))
    bench.die(counter=1)
    assert bench.errors() == [(0, "died", True)]


def test_death_of_an_at_most_once_call_is_final(bench: Harness) -> None:
    bench.assign(assignment(1, options=Options(at_most_once=True)))
    bench.die(counter=1)
    assert bench.errors() == [(0, "died", True)]


def test_killed_from_outside_says_probably_out_of_memory(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.die(counter=1, signal="SIGKILL")
    error = bench.outcomes()[0]
    assert error["reason"] == "out-of-memory"
    assert "probably out of memory" in error["message"]


def test_exit_code_is_told(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.put(WorkerExited(slot=0, exit_code=3, assignment=number(1)))
    assert "exited with code 3" in bench.outcomes()[0]["message"]


@pytest.mark.parametrize(("tries", "retries", "final"), [(0, 0, True), (0, 1, False), (1, 1, True)])
def test_error_is_final_when_its_tries_are_used_up(
    bench: Harness, tries: int, retries: int, final: bool
) -> None:
    bench.assign(assignment(1, tries=tries, options=Options(retries=retries)))
    bench.finish(1, 0, errors=((0, "error"),), items=cbor2.dumps({"message": "x"}))
    assert bench.errors() == [(0, "error", final)]


def test_at_most_once_calls_are_alone_in_their_worker(bench: Harness) -> None:
    bench.measured_as(100)
    bench.assign(assignment(1, 0, 5, options=Options(at_most_once=True)), assignment(2))
    assert bench.given() == [(0, number(1), 0, 1)]


def test_call_above_its_time_is_killed_and_the_next_ones_run(bench: Harness) -> None:
    bench.assign(assignment(1, 0, 2, options=Options(timeout_ms=50)))
    bench.given()
    bench.advance(49)
    assert bench.taken(KillWorker) == []
    bench.advance(1)
    assert [kill.why for kill in bench.taken(KillWorker)] == ["timeout"]
    bench.die(counter=1, index=0, signal="SIGKILL")
    assert bench.errors() == [(0, "timeout", True)]
    assert bench.outcomes()[0]["details"] == {"timeout_ms": 50}
    bench.ready()
    assert bench.given() == [(0, number(1), 1, 2)]


def test_outcomes_that_a_worker_keeps_for_a_moment_are_no_call_above_its_time(
    bench: Harness,
) -> None:
    bench.measured_as(1_000)
    bench.assign(assignment(1, 0, 20, options=Options(timeout_ms=8)))
    bench.given()
    for first in (0, 10):
        bench.advance(WORKER_HOLDS_MS - 5)
        bench.finish(1, first, 10, run_us=10_000)
    assert bench.taken(KillWorker) == []
    bench.assign(assignment(2, 0, 2, options=Options(timeout_ms=8)))
    bench.advance(8 + WORKER_HOLDS_MS)
    assert bench.taken(KillWorker) == [KillWorker(slot=0, why="timeout")]


def test_nothing_is_given_behind_a_call_that_may_run_once(bench: Harness) -> None:
    bench.measured_as(1_000)
    bench.assign(assignment(1, 0, 2))
    bench.finish(1, 0, 2, run_us=2_000)
    bench.given()
    bench.assign(assignment(2, 0, 2, options=Options(at_most_once=True)))
    [run] = bench.taken(RunCalls)
    assert [(one.assignment, one.low, one.high, one.is_awaited) for one in run.chunks] == [
        (number(2), 0, 1, True)
    ], "and its outcome leaves at once"
    bench.assign(assignment(3, 0, 2))
    assert bench.given() == [], "who dies behind it would take that along"
    bench.finish(2, 0, run_us=1_000)
    assert bench.given() != []


def test_what_comes_back_while_its_worker_is_killed_because_of_it_does_not_run(
    bench: Harness,
) -> None:
    bench.measured_as(1_000)
    bench.assign(assignment(1, 0, 20))
    bench.given()
    bench.advance(STARTED_AFTER_MS)
    assert bench.taken(TakeBack) != []
    everything = ((0, 20),)
    bench.send(CancelAssigned(assignment=number(1), ranges=everything, force=True))
    bench.put(WorkerReturned(slot=0, assignment=number(1), index=0))
    bench.die(counter=1, index=0, signal="SIGKILL")
    bench.advance(RESTART_AFTER_MS)
    bench.ready()
    assert bench.given() == []
    assert {(index, reason) for index, reason, _final in bench.errors()} == {
        (index, "cancelled") for index in range(20)
    }


def test_call_that_began_before_the_kill_reached_its_predecessor_runs_again(
    bench: Harness,
) -> None:
    bench.measured_as(100)
    bench.assign(assignment(1, 0, 2, options=Options(timeout_ms=4)))
    bench.given()
    bench.advance(4 + WORKER_HOLDS_MS)
    bench.finish(1, 0)
    bench.die(counter=1, index=1, signal="SIGKILL")
    assert bench.errors() == []
    bench.ready()
    assert bench.given() == [(0, number(1), 1, 2)]


def test_loading_a_function_does_not_count_as_its_calls_time(bench: Harness) -> None:
    bench.assign(assignment(1, options=Options(timeout_ms=50)))
    bench.advance(40)
    bench.put(WorkerLoaded(slot=0))
    bench.advance(49)
    assert bench.taken(KillWorker) == []
    bench.advance(1)
    assert len(bench.taken(KillWorker)) == 1


def test_fresh_calls_each_get_a_new_worker(bench: Harness) -> None:
    bench.measured_as(100)
    bench.assign(assignment(1, 0, 2, options=Options(fresh=True)))
    assert bench.given() == []
    for index in range(2):
        assert [kill.why for kill in bench.taken(KillWorker)] == ["fresh"]
        bench.put(WorkerExited(slot=0, signal="SIGKILL"))
        bench.ready()
        assert bench.given() == [(0, number(1), index, index + 1)]
        bench.finish(1, index)
    assert bench.errors() == []


def test_worker_of_a_fresh_call_is_used_for_nothing_else(bench: Harness) -> None:
    bench.assign(assignment(1, options=Options(fresh=True)), assignment(2))
    bench.given()
    bench.finish(1, 0)
    assert len(bench.taken(KillWorker)) == 1
    assert bench.given() == []


def test_worker_that_cannot_start_is_retried_ever_more_slowly() -> None:
    bench = Harness()
    bench.put()
    waits: list[int] = []
    for _ in range(4):
        assert len(bench.taken(StartWorker)) == 1
        bench.put(WorkerExited(slot=0, exit_code=1))
        began_ms = bench.now_ms
        while not any(isinstance(order, StartWorker) for order in bench.orders):
            due_ms = bench.core.next_wakeup_ms()
            assert due_ms is not None
            bench.now_ms = due_ms
            bench.put()
        waits.append(bench.now_ms - began_ms)
    assert waits == [RESTART_AFTER_MS << times for times in range(4)]


def test_idle_worker_that_dies_is_replaced_and_noted(bench: Harness) -> None:
    bench.die(signal="SIGTERM")
    assert len(bench.taken(StartWorker)) == 1
    [note] = [one for one in bench.others if isinstance(one, Note)]
    assert "SIGTERM" in note.text


def test_worker_that_reports_what_it_was_not_given_is_replaced(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.finish(1, 5)
    assert [kill.why for kill in bench.taken(KillWorker)] == ["broken"]
    bench.die(counter=1)
    assert bench.errors() == [(0, "died", False)]


def test_worker_keeps_a_bounded_number_of_functions(bench: Harness) -> None:
    from hashlib import sha256

    dropped: list[bytes] = []
    known: dict[bytes, None] = {}
    for at in range(FUNCTIONS_PER_WORKER_MAX + 3):
        data = b"function %d" % at
        key = sha256(data).digest()
        bench.send(Code(hash=key, form="pickle", data=data))
        bench.assign(assignment(at + 1, function=key))
        [run] = bench.taken(RunCalls)
        assert [code.key for code in run.code] == [key]
        known[key] = None
        dropped.extend(run.drop)
        bench.finish(at + 1, 0)
    assert dropped == list(known)[:3]


def test_result_above_the_limit_becomes_an_error_that_names_it(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.finish(1, 0, items=bytes(CALL_BYTES_MAX + 1))
    assert bench.errors() == [(0, "unreadable", True)]
    assert str(CALL_BYTES_MAX) in bench.outcomes()[0]["message"]


def test_log_lines_go_to_the_topic_of_their_task(bench: Harness) -> None:
    other = "0123456789abc-2"
    bench.assign(assignment(1, 3, 4), assignment(2, task=other))
    rows = (
        (number(1), 3, "out", "one"),
        (number(1), 3, "err", "two"),
        (number(2), 0, "out", "three"),
        (0, 0, "out", "four"),
        (number(77), 0, "out", "nobody's"),
    )
    bench.put(LogLines(slot=0, rows=rows))
    assert [(topic.split("/")[-2], text) for topic, text in bench.logs] == [
        ("0123456789abc-1", b"3 out one\n3 err two\n3 out four"),
        (other, b"0 out three"),
    ]


def test_outcomes_leave_together_while_earlier_ones_are_on_their_way() -> None:
    bench = Harness(slots=3)
    bench.start()
    bench.confirms = False
    other = "0123456789abc-2"
    bench.assign(assignment(1), assignment(2), assignment(3, task=other))
    bench.forget_said()
    slots = {given[1]: given[0] for given in bench.given()}
    bench.finish(1, 0, slot=slots[number(1)])
    assert len(bench.messages(Outcomes)) == 1
    bench.finish(2, 0, slot=slots[number(2)])
    bench.finish(3, 0, slot=slots[number(3)])
    assert len(bench.messages(Outcomes)) == 1
    bench.confirms = True
    bench.put()
    _first, second = bench.messages(Outcomes)
    assert [one.assignment for one in second.sets] == [number(2), number(3)]
    assert bench.topics_said[-1].endswith("/0123456789abc/-/dev")


def test_outcomes_of_short_calls_wait_for_those_behind_them(bench: Harness) -> None:
    bench.measured_as(1_000)
    bench.assign(assignment(1, 0, 3))
    bench.forget_said()
    bench.finish(1, 0, run_us=1_000)
    assert not bench.messages(Outcomes)
    bench.finish(1, 1, run_us=1_000)
    assert set(bench.outcomes()) == {0, 1}, "the last call alone is waited for by nobody else's"
    bench.finish(1, 2, run_us=1_000)
    assert len(bench.messages(Outcomes)) == 2


def test_outcomes_wait_so_long_at_most_for_short_calls(bench: Harness) -> None:
    bench.measured_as(1_000)
    bench.assign(assignment(1, 0, 5))
    bench.forget_said()
    bench.finish(1, 0, run_us=1_000)
    bench.advance(OUTCOMES_AFTER_MS - 1)
    assert not bench.messages(Outcomes)
    bench.advance(1)
    assert set(bench.outcomes()) == {0}


def test_outcomes_wait_so_long_at_most_for_the_broker() -> None:
    bench = Harness(slots=2)
    bench.start()
    bench.confirms = False
    bench.assign(assignment(1), assignment(2))
    slots = {given[1]: given[0] for given in bench.given()}
    bench.finish(1, 0, slot=slots[number(1)])
    bench.finish(2, 0, slot=slots[number(2)])
    bench.advance(OUTCOMES_AFTER_MS - 1)
    assert len(bench.messages(Outcomes)) == 1
    bench.advance(1)
    assert len(bench.messages(Outcomes)) == 2


def test_outcomes_to_a_client_keep_to_its_packet_limit(bench: Harness) -> None:
    bench.assign(assignment(1, client_packet_bytes_max=4_096))
    bench.finish(1, 0, items=b"\x81\x59\x4e\x20" + bytes(20_000))
    sizes = [len(one.payload) for one in bench.published if "/task/" in one.topic]
    assert len(sizes) > 4
    assert max(sizes) <= 4_096
    assert bench.outcomes() == {0: bytes(20_000)}


def test_large_outcome_arrives_in_parts_and_small_ones_overtake_it() -> None:
    bench = Harness(slots=2)
    bench.start()
    bench.assign(assignment(1), assignment(2))
    slots = {given[1]: given[0] for given in bench.given()}
    bench.finish(1, 0, slot=slots[number(1)], items=b"\x81\x5a\x00\x40\x00\x00" + bytes(1 << 22))
    bench.finish(2, 0, slot=slots[number(2)])
    assert [one.sets[0].assignment for one in bench.messages(Outcomes)] == [number(2)]
    while len(bench.messages(Outcomes)) < 2:
        bench.link.poll(bench.now_ms)
        bench.send(Drain(on=False))
    assert bench.messages(Outcomes)[-1].sets[0].assignment == number(1)


def test_default_limit_of_unacknowledged_outcomes_is_64_mib() -> None:
    assert UNACKNOWLEDGED_BYTES_MAX == 64 * 1024 * 1024


# -- beside another's thousand calls ----------------------------------------------------------------

"""`forage.checkpoint` and `forage.restore` in real workers: what goes to the agent, what is refused."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import cbor2
import pytest

import forage
from forage_agent.core.events import WorkerCheckpoint, WorkerExited, WorkerOutcomes
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.values import decode_outcome_item, encode_outcome_value, rebuild_error
from shell.worker_harness import WorkerHarness


@pytest.fixture
def bench() -> Iterator[WorkerHarness]:
    harness = WorkerHarness()
    try:
        harness.start()
        yield harness
    finally:
        harness.close()


def state_of(event: WorkerCheckpoint) -> Any:
    return decode_outcome_item(cbor2.loads(event.data)).value


def test_states_come_in_order_with_their_call_and_before_its_outcome(bench: WorkerHarness) -> None:
    def count(to: int) -> int:
        for at in range(to):
            forage.checkpoint({"at": at, "pair": (at, at)})
        return to

    bench.give(count, [(2,), (1,)], assignment=7, low=4, may_follow=True)
    bench.until(lambda: len(bench.outcomes()) == 2)
    events = [e for e in bench.events if isinstance(e, WorkerCheckpoint | WorkerOutcomes)]
    names = [
        (event.assignment, event.index if isinstance(event, WorkerCheckpoint) else event.first)
        for event in events
    ]
    assert names == [(7, 4), (7, 4), (7, 4), (7, 5), (7, 5)]
    states = [state_of(event) for event in bench.of(WorkerCheckpoint)]
    assert states == [{"at": at, "pair": (at, at)} for at in (0, 1, 0)]


def test_state_is_taken_as_it_is_when_it_is_given(bench: WorkerHarness) -> None:
    def change() -> None:
        state = [1]
        forage.checkpoint(state)
        state.append(2)
        forage.checkpoint(state)

    bench.run(change)
    assert [state_of(event) for event in bench.of(WorkerCheckpoint)] == [[1], [1, 2]]


def test_each_call_is_given_its_own_checkpoint_and_no_other(bench: WorkerHarness) -> None:
    def go_on(name: str) -> Any:
        return (name, forage.restore(default="nothing"), forage.restore(default="nothing"))

    checkpoints = ((11, encode_outcome_value({1, 2})), (12, encode_outcome_value(None)))
    bench.give(
        go_on, [("a",), ("b",), ("c",), ("d",)], low=10, may_follow=True, checkpoints=checkpoints
    )
    bench.until(lambda: len(bench.outcomes()) == 4)
    assert [outcome.value for outcome in bench.outcomes()] == [
        ("a", "nothing", "nothing"),
        ("b", {1, 2}, {1, 2}),
        ("c", None, None),
        ("d", "nothing", "nothing"),
    ]


def test_state_given_before_the_worker_ends_itself_arrives_before_its_end(
    bench: WorkerHarness,
) -> None:
    def give_up() -> None:
        forage.checkpoint(b"x" * 1_000_000)
        os._exit(3)

    bench.give(give_up, [()])
    assert bench.next_exit().exit_code == 3
    assert len(state_of(bench.of(WorkerCheckpoint)[0])) == 1_000_000
    assert not bench.of(WorkerExited)


def failure(bench: WorkerHarness, function: Any) -> BaseException:
    outcome = bench.run(function)
    assert not outcome.ok
    return rebuild_error(outcome.value, "dev", 1)


def test_state_above_the_limit_is_an_error_that_names_both(bench: WorkerHarness) -> None:
    def keep_much() -> None:
        forage.checkpoint(bytes(CALL_BYTES_MAX))

    error = failure(bench, keep_much)
    assert isinstance(error, forage.NotSerializable)
    assert str(CALL_BYTES_MAX) in str(error)
    assert "keep less" in str(error)
    assert not bench.of(WorkerCheckpoint)


def test_state_at_the_limit_is_kept(bench: WorkerHarness) -> None:
    def keep_much() -> None:
        forage.checkpoint(bytes(CALL_BYTES_MAX - 16))

    assert bench.run(keep_much).ok
    assert len(state_of(bench.of(WorkerCheckpoint)[0])) == CALL_BYTES_MAX - 16


def test_state_that_cannot_travel_is_an_error_and_the_call_may_go_on(bench: WorkerHarness) -> None:
    def keep_a_lock() -> str:
        try:
            forage.checkpoint([threading.Lock()])
        except forage.NotSerializable as error:
            return str(error)
        return "kept"

    assert "state is not kept" in str(bench.run(keep_a_lock).value)
    assert not bench.of(WorkerCheckpoint)


def test_other_threads_and_children_of_the_call_are_refused_in_words(bench: WorkerHarness) -> None:
    def use_both() -> list[str]:
        said: list[str] = []

        def attempt(name: str) -> None:
            try:
                forage.checkpoint(name)
                forage.restore()
                said.append(f"{name}: nothing")
            except RuntimeError as error:
                said.append(f"{name}: {error}")

        thread = threading.Thread(target=attempt, args=("thread",))
        thread.start()
        thread.join()
        read, write = os.pipe()
        if os.fork() == 0:
            attempt("child")
            os.write(write, said[-1].encode())
            os._exit(0)
        os.wait()
        return [said[0], os.read(read, 4_096).decode()]

    thread, child = bench.run(use_both).value
    assert thread.startswith("thread: forage.checkpoint is for the thread")
    assert child.startswith("child: forage.checkpoint is for the process")
    assert not bench.of(WorkerCheckpoint)


def test_checkpoint_that_cannot_be_read_is_an_error_of_the_call(bench: WorkerHarness) -> None:
    def go_on() -> Any:
        return forage.restore(default="nothing")

    code = cbor2.dumps([3, b"pickled", "3.2"])
    for state, kind in ((b"\xff\xff", forage.ForageError), (code, forage.VersionMismatch)):
        before = len(bench.outcomes())
        bench.give(go_on, [()], assignment=before + 1, checkpoints=((0, state),))
        bench.until(lambda before=before: len(bench.outcomes()) > before)  # type: ignore[misc]
        error = rebuild_error(bench.outcomes()[-1].value, "dev", 1)
        assert isinstance(error, kind)
        assert "earlier attempt" in str(error)


def test_outside_of_a_task_nothing_is_kept_and_the_default_is_given() -> None:
    forage.checkpoint(threading.Lock())
    assert forage.restore() is None
    assert forage.restore(default=3) == 3

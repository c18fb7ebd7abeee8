"""`submit_all` and `Batch`: many calls, few futures."""

import threading

import pytest

import forage
from sdk.fleet import WAIT_S, Fleet
from sdk.functions import add, divide


def test_results_come_in_the_order_of_the_arguments(client: forage.Client) -> None:
    batch = client.submit_all(add, range(3_000), range(3_000))
    assert len(batch) == 3_000
    assert batch.results(timeout=WAIT_S) == [2 * number for number in range(3_000)]


def test_an_empty_batch_is_done(client: forage.Client) -> None:
    batch = client.submit_all(add, [])
    assert len(batch) == 0
    assert batch.results() == []
    assert list(batch.as_completed()) == []
    assert batch.wait()


def test_partial_results_are_there_at_once_with_none_for_the_rest(
    holding: Fleet, held: forage.Client
) -> None:
    batch = held.submit_all(divide, [1, 1, 1, 1], [1, 2, 0, 4])
    assert batch.results(partial=True) == [None] * 4
    holding.wait(lambda: len(holding.calls) == 4)
    holding.finish(f"{batch.id}.1")
    holding.finish(f"{batch.id}.2")
    assert batch[1].result(WAIT_S) == 0.5
    assert isinstance(batch[2].exception(WAIT_S), ZeroDivisionError)
    assert batch.results(partial=True) == [None, 0.5, None, None]
    now = batch.progress()
    assert (now.total, now.done, now.failed, now.running) == (4, 2, 1, 0)


def test_results_raise_the_first_error_in_order(client: forage.Client) -> None:
    batch = client.submit_all(divide, ["a", 1, 1], [1, 0, 1])
    with pytest.raises(TypeError):
        batch.results(timeout=WAIT_S)


def test_results_time_out_and_the_calls_go_on(holding: Fleet, held: forage.Client) -> None:
    batch = held.submit_all(add, range(3))
    with pytest.raises(TimeoutError):
        batch.results(timeout=0.01)
    assert batch.wait(0.01) is False
    holding.release()
    assert batch.wait(WAIT_S) is True
    assert batch.results() == [0, 1, 2]


def test_futures_are_made_when_asked_for_and_stay_the_same(
    holding: Fleet, held: forage.Client
) -> None:
    batch = held.submit_all(add, range(4))
    future = batch[1]
    assert batch[1] is future
    assert batch[-3] is future
    assert future.id == f"{batch.id}.1"
    holding.wait(lambda: len(holding.calls) == 4)
    holding.start(future.id)
    holding.finish(f"{batch.id}.0")
    assert batch[0].result(WAIT_S) == 0
    assert future.running()
    assert batch.progress().running == 1
    holding.release()
    assert future.result(WAIT_S) == 1
    assert batch[1] is future
    assert [each.result(WAIT_S) for each in batch] == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        batch[4]
    with pytest.raises(TypeError):
        batch["0"]  # type: ignore[index]


def test_a_future_made_after_its_call_ended_is_done_and_knows_its_device(
    client: forage.Client,
) -> None:
    batch = client.submit_all(divide, [1, 1], [1, 0])
    batch.wait(WAIT_S)
    good, bad = batch
    assert (good.state, good.device, good.result()) == ("done", "pi1", 1.0)
    assert (bad.state, type(bad.exception())) == ("failed", ZeroDivisionError)


def test_callbacks_of_a_batchs_future_run_even_if_nobody_keeps_the_future(
    holding: Fleet, held: forage.Client
) -> None:
    batch = held.submit_all(add, range(3))
    done = threading.Event()
    batch[1].add_done_callback(lambda _future: done.set())
    holding.release()
    assert done.wait(WAIT_S)


def test_as_completed_yields_each_once_those_that_ended_first(
    holding: Fleet, held: forage.Client
) -> None:
    batch = held.submit_all(add, range(5))
    holding.wait(lambda: len(holding.calls) == 5)
    holding.finish(f"{batch.id}.3")
    assert batch[3].result(WAIT_S) == 3
    completed = batch.as_completed(WAIT_S)
    assert next(completed) is batch[3]
    holding.finish(f"{batch.id}.1")
    assert next(completed) is batch[1]
    batch[4].cancel()
    assert next(completed).cancelled()
    holding.release()
    assert {future.id for future in completed} == {f"{batch.id}.0", f"{batch.id}.2"}


def test_as_completed_times_out(holding: Fleet, held: forage.Client) -> None:
    batch = held.submit_all(add, range(2))
    holding.wait(lambda: len(holding.calls) == 2)
    holding.finish(f"{batch.id}.0")
    completed = batch.as_completed(0.2)
    assert next(completed).result() == 0
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        next(completed)


def test_cancel_takes_back_what_is_pending_and_tells_how_much(
    holding: Fleet, held: forage.Client
) -> None:
    batch = held.submit_all(add, range(4))
    watched = batch[2]
    holding.wait(lambda: len(holding.calls) == 4)
    holding.finish(f"{batch.id}.0")
    holding.start(f"{batch.id}.1")
    assert batch[0].result(WAIT_S) == 0
    other = held.submit(add, 7)
    holding.wait(lambda: other.id in holding.calls)
    holding.finish(other.id)
    assert other.result(WAIT_S) == 7
    assert batch.cancel() == 2
    assert watched.cancelled()
    assert not batch[1].done()
    assert batch.cancel() == 0
    assert batch.cancel(force=True) == 1
    assert batch.wait(WAIT_S)
    with pytest.raises(forage.TaskCancelled):
        batch.results()
    holding.wait(lambda: (f"{batch.id}.1", True) in holding.cancelled)
    assert batch.progress().failed == 3


def test_a_future_of_a_batch_cancels_its_call_alone(holding: Fleet, held: forage.Client) -> None:
    batch = held.submit_all(add, range(3))
    holding.wait(lambda: len(holding.calls) == 3)
    assert batch[1].cancel()
    assert batch.progress().done == 1
    holding.release()
    assert batch[2].result(WAIT_S) == 2
    assert batch.results(partial=True) == [0, None, 2]


def test_pages_arrive_while_the_arguments_are_still_being_read(
    fleet: Fleet, client: forage.Client
) -> None:
    def numbers() -> "object":
        for number in range(300):
            if number == 200:
                fleet.wait(lambda: len(fleet.calls) >= 64)
            yield number

    batch = client.submit_all(add, numbers())  # type: ignore[arg-type]
    assert batch.results(timeout=WAIT_S) == list(range(300))


def test_repr_says_how_far_it_is(client: forage.Client) -> None:
    batch = client.submit_all(add, range(3))
    batch.wait(WAIT_S)
    assert repr(batch) == f"<Batch {batch.id} 3 of 3 done, 0 failed>"

"""`Future` against the documentation of `concurrent.futures.Future`."""

import concurrent.futures
import logging
import threading
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, InvalidStateError
from typing import Any

import pytest

import forage
from forage.future import Future
from sdk.fleet import WAIT_S, Fleet
from sdk.functions import add, divide


def test_a_future_is_a_standard_future_and_goes_from_pending_to_done(
    holding: Fleet, held: forage.Client
) -> None:
    future = held.submit(add, 1, 2)
    assert isinstance(future, concurrent.futures.Future)
    assert (future.done(), future.running(), future.cancelled()) == (False, False, False)
    assert (future.state, future.device, future.attempts) == ("pending", None, 0)
    holding.wait(lambda: future.id in holding.calls)
    holding.start(future.id)
    holding.finish(future.id)
    assert future.result(WAIT_S) == 3
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
    assert (future.state, future.device, future.attempts) == ("done", "pi1", 1)
    assert future.exception() is None


def test_a_future_runs_once_its_device_said_so(holding: Fleet, held: forage.Client) -> None:
    future = held.submit(add, 1, 2)
    holding.wait(lambda: future.id in holding.calls)
    began = threading.Event()
    holding.start(future.id)
    other = held.submit(add, 3, 4)
    other.add_done_callback(lambda _future: began.set())
    holding.wait(lambda: other.id in holding.calls)
    holding.finish(other.id)
    # Messages of one device come in their order: by now the start is known.
    assert began.wait(WAIT_S)
    assert future.running()
    assert not future.done()
    assert (future.state, future.device) == ("running", "pi1")
    assert future.cancel() is False
    holding.finish(future.id)
    assert future.result(WAIT_S) == 3


def test_result_and_exception_time_out_and_the_call_goes_on(
    holding: Fleet, held: forage.Client
) -> None:
    future = held.submit(add, 1, 2)
    with pytest.raises(TimeoutError):
        future.result(0)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        future.exception(-1)
    holding.release()
    assert future.result(timeout=WAIT_S) == 3


def test_result_raises_the_original_type_with_the_remote_traceback(client: forage.Client) -> None:
    future = client.submit(divide, 1, 0)
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        future.result(WAIT_S)
    assert future.exception() is caught.value
    assert future.state == "failed"
    assert "in divide" in str(caught.value.__cause__)
    assert any("pi1" in note for note in caught.value.__notes__)


def test_a_pending_call_is_cancelled_at_once_and_for_good(
    holding: Fleet, held: forage.Client
) -> None:
    future = held.submit(add, 1, 2)
    assert future.cancel() is True
    assert future.cancel() is True
    assert (future.cancelled(), future.done(), future.running()) == (True, True, False)
    assert future.state == "cancelled"
    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(forage.TaskCancelled, match=future.id):
        future.exception()
    holding.wait(lambda: (future.id, False) in holding.cancelled)


def test_a_cancelled_future_stays_cancelled_when_its_outcome_comes_all_the_same(
    holding: Fleet, held: forage.Client
) -> None:
    future = held.submit(add, 1, 2)
    holding.wait(lambda: future.id in holding.calls)
    call = holding.calls[future.id]
    future.cancel()
    holding.say(call, b"\x81\x03")
    other = held.submit(add, 3, 4)
    holding.wait(lambda: other.id in holding.calls)
    holding.finish(other.id)
    assert other.result(WAIT_S) == 7
    assert future.cancelled()


def test_a_done_call_cannot_be_cancelled(client: forage.Client) -> None:
    future = client.submit(add, 1, 2)
    assert future.result(WAIT_S) == 3
    assert future.cancel() is False
    assert future.cancel(force=True) is False
    assert not future.cancelled()


def test_force_cancels_what_runs_and_says_so_to_the_device(
    holding: Fleet, held: forage.Client
) -> None:
    future = held.submit(add, 1, 2)
    holding.wait(lambda: future.id in holding.calls)
    holding.start(future.id)
    assert future.cancel(force=True) is True
    assert future.cancelled()
    holding.wait(lambda: (future.id, True) in holding.cancelled)


def test_callbacks_run_in_order_each_once_with_the_future(
    holding: Fleet, held: forage.Client
) -> None:
    future = held.submit(add, 1, 2)
    seen: list[tuple[str, object]] = []
    done = threading.Event()
    future.add_done_callback(lambda each: seen.append(("first", each)))
    future.add_done_callback(lambda each: seen.append(("second", each)))
    future.add_done_callback(lambda _each: done.set())
    holding.release()
    assert done.wait(WAIT_S)
    assert seen == [("first", future), ("second", future)]


def test_callbacks_never_run_on_the_network_thread(holding: Fleet, held: forage.Client) -> None:
    future = held.submit(add, 1, 2)
    names: list[str] = []
    done = threading.Event()

    def note(_future: object) -> None:
        names.append(threading.current_thread().name)
        done.set()

    future.add_done_callback(note)
    holding.release()
    assert done.wait(WAIT_S)
    assert names == ["forage-callbacks"]


def test_a_callback_may_submit_and_wait_for_its_call(holding: Fleet, held: forage.Client) -> None:
    results: list[int] = []
    done = threading.Event()

    def go_on(future: "concurrent.futures.Future[int]") -> None:
        results.append(held.submit(add, future.result(), 10).result(WAIT_S))
        done.set()

    held.submit(add, 1, 2).add_done_callback(go_on)
    holding.release()
    assert done.wait(WAIT_S)
    assert results == [13]


def test_a_callback_added_to_a_done_future_runs_at_once_in_the_caller(
    client: forage.Client,
) -> None:
    future = client.submit(add, 1, 2)
    future.result(WAIT_S)
    threads: list[threading.Thread] = []
    future.add_done_callback(lambda _future: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_a_cancelled_futures_callbacks_run_in_the_thread_that_cancels(
    held: forage.Client,
) -> None:
    future = held.submit(add, 1, 2)
    threads: list[threading.Thread] = []
    future.add_done_callback(lambda _future: threads.append(threading.current_thread()))
    future.cancel()
    assert threads == [threading.current_thread()]


def test_what_a_callback_raises_is_logged_and_the_next_ones_run(
    holding: Fleet, held: forage.Client, caplog: pytest.LogCaptureFixture
) -> None:
    future = held.submit(add, 1, 2)
    done = threading.Event()

    def fail(_future: object) -> None:
        raise ValueError("from a callback")

    future.add_done_callback(fail)
    future.add_done_callback(lambda _future: done.set())
    with caplog.at_level(logging.ERROR):
        holding.release()
        assert done.wait(WAIT_S)
        future.add_done_callback(fail)
    assert caplog.text.count("exception calling callback for <Future") == 2
    assert caplog.text.count("ValueError: from a callback") == 2


def test_wait_and_as_completed_take_them_among_futures_of_other_executors(
    holding: Fleet, held: forage.Client
) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        other = pool.submit(pow, 2, 5)
        ours = held.submit(add, 1, 2)
        mixed: set[concurrent.futures.Future[Any]] = {other, ours}
        first = concurrent.futures.wait(mixed, WAIT_S, FIRST_COMPLETED)
        assert first.done == {other}
        assert first.not_done == {ours}
        with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
            list(concurrent.futures.as_completed(mixed, 0.01))
        holding.release()
        assert concurrent.futures.wait(mixed, WAIT_S).not_done == set()
        assert set(concurrent.futures.as_completed(mixed)) == mixed


def test_wait_returns_at_the_first_exception(holding: Fleet, held: forage.Client) -> None:
    fine, bad, late = (held.submit(divide, 1, divisor) for divisor in (1, 0, 2))
    holding.wait(lambda: late.id in holding.calls)
    holding.finish(fine.id)
    holding.finish(bad.id)
    done, not_done = concurrent.futures.wait([fine, bad, late], WAIT_S, FIRST_EXCEPTION)
    assert (done, not_done) == ({fine, bad}, {late})


def test_wait_counts_cancelled_futures_as_done(held: forage.Client) -> None:
    futures = [held.submit(add, number) for number in range(4)]
    threading.Thread(target=futures[2].cancel).start()
    done, not_done = concurrent.futures.wait(futures, WAIT_S, FIRST_COMPLETED)
    assert done == {futures[2]}
    assert len(not_done) == 3


def test_as_completed_yields_in_the_order_of_completion(
    holding: Fleet, held: forage.Client
) -> None:
    futures = [held.submit(add, number) for number in range(3)]
    holding.wait(lambda: futures[2].id in holding.calls)
    completed = concurrent.futures.as_completed(futures, WAIT_S)
    for chosen in (1, 2, 0):
        holding.finish(futures[chosen].id)
        assert next(completed) is futures[chosen]


def test_many_threads_may_wait_for_one_future(holding: Fleet, held: forage.Client) -> None:
    future = held.submit(add, 20, 22)
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(future.result(WAIT_S))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    holding.release()
    for thread in threads:
        thread.join(WAIT_S)
    assert results == [42] * 8


def test_executors_methods_behave_as_in_the_standard_library() -> None:
    future: Future[int] = Future()
    assert future.set_running_or_notify_cancel() is True
    assert future.running()
    with pytest.raises(RuntimeError):
        future.set_running_or_notify_cancel()
    future.set_result(7)
    assert future.result() == 7
    with pytest.raises(InvalidStateError):
        future.set_result(8)
    with pytest.raises(InvalidStateError):
        future.set_exception(ValueError())
    with pytest.raises(RuntimeError):
        future.set_running_or_notify_cancel()


def test_a_cancelled_future_is_not_set_running_and_takes_no_result(held: forage.Client) -> None:
    for future in (Future[int](), held.submit(add, 1)):
        assert future.cancel()
        assert future.set_running_or_notify_cancel() is False
        with pytest.raises(InvalidStateError):
            future.set_result(1)
        with pytest.raises(InvalidStateError):
            future.set_exception(ValueError())


def test_set_exception_wakes_who_waits() -> None:
    future: Future[int] = Future()
    threading.Timer(0, future.set_exception, [KeyError("x")]).start()
    with pytest.raises(KeyError):
        future.result(WAIT_S)


def test_a_future_of_no_client_says_so() -> None:
    with pytest.raises(RuntimeError, match="belongs to no call"):
        _ = Future[int]().id


def test_repr_names_the_call_its_state_and_its_outcome(holding: Fleet, held: forage.Client) -> None:
    future = held.submit(add, 1, 2)
    assert repr(future) == f"<Future {future.id} state=pending>"
    holding.release()
    future.result(WAIT_S)
    assert repr(future) == f"<Future {future.id} state=done returned int>"


def test_ids_are_there_at_once_and_name_task_and_index(held: forage.Client) -> None:
    ids = [held.submit(add, number).id for number in range(5)]
    assert len(set(ids)) == 5
    assert all(each.startswith(f"{held.id}-") for each in ids)


def test_failed_attempts_are_counted(holding: Fleet, held: forage.Client) -> None:
    future = held.submit(add, 1, 2)
    holding.wait(lambda: future.id in holding.calls)
    holding.say(holding.calls[future.id], b"\xa1freasonax", error=("error", False))
    holding.finish(future.id)
    assert future.result(WAIT_S) == 3
    assert future.attempts == 2

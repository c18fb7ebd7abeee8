"""`Client` against the documentation of `concurrent.futures.Executor`: submit, map, shutdown."""

import concurrent.futures
import itertools
import threading
import time
from collections.abc import Iterator

import pytest

import forage
from forage_wire.messages import Page, Submit
from sdk.fleet import WAIT_S, Fleet
from sdk.functions import add, divide, identity, size_of


def test_submit_passes_positional_and_keyword_arguments(client: forage.Client) -> None:
    assert client.submit(add, 3, right=4).result(WAIT_S) == 7
    assert client.submit(dict, fn=1, self=2).result(WAIT_S) == {"fn": 1, "self": 2}


def test_the_client_is_an_executor(client: forage.Client) -> None:
    assert isinstance(client, concurrent.futures.Executor)


def test_a_text_runs_a_named_function(fleet: Fleet, client: forage.Client) -> None:
    fleet.named["org.app.task"] = lambda value: value * 2
    assert client.submit("org.app.task", 21).result(WAIT_S) == 42
    assert list(client.map("org.app.task", [1, 2])) == [2, 4]


@pytest.mark.parametrize("wrong", [None, 3, b"name"])
def test_what_cannot_be_called_is_refused_at_submit(held: forage.Client, wrong: object) -> None:
    with pytest.raises(TypeError, match="cannot be submitted"):
        held.submit(wrong)  # type: ignore[arg-type]


def test_an_argument_that_cannot_travel_is_named_at_submit(held: forage.Client) -> None:
    with pytest.raises(forage.NotSerializable, match="left"):
        held.submit(add, threading.Lock(), 2)


def test_arguments_above_the_limit_are_refused_at_submit(held: forage.Client) -> None:
    with pytest.raises(forage.NotSerializable, match="above the limit of 16777216"):
        held.submit(size_of, bytes(16 * 1024 * 1024 + 1))


def test_arguments_and_results_of_16_mib_travel_in_parts(client: forage.Client) -> None:
    data = bytes(16 * 1024 * 1024 - 100)
    assert client.submit(size_of, data).result(60) == len(data)
    assert client.submit(identity, data[: 4 * 1024 * 1024]).result(60) == data[: 4 * 1024 * 1024]


def test_map_yields_results_in_the_order_of_the_arguments(
    holding: Fleet, held: forage.Client
) -> None:
    results = held.map(add, [1, 2, 3], [10, 20, 30])
    holding.wait(lambda: len(holding.calls) == 3)
    for name in reversed(list(holding.calls)):
        holding.finish(name)
    assert list(results) == [11, 22, 33]


def test_map_stops_at_the_shortest_iterable(client: forage.Client) -> None:
    assert list(client.map(add, [1, 2, 3], [1, 2])) == [2, 4]
    assert list(client.map(add, [])) == []
    assert list(client.map(add)) == []


def test_map_submits_before_anything_is_asked_of_it(holding: Fleet, held: forage.Client) -> None:
    results = held.map(add, range(5))
    holding.wait(lambda: len(holding.calls) == 5)
    holding.release()
    assert list(results) == [0, 1, 2, 3, 4]


def test_map_reads_its_iterables_at_once_without_buffersize(held: forage.Client) -> None:
    read: list[int] = []
    held.map(add, (read.append(number) or number for number in range(10)))  # type: ignore[func-returns-value]
    assert read == list(range(10))


def test_map_raises_what_a_call_raised_when_its_result_is_due(client: forage.Client) -> None:
    results = client.map(divide, [1, 1, 1], [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_times_out_counting_from_its_call(holding: Fleet, held: forage.Client) -> None:
    results = held.map(add, [1, 2], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    holding.wait(lambda: len(holding.cancelled) == 2)


def test_map_yields_what_is_there_after_its_timeout(client: forage.Client) -> None:
    results = client.map(add, [1, 2, 3], timeout=WAIT_S)
    assert next(results) == 1
    assert list(results) == [2, 3]


@pytest.mark.parametrize("buffersize", [None, 4])
def test_closing_maps_iterator_cancels_what_is_left(
    holding: Fleet, held: forage.Client, buffersize: int | None
) -> None:
    results = held.map(add, range(4), buffersize=buffersize)
    holding.wait(lambda: len(holding.calls) == 4)
    holding.finish(next(iter(holding.calls)))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    holding.wait(lambda: len(holding.cancelled) == 3)
    with pytest.raises(StopIteration):
        next(results)


def test_dropping_maps_iterator_cancels_what_is_left(holding: Fleet, held: forage.Client) -> None:
    results = held.map(add, range(4))
    holding.wait(lambda: len(holding.calls) == 4)
    del results
    holding.wait(lambda: len(holding.cancelled) == 4)


def test_map_with_buffersize_reads_its_iterables_as_results_are_taken(
    holding: Fleet, held: forage.Client
) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    results = held.map(add, numbers(), buffersize=3)
    assert read == [0, 1, 2]
    holding.release()
    assert next(results) == 0
    assert read == [0, 1, 2, 3]
    assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert read == list(range(9))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": 1.5}, TypeError),
    ],
)
def test_map_refuses_sizes_that_mean_nothing(
    held: forage.Client, settings: dict[str, int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        held.map(add, [1], **settings)


def test_chunksize_is_only_a_hint(client: forage.Client) -> None:
    assert list(client.map(add, range(10), chunksize=100)) == list(range(10))


def test_an_iterable_that_raises_ends_map_and_cancels_what_was_submitted(
    holding: Fleet, held: forage.Client
) -> None:
    def numbers() -> Iterator[int]:
        yield from range(200)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        held.map(add, numbers())
    holding.wait(lambda: len(holding.cancelled) == 64)

    def pages() -> list[Page]:
        return [page for message in holding.messages(Submit) for page in message.pages]

    # What was not sent when it raised goes out as ended: the fleet is given none of it.
    holding.wait(lambda: len(pages()) == 2)
    assert len(holding.calls) == 64


def test_an_argument_that_cannot_travel_ends_submit_all_before_anything_runs(
    holding: Fleet, held: forage.Client
) -> None:
    with pytest.raises(forage.NotSerializable):
        held.submit_all(add, [1, 2, threading.Lock()])
    assert held.submit(add, 1) is not None
    holding.wait(lambda: len(holding.calls) == 1)


def test_shutdown_waits_for_pending_calls(fleet: Fleet) -> None:
    client = fleet.connect()
    futures = [client.submit(add, number) for number in range(200)]
    client.shutdown()
    assert [future.done() for future in futures] == [True] * 200
    assert futures[150].result() == 150


def test_nothing_is_submitted_after_shutdown(fleet: Fleet) -> None:
    client = fleet.connect()
    client.shutdown()
    client.shutdown()
    for submit in (client.submit, client.submit_all, client.map):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            submit(add, [1])


def test_shutdown_without_waiting_returns_and_lets_calls_finish(holding: Fleet) -> None:
    client = holding.connect()
    future = client.submit(add, 1, 2)
    client.shutdown(wait=False)
    assert not future.done()
    with pytest.raises(RuntimeError):
        client.submit(add, 1)
    holding.release()
    assert future.result(WAIT_S) == 3


def test_shutdown_can_cancel_what_is_pending(holding: Fleet) -> None:
    client = holding.connect()
    futures = [client.submit(add, number) for number in range(50)]
    batch = client.submit_all(add, range(5))
    client.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    assert batch.progress().failed == 5
    holding.wait(lambda: futures[0].id in holding.calls)


def test_with_waits_for_everything(fleet: Fleet) -> None:
    with fleet.connect() as client:
        futures = [client.submit(add, number) for number in range(20)]
    assert all(future.done() for future in futures)


def test_shutdown_returns_after_callbacks_have_run(fleet: Fleet) -> None:
    ran: list[int] = []

    def note(future: "concurrent.futures.Future[int]") -> None:
        # Slower than the calls: the last callbacks are left when the last call has ended.
        time.sleep(0.002)
        ran.append(future.result())

    with fleet.connect() as client:
        for number in range(20):
            client.submit(add, number).add_done_callback(note)
    assert sorted(ran) == list(range(20))


def test_shutdown_from_a_callback_does_not_wait_for_itself(fleet: Fleet) -> None:
    client = fleet.connect()
    done = threading.Event()
    future = client.submit(add, 1)

    def end(_future: object) -> None:
        client.shutdown()
        done.set()

    future.add_done_callback(end)
    assert done.wait(WAIT_S)


def test_many_threads_may_submit(client: forage.Client) -> None:
    def work(start: int) -> list[int]:
        futures = [client.submit(add, start, number) for number in range(100)]
        return [future.result(WAIT_S) for future in futures]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(0, 8_000, 1_000)))
    assert found == [[start + n for n in range(100)] for start in range(0, 8_000, 1_000)]


def test_submit_waits_while_too_much_is_not_with_the_controller(
    holding: Fleet, held: forage.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forage.shell.network.UNACKNOWLEDGED_BYTES_MAX", 200_000)
    holding.delays_acknowledgements = True
    submitted: list[int] = []

    def work() -> None:
        for _ in range(20):
            held.submit(size_of, bytes(50_000))
            submitted.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + WAIT_S
    while not held._network._changed._waiters:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert len(submitted) < 10
    holding.acknowledge_all()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert len(submitted) == 20


def test_an_interrupt_while_a_batch_waits_for_room_leaves_no_task_behind(
    holding: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forage.shell.network.UNACKNOWLEDGED_BYTES_MAX", 200_000)
    holding.delays_acknowledgements = True
    client = holding.connect()
    first = client.submit_all(size_of, [bytes(300_000)])

    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(client._network, "_wait_for_change", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.submit_all(size_of, [b"x"])
    holding.acknowledge_all()
    holding.release()
    assert first.results(timeout=WAIT_S) == [300_000]
    ended = threading.Thread(target=client.shutdown)
    ended.start()
    ended.join(WAIT_S)
    assert not ended.is_alive(), "it waits for a task that nobody can end"


def test_the_number_of_a_network_thread_that_has_ended_may_be_anybodys(
    fleet: Fleet,
) -> None:
    client = fleet.connect()
    batch = client.submit_all(add, range(3), range(3))
    batch.results(timeout=WAIT_S)
    client.shutdown()
    found: list[object] = []
    numbers = []

    def look() -> None:
        numbers.append(threading.get_ident())
        try:
            found.append(batch.results(timeout=WAIT_S))
        except RuntimeError as error:
            found.append(error)

    for _ in range(20):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert found == [[0, 2, 4]] * 20
    if client._network._thread.ident not in numbers:
        pytest.skip("no thread of this system got the number again")


def test_a_fault_of_the_network_thread_fails_futures_instead_of_leaving_them(
    holding: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = holding.connect()
    future = client.submit(add, 1)
    batch = client.submit_all(add, range(3))
    holding.wait(lambda: len(holding.calls) == 4)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(client._network._line, "read", fail)
    holding.start(future.id)
    with pytest.raises(forage.ForageError, match="a fault"):
        future.result(WAIT_S)
    with pytest.raises(forage.ForageError, match="a fault"):
        batch.results(timeout=WAIT_S)
    with pytest.raises(RuntimeError, match="after shutdown"):
        client.submit(add, 1)
    client.shutdown()
    assert "network thread fails" in caplog.text


def test_a_result_that_waits_for_a_call_while_it_is_unpickled_fails_alone(
    client: forage.Client,
) -> None:
    Waits.client = client
    with pytest.raises(forage.ForageError, match="while it is unpickled"):
        client.submit(identity, Waits(True)).result(WAIT_S)
    assert client.submit(add, 1, 2).result(WAIT_S) == 3


class Waits:
    """Asks for another call's result when it is unpickled, in the client's process alone."""

    client: "forage.Client | None" = None

    def __init__(self, waits: bool) -> None:
        self.waits = waits

    def __setstate__(self, state: dict[str, bool]) -> None:
        self.__dict__.update(state)
        if self.client is not None and threading.current_thread().name == "forage-network":
            self.client.submit(add, 1).result(WAIT_S)

"""What is not kept: functions, arguments and results that nobody else needs."""

import gc
import sys
import weakref
from typing import Any

import pytest

import forage
from sdk.fleet import WAIT_S, Fleet
from sdk.functions import Keeps, add, identity


def gone(reference: "weakref.ref[Any]") -> bool:
    gc.collect()
    return reference() is None


def test_arguments_are_not_kept_once_submitted(held: forage.Client) -> None:
    argument = Keeps(1)
    reference = weakref.ref(argument)
    future = held.submit(identity, argument)
    batch = held.submit_all(identity, [argument])
    del argument
    assert gone(reference)
    assert not future.done()
    assert len(batch) == 1


def test_functions_are_not_kept_once_submitted(holding: Fleet, held: forage.Client) -> None:
    def function(value: int) -> int:
        return value + 1

    reference = weakref.ref(function)
    future = held.submit(function, 1)
    del function
    assert gone(reference)
    holding.release()
    assert future.result(WAIT_S) == 2


@pytest.mark.parametrize("buffersize", [None, 2])
def test_maps_iterator_keeps_no_yielded_result(
    client: forage.Client, buffersize: int | None
) -> None:
    results = client.map(identity, [Keeps(1), Keeps(2), Keeps(3)], buffersize=buffersize)
    result = next(results)
    assert result.number == 1
    reference = weakref.ref(result)
    del result
    assert gone(reference)
    assert next(results).number == 2


def test_as_completed_keeps_no_yielded_future(client: forage.Client) -> None:
    batch = client.submit_all(identity, [Keeps(1), Keeps(2)])
    batch.wait(WAIT_S)
    completed = batch.as_completed()
    reference = weakref.ref(next(completed))
    assert gone(reference)
    assert next(completed).done()


def test_a_result_is_kept_by_its_future_alone(client: forage.Client) -> None:
    future = client.submit(identity, Keeps(1))
    reference = weakref.ref(future.result(WAIT_S))
    assert not gone(reference)
    del future
    client.submit(add, 1).result(WAIT_S)
    assert gone(reference)


def test_raising_a_result_makes_no_cycle(client: forage.Client) -> None:
    future = client.submit(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        future.result(WAIT_S)
    client.submit(add, 1).result(WAIT_S)
    reference = weakref.ref(future)
    gc.disable()
    try:
        del future
        assert reference() is None
    finally:
        gc.enable()


def test_a_dropped_batch_frees_its_results(client: forage.Client) -> None:
    batch = client.submit_all(identity, [Keeps(1)])
    reference = weakref.ref(batch.results(timeout=WAIT_S)[0])
    assert not gone(reference)
    del batch
    client.submit(add, 1).result(WAIT_S)
    assert gone(reference)


def test_a_queued_call_takes_little_memory(held: forage.Client) -> None:
    held.submit(add, 0)
    future = held.submit(add, 1)
    # Object, its garbage collector's head, and the slots; no dict, lock, condition or lists.
    assert sys.getsizeof(future) + 16 <= 200
    assert not getattr(future, "__dict__", None)
    assert future._extra is None


def test_a_dropped_client_ends_its_connection_when_its_calls_have_ended(holding: Fleet) -> None:
    client = holding.connect()
    network = client._network
    future = client.submit(add, 1, 2)
    view = client.options(retries=1)
    del client
    gc.collect()
    assert not network._is_closed
    del view
    gc.collect()
    assert network._is_closed
    holding.release()
    assert future.result(WAIT_S) == 3
    network._thread.join(WAIT_S)
    assert not network._thread.is_alive()

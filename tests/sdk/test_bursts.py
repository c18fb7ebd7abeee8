"""How submissions are merged into tasks, and that nothing waits longer than it must."""

import forage
from forage_wire.codec import decode_header
from forage_wire.messages import Code, Collected, Submit
from sdk.fleet import WAIT_S, Fleet
from sdk.functions import add, identity, size_of


def tasks_of(fleet: Fleet) -> dict[str, int]:
    """How many calls each task has."""
    found: dict[str, int] = {}
    for message in fleet.messages(Submit):
        for page in message.pages:
            header = decode_header(page.header)
            found[header.task] = found.get(header.task, 0) + header.n
    return found


def test_a_call_goes_out_at_once_when_nothing_is_under_way(
    holding: Fleet, held: forage.Client
) -> None:
    # One message handled by the caller's own thread: when submit returns, it is under way.
    first = held.submit(add, 1, 2)
    holding.wait(lambda: first.id in holding.calls)
    assert tasks_of(holding) == {first.id.split(".")[0]: 1}


def test_calls_submitted_while_one_is_under_way_are_merged(
    holding: Fleet, held: forage.Client
) -> None:
    holding.delays_acknowledgements = True
    futures = [held.submit(add, number) for number in range(500)]
    holding.wait(lambda: len(holding.calls) == 500)
    assert len({future.id for future in futures}) == 500
    assert len(tasks_of(holding)) < 250
    holding.release()
    assert [future.result(WAIT_S) for future in futures] == list(range(500))


def test_a_burst_is_sealed_at_1000_calls(holding: Fleet, held: forage.Client) -> None:
    holding.delays_acknowledgements = True
    for number in range(5_000):
        held.submit(add, number)
    holding.wait(lambda: len(holding.calls) == 5_000)
    assert max(tasks_of(holding).values()) <= 1_000


def test_a_burst_is_sent_when_it_fills_a_packet(holding: Fleet, held: forage.Client) -> None:
    holding.delays_acknowledgements = True
    for _ in range(20):
        held.submit(size_of, bytes(30_000))
    holding.wait(lambda: len(holding.calls) == 20)
    pages = [page for message in holding.messages(Submit) for page in message.pages]
    assert max(len(page.calls) for page in pages) <= 128 * 1024


def test_calls_of_other_functions_or_options_do_not_seal_a_burst(
    holding: Fleet, held: forage.Client
) -> None:
    holding.delays_acknowledgements = True
    retrying = held.options(retries=2)
    held.submit(add, 0)
    futures = []
    for number in range(60):
        futures += [held.submit(add, number), held.submit(identity, number)]
        futures.append(retrying.submit(add, number))
    holding.wait(lambda: len(holding.calls) == 181)
    by_task: dict[str, set[int]] = {}
    for position, future in enumerate(futures):
        by_task.setdefault(future.id.split(".")[0], set()).add(position % 3)
    assert all(len(kinds) == 1 for kinds in by_task.values())
    assert len(by_task) < 90


def test_equal_options_of_different_views_merge(holding: Fleet, held: forage.Client) -> None:
    holding.delays_acknowledgements = True
    first = held.options(retries=2, priority=1)
    second = held.options(priority=1).options(retries=2)
    held.submit(add, 0)
    futures = [view.submit(add, number) for number in range(100) for view in (first, second)]
    shared = {future.id.split(".")[0] for future in futures[::2]}
    assert shared & {future.id.split(".")[0] for future in futures[1::2]}


def test_code_travels_once(fleet: Fleet, client: forage.Client) -> None:
    for number in range(20):
        assert client.submit(add, number).result(WAIT_S) == number
    assert len(fleet.messages(Code)) == 1


def test_results_are_said_to_be_collected(fleet: Fleet, client: forage.Client) -> None:
    batch = client.submit_all(add, range(100))
    assert batch.results(timeout=WAIT_S) == list(range(100))
    fleet.wait(lambda: fleet.collected(batch.id) == set(range(100)))
    assert fleet.messages(Collected)

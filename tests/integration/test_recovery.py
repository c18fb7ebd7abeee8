"""A task of 1,000 calls goes on when a device, the controller or the broker dies in its midst."""

import collections
import time
from collections.abc import Callable
from concurrent.futures import wait

from forage import Batch, Client, LocalCluster, TaskTimeout

CALLS = 1_000
MIDWAY = 300
LIMIT_S = 60.0


def square(number: int) -> int:
    time.sleep(0.002)
    return number * number


class Delivered:
    """How often each outcome came, in each of the ways in which a client is told."""

    def __init__(self, batch: Batch[int]) -> None:
        self.by_callback: collections.Counter[int] = collections.Counter()
        self.by_iterator: collections.Counter[int] = collections.Counter()
        for index, future in enumerate(batch):
            future.add_done_callback(lambda _, index=index: self.by_callback.update([index]))

    def each_once(self) -> bool:
        once = dict.fromkeys(range(CALLS), 1)
        return self.by_callback == once and self.by_iterator == once


def run_and_disturb(client: Client, disturb: Callable[[Batch[int]], None]) -> Batch[int]:
    """All outcomes of a task that is disturbed when a third of them is there."""
    batch = client.submit_all(square, range(CALLS))
    delivered = Delivered(batch)
    for count, future in enumerate(batch.as_completed(timeout=LIMIT_S), 1):
        delivered.by_iterator[int(future.id.rpartition(".")[2])] += 1
        if count == MIDWAY:
            assert batch.progress().done < CALLS - 100, "too late to be midway"
            disturb(batch)
    assert batch.results(timeout=0) == [number * number for number in range(CALLS)]
    # Callbacks run in a thread of their own; a client that is shut down has run them all.
    client.shutdown()
    assert delivered.each_once()
    return batch


def test_a_killed_device(cluster: LocalCluster, client: Client) -> None:
    killed: list[str] = []

    def kill(batch: Batch[int]) -> None:
        held = collections.Counter(
            row.device for row in client.history(batch.id) if row.state == "open"
        )
        [(name, _slices)] = held.most_common(1)
        cluster.device(name).kill()
        killed.append(name)

    run_and_disturb(client, kill)
    with cluster.client() as other:
        assert [row.state for row in other.devices() if row.name in killed] == ["lost"]


def test_a_killed_controller(cluster: LocalCluster, client: Client) -> None:
    def kill_and_start(batch: Batch[int]) -> None:
        cluster.controller.kill()
        cluster.controller.start()

    run_and_disturb(client, kill_and_start)


def test_a_killed_broker_that_comes_back_empty(cluster: LocalCluster, client: Client) -> None:
    def kill_and_start(batch: Batch[int]) -> None:
        assert cluster.broker is not None
        cluster.broker.kill()
        cluster.broker.start()

    run_and_disturb(client, kill_and_start)


def test_a_killed_controller_and_device_at_once(cluster: LocalCluster, client: Client) -> None:
    def kill_and_start(batch: Batch[int]) -> None:
        cluster.controller.kill()
        cluster.devices[1].kill()
        cluster.controller.start()

    run_and_disturb(client, kill_and_start)


def test_a_frozen_device_is_found_and_its_work_done_by_others(
    cluster: LocalCluster, client: Client
) -> None:
    frozen = cluster.devices[2]
    batch = run_and_disturb(client, lambda batch: frozen.freeze())
    with cluster.client() as other:
        [row] = [row for row in other.devices() if row.name == frozen.name]
        assert row.verdict == "dead"
        frozen.thaw()
        # It comes back by itself, with what it held; nobody runs that again.
        assert other.options(device=frozen.name).submit(square, 7).result(LIMIT_S) == 49
        assert batch.results(timeout=0) == [number * number for number in range(CALLS)]


def test_a_device_killed_and_started_again_under_its_name_works_on(
    cluster: LocalCluster, client: Client
) -> None:
    device = cluster.devices[0]

    def kill_and_start(batch: Batch[int]) -> None:
        device.kill()
        device.start()

    batch = run_and_disturb(client, kill_and_start)
    del batch
    with cluster.client() as other:
        future = other.options(device=device.name).submit(square, 3)
        assert future.result(LIMIT_S) == 9


def test_a_deadline_comes_however_often_the_controller_is_killed(
    cluster: LocalCluster, client: Client
) -> None:
    future = client.options(deadline_s=6.0).submit(time.sleep, 600)
    for _start in range(40):
        # Each controller rules for less than the deadline: counted anew it would never come.
        if not wait([future], timeout=1.5).not_done:
            break
        cluster.controller.kill()
        cluster.controller.start()
    assert isinstance(future.exception(timeout=0), TaskTimeout)

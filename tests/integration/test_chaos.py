"""Everything dies again and again while work goes on; what is then left must come out right.

A longer lane: seeded choices of what to kill, freeze and start, and how long to wait between. Run
other seeds with FORAGE_CHAOS_SEEDS="5 6 7".
"""

import os
import random
import time
from collections.abc import Callable

import pytest

from forage import Batch, Client, LocalCluster
from integration.engines import ENGINES

SEEDS = [int(seed) for seed in os.environ.get("FORAGE_CHAOS_SEEDS", "1 2").split()]
ACTIONS = 8
CALLS = 3_000
LIMIT_S = 90.0


def spend(index: int, microseconds: int) -> int:
    end_s = time.perf_counter() + microseconds / 1e6
    while time.perf_counter() < end_s:
        pass
    return index * 3 + 1


def sleep_and_echo(index: int, data: bytes) -> bytes:
    time.sleep(0.001)
    return data + index.to_bytes(4, "big")


class Chaos:
    """Disturbs a cluster, and makes it whole again."""

    def __init__(self, cluster: LocalCluster, source: random.Random) -> None:
        assert cluster.broker is not None
        self.cluster = cluster
        self.broker = cluster.broker
        self.source = source
        self.done: list[str] = []

    def disturb(self) -> None:
        """One thing at random, and a pause in which work goes on."""
        kinds: list[Callable[[], None]] = [
            *[self.kill_or_start_device] * 4,
            *[self.freeze_or_thaw_device] * 3,
            self.restart_controller,
            self.restart_broker,
        ]
        self.source.choice(kinds)()
        # Not a wait for something: how far work gets between two blows is what varies here.
        time.sleep(self.source.uniform(0, 0.6))

    def kill_or_start_device(self) -> None:
        device = self.source.choice(self.cluster.devices)
        self.done.append(f"{'kill' if device.is_running else 'start'} {device.name}")
        if device.is_running:
            device.kill()
        else:
            device.start()

    def freeze_or_thaw_device(self) -> None:
        device = self.source.choice(self.cluster.devices)
        freeze = self.source.random() < 0.5
        self.done.append(f"{'freeze' if freeze else 'thaw'} {device.name}")
        if freeze:
            device.freeze()
        else:
            device.thaw()

    def restart_controller(self) -> None:
        self.done.append("restart controller")
        self.cluster.controller.kill()
        self.cluster.controller.start()

    def restart_broker(self) -> None:
        self.done.append("restart broker")
        self.broker.kill()
        self.broker.start()

    def heal(self) -> None:
        """Everything runs again."""
        self.done.append("heal")
        for device in self.cluster.devices:
            device.thaw()
            if not device.is_running:
                device.start()


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_all_outcomes_come_out_right(engine: str, seed: int) -> None:
    source = random.Random(seed)
    with LocalCluster(devices=4, engine=engine) as cluster:
        clients = [cluster.client() for _ in range(2)]
        chaos = Chaos(cluster, source)
        batches: list[tuple[Batch[int], list[int]]] = []
        echoes: list[tuple[Batch[bytes], list[bytes]]] = []
        for _ in range(ACTIONS):
            client: Client = source.choice(clients)
            count = source.choice([1, 30, CALLS])
            lengths = [source.choice([10, 200, 3_000]) for _ in range(count)]
            batch = client.submit_all(spend, range(count), lengths)
            batches.append((batch, [index * 3 + 1 for index in range(count)]))
            rows = [source.randbytes(source.choice([10, 3_000, 200_000])) for _ in range(20)]
            echo = client.submit_all(sleep_and_echo, range(20), rows)
            wanted = [row + index.to_bytes(4, "big") for index, row in enumerate(rows)]
            echoes.append((echo, wanted))
            chaos.disturb()
        chaos.heal()
        limit_s = time.monotonic() + LIMIT_S
        for any_batch, expected in [*batches, *echoes]:
            left_s = max(0.0, limit_s - time.monotonic())
            try:
                results = any_batch.results(timeout=left_s)
            except TimeoutError:
                logs = [cluster.controller.log_tail(), *(d.log_tail() for d in cluster.devices)]
                trouble = f"{any_batch} after {chaos.done}"
                raise AssertionError("\n\n".join([trouble, *logs])) from None
            assert results == expected, chaos.done
        for client in clients:
            client.shutdown()

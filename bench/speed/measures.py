"""The measurements; each yields (name, value) pairs, and checks the results it times."""

import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from forage import Client, LocalCluster
from speed import calls
from speed.bare import bare_chain
from speed.machine import modules_of, pss_mib, rss_bytes, tree_of, wire_bytes

__all__ = ["MEASURES", "Figures", "Settings"]

Figures = Iterator[tuple[str, float]]

HERE = Path(__file__).parent
SLOW_DISK = HERE.parent / "slow_disk"
SLOW_COMMIT_MS = 20
NOBODY = "a-label-that-no-device-has"


class Settings:
    """What a run was asked for.

    Args:
        engine: The broker.
        quick: A tenth of everything, to see that it works.
        idle_s: How long idle devices are watched.
    """

    def __init__(self, engine: str, *, quick: bool, idle_s: float) -> None:
        self.engine = engine
        self.quick = quick
        self.idle_s = idle_s

    def scaled(self, count: int) -> int:
        """A number of calls, fewer in a quick run."""
        return max(10, count // 10) if self.quick else count

    def cluster(self, devices: int = 2, **options: object) -> LocalCluster:
        """A broker, a controller and devices of one slot."""
        return LocalCluster(devices=devices, slots=1, engine=self.engine, **options)  # type: ignore[arg-type]


def warm(client: Client) -> None:
    """Code is shipped, workers have loaded it, and the controller knows how long calls take."""
    client.submit_all(calls.same, range(2_000)).results()


def rate(count: int, work: Callable[[], None]) -> float:
    """Calls a second; the best of three, as the machine's other work only ever takes away."""
    best = 0.0
    for _ in range(3):
        gc.collect()
        began = time.perf_counter()
        work()
        best = max(best, count / (time.perf_counter() - began))
    return best


def one_by_one(client: Client, count: int) -> None:
    """Submit, then gather."""
    futures = [client.submit(calls.same, number) for number in range(count)]
    if [future.result() for future in futures] != list(range(count)):
        raise AssertionError("wrong results")


def all_at_once(client: Client, count: int) -> None:
    """One task of many calls."""
    if client.submit_all(calls.same, range(count)).results() != list(range(count)):
        raise AssertionError("wrong results")


def own_tasks(client: Client, count: int) -> None:
    """Calls that cannot be merged: a task for each."""
    batches = [client.submit_all(calls.same, [number]) for number in range(count)]
    if [batch.results() for batch in batches] != [[number] for number in range(count)]:
        raise AssertionError("wrong results")


def timed_ms(work: Callable[[], None], count: int) -> list[float]:
    """How long it takes each time."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) * 1_000)
    return found


def latencies_ms(client: Client, count: int) -> list[float]:
    """Of single calls back to back, sorted."""

    def call() -> None:
        if client.submit(calls.same, 7).result() != 7:
            raise AssertionError("a wrong result")

    return sorted(timed_ms(call, count))


def percentile(ordered: list[float], percent: float) -> float:
    """The nearest rank."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def throughput(settings: Settings) -> Figures:
    """Many calls."""
    with settings.cluster() as cluster, cluster.client() as client:
        warm(client)
        for asked in (5_000, 50_000):
            count = settings.scaled(asked)
            yield (
                f"one by one, {asked:,}: calls/s",
                rate(count, lambda count=count: one_by_one(client, count)),  # type: ignore[misc]
            )
        for asked in (100_000, 1_000_000):
            count = settings.scaled(asked)
            yield (
                f"submit_all, {asked:,}: calls/s",
                rate(count, lambda count=count: all_at_once(client, count)),  # type: ignore[misc]
            )
        count = settings.scaled(5_000)
        yield "own task for each call: calls/s", rate(count, lambda: own_tasks(client, count))


def latency(settings: Settings) -> Figures:
    """One call at a time."""
    with settings.cluster() as cluster, cluster.client() as client:
        warm(client)
        latencies_ms(client, 50)
        found = latencies_ms(client, settings.scaled(2_000))
        for percent in (50, 95, 99):
            yield f"single call: p{percent} ms", percentile(found, percent)
        data = os.urandom(1 << 20)
        times = []
        for _ in range(settings.scaled(50)):
            began = time.perf_counter()
            if client.submit(calls.echo, data).result() != data:
                raise AssertionError("a wrong echo")
            times.append((time.perf_counter() - began) * 1_000)
        yield "echo of 1 MiB: p50 ms", statistics.median(times)


def beside_bare(settings: Settings) -> Figures:
    """What the machine allows just now, and how far we are from it: both in turns."""
    with (
        settings.cluster() as cluster,
        bare_chain(int(cluster.broker_url.rpartition(":")[2])) as bare,
        cluster.client() as client,
    ):
        warm(client)
        ours: list[float] = []
        bares: list[float] = []
        for _ in range(10):
            ours += latencies_ms(client, settings.scaled(200))
            bares += timed_ms(bare.call, settings.scaled(200))
        yield "bare chain, single call: p50 ms", statistics.median(bares)
        yield (
            "single call: p50, in bare chains'",
            statistics.median(ours) / statistics.median(bares),
        )
        yield "bare chain, single call: p99 ms", percentile(sorted(bares), 99)
        yield "single call beside it: p99 ms", percentile(sorted(ours), 99)
        count = settings.scaled(5_000)
        bare_rate = rate(count, lambda: bare.own_tasks(count))
        yield "bare chain, own task for each call: calls/s", bare_rate
        our_rate = rate(count, lambda: own_tasks(client, count))
        yield "own task for each call, of the bare chain's", our_rate / bare_rate
        count = settings.scaled(50_000)
        bare_rate = rate(count, lambda: bare.one_task(count))
        yield "bare chain, 50,000 of one task: calls/s", bare_rate
        our_rate = rate(count, lambda: all_at_once(client, count))
        yield "submit_all, 50,000, of the bare chain's", our_rate / bare_rate


def slow_disk(settings: Settings) -> Figures:
    """The same where each commit takes 20 ms more, as on an SD card."""
    environment = {"PYTHONPATH": str(SLOW_DISK), "FORAGE_BENCH_COMMIT_MS": str(SLOW_COMMIT_MS)}
    with settings.cluster(env=environment) as cluster, cluster.client() as client:
        warm(client)
        latencies_ms(client, 20)
        found = latencies_ms(client, settings.scaled(500))
        yield "single call, commits 20 ms slower: p50 ms", percentile(found, 50)
        count = settings.scaled(50_000)
        yield (
            "one by one, commits 20 ms slower: calls/s",
            rate(count, lambda: one_by_one(client, count)),
        )


def beside_a_batch(settings: Settings) -> Figures:
    """Calls of 1 ms: how busy they keep the slots, and how long another call waits beside them."""
    with settings.cluster() as cluster, cluster.client() as client:
        warm(client)
        count = settings.scaled(4_000)
        client.submit_all(calls.busy_ms, itertools.repeat(1.0, 200)).results()
        began = time.perf_counter()
        spent = client.submit_all(calls.busy_ms, itertools.repeat(1.0, count)).results()
        elapsed = time.perf_counter() - began
        yield "efficiency with 1 ms calls", sum(spent) / (2 * elapsed)
        batch = client.submit_all(calls.busy_ms, itertools.repeat(1.0, 5 * count))
        found: list[float] = []
        while not batch.wait(0.02) and len(found) < settings.scaled(200):
            found += latencies_ms(client, 1)
        batch.cancel(force=True)
        yield "one call beside a batch of 1 ms calls: p95 ms", percentile(sorted(found), 95)


def failover(settings: Settings) -> Figures:
    """SIGKILL of a device to the start of its work on a spare one."""
    found = []
    with settings.cluster() as cluster, cluster.client() as client:
        warm(client)
        with tempfile.TemporaryDirectory() as folder:
            for round_number in range(settings.scaled(20)):
                path = Path(folder, f"{round_number}")
                path.touch()
                future = client.submit(calls.note_start, str(path), 0.3)
                _until(lambda path=path: path.read_text().count("\n") == 1)  # type: ignore[misc]
                _until(future.running)
                victim = cluster.device(future.device or "")
                killed = time.monotonic()
                victim.kill()
                _until(lambda path=path: path.read_text().count("\n") == 2)  # type: ignore[misc]
                found.append((float(path.read_text().split()[1]) - killed) * 1_000)
                future.result()
                victim.start()
                _until(lambda: all(device.state == "online" for device in client.devices()))
    found.sort()
    yield "SIGKILL to its work started elsewhere: p50 ms", percentile(found, 50)
    yield "SIGKILL to its work started elsewhere: p95 ms", percentile(found, 95)


def _until(is_true: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError("what the measurement waits for does not come")
        time.sleep(0.001)


def memory(settings: Settings) -> Figures:
    """Of queued calls, for which there is no device yet."""
    with settings.cluster() as cluster, cluster.client() as client:
        warm(client)
        nobody = client.options(requires=NOBODY, wait_s=3_600)
        count = settings.scaled(1_000_000)
        before = rss_bytes(cluster.controller.pid)
        batch = nobody.submit_all(calls.same, range(count))
        _until(lambda: client.task(batch.id).queued == count, 120)
        grown = rss_bytes(cluster.controller.pid) - before
        yield "controller, 1,000,000 queued calls: MiB", grown / 2**20
        batch.cancel()
        # In processes of their own: this one has memory to spare from what it did before.
        for way, asked in (("submit_all", 1_000_000), ("submit", 200_000)):
            count = settings.scaled(asked)
            done = subprocess.run(
                [sys.executable, "-c", _QUEUED, cluster.broker_url, way, str(count)],
                check=True,
                capture_output=True,
                text=True,
                timeout=120,
            )
            yield f"client, queued call, {way}: bytes", int(done.stdout) / count


_QUEUED = f"""
import os, sys
import psutil
import forage
url, way, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = forage.connect(url)
nobody = client.options(requires={NOBODY!r}, wait_s=3600)
nobody.submit_all(abs, range(1000)).cancel()
before = psutil.Process().memory_info().rss
if way == "submit_all":
    queued = nobody.submit_all(abs, range(count))
else:
    queued = [nobody.submit(abs, number) for number in range(count)]
print(psutil.Process().memory_info().rss - before, flush=True)
os._exit(0)
"""

_COLD = """
import sys, time
began = time.perf_counter()
import forage
with forage.connect(sys.argv[1]) as client:
    assert client.submit(pow, 2, 10).result() == 1024
    print((time.perf_counter() - began) * 1000)
"""


def starts(settings: Settings) -> Figures:
    """From nothing to work."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        with settings.cluster() as cluster:
            times.append((time.perf_counter() - began) * 1_000)
    yield "start of broker, controller and 2 devices: ms", min(times)
    with settings.cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        # As where it is installed: with bytecode, also where this environment keeps none.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
        cold = []
        for _ in range(1 + settings.scaled(20)):
            done = subprocess.run(
                [sys.executable, "-c", _COLD, cluster.broker_url],
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
                env=environment,
            )
            cold.append(float(done.stdout))
        yield "cold connect to first result: ms", statistics.median(cold[1:])


def idle(settings: Settings) -> Figures:
    """A device with nothing to do."""
    with settings.cluster(devices=1) as cluster, cluster.client() as client:
        client.submit(calls.same, 1).result()
        processes = tree_of(cluster.devices[0].pid)
        agent, zygote, *workers = processes
        time.sleep(1.0 if settings.quick else 12.0)  # The idle pace begins.
        yield "agent, zygote, idle worker: PSS MiB", sum(map(pss_mib, processes))
        for name, pid in zip(
            ("agent", "zygote", "worker"), (agent, zygote, *workers), strict=False
        ):
            yield f"{name}: RSS MiB", rss_bytes(pid) / 2**20
            yield f"{name}: PSS MiB", pss_mib(pid)
        yield "agent: modules", modules_of("forage_agent.main")
        cpu_s, on_wire = wire_bytes(cluster, settings.idle_s, processes)
        yield "agent, zygote, worker, idle: % of a core", 100 * cpu_s / settings.idle_s
        yield "idle device on the wire: bytes/s", on_wire / settings.idle_s


MEASURES: dict[str, Callable[[Settings], Figures]] = {
    "throughput": throughput,
    "latency": latency,
    "bare": beside_bare,
    "slow-disk": slow_disk,
    "beside": beside_a_batch,
    "failover": failover,
    "memory": memory,
    "starts": starts,
    "idle": idle,
}

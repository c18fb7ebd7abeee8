"""How long it takes until work goes on after something died, froze or forgot everything."""

import contextlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from chaos.herd import Herd
from forage import Client
from speed import calls
from speed.machine import rss_bytes
from speed.measures import Figures, Settings, percentile, warm

__all__ = ["MEASURES"]

DETECT_S = 0.5
NOBODY = "a-label-that-no-device-has"
HERD = 2_000
LIMIT_S = 120.0


def until(is_true: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Look until it holds."""
    deadline = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError("what the measurement waits for does not come")
        time.sleep(0.001)


def lines(path: Path) -> list[str]:
    """What calls have written."""
    return path.read_text().splitlines() if path.exists() else []


def frozen(settings: Settings) -> Figures:
    """SIGSTOP of a device to the start of its work on a spare one, beyond the detection time."""
    found = []
    with settings.cluster(detect_s=DETECT_S) as cluster, cluster.client() as client:
        warm(client)
        with tempfile.TemporaryDirectory() as folder:
            # The first does not count: silence is not held against anybody in the seconds after a
            # controller came, and it has just come.
            for number in range(settings.scaled(20) + 1):
                path = Path(folder, f"{number}")
                future = client.submit(calls.note_start, str(path), 2.0)
                until(lambda path=path: len(lines(path)) == 1)  # type: ignore[misc]
                until(future.running)
                victim = cluster.device(future.device or "")
                victim.freeze()
                began = time.monotonic()
                until(lambda path=path: len(lines(path)) == 2)  # type: ignore[misc]
                if number:
                    found.append((float(lines(path)[1]) - began - DETECT_S) * 1_000)
                victim.thaw()
                future.result()
                _all_free(client)
    found.sort()
    yield "frozen: its work elsewhere, beyond detect_s: p50 ms", percentile(found, 50)
    yield "frozen: its work elsewhere, beyond detect_s: p95 ms", percentile(found, 95)


def _all_free(client: Client) -> None:
    # And free: what a device was still running when it froze would be in the next one's way.
    until(
        lambda: all(
            device.verdict == "alive" and not device.active_tasks for device in client.devices()
        )
    )


def controller_restart(settings: Settings) -> Figures:
    """SIGKILL and start with 100,000 queued calls, until a call of them starts."""
    count = settings.scaled(100_000)
    with settings.cluster() as cluster, cluster.client() as client:
        warm(client)
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(3):
                queued = client.options(requires=NOBODY, wait_s=3_600)
                batch = queued.submit_all(calls.same, range(count))
                until(lambda batch=batch: client.task(batch.id).queued == count)  # type: ignore[misc]
                path = Path(folder, f"{number}")
                cluster.controller.kill()
                # Submitted while nobody is there; runs when somebody assigns.
                client.submit(calls.note_start, str(path), 0.0)
                began = time.monotonic()
                cluster.controller.begin()
                until(lambda path=path: len(lines(path)) == 1)  # type: ignore[misc]
                found.append((float(lines(path)[0]) - began) * 1_000)
                cluster.controller.wait_until_ready(time.monotonic() + LIMIT_S)
                batch.cancel()
    yield "controller killed, 100,000 queued: start to assigning ms", statistics.median(found)


def broker_restart(settings: Settings) -> Figures:
    """SIGKILL of the broker, which comes back empty: until every device and client has worked."""
    found = []
    with settings.cluster(devices=3) as cluster, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(cluster.client()) for _ in range(2)]
        for client in clients:
            warm(client)
        broker = cluster.broker
        assert broker is not None
        for _ in range(settings.scaled(10)):
            began = time.monotonic()
            broker.kill()
            broker.begin()
            futures = [
                client.options(device=device.name).submit(calls.same, 7)
                for client in clients
                for device in cluster.devices
            ]
            for future in futures:
                future.result(LIMIT_S)
            found.append((time.monotonic() - began) * 1_000)
            broker.wait_until_ready(time.monotonic() + LIMIT_S)
    found.sort()
    yield "broker killed, empty: all working again: p50 ms", percentile(found, 50)
    yield "broker killed, empty: all working again: worst ms", found[-1]


def herd(settings: Settings) -> Figures:
    """2,000 simulated devices that drop and return at once, beside one that works."""
    count = settings.scaled(HERD)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 1_000)), hard))
    with settings.cluster(devices=1) as cluster, cluster.client() as client:
        warm(client)
        crowd = Herd(int(cluster.broker_url.rpartition(":")[2]), count)

        def in_state(state: str) -> int:
            return sum(
                row.state == state for row in client.devices() if row.name.startswith("herd-")
            )

        crowd.arrive()
        until(lambda: in_state("online") == count)
        before = rss_bytes(cluster.controller.pid)
        for _ in range(2):
            began = time.monotonic()
            crowd.drop()
            crowd.arrive()
            until(lambda: in_state("online") == count)
            elapsed = time.monotonic() - began
            if client.submit(calls.same, 3).result(LIMIT_S) != 3:
                raise AssertionError("a wrong result")
        yield "2,000 devices dropped and back: all known s", elapsed
        grown = rss_bytes(cluster.controller.pid) - before
        yield "2,000 devices dropped and back: controller grew MiB", grown / 2**20
        crowd.drop()


MEASURES: dict[str, Callable[[Settings], Figures]] = {
    "frozen": frozen,
    "controller-restart": controller_restart,
    "broker-restart": broker_restart,
    "herd": herd,
}

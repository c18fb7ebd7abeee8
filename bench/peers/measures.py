"""The measures: the same for every peer, and none gives a figure for wrong values."""

import gc
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calls import add_one, compute_1_ms, hold, run_half_a_second
from peer import Peer
from processes import memory_bytes, wait_until

__all__ = ["MEASURES", "Sizes", "StepTimeout", "WrongValues", "warm_up", "within"]

ROUNDS = 3
ENOUGH_S = 20.0
"""No further round of a bulk once so much time has gone into it."""
LOST_S = 30.0
"""A call without an outcome for so long counts as lost."""
AFTERWARDS_S = 10.0
"""For the next call after a kill, before the peer counts as broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    one_by_one: int = 5_000
    batch: int = 20_000
    latency: int = 500
    of_1_ms: int = 2_000
    queued: int = 20_000
    kills: int = 3


class WrongValues(Exception):
    """The peer gave other values than the calls have."""


class StepTimeout(BaseException):
    """A step took longer than it may. No Exception: no peer takes it for a failure of its own."""


@contextmanager
def within(limit_s: float, what: str) -> Iterator[None]:
    """StepTimeout in the main thread after `limit_s`."""

    def ring(_number: int, _frame: Any) -> None:
        raise StepTimeout(f"{what}: not done within {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _check(values: Sequence[Any], wanted: Sequence[Any]) -> None:
    if list(values) != list(wanted):
        wrong = sum(a != b for a, b in zip(values, wanted, strict=False))
        raise WrongValues(f"{len(values)} values for {len(wanted)} calls, {wrong} of them wrong")


def warm_up(peer: Peer) -> None:
    """Both workers started, modules imported, connections made."""
    values = range(100)
    _check(peer.gather([peer.submit(add_one, value) for value in values]), range(1, 101))
    for way in peer.batch_ways:
        _check(peer.batch(add_one, values, way), range(1, 101))


def idle_memory(peer: Peer, _sizes: Sizes) -> dict[str, Any]:
    """The workers' processes after the warm-up, and everything else that is not the client."""
    time.sleep(2)
    workers, services = peer.worker_processes(), peer.service_processes()
    workers_rss, workers_pss = memory_bytes(workers)
    services_rss, services_pss = memory_bytes(services)
    return {
        "worker_processes": len(workers),
        "workers_rss_bytes": workers_rss,
        "workers_pss_bytes": workers_pss,
        "service_processes": len(services),
        "services_rss_bytes": services_rss,
        "services_pss_bytes": services_pss,
    }


def queued_memory(peer: Peer, sizes: Sizes) -> dict[str, Any]:
    """Growth of the client for each call that waits while both workers are held."""
    count = min(sizes.queued, peer.queued_max)
    folder = peer.folder / "held"
    folder.mkdir()
    markers = [folder / f"call-{number}" for number in range(2)]
    held = []
    for marker in markers:
        held.append(peer.submit(hold, str(marker)))
        wait_until(marker.exists, 60, "both workers hold a call")
    gc.collect()
    before, _ = memory_bytes([os.getpid()])
    start_s = time.perf_counter()
    futures = [peer.submit(add_one, value) for value in range(count)]
    submitted_s = time.perf_counter() - start_s
    time.sleep(2)
    gc.collect()
    after, _ = memory_bytes([os.getpid()])
    (folder / "release").touch()
    _check(peer.gather(held), [str(marker) for marker in markers])
    _check(peer.gather(futures), range(1, count + 1))
    return {
        "calls": count,
        "bytes_per_call": (after - before) / count,
        "submitted_per_s": count / submitted_s,
    }


def latency(peer: Peer, sizes: Sizes) -> dict[str, Any]:
    """Single calls, each submitted when the value of the one before is there."""
    took_ms = []
    values = []
    for value in range(sizes.latency + 20):
        start_s = time.perf_counter()
        values.append(peer.outcome(peer.submit(add_one, value), 30))
        took_ms.append((time.perf_counter() - start_s) * 1000)
    _check(values, range(1, len(values) + 1))
    cuts = statistics.quantiles(took_ms[20:], n=100, method="inclusive")
    return {
        "calls": sizes.latency,
        "p50_ms": cuts[49],
        "p95_ms": cuts[94],
        "p99_ms": cuts[98],
    }


def _rates(run: Callable[[], list[Any]], wanted: Sequence[Any]) -> dict[str, Any]:
    rates: list[float] = []
    begin_s = time.perf_counter()
    while len(rates) < ROUNDS and time.perf_counter() - begin_s < ENOUGH_S:
        gc.collect()
        start_s = time.perf_counter()
        values = run()
        elapsed_s = time.perf_counter() - start_s
        _check(values, wanted)
        rates.append(len(wanted) / elapsed_s)
    return {
        "calls": len(wanted),
        "best_per_s": max(rates),
        "median_per_s": statistics.median(rates),
        "rounds": len(rates),
    }


def one_by_one(peer: Peer, sizes: Sizes) -> dict[str, Any]:
    """Trivial calls submitted one by one, then gathered."""
    values = range(sizes.one_by_one)
    wanted = range(1, sizes.one_by_one + 1)
    return _rates(lambda: peer.gather([peer.submit(add_one, value) for value in values]), wanted)


def batch(peer: Peer, sizes: Sizes) -> dict[str, Any]:
    """Trivial calls in bulk; the best of the peer's ways."""
    values = range(sizes.batch)
    wanted = range(1, sizes.batch + 1)
    ways = {
        way: _rates(lambda way=way: peer.batch(add_one, values, way), wanted)
        for way in peer.batch_ways
    }
    best = max(ways, key=lambda way: ways[way]["best_per_s"])
    return {**ways[best], "way": best, "ways_per_s": {w: f["best_per_s"] for w, f in ways.items()}}


def efficiency(peer: Peer, sizes: Sizes) -> dict[str, Any]:
    """Calls of 1 ms in bulk: the share of both workers' time that went into the calls."""
    ways = {}
    for way in peer.batch_ways:
        start_s = time.perf_counter()
        values = peer.batch(compute_1_ms, range(sizes.of_1_ms), way)
        elapsed_s = time.perf_counter() - start_s
        _check([index for index, _ in values], range(sizes.of_1_ms))
        ways[way] = sum(took_s for _, took_s in values) / (2 * elapsed_s)
    best = max(ways, key=lambda way: ways[way])
    return {"calls": sizes.of_1_ms, "efficiency": ways[best], "way": best, "ways": ways}


def _kill_one(peer: Peer, file: Path) -> dict[str, Any]:
    future = peer.submit(run_half_a_second, str(file))
    # The line is there once it ends: a process id read in part would name another process.
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), 60, "the call runs")
    victim = int(file.read_text())
    if victim not in peer.worker_processes():
        raise WrongValues(f"the call ran in process {victim}, which is none of the workers'")
    os.kill(victim, signal.SIGKILL)
    start_s = time.perf_counter()
    try:
        value = peer.outcome(future, LOST_S)
    except TimeoutError:
        return {"outcome": "lost", "seconds": None}
    except Exception as error:
        return {"outcome": type(error).__name__, "seconds": time.perf_counter() - start_s}
    seconds = time.perf_counter() - start_s
    runs = [int(line) for line in file.read_text().split()]
    _check([value, len(runs) > 1], [runs[-1], True])
    return {"outcome": "value", "seconds": seconds}


def kill(peer: Peer, sizes: Sizes) -> dict[str, Any]:
    """SIGKILL for the process that runs a call of half a second, until the call's outcome.

    "value": it was run again by the peer. An error's name: the caller is told, and must ask again.
    "lost": nothing within half a minute. Repeated while the peer still answers.
    """
    each: list[dict[str, Any]] = []
    answers = True
    for number in range(sizes.kills):
        each.append(_kill_one(peer, peer.folder / f"runs-{number}"))
        try:
            _check([peer.outcome(peer.submit(add_one, number), AFTERWARDS_S)], [number + 1])
        except Exception as error:
            print(f"after the kill: {error!r}", file=sys.stderr)
            answers = False
            break
    outcomes = sorted({one["outcome"] for one in each})
    seconds = [one["seconds"] for one in each if one["seconds"] is not None]
    return {
        "outcome": "/".join(outcomes),
        "median_s": statistics.median(seconds) if seconds else None,
        "each": each,
        "answers_afterwards": answers,
    }


MEASURES: dict[str, tuple[Callable[[Peer, Sizes], dict[str, Any]], float]] = {
    "idle_memory": (idle_memory, 30),
    # Before the loads: memory that they leave to the allocator would hide the growth.
    "queued_memory": (queued_memory, 240),
    "latency": (latency, 60),
    "one_by_one": (one_by_one, 180),
    "batch": (batch, 200),
    "efficiency": (efficiency, 60),
    # Last: not every peer works afterwards.
    "kill": (kill, 150),
}
"""Each with the seconds that it may take; in the order in which they run."""

"""Calls on several devices that are not trusted, with real devices, one of which lies."""

import asyncio
import concurrent.futures
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import forage

WAIT_S = 40.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="agents run on Linux")


@pytest.fixture(scope="module")
def cluster() -> Iterator[forage.LocalCluster]:
    with forage.LocalCluster(devices=5, slots=1) as running:
        yield running


@pytest.fixture(scope="module")
def client(cluster: forage.LocalCluster) -> Iterator[forage.Client]:
    with cluster.client() as connected:
        yield connected


def is_on(agent: int) -> bool:
    """Whether this process descends from that one."""
    process = os.getpid()
    while process > 1 and process != agent:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        process = int(fields[1])
    return process == agent


def square(value: int, liar: int) -> int:
    return value * value + (1 if is_on(liar) else 0)


def square_when_told(value: int, liar: int, folder: str) -> int:
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    return square(value, liar)


def process_id(_value: int) -> int:
    return os.getpid()


def noisy(value: float, _liar: int = 0) -> float:
    return value + (os.getpid() % 97) * 1e-9


def refuse(value: int) -> int:
    raise ValueError(f"no {value}")


def hang_on(agent: int, folder: str) -> str:
    """On one device it marks its start and goes on for ever."""
    if is_on(agent):
        (Path(folder) / str(os.getpid())).touch()
        while True:
            time.sleep(0.01)
    return "done"


def wait_until(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def test_one_liar_in_five_and_nothing_wrong_is_accepted(
    cluster: forage.LocalCluster, client: forage.Client
) -> None:
    liar = cluster.devices[2]
    calls = 400
    batch = client.options(replicas=3).submit_all(square, range(calls), [liar.pid] * calls)
    results = batch.results(timeout=WAIT_S)
    assert results == [value * value for value in range(calls)]
    counted = batch.replicas
    assert counted is not None
    assert counted.count == 3 * calls
    assert set(counted.disagreed) <= {liar.name}
    assert liar.name not in counted.agreed
    # A lie that comes after the vote is a run that was cancelled.
    ended = len(counted.agreed) + len(counted.disagreed) + counted.failed + counted.cancelled
    assert ended == counted.count


def test_without_replicas_the_same_liar_is_believed(
    cluster: forage.LocalCluster, client: forage.Client
) -> None:
    liar = cluster.devices[2]
    results = client.options(device=liar.name).submit_all(square, [3], [liar.pid]).results()
    assert results == [10]


def test_every_way_to_submit_votes(cluster: forage.LocalCluster, client: forage.Client) -> None:
    liar = cluster.devices[0].pid
    replicated = client.options(replicas=3, quorum=2)
    wanted = [value * value for value in range(20)]
    futures = [replicated.submit(square, value, liar) for value in range(20)]
    assert [future.result(WAIT_S) for future in futures] == wanted
    assert list(replicated.map(square, range(20), [liar] * 20)) == wanted
    assert list(replicated.map(square, range(20), [liar] * 20, buffersize=4)) == wanted
    batch = replicated.submit_all(square, range(20), [liar] * 20)
    done = {future.id: future.result() for future in batch.as_completed(WAIT_S)}
    assert sorted(done.values()) == wanted
    assert len(done) == len(batch) == 20

    async def gather() -> list[int]:
        return list(await asyncio.gather(*[replicated.submit(square, n, liar) for n in range(5)]))

    assert asyncio.run(gather()) == wanted[:5]


def test_a_comparison_of_the_users_decides(client: forage.Client) -> None:
    exactly = client.options(replicas=3)
    with pytest.raises(forage.NoQuorum, match="agree=") as raised:
        exactly.submit(noisy, 2.0).result(WAIT_S)
    assert len(raised.value.outcomes) == 3
    threads = set()

    def near(one: float, another: float) -> bool:
        threads.add(threading.current_thread().name)
        return abs(one - another) < 1e-6

    future = client.options(replicas=3, agree=near).submit(noisy, 2.0)
    assert future.result(WAIT_S) == pytest.approx(2.0)
    assert threads == {"forage-votes"}
    assert future.replicas is not None
    assert future.device == future.replicas.agreed[0]


def test_a_comparison_may_not_wait_for_a_call(client: forage.Client) -> None:
    other = client.submit(noisy, 1.0)

    def waits(_one: float, _another: float) -> bool:
        return other.result(WAIT_S) > 0

    client.options(replicas=3, quorum=3).submit(pow, 2, 2).result(WAIT_S)
    wait_until(other.done, "the other call")
    slow = client.submit(time.sleep, 0.2)

    def waits_for_slow(_one: object, _another: object) -> bool:
        return slow.result(WAIT_S) is None

    with pytest.raises(forage.NoQuorum, match="waits for a call") as raised:
        client.options(replicas=2, quorum=2, agree=waits_for_slow).submit(pow, 2, 3).result(WAIT_S)
    assert isinstance(raised.value.__cause__, RuntimeError)
    slow.result(WAIT_S)


def test_no_quorum_names_each_device_and_what_it_said(client: forage.Client) -> None:
    future = client.options(replicas=3).submit(process_id, 1)
    with pytest.raises(forage.NoQuorum) as raised:
        future.result(WAIT_S)
    assert future.replicas is not None
    assert set(raised.value.outcomes) == set(future.replicas.disagreed)
    assert all(words.startswith("returned ") for words in raised.value.outcomes.values())
    assert future.id in str(raised.value)


def test_an_exception_is_an_outcome_like_any_other(client: forage.Client) -> None:
    future = client.options(replicas=3).submit(refuse, 4)
    with pytest.raises(ValueError, match="no 4"):
        future.result(WAIT_S)
    assert future.replicas is not None
    assert len(future.replicas.agreed) == 2


def test_a_replica_that_is_not_needed_is_killed_and_counted(
    cluster: forage.LocalCluster, client: forage.Client, tmp_path: Path
) -> None:
    stuck = cluster.devices[1]
    names = [device.name for device in cluster.devices[:3]]
    future = client.options(replicas=3, device=names).submit(hang_on, stuck.pid, str(tmp_path))
    assert future.result(WAIT_S) == "done"
    assert future.replicas is not None
    assert future.replicas.cancelled == 1
    assert stuck.name not in future.replicas.agreed
    for mark in tmp_path.iterdir():
        wait_until(lambda mark=mark: is_gone(int(mark.name)), "its worker ends")
    attempts = client.options(device=stuck.name).submit(os.getpid)
    assert attempts.result(WAIT_S) > 0


def test_a_device_that_dies_on_the_way_costs_no_call_and_no_vote(
    cluster: forage.LocalCluster, client: forage.Client
) -> None:
    liar, victim = cluster.devices[4], cluster.devices[3]
    calls = 300
    batch = client.options(replicas=3).submit_all(square, range(calls), [liar.pid] * calls)
    next(iter(batch.as_completed(WAIT_S)))
    victim.kill()
    try:
        assert batch.results(timeout=WAIT_S) == [value * value for value in range(calls)]
        counted = batch.replicas
        assert counted is not None
        assert set(counted.disagreed) <= {liar.name}
    finally:
        victim.start()


def test_a_cancelled_call_ends_with_all_of_its_replicas(
    cluster: forage.LocalCluster, client: forage.Client, tmp_path: Path
) -> None:
    names = [device.name for device in cluster.devices[:2]]
    stuck = cluster.devices[0]
    future = client.options(replicas=2, device=names).submit(hang_on, stuck.pid, str(tmp_path))
    wait_until(lambda: any(tmp_path.iterdir()), "the replica starts")
    wait_until(future.running, "its start is reported")
    assert not future.cancel()
    assert future.cancel(force=True)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(WAIT_S)
    (mark,) = tmp_path.iterdir()
    wait_until(lambda: is_gone(int(mark.name)), "its worker ends")
    assert future.replicas is None


def test_fewer_devices_than_replicas_are_enough_for_a_quorum_and_else_the_reason_is_told(
    cluster: forage.LocalCluster,
) -> None:
    with forage.LocalCluster(devices=2, slots=1) as small, small.client() as client:
        future = client.options(replicas=3).submit(pow, 2, 5)
        assert future.result(WAIT_S) == 32
        assert future.replicas is not None
        assert future.replicas.cancelled == 1
        with pytest.raises(forage.NoDevice, match=r"replica \d of 3") as raised:
            client.options(replicas=3, quorum=3, wait_s=1).submit(pow, 2, 5).result(WAIT_S)
        assert set(raised.value.reasons.values()) == {"it has another replica of this call"}


def test_another_client_that_attaches_votes_too(
    cluster: forage.LocalCluster, client: forage.Client, tmp_path: Path
) -> None:
    liar = cluster.devices[0]
    with cluster.client() as owner:
        names = [device.name for device in cluster.devices[:3]]
        chosen = owner.options(replicas=3, quorum=3, device=names)
        batch = chosen.submit_all(hang_on, [liar.pid], [str(tmp_path)])
        wait_until(lambda: any(tmp_path.iterdir()), "the replica starts")
        info = client.task(batch.id)
        assert (info.calls, info.replicas, info.quorum) == (1, 3, 3)
        attached = client.attach(f"{batch.id}.0")
        assert len(attached) == 1
        client.cancel(f"{batch.id}.0", force=True)
        with pytest.raises(concurrent.futures.CancelledError):
            attached[0].result(WAIT_S)
        with pytest.raises(concurrent.futures.CancelledError):
            batch[0].result(WAIT_S)


def test_what_an_attached_client_gets_is_what_the_owner_would(
    cluster: forage.LocalCluster, client: forage.Client, tmp_path: Path
) -> None:
    liar = cluster.devices[0]
    with cluster.client() as owner:
        batch = owner.options(replicas=3).submit_all(
            square_when_told, range(200), [liar.pid] * 200, [str(tmp_path)] * 200
        )
        wait_until(
            lambda: batch.id in [each.task for each in client.tasks()], "the controller has it"
        )
        attached = client.attach(batch.id)
        (tmp_path / "go").touch()
        assert batch.results(timeout=WAIT_S) == [value * value for value in range(200)]
        assert attached.wait(WAIT_S)
        for value, future in enumerate(attached):
            # What its owner collected before it could be sent is gone, and says so.
            error = future.exception(WAIT_S)
            assert isinstance(error, forage.DataLost) or future.result() == value * value


def test_history_and_explain_tell_of_all_replicas(
    cluster: forage.LocalCluster, client: forage.Client, tmp_path: Path
) -> None:
    names = [device.name for device in cluster.devices[:3]]
    stuck = cluster.devices[0]
    future = client.options(replicas=3, quorum=3, device=names).submit(
        hang_on, stuck.pid, str(tmp_path)
    )
    wait_until(lambda: any(tmp_path.iterdir()), "the replica starts")
    wait_until(lambda: "2 of 3 replicas have ended" in str(future.explain()), "two have ended")
    assert sorted(attempt.device for attempt in future.history()) == sorted(names)
    assert {(attempt.low, attempt.high) for attempt in future.history()} == {(0, 1)}
    future.cancel(force=True)

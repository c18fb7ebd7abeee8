"""The client with a real controller and real devices: what only all of them together can show."""

import datetime
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import forage

WAIT_S = 40.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="agents run on Linux")


@pytest.fixture(scope="module")
def cluster() -> Iterator[forage.LocalCluster]:
    with forage.LocalCluster(devices=2, slots=1) as running:
        yield running


@pytest.fixture(scope="module")
def client(cluster: forage.LocalCluster) -> Iterator[forage.Client]:
    with cluster.client() as connected:
        yield connected


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def fail(kind: str) -> None:
    if kind == "builtin":
        raise KeyError("missing", 3)
    raise forage.NoDevice("not really")


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail_first(folder: str) -> int:
    """Raises in its first run, found by a file."""
    marks = Path(folder)
    count = len(list(marks.iterdir()))
    (marks / str(count)).touch()
    if not count:
        raise OSError("the first time")
    return count


def say(text: str) -> None:
    print(text)
    print("to stderr", file=sys.stderr)


def connect_inside() -> None:
    forage.connect()


def until(condition: Any) -> None:
    """Wait for something that only asking can show."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"list": [1, 2.5, "three", b"four", True]},
        (1, (2, {3, 4})),
        2**200,
        complex(1, -2),
        Decimal("1.50"),
        datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "x" * 1_000_000,
    ],
    ids=["none", "plain", "tuples", "large int", "complex", "decimal", "datetime", "1 MB"],
)
def test_values_come_back_as_they_went(client: forage.Client, value: Any) -> None:
    args, kwargs = client.submit(echo, value, key=value).result(WAIT_S)
    assert args == (value,)
    assert kwargs == {"key": value}
    assert type(args[0]) is type(value)


def test_many_calls_run_on_all_devices(client: forage.Client) -> None:
    batch = client.submit_all(sleep, [0.002] * 400)
    assert batch.results(timeout=WAIT_S) == [0.002] * 400
    assert {future.device for future in batch} == {"device-1", "device-2"}


def test_a_remote_error_is_raised_as_itself(client: forage.Client) -> None:
    with pytest.raises(KeyError) as caught:
        client.submit(fail, "builtin").result(WAIT_S)
    assert caught.value.args == ("missing", 3)
    assert "in fail" in str(caught.value.__cause__)


def test_a_call_that_kills_its_worker_is_a_failure_of_that_call_alone(
    client: forage.Client,
) -> None:
    doomed = client.submit(die, signal.SIGSEGV)
    fine = client.submit(echo, 1)
    with pytest.raises(forage.TaskFailed, match="SIGSEGV"):
        doomed.result(WAIT_S)
    assert fine.result(WAIT_S) == ((1,), {})
    assert doomed.attempts == 3


def test_a_call_above_its_time_is_ended(client: forage.Client) -> None:
    began = time.monotonic()
    with pytest.raises(forage.TaskTimeout) as caught:
        client.options(timeout_s=0.2).submit(sleep, 60).result(WAIT_S)
    assert isinstance(caught.value, TimeoutError)
    assert time.monotonic() - began < 30


def test_retries_run_a_failed_call_again(client: forage.Client, tmp_path: Path) -> None:
    future = client.options(retries=2).submit(fail_first, str(tmp_path))
    assert future.result(WAIT_S) == 1
    assert future.attempts == 2


def test_a_running_call_is_running_and_only_force_ends_it(client: forage.Client) -> None:
    future = client.submit(sleep, 60)
    until(future.running)
    assert future.device in ("device-1", "device-2")
    assert future.cancel() is False
    assert future.cancel(force=True) is True
    assert future.cancelled()
    until(lambda: sum(device.active_tasks for device in client.devices()) == 0)


def test_a_cancelled_pending_call_does_not_run(client: forage.Client, tmp_path: Path) -> None:
    blocked = [client.submit(sleep, 0.5) for _ in range(2)]
    until(lambda: all(future.running() for future in blocked))
    pending = client.options(priority=-1).submit(fail_first, str(tmp_path))
    assert pending.cancel()
    assert [future.result(WAIT_S) for future in blocked] == [0.5, 0.5]
    assert client.submit(echo).result(WAIT_S) == ((), {})
    assert list(tmp_path.iterdir()) == []


def test_a_call_goes_to_the_device_that_was_asked_for(client: forage.Client) -> None:
    for name in ("device-2", "device-1"):
        future = client.options(device=name).submit(echo)
        future.result(WAIT_S)
        assert future.device == name


def test_no_eligible_device_is_said_for_each_device(client: forage.Client) -> None:
    view = client.options(requires="camera", wait_s=0.2)
    with pytest.raises(forage.NoDevice) as caught:
        view.submit(echo).result(WAIT_S)
    assert set(caught.value.reasons) == {"device-1", "device-2"}


def test_output_history_and_explanation_can_be_asked_for(client: forage.Client) -> None:
    future = client.submit(say, "hello from a task")
    future.result(WAIT_S)
    until(lambda: len(future.logs()) == 2)
    assert sorted(future.logs()) == ["0 err to stderr", "0 out hello from a task"]
    [attempt] = future.history()
    assert (attempt.device, attempt.low, attempt.high) == (future.device, 0, 1)
    assert future.id in str(future.explain())


def test_devices_and_tasks_are_listed(client: forage.Client) -> None:
    assert sorted(device.name for device in client.devices()) == ["device-1", "device-2"]
    batch = client.submit_all(sleep, [0.3] * 4)
    info = client.task(batch.id)
    assert (info.calls, info.label.split(".")[-1], info.client) == (4, "sleep", client.id)
    assert batch.id in {task.task for task in client.tasks()}
    batch.results(timeout=WAIT_S)


def test_connecting_inside_a_task_is_refused(client: forage.Client) -> None:
    with pytest.raises(forage.Refused, match="inside a task"):
        client.submit(connect_inside).result(WAIT_S)


def test_outcomes_of_a_killed_client_are_attached_to_from_another(
    cluster: forage.LocalCluster, client: forage.Client
) -> None:
    script = """
        import os, signal, sys, time
        import forage
        client = forage.connect(sys.argv[1])
        batch = client.submit_all(time.sleep, [0.02] * 50)
        batch[0].result(30)
        print(batch.id, flush=True)
        signal.pause()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), cluster.broker_url],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        task = process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    batch = client.attach(task)
    assert len(batch) == 50
    ended = list(batch.as_completed(WAIT_S))
    results = [future for future in ended if future.exception() is None]
    lost = [future for future in ended if future.exception() is not None]
    assert all(isinstance(future.exception(), forage.DataLost) for future in lost)
    assert len(results) + len(lost) == 50
    assert len(results) >= 25


def test_another_process_that_ended_handed_everything_over(
    cluster: forage.LocalCluster, client: forage.Client
) -> None:
    script = """
        import sys
        import forage
        client = forage.connect(sys.argv[1])
        batch = client.submit_all(pow, range(2_000), [2] * 2_000)
        print(batch.id)
    """
    # Else it might have collected all of it before it ended, and nobody could attach.
    for device in cluster.devices:
        device.freeze()
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), cluster.broker_url],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=True,
        )
    finally:
        for device in cluster.devices:
            device.thaw()
    batch = client.attach(done.stdout.strip())
    assert batch.results(timeout=WAIT_S) == [number**2 for number in range(2_000)]


def test_several_clients_share_the_devices(cluster: forage.LocalCluster) -> None:
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        with cluster.client() as own:
            found[number] = list(own.map(pow, range(200), [number] * 200))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert found == {number: [base**number for base in range(200)] for number in range(4)}


def test_a_device_killed_midway_loses_no_call() -> None:
    with forage.LocalCluster(devices=2, slots=1) as cluster, cluster.client() as client:
        batch = client.submit_all(sleep, [0.005] * 400)
        completed = batch.as_completed(WAIT_S)
        seen = [next(completed).id for _ in range(50)]
        cluster.devices[0].kill()
        seen += [future.id for future in completed]
        assert len(seen) == len(set(seen)) == 400
        assert batch.results() == [0.005] * 400
        until(lambda: client.device(cluster.devices[0].name).state == "lost")

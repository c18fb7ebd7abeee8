"""Devices as processes: names, signals, and what a device leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forage import Client, LocalCluster
from integration.observing import descendants, until, until_gone

LIMIT_S = 30.0


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.01)
    return "open"


def test_a_second_device_of_a_name_is_refused_and_says_so(
    cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    first = cluster.devices[0]
    session = client.device(first.name).session
    command = [sys.executable, "-m", "forage_agent", "--broker", cluster.broker_url]
    command += ["--name", first.name, "--slots", "1", "--state-dir", str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2, second.stderr
    last = second.stderr.splitlines()[-1]
    assert first.name in last
    assert "127.0.0.1" in last, "it says where the other one is"
    assert client.device(first.name).session == session
    assert client.options(device=first.name).submit(pow, 3, 3).result(LIMIT_S) == 27


def test_a_drained_device_takes_nothing_until_it_is_undrained(
    cluster: LocalCluster, client: Client
) -> None:
    drained = cluster.devices[0].name
    client.drain(drained)
    try:
        futures = [client.submit(pow, 2, exponent) for exponent in range(20)]
        assert [future.result(LIMIT_S) for future in futures] == [2**n for n in range(20)]
        [row] = [row for row in client.devices() if row.name == drained]
        assert (row.state, row.active_tasks) == ("draining", 0)
    finally:
        client.drain(drained, on=False)
    assert client.options(device=drained).submit(pow, 2, 3).result(LIMIT_S) == 8


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_services_end_when_told_to_and_leave_nothing(number: signal.Signals, code: int) -> None:
    with LocalCluster(devices=1, engine="embedded") as cluster:
        assert cluster.broker is not None
        for service in [*cluster.devices, cluster.controller, cluster.broker]:
            pids = [service.pid, *descendants(service.pid)]
            os.kill(service.pid, number)
            until_gone(pids)
            service.kill()  # Nothing is left to be killed; this waits for the report of that.
            assert service.exit_code == code, service.log_tail()
            assert "Traceback" not in service.log_tail()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_services_end_when_told_to_also_without_a_broker(number: signal.Signals, code: int) -> None:
    with LocalCluster(devices=1, engine="embedded") as cluster:
        assert cluster.broker is not None
        cluster.broker.kill()
        for service in [*cluster.devices, cluster.controller]:
            pids = [service.pid, *descendants(service.pid)]
            os.kill(service.pid, number)
            until_gone(pids)
            service.kill()
            assert service.exit_code == code, service.log_tail()


def test_a_device_that_is_told_to_end_while_it_works_leaves_nothing(
    cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    device = cluster.devices[2]
    future = client.options(device=device.name).submit(wait_for, str(tmp_path / "gate"))
    until(future.running, "the report of its start")
    pids = [device.pid, *descendants(device.pid)]
    device.stop()
    until_gone(pids)
    device.start()
    (tmp_path / "gate").touch()
    assert future.result(LIMIT_S) == "open"

"""`LocalCluster` itself: its start, its end in every way, and what its processes leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import forage
from forage.cluster import LocalCluster
from integration.engines import ENGINES
from integration.observing import descendants, is_alive, until, until_gone

# Asks the cluster to say where it is, then lives until it is killed.
PARENT = """
import json, sys, tempfile, time, os
from concurrent.futures import ThreadPoolExecutor
import forage

cluster = forage.LocalCluster(devices=1, engine="embedded")
# Made in a thread that ends: what lives must not hang on it.
with ThreadPoolExecutor(1) as pool:
    pool.submit(cluster.start).result()
pids = [cluster.broker.pid, cluster.controller.pid, cluster.devices[0].pid]
if "fork" in sys.argv and os.fork() == 0:
    time.sleep(600)  # A child that inherits all that its parent has open.
print(json.dumps({"pids": pids, "folder": str(cluster.controller.log.parent)}), flush=True)
if "leave" in sys.argv:
    sys.stdin.readline()
else:
    time.sleep(600)
"""


def run_parent(*flags: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def told_by(parent: "subprocess.Popen[str]") -> tuple[list[int], Path]:
    """The processes below `parent`, and the temporary directory."""
    assert parent.stdout is not None
    told = json.loads(parent.stdout.readline())
    below = descendants(parent.pid)
    assert set(told["pids"]) < set(below), "the keeper and the workers are there, too"
    return below, Path(told["folder"])


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_when_it_is_closed(engine: str) -> None:
    before = set(descendants(os.getpid()))
    with LocalCluster(devices=2, engine=engine) as cluster:
        assert [device.name for device in cluster.devices] == ["device-1", "device-2"]
        pids = set(descendants(os.getpid())) - before
        folder = cluster.controller.log.parent
        assert folder.is_dir()
        groups = {os.getpgid(item.pid) for item in [*cluster.devices, cluster.controller]}
        assert len(groups) == 3, "each leads a process group"
        assert os.getpgid(0) not in groups
    assert len(pids) >= 6, "keeper, broker, controller, two agents and their workers"
    assert not [pid for pid in pids if is_alive(pid)]
    assert not folder.exists()
    cluster.close()


@pytest.mark.parametrize("flags", [(), ("fork",)], ids=["alone", "with a forked child"])
def test_nothing_outlives_a_killed_parent(flags: tuple[str, ...]) -> None:
    with run_parent(*flags) as parent:
        pids, folder = told_by(parent)
        forked = [pid for pid in pids if psutil.Process(pid).cmdline()[1:2] == ["-c"]]
        assert len(forked) == len(flags)
        parent.kill()
        parent.wait()
        try:
            until_gone(pid for pid in pids if pid not in forked)
            until(lambda: not folder.exists(), f"the end of {folder}")
        finally:
            for pid in forked:
                os.kill(pid, signal.SIGKILL)


def test_nothing_is_left_when_nobody_closes_it() -> None:
    with run_parent("leave") as parent:
        pids, folder = told_by(parent)
        parent.communicate("leave now\n", timeout=30)
        assert parent.returncode == 0
        until_gone(pids)
        until(lambda: not folder.exists(), f"the end of {folder}")


def test_nothing_outlives_a_killed_keeper() -> None:
    cluster = LocalCluster(devices=1, engine="embedded").start()
    [keeper] = {psutil.Process(cluster.controller.pid).ppid()}
    pids = descendants(keeper)
    os.kill(keeper, signal.SIGKILL)
    until_gone(pids)
    with pytest.raises(forage.ForageError, match="make a new LocalCluster"):
        cluster.controller.start()
    assert cluster.controller.log.parent.is_dir()
    cluster.close()
    assert not cluster.controller.log.parent.exists()


def test_services_that_die_at_once_have_each_their_own_orphans() -> None:
    with LocalCluster(devices=2, slots=1, engine="embedded") as cluster:
        keeper = psutil.Process(cluster.controller.pid).parent()
        assert keeper is not None
        zygotes = []
        for device in cluster.devices:
            # What holds the dead one's pipes, and neither says nor does anything.
            [zygote] = psutil.Process(device.pid).children()
            zygote.suspend()
            zygotes.append(zygote.pid)
        keeper.suspend()
        for device in cluster.devices:
            os.kill(device.pid, signal.SIGKILL)
        until(lambda: not any(is_alive(device.pid) for device in cluster.devices), "both deaths")
        keeper.resume()
        first, second = cluster.devices
        second.kill()
        assert [is_alive(pid) for pid in zygotes] == [True, False]
        first.kill()
        until_gone(zygotes)
        first.start()
        with cluster.client() as client:
            assert client.submit(abs, -3).result() == 3


def test_a_service_that_cannot_start_is_named_with_its_log(tmp_path: Path) -> None:
    broken = LocalCluster(
        devices=1, engine="embedded", state_dir=tmp_path, env={"FORAGE_LOG_LEVEL": "loud"}
    )
    with pytest.raises(forage.ForageError) as raised:
        broken.start()
    text = str(raised.value)
    assert text.startswith("broker ended with exit code 2.")
    assert "'loud' is not one of" in text
    assert str(tmp_path / "broker.log") in text


def test_a_given_directory_keeps_state_and_logs(tmp_path: Path) -> None:
    for epoch in (1, 2):
        with LocalCluster(devices=0, engine="embedded", state_dir=tmp_path) as cluster:
            assert f"epoch={epoch} " in cluster.controller.ready_line
    assert "active epoch=1" in (tmp_path / "controller.log").read_text()
    assert "active epoch=2" in (tmp_path / "controller.log").read_text()


def test_a_broker_that_is_not_there_is_an_error_at_once() -> None:
    with LocalCluster(devices=0, engine="embedded") as other:
        url = other.broker_url
    with pytest.raises(forage.NotConnected, match="refused"):
        LocalCluster(devices=1, broker=url).start()


def test_a_broker_that_is_there_already_is_used_and_left_alone() -> None:
    with LocalCluster(devices=0, engine="embedded") as other:
        other.controller.stop()
        with LocalCluster(devices=1, broker=other.broker_url) as cluster:
            assert cluster.broker is None
            assert cluster.broker_url == other.broker_url
        # A second time: what the first left on the broker says nothing of these devices.
        with LocalCluster(devices=1, broker=other.broker_url) as cluster:
            assert cluster.devices[0].is_running
        assert other.broker is not None
        assert other.broker.is_running


def test_a_clients_open_calls_are_cancelled_when_the_cluster_ends() -> None:
    with LocalCluster(devices=1, engine="embedded") as cluster:
        client = cluster.client()
        running, pending = client.submit(time.sleep, 600), client.submit(time.sleep, 600)
        until(running.running, "the report of its start")
        attached = cluster.client().attach(running.id)
    for future in (running, pending, attached[0]):
        with pytest.raises(forage.TaskCancelled):
            future.result(timeout=10)
    with pytest.raises(RuntimeError, match="shutdown"):
        client.submit(pow, 2, 3)


def test_what_is_running_cannot_be_started() -> None:
    with LocalCluster(devices=0, engine="embedded") as cluster:
        with pytest.raises(forage.ForageError, match="controller is running as process"):
            cluster.controller.start()
        with pytest.raises(forage.ForageError, match="was started before"):
            cluster.start()


def test_the_users_own_settings_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORAGE_ROOT", "elsewhere")
    monkeypatch.setenv("FORAGE_DETECT_S", "nonsense")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    with LocalCluster(devices=0, engine="embedded") as cluster:
        environment = psutil.Process(cluster.controller.pid).environ()
        assert not {"FORAGE_ROOT", "FORAGE_DETECT_S", "NOTIFY_SOCKET"} & set(environment)


def test_elsewhere_than_on_linux_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(forage.ForageError, match="LocalCluster needs Linux"):
        LocalCluster()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"devices": ["a", "a"]}, "Two devices of one name"),
        ({"devices": ["No"]}, "is not usable"),
        ({"devices": ["broker"]}, "that of a service"),
        ({"devices": 1_000}, "at most 64"),
        ({"slots": 0}, "slots is"),
        ({"engine": "rabbit"}, "engine is 'rabbit'"),
        ({"broker": "mqtt://example.com"}, "carries no credentials"),
    ],
)
def test_unusable_arguments_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LocalCluster(**arguments)  # type: ignore[arg-type]

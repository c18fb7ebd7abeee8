"""What a call does to its worker is that call's own error; the agent and its other calls go on."""

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import forage
from forage import Client, LocalCluster
from integration.observing import until, until_gone

LIMIT_S = 30.0
LARGE_BYTES = 8 * 1024 * 1024

HELPERS = """
import math

OFFSET = 10


def area(radius):
    return OFFSET + round(math.pi * radius**2)
"""
USES_HELPERS = """
import sys
import forage
from helpers import area


def describe(radius):
    return f"circle of {area(radius)}"


with forage.connect(sys.argv[1]) as client:
    print(list(client.map(describe, [1, 2, 3])))
    print(list(client.map(area, [1, 2, 3])))
"""


def segfault() -> None:
    ctypes.string_at(0)


def leave(code: int) -> None:
    os._exit(code)


def be_killed() -> None:
    """What the kernel does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def loop_for_ever() -> None:
    while True:
        pass


def double_or_die(number: int) -> int:
    if number == 7:
        os._exit(1)
    return 2 * number


def digest_and_echo(data: bytes) -> tuple[str, bytes]:
    return hashlib.sha256(data).hexdigest(), data[::-1]


def start_children(folder: str) -> None:
    """A child, and one in a session of its own; then work for ever."""
    for detached in (False, True):
        child = subprocess.Popen(["sleep", "600"], start_new_session=detached)
        Path(folder, str(child.pid)).touch()
    Path(folder, str(os.getpid())).touch()
    while True:
        time.sleep(1)


def speak(text: str, gate: str) -> int:
    print(text)
    print(text.upper(), file=sys.stderr)
    while not Path(gate).exists():
        time.sleep(0.01)
    return len(text)


def resize(gate: str) -> str:
    for at in range(1_000):
        forage.progress(at / 4_000, f"image {at}")
    while not Path(gate).exists():
        time.sleep(0.01)
    forage.progress(1, "done")
    return "resized"


def connect_again(url: str) -> None:
    forage.connect(url)


def agents(cluster: LocalCluster) -> list[tuple[int, bool]]:
    return [(device.pid, device.is_running) for device in cluster.devices]


@pytest.mark.parametrize(
    ("call", "args", "reason", "how"),
    [
        (segfault, (), "worker-died", {"signal": "SIGSEGV"}),
        (leave, (3,), "worker-died", {"exit_code": 3}),
        (leave, (0,), "worker-died", {"exit_code": 0}),
        (be_killed, (), "out-of-memory", {"signal": "SIGKILL"}),
    ],
    ids=["segfault", "exit 3", "exit 0", "SIGKILL"],
)
def test_a_worker_that_dies_is_its_calls_error(
    cluster: LocalCluster,
    client: Client,
    call: Callable[..., None],
    args: tuple[int, ...],
    reason: str,
    how: dict[str, object],
) -> None:
    before = agents(cluster)
    with pytest.raises(forage.TaskFailed) as raised:
        client.submit(call, *args).result(LIMIT_S)
    assert raised.value.reason == reason
    assert how.items() <= raised.value.details.items()
    assert client.submit(pow, 2, 5).result(LIMIT_S) == 32
    assert agents(cluster) == before


def test_a_running_call_tells_its_client_and_the_controller_how_far_it_is(
    client: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    future = client.submit(resize, str(gate))
    latest = forage.CallProgress(fraction=0.25, text="image 999")
    until(lambda: future.progress == latest, "the last of a thousand words is here")
    until(lambda: client.task(future.id).progress == {0: latest}, "the controller has it too")
    gate.touch()
    assert future.result(LIMIT_S) == "resized"


def test_progress_outside_of_a_task_does_nothing_but_look_at_its_arguments() -> None:
    forage.progress(0.5, "here")
    with pytest.raises(ValueError, match="NaN"):
        forage.progress(float("nan"))
    with pytest.raises(TypeError, match="bytes"):
        forage.progress(0.5, b"text")  # type: ignore[arg-type]


def test_the_other_calls_of_a_task_survive_one_that_kills_its_worker(client: Client) -> None:
    batch = client.submit_all(double_or_die, range(50))
    assert batch.wait(LIMIT_S)
    failed = [index for index, future in enumerate(batch) if future.exception() is not None]
    assert failed == [7]
    assert batch.results(partial=True) == [2 * n if n != 7 else None for n in range(50)]


def test_an_endless_loop_ends_at_its_time_limit(cluster: LocalCluster, client: Client) -> None:
    before = agents(cluster)
    with pytest.raises(forage.TaskTimeout, match=r"0\.3 s"):
        client.options(timeout_s=0.3).submit(loop_for_ever).result(LIMIT_S)
    assert agents(cluster) == before


def test_a_forced_cancel_ends_the_call_with_all_that_it_started(
    cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    before = agents(cluster)
    future = client.submit(start_children, str(tmp_path))
    until(lambda: len(list(tmp_path.iterdir())) == 3, "the call's children")
    pids = [int(path.name) for path in tmp_path.iterdir()]
    until(future.running, "the report of its start")
    assert not future.cancel()
    assert future.cancel(force=True)
    until_gone(pids)
    assert agents(cluster) == before


def test_the_death_of_the_agent_alone_ends_its_workers_and_their_children(
    cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    device = cluster.devices[0]
    future = client.options(device=device.name, at_most_once=True).submit(
        start_children, str(tmp_path)
    )
    until(lambda: len(list(tmp_path.iterdir())) == 3, "the call's children")
    pids = [int(path.name) for path in tmp_path.iterdir()]
    os.kill(device.pid, signal.SIGKILL)
    until_gone([device.pid, *pids])
    device.kill()  # Nothing is left to be killed; this waits until the cluster knows.
    with pytest.raises(forage.DeviceLost):
        future.result(LIMIT_S)


def test_a_frozen_device_freezes_with_its_workers_and_dies_with_them(
    cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    device = cluster.devices[1]
    future = client.options(device=device.name, at_most_once=True).submit(
        start_children, str(tmp_path)
    )
    until(lambda: len(list(tmp_path.iterdir())) == 3, "the call's children")
    pids = [int(path.name) for path in tmp_path.iterdir()]
    device.freeze()

    def all_stopped() -> bool:
        stats = [Path(f"/proc/{pid}/stat").read_text() for pid in [device.pid, *pids]]
        return {stat.rpartition(")")[2].split()[0] for stat in stats} == {"T"}

    until(all_stopped, "all stopped")
    device.kill()
    until_gone([device.pid, *pids])
    with pytest.raises(forage.DeviceLost):
        future.result(LIMIT_S)


def test_what_a_function_raises_comes_back_as_itself(client: Client) -> None:
    future = client.submit(int, "twelve")
    with pytest.raises(ValueError, match="invalid literal") as raised:
        future.result(LIMIT_S)
    assert "ValueError: invalid literal" in str(raised.value.__cause__)


def test_arguments_and_results_of_8_mib_travel_in_parts(client: Client) -> None:
    data = os.urandom(LARGE_BYTES)
    digest, echo = client.submit(digest_and_echo, data).result(LIMIT_S)
    assert digest == hashlib.sha256(data).hexdigest()
    assert echo == data[::-1]


def test_an_argument_above_the_limit_is_refused_in_words(client: Client) -> None:
    with pytest.raises(forage.NotSerializable, match=r"16 MiB|16777216|16,777,216"):
        client.submit(len, bytes(17 * 1024 * 1024))


def test_the_users_own_helpers_just_work(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text(HELPERS)
    script = tmp_path / "job.py"
    script.write_text(USES_HELPERS)
    done = subprocess.run(
        [sys.executable, str(script), cluster.broker_url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['circle of 13', 'circle of 23', 'circle of 38']",
        "[13, 23, 38]",
    ]


def test_what_a_call_prints_is_kept_while_its_task_is(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    batch = client.submit_all(speak, ["one", "two"], [str(gate)] * 2)
    lines: list[str] = []

    def all_there() -> bool:
        lines[:] = sorted(client.logs(batch.id))
        return len(lines) == 4

    until(all_there, "the output of both calls")
    assert lines == ["0 err ONE", "0 out one", "1 err TWO", "1 out two"]
    assert sorted(batch[1].logs()) == ["1 err TWO", "1 out two"]
    gate.touch()
    assert batch.results(timeout=LIMIT_S) == [3, 3]


def test_connect_inside_a_task_is_refused_in_words(cluster: LocalCluster, client: Client) -> None:
    with pytest.raises(forage.Refused, match="inside a task"):
        client.submit(connect_again, cluster.broker_url).result(LIMIT_S)

"""Clocks that jump by years, brokers that drop in silence, packets too large, one name twice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.raw_mqtt import Closed, RawMqtt
from chaos.ground import Ground
from chaos.herd import Herd
from chaos.work import append, bulk
from forage import DeviceLost, NotSerializable
from forage_wire.topics import Topics
from integration.engines import ENGINES, MOSQUITTO
from integration.observing import until

LIMIT_S = 60.0
HERD = 300
YEARS_10_S = 10 * 365 * 86_400
ROLES = ("broker", "controller", "device-1", "device-2")
TOPICS = Topics()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def wall_clock(index: int, seconds: float) -> tuple[int, float]:
    time.sleep(seconds)
    return index, time.time()


def lines_of(ground: Ground, role: str) -> list[str]:
    return ground.services[role].log.read_text().splitlines()


# -- clocks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    library = tmp_path_factory.mktemp("shim") / "clock.so"
    source = Path(__file__).with_name("clock_shim.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


@pytest.mark.parametrize("role", ROLES)
def test_a_wall_clock_that_jumps_by_years_changes_nothing(
    shim: Path, tmp_path: Path, role: str
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    env = shutil.which("env") or "/usr/bin/env"
    prefix = [env, f"LD_PRELOAD={shim}", f"CHAOS_CLOCK={clock}"]
    ground = Ground("embedded", tmp_path, devices=2, slots=1, detect_s=2.0, prefixes={role: prefix})
    with ground:
        client = ground.clients[0]
        batch = client.submit_all(wall_clock, range(40), [0.05] * 40)
        jumps = [YEARS_10_S, -YEARS_10_S, 0, 86_400 * 1_000]
        for count, offset in enumerate(jumps, 1):
            until(lambda count=count: batch.progress().done >= 6 * count, "some work done")
            clock.write_text(str(offset))
        results = batch.results(timeout=LIMIT_S)
        assert [index for index, _ in results] == list(range(40))
        if role.startswith("device"):
            # The jumps were real: calls have seen them.
            off_s = [abs(at - time.time()) for _, at in results]
            assert sum(off > YEARS_10_S / 2 for off in off_s) >= 3
        assert not [line for line in lines_of(ground, "controller") if " is dead: " in line]
        assert {row.verdict for row in client.devices()} == {"alive"}


# -- the broker drops in silence ----------------------------------------------------------------------


@pytest.mark.parametrize("engine", [MOSQUITTO])
def test_a_broker_that_drops_at_its_queue_limits_loses_no_work(engine: str, tmp_path: Path) -> None:
    limits = "max_inflight_messages 2\nmax_queued_messages 3\nmax_queued_bytes 0"
    with Ground(engine, tmp_path, env={"CHAOS_MOSQUITTO": limits}) as ground:
        batches = []
        for number in range(6):
            client = ground.clients[number % 2]
            rows = [[f"full {number}"] * 300, range(300), [100] * 300]
            batches.append(client.submit_all(bulk, *rows))
            # Who does not read for a moment has its queue run over.
            role = ("controller", "device-1", "device-2")[number % 3]
            ground.strike(role, signal.SIGSTOP)
            time.sleep(0.3)
            ground.strike(role, signal.SIGCONT)
        for number, batch in enumerate(batches):
            expected = [f"full {number} {index}" for index in range(300)]
            assert batch.results(timeout=LIMIT_S) == expected
        dropped = [line for line in lines_of(ground, "broker") if "being dropped" in line]
        assert dropped, "the broker had room for all; the test shows nothing"


# -- too large ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=ENGINES)
def ground(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    with Ground(request.param, tmp_path_factory.mktemp("ground"), devices=2) as ground:
        yield ground


def test_packets_above_every_limit_end_nobody(ground: Ground) -> None:
    client = ground.clients[0]
    before = {role: service.pid for role, service in ground.services.items()}
    topics = [
        TOPICS.inbox("device-1"),
        TOPICS.outbox("device-1"),
        TOPICS.from_client(client.user, client.id),
        TOPICS.to_client(client.user, client.id),
        TOPICS.device_presence("device-1"),
        TOPICS.controller_presence("main"),
    ]
    batch = client.submit_all(wall_clock, range(20), [0.02] * 20)
    for size in (200_000, 900_000, 3_000_000):
        for topic in topics:
            try:
                with RawMqtt.connected(ground.cluster.broker_port, f"large-{size}") as raw:
                    raw.publish(topic, bytes(size), 1)
                    raw.goodbye()
            except (Closed, ConnectionError):
                pass  # A broker may refuse it by ending the connection of who sent it.
    assert [index for index, _ in batch.results(timeout=LIMIT_S)] == list(range(20))
    ground.wait_until_whole(LIMIT_S)
    assert {role: service.pid for role, service in ground.services.items()} == before


def test_a_call_above_the_limit_is_refused_where_it_is_submitted(ground: Ground) -> None:
    client = ground.clients[0]
    with pytest.raises(NotSerializable, match="16"):
        client.submit(len, bytes(17 << 20))
    assert client.submit(len, bytes(3 << 20)).result(LIMIT_S) == 3 << 20


# -- one name twice -----------------------------------------------------------------------------------


def test_the_name_of_a_frozen_device_goes_to_who_takes_it_and_stays_there(
    ground: Ground, tmp_path: Path
) -> None:
    client = ground.clients[0]
    ground.wait_until_whole(LIMIT_S)
    first = client.device("device-1").session
    ground.strike("device-1", signal.SIGSTOP)
    command = [sys.executable, "-P", "-m", "forage_agent", "--broker", ground.cluster.broker_url]
    command += ["--name", "device-1", "--slots", "1", "--state-dir", str(tmp_path)]
    log = (tmp_path / "second.log").open("w")
    with log, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as second:
        try:
            until(
                lambda: (
                    client.device("device-1").verdict == "alive"
                    and client.device("device-1").session != first
                ),
                "the second one is the device",
            )
            pinned = client.options(device="device-1")
            assert pinned.submit(os.getppid).result(LIMIT_S) > 0
            ground.strike("device-1", signal.SIGCONT)
            # The first is told that the name is taken, and ends with what a supervisor respects.
            until(lambda: ground.services["device-1"].exit_code is not None, "the first one's end")
            assert ground.services["device-1"].exit_code == 2
            assert second.poll() is None, "the second one stays"
            assert [
                each.result(LIMIT_S) for each in [pinned.submit(pow, 2, n) for n in range(9)]
            ] == [2**n for n in range(9)]
        finally:
            second.kill()
    ground.heal()
    ground.wait_until_whole(LIMIT_S)


# -- a call that kills whoever runs it, and a fleet that falls over -----------------------------------


def kill_the_device(path: str) -> None:
    append(path, "run")
    # The worker's parent is the zygote, and its parent the agent.
    agent = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(") ")[2].split()[1]
    os.kill(int(agent), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_call_that_kills_its_devices_ends_with_the_cause(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    with Ground(engine, tmp_path, devices=3, slots=1) as ground:
        client = ground.clients[0]
        innocents = client.submit_all(wall_clock, range(60), [0.02] * 60)
        poison = client.submit(kill_the_device, str(path))

        def has_ended() -> bool:
            for role in ground.dead():
                ground.revive(role)
            return poison.done()

        until(has_ended, "the end of the call that kills")
        assert isinstance(poison.exception(), DeviceLost)
        # Five losses while it was known to run, and a first one that came before anybody knew.
        assert 3 <= len(path.read_text().split()) <= 6
        assert [index for index, _ in innocents.results(timeout=LIMIT_S)] == list(range(60))


@pytest.mark.parametrize("engine", ENGINES)
def test_many_devices_that_drop_and_return_at_once_are_all_known_again(
    engine: str, tmp_path: Path
) -> None:
    with Ground(engine, tmp_path, devices=1) as ground:
        client = ground.clients[0]
        herd = Herd(ground.cluster.broker_port, HERD)

        def online() -> int:
            return sum(row.state == "online" for row in client.devices())

        herd.arrive()
        until(lambda: online() == HERD + 1, "all known")
        batch = client.submit_all(wall_clock, range(50), [0.02] * 50)
        herd.drop()
        until(lambda: online() == 1, "all lost")
        herd.arrive()
        until(lambda: online() == HERD + 1, "all known again")
        assert [index for index, _ in batch.results(timeout=LIMIT_S)] == list(range(50))
        herd.drop()

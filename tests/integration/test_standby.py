"""A controller dies or freezes, and another that stood by goes on: nothing is lost, one rules."""

import collections
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos.faults import DOWN, Pipe, Rule
from chaos.packets import PUBLISH, Packet
from chaos.proxy import Proxies, Proxy
from forage import Batch, Client, DataLost, LocalCluster
from forage_wire.address import parse_broker_address
from integration.engines import ENGINES
from integration.observing import until
from shell.controller_tools import TOPICS, ControllerProcess, arguments_for
from transport.owner import Owner

CALLS = 600
MIDWAY = 150
LIMIT_S = 60.0
DETECT_S = 0.5

StandBy = Callable[..., ControllerProcess]


def square(number: int) -> int:
    time.sleep(0.005)
    return number * number


@pytest.fixture(params=ENGINES)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster of the test's own: its controller is to die."""
    with LocalCluster(
        devices=2, engine=request.param, detect_s=DETECT_S, state_dir=tmp_path / "first"
    ) as cluster:
        yield cluster


@pytest.fixture
def stand_by(cluster: LocalCluster) -> Iterator[StandBy]:
    """Start a controller that stands by; it ends with the test."""
    started: list[ControllerProcess] = []

    def start(state_dir: Path, name: str, *more: str) -> ControllerProcess:
        process = ControllerProcess(
            *arguments_for(cluster.broker_url, state_dir, "--standby", "--name", name),
            *("--detect-s", str(DETECT_S), *more),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    client = cluster.client()
    yield client
    client.shutdown(cancel_futures=True)


def follows(process: ControllerProcess, copies: int = 1) -> None:
    """Wait until its copy is whole."""
    process.log.wait_for(lambda lines: sum("the copy is whole" in line for line in lines) >= copies)


def rules(process: ControllerProcess) -> dict[str, str]:
    """Wait until it says that it is ready; the fields of that line."""
    lines = process.out.wait_for(lambda lines: any(line.startswith("ready ") for line in lines))
    line = next(line for line in lines if line.startswith("ready "))
    return dict(field.split("=", 1) for field in line.split()[1:])


def run_through(client: Client, disturb: Callable[[], None]) -> Batch[int]:
    """All outcomes, each once, of a task that is disturbed on its way."""
    batch = client.submit_all(square, range(CALLS))
    seen: collections.Counter[int] = collections.Counter()
    lock = threading.Lock()

    def note(index: int) -> None:
        with lock:
            seen[index] += 1

    for index, future in enumerate(batch):
        future.add_done_callback(lambda _, index=index: note(index))
    for count, _future in enumerate(batch.as_completed(timeout=LIMIT_S), 1):
        if count == MIDWAY:
            assert batch.progress().done < CALLS - 100, "too late to be midway"
            disturb()
    assert batch.results(timeout=0) == [number * number for number in range(CALLS)]
    client.shutdown()
    assert seen == dict.fromkeys(range(CALLS), 1)
    return batch


def test_another_host_takes_over_from_a_killed_controller(
    cluster: LocalCluster, stand_by: StandBy, client: Client, tmp_path: Path
) -> None:
    standby = stand_by(tmp_path / "second", "attic")
    follows(standby)
    run_through(client, cluster.controller.kill)
    assert int(rules(standby)["epoch"]) == 2


def test_another_host_takes_over_from_a_frozen_controller_which_is_fenced_when_it_wakes_up(
    cluster: LocalCluster, stand_by: StandBy, client: Client, tmp_path: Path
) -> None:
    standby = stand_by(tmp_path / "second", "attic")
    follows(standby)

    def freeze_and_thaw() -> None:
        cluster.controller.freeze()
        assert int(rules(standby)["epoch"]) == 2
        cluster.controller.thaw()

    run_through(client, freeze_and_thaw)
    until(lambda: not cluster.controller.is_running, "the first controller's end")
    assert cluster.controller.exit_code == 2
    assert "fenced: controller attic" in cluster.controller.log_tail()
    with cluster.client() as other:
        assert other.submit(square, 9).result(LIMIT_S) == 81


def test_one_that_joins_late_has_everything(
    cluster: LocalCluster, stand_by: StandBy, client: Client, tmp_path: Path
) -> None:
    done = [client.submit(square, number) for number in range(5)]
    assert [future.result(LIMIT_S) for future in done] == [0, 1, 4, 9, 16]
    large = client.submit(len, b"x" * 3_000_000)
    assert large.result(LIMIT_S) == 3_000_000
    waiting = client.options(requires="camera", wait_s=300).submit_all(len, [b"y" * 200_000] * 8)
    standby = stand_by(tmp_path / "second", "attic")
    follows(standby)
    client.shutdown(cancel_futures=False, wait=False)
    cluster.controller.kill()
    rules(standby)
    with cluster.client() as other:
        [row] = [row for row in other.tasks() if row.task == waiting.id]
        assert (row.calls, row.settled) == (8, 0)


def test_one_that_was_killed_and_started_again_follows_again_and_takes_over(
    cluster: LocalCluster, stand_by: StandBy, client: Client, tmp_path: Path
) -> None:
    first = stand_by(tmp_path / "second", "attic")
    follows(first)
    first.kill()
    assert client.submit(square, 3).result(LIMIT_S) == 9
    again = stand_by(tmp_path / "second", "attic")
    follows(again)
    run_through(client, cluster.controller.kill)
    assert int(rules(again)["epoch"]) == 2


def test_on_the_same_host_it_waits_for_the_lock_and_takes_over_from_a_killed_one(
    cluster: LocalCluster, stand_by: StandBy, client: Client, tmp_path: Path
) -> None:
    standby = stand_by(tmp_path / "first" / "controller" / "state", "attic")
    standby.wait_for_log("waiting for the state directory")
    standby.wait_for_log("standing by for controller main")
    run_through(client, cluster.controller.kill)
    assert int(rules(standby)["epoch"]) == 2


def test_on_the_same_host_a_frozen_one_is_killed_for_its_lock(
    cluster: LocalCluster, stand_by: StandBy, client: Client, tmp_path: Path
) -> None:
    standby = stand_by(tmp_path / "first" / "controller" / "state", "attic")
    standby.wait_for_log("standing by for controller main")
    pid = cluster.controller.pid
    run_through(client, cluster.controller.freeze)
    assert int(rules(standby)["epoch"]) == 2
    standby.wait_for_log(f"pid {pid} was killed: a process that hangs keeps its lock")
    until(lambda: not cluster.controller.is_running, "the first controller's end")


def test_of_two_that_stand_by_for_each_other_the_one_that_woke_up_stands_by_again(
    cluster: LocalCluster, stand_by: StandBy, client: Client, tmp_path: Path
) -> None:
    attic = stand_by(tmp_path / "second", "attic")
    follows(attic)
    cluster.controller.kill()
    rules(attic)
    barn = stand_by(tmp_path / "third", "barn")
    follows(barn)
    attic.send(signal.SIGSTOP)
    assert int(rules(barn)["epoch"]) == 3
    attic.send(signal.SIGCONT)
    attic.wait_for_log("fenced: controller barn")
    follows(attic)
    assert attic.process.poll() is None
    # And back again, with what came in between.
    run_through(client, barn.kill)
    attic.out.wait_for(lambda lines: any("epoch=4" in line for line in lines))


class OnlyBeats:
    """Of what the active controller says to a standby, signs of life alone arrive."""

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """Take and acknowledge what is numbered, and lose it."""
        del source
        if packet.qos:
            pipe.answer(packet.acknowledgement())
        else:
            pipe.forward(packet.raw)


@pytest.fixture
def feed(cluster: LocalCluster) -> Iterator[Proxy]:
    """A proxy before the broker, for a standby."""
    with Proxies() as proxies:
        proxy = proxies.add("feed")
        proxy.upstream_port = int(cluster.broker_url.rpartition(":")[2])
        yield proxy


def cut_feed(feed: Proxy) -> None:
    feed.add(Rule("feed", OnlyBeats(), direction=DOWN, kind=PUBLISH, topic="/standby/"))


def is_acknowledged(client: Client, batch: Batch[int]) -> bool:
    return client._network._core.is_handed_over(batch.id)


def test_what_was_acknowledged_and_not_replicated_ends_in_words(
    cluster: LocalCluster, stand_by: StandBy, client: Client, feed: Proxy, tmp_path: Path
) -> None:
    standby = stand_by(tmp_path / "second", "attic", "--broker", f"mqtt://127.0.0.1:{feed.port}")
    follows(standby)
    known = client.options(requires="camera", wait_s=600).submit_all(square, range(3))
    until(lambda: is_acknowledged(client, known), "the first task's acknowledgement")
    until_replicated(cluster)
    cut_feed(feed)
    unknown = client.options(requires="camera", wait_s=600).submit_all(square, range(4))
    until(lambda: is_acknowledged(client, unknown), "the second task's acknowledgement")
    cluster.controller.kill()
    rules(standby)
    for future in unknown:
        with pytest.raises(DataLost, match="submit it again"):
            future.result(LIMIT_S)
    assert [row.calls for row in client.tasks()] == [3], "the other task goes on"
    assert client.submit(square, 5).result(LIMIT_S) == 25


def until_replicated(cluster: LocalCluster) -> None:
    """Wait until the standby has everything that the active controller has committed."""
    owner = Owner()
    try:
        address = parse_broker_address(cluster.broker_url)
        watch = owner.online(address, [(TOPICS.controller_stats("main"), 0)])

        def caught_up() -> bool:
            found = [json.loads(one.payload) for one in watch.messages]
            return bool(found) and found[-1]["standbys"] == {"attic": 0}

        owner.until(caught_up)
    finally:
        owner.close()


def test_with_synchronous_nothing_is_acknowledged_that_the_standby_has_not(
    tmp_path: Path,
) -> None:
    # The cluster's own controller is asynchronous: this one makes its own.
    environment = {"FORAGE_SYNCHRONOUS": "true"}
    with (
        LocalCluster(devices=2, detect_s=DETECT_S, env=environment) as cluster,
        Proxies() as proxies,
        cluster.client() as client,
    ):
        feed = proxies.add("feed")
        feed.upstream_port = int(cluster.broker_url.rpartition(":")[2])
        standby = ControllerProcess(
            *arguments_for(f"mqtt://127.0.0.1:{feed.port}", tmp_path / "second", "--standby"),
            *("--name", "attic", "--detect-s", str(DETECT_S)),
        )
        try:
            follows(standby)
            assert client.submit(square, 3).result(LIMIT_S) == 9
            cut_feed(feed)
            batch = client.submit_all(square, range(200))
            for count, _future in enumerate(batch.as_completed(timeout=LIMIT_S), 1):
                if count == 50:
                    assert not is_acknowledged(client, batch)
                    cluster.controller.kill()
            assert batch.results(timeout=0) == [number * number for number in range(200)]
            assert int(rules(standby)["epoch"]) == 2
        finally:
            standby.kill()


def test_a_take_over_of_one_that_was_itself_cut_off_is_called_off(tmp_path: Path) -> None:
    """It decides alone, as it hears nobody; when it is back, the other has long gone on without it."""
    with (
        LocalCluster(devices=1, detect_s=DETECT_S, state_dir=tmp_path / "first") as cluster,
        Proxies() as proxies,
        cluster.client() as client,
    ):
        link = proxies.add("link")
        link.upstream_port = int(cluster.broker_url.rpartition(":")[2])
        standby = ControllerProcess(
            *arguments_for(f"mqtt://127.0.0.1:{link.port}", tmp_path / "second", "--standby"),
            *("--name", "attic", "--detect-s", str(DETECT_S)),
        )
        try:
            follows(standby)
            logs = list((tmp_path / "first").glob("**/controller*.log"))
            assert logs

            def first_says(words: str) -> bool:
                return any(words in log.read_text() for log in logs)

            until(lambda: first_says("attic follows at group"), "the first knows of it")
            link.hold()
            standby.log.wait_for(lambda lines: any("taking over" in line for line in lines))
            until(lambda: first_says("attic no longer follows"), "the first goes on alone")
            cluster.controller.kill()
            link.heal()
            standby.log.wait_for(
                lambda lines: any("the take-over is called off" in line for line in lines)
            )
            cluster.controller.start()
            follows(standby, copies=2)
            assert client.submit(square, 3).result(LIMIT_S) == 9
        finally:
            standby.kill()

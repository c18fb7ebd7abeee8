"""Both firmware clients in a fleet: a real broker, a real controller, calls from the SDK."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import psutil
import pytest
from paho.mqtt import subscribe

import forage
from firmware.boards import Board
from firmware.conftest import make_board, until_alive
from forage import Client, LocalCluster
from forage_wire.codec import decode
from forage_wire.messages import Acknowledge, Assign, Outcomes
from integration.engines import ENGINES
from integration.observing import until

WAIT_S = 30.0
RUNS = "forage: runs"


class Tap:
    """Hears a device's inbox and its outcomes, and says what it heard again."""

    def __init__(self, cluster: LocalCluster, device: str) -> None:
        self._device = device
        self._changed = threading.Condition()
        self._synchronised = False
        self.heard: list[tuple[str, bytes]] = []
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._ready = threading.Event()
        self._client.connect("127.0.0.1", int(cluster.broker_url.rpartition(":")[2]))
        self._client.subscribe(
            [(f"forage/1/inbox/{device}", 1), ("forage/1/task/#", 1), (f"tap/{device}", 1)]
        )
        self._client.loop_start()
        assert self._ready.wait(WAIT_S)

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            if message.topic.startswith("tap/"):
                self._synchronised = True
            else:
                self.heard.append((message.topic, message.payload))
            self._changed.notify_all()

    def assignments(self) -> list[bytes]:
        inbox = f"forage/1/inbox/{self._device}"
        return [one for topic, one in self.heard if topic == inbox and is_a(one, Assign)]

    def outcomes(self) -> list[bytes]:
        return [one for topic, one in self.heard if "/task/" in topic and is_a(one, Outcomes)]

    def acknowledged(self) -> set[int]:
        """The assignments whose outcomes are committed, and forgotten by the device."""
        found = [decode(one) for topic, one in self.heard if "/inbox/" in topic]
        messages = [one for one in found if isinstance(one, Acknowledge)]
        return {number for one in messages for number, _ranges in one.rows}

    def wait_for_acknowledgements(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.acknowledged()) >= count, WAIT_S)

    def wait_for_outcomes(self, count: int) -> list[bytes]:
        with self._changed:
            done = self._changed.wait_for(lambda: len(self.outcomes()) >= count, WAIT_S)
            assert done, [(topic, decode(one)) for topic, one in self.heard]
            return self.outcomes()

    def synchronise(self) -> None:
        """Until all is here that the broker has passed on to anybody by now."""
        self._synchronised = False
        self._client.publish(f"tap/{self._device}", b"", 1)
        with self._changed:
            assert self._changed.wait_for(lambda: self._synchronised, WAIT_S)

    def say_again(self, payload: bytes) -> None:
        self._client.publish(f"forage/1/inbox/{self._device}", payload, 1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def is_a(payload: bytes, kind: type) -> bool:
    return isinstance(decode(payload), kind)


@pytest.fixture
def tap(cluster: LocalCluster, board: Board) -> Iterator[Tap]:
    tap = Tap(cluster, board.name)
    yield tap
    tap.close()


def blink(client: Client, seconds: float) -> "forage.Future[int]":
    """A call that takes so long."""
    return client.options(retries=0).submit("lab.board.blink", 1, ms=int(500 * seconds))


def runs_until(board: Board, last: "forage.Future[int]") -> int:
    """How many calls the board ran up to this one, by its terminal."""
    task, _, index = last.id.rpartition(".")
    board.wait_for(f"{RUNS} {task} {index}")
    return board.count(RUNS)


def is_lost(client: Client, board: Board) -> bool:
    return client.device(board.name).state == "lost"


# -- joining and working ----------------------------------------------------------------------------


def test_it_is_listed_as_a_microcontroller(client: Client, board: Board) -> None:
    found = client.device(board.name)
    assert (found.profile, found.slots, found.python) == ("mcu", 1, "")
    assert found.labels == {"room": board.name}
    assert found.functions == {"lab.board.adc": "1", "lab.board.blink": "1"}
    assert found.has_task("lab.board.adc")
    assert not client.device("pi").has_task("lab.board.adc")


def test_calls_are_answered_one_after_another(client: Client, board: Board) -> None:
    assert client.submit("lab.board.adc", 3).result(WAIT_S) == 3007
    batch = client.submit_all("lab.board.adc", [index % 4 for index in range(40)])
    assert batch.results(timeout=WAIT_S) == [1000 * (index % 4) + 7 for index in range(40)]
    assert client.submit("lab.board.blink", 2, ms=1).result(WAIT_S) == 2
    last = client.submit("lab.board.adc", channel=1)
    assert last.result(WAIT_S) == 1007
    assert runs_until(board, last) == 43


def test_a_label_leads_to_it_and_python_functions_do_not(client: Client, board: Board) -> None:
    lab = client.options(requires=f"room={board.name}", wait_s=0.2)
    future = lab.submit("lab.board.adc", 0)
    assert future.result(WAIT_S) == 7
    assert future.device == board.name
    with pytest.raises(forage.NoDevice) as caught:
        lab.submit(pow, 2, 3).result(WAIT_S)
    assert "named functions only" in str(caught.value.reasons[board.name])
    assert client.submit(pow, 2, 3).result(WAIT_S) == 8


def test_what_it_cannot_do_is_an_error_that_says_so(client: Client, board: Board) -> None:
    with pytest.raises(ValueError, match="there is no channel 9"):
        client.submit("lab.board.adc", 9).result(WAIT_S)
    with pytest.raises(forage.NotSerializable, match="plain values only"):
        client.submit("lab.board.adc", (1, 2)).result(WAIT_S)
    with pytest.raises(forage.NoDevice, match=r"lamp-\d+: its packets hold 4096 bytes"):
        client.submit("lab.board.adc", "x" * 5_000).result(WAIT_S)
    with pytest.raises(forage.NoDevice, match=r"it has no function lab\.board\.none"):
        client.options(wait_s=0.2).submit("lab.board.none").result(WAIT_S)
    with pytest.raises(forage.TaskTimeout):
        client.options(timeout_s=0.1).submit("lab.board.blink", 500).result(WAIT_S)
    assert client.submit("lab.board.adc", 1).result(WAIT_S) == 1007


def test_the_sdk_performs_what_it_has(client: Client, board: Board) -> None:
    device = client.device(board.name)
    assert device.has_task("lab.board.adc")
    assert device.perform("lab.board.adc", [3], store=False) == 3007
    assert device.perform("lab.board.blink", {"times": 2, "ms": 1}) == 2
    with pytest.raises(ValueError, match="no channel -1"):
        device.perform("lab.board.adc", [-1])
    with pytest.raises(forage.NoDevice, match=r"lab\.board\.adc, lab\.board\.blink"):
        device.perform("lab.board.dac", [1])


def forage_prints(cluster: LocalCluster, *arguments: str) -> str:
    """What the command `forage` prints of this cluster."""
    command = [sys.executable, "-m", "forage.cli", *arguments, "--broker", cluster.broker_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_terminal_shows_and_runs_what_it_has(
    cluster: LocalCluster, client: Client, board: Board
) -> None:
    shown = dict(
        line.split(None, 1)
        for line in forage_prints(cluster, "device", "get", board.name).splitlines()
        if " " in line.strip()
    )
    assert shown["functions"] == "lab.board.adc=1, lab.board.blink=1"
    assert shown["profile"] == "mcu"
    assert shown["labels"] == f"room={board.name}"
    assert forage_prints(cluster, "run", "lab.board.adc", "2").strip() == "2007"


def test_a_call_longer_than_the_detection_time_is_not_taken_for_a_death(
    client: Client, board: Board
) -> None:
    future = blink(client, 2)
    assert future.result(WAIT_S) == 1
    assert runs_until(board, future) == 1


def run_with_a_frozen_controller(
    cluster: LocalCluster, client: Client, board: Board, tap: Tap
) -> int:
    """Run a call whose outcome nobody acknowledges, so that it stays on the board.

    The call must outlast what freezing takes: where it did not, a longer one is taken. Gives how
    many calls that were.
    """
    for calls, seconds in enumerate((1, 4, 16), 1):
        tap.synchronise()
        tap.heard.clear()
        future = blink(client, seconds)
        board.wait_for(RUNS, calls)
        cluster.controller.freeze()
        until(lambda: is_stopped(cluster.controller.pid), "the controller's stop")
        tap.synchronise()
        if not tap.outcomes():
            assert future.result(WAIT_S) == 1
            return calls
        cluster.controller.thaw()
        assert future.result(WAIT_S) == 1
    raise AssertionError("the controller was not stopped within 16 s")


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def test_a_repeated_assignment_is_answered_from_memory(
    cluster: LocalCluster, client: Client, board: Board, tap: Tap
) -> None:
    calls = run_with_a_frozen_controller(cluster, client, board, tap)
    try:
        first = tap.wait_for_outcomes(1)[0]
        given = tap.assignments()[-1]
        # By itself it says it five times in the time that is waited (30 s), so these are answers;
        # and they are no more than its inbox holds at a time.
        before = len(tap.outcomes())
        for _ in range(7):
            tap.say_again(given)
        assert set(tap.wait_for_outcomes(before + 7)) == {first}
    finally:
        cluster.controller.thaw()
    last = client.submit("lab.board.adc", 1)
    assert last.result(WAIT_S) == 1007
    assert runs_until(board, last) == calls + 1


def test_packets_above_its_buffer_and_noise_do_not_disturb_it(
    client: Client, board: Board, tap: Tap
) -> None:
    for payload in (bytes(300_000), b"", b"\xff" * 4_096, b"\xa1" * 5_000, bytes(65_536)):
        tap.say_again(payload)
    last = client.submit("lab.board.adc", 1)
    assert last.result(WAIT_S) == 1007
    assert runs_until(board, last) == 1
    assert board.count("connected as") == 1


# -- killed, frozen, cut off ------------------------------------------------------------------------


def retained(cluster: LocalCluster, topic: str) -> Any:
    """The JSON that the broker keeps of a topic."""
    port = int(cluster.broker_url.rpartition(":")[2])
    found = subscribe.simple(topic, hostname="127.0.0.1", port=port)
    assert found.retain
    return json.loads(found.payload)


def test_one_that_is_killed_is_noticed_and_comes_back_with_a_new_session(
    cluster: LocalCluster, client: Client, board: Board
) -> None:
    before = client.device(board.name).session
    future = blink(client, 1)
    board.wait_for(RUNS)
    board.kill()
    until(lambda: is_lost(client, board), "its will")
    # Retained: who connects later sees it too.
    assert retained(cluster, f"forage/1/device/{board.name}/presence") == {
        "state": "lost",
        "session": before,
    }
    board.start()
    until_alive(client, board)
    assert client.device(board.name).session.partition("-")[0] != before.partition("-")[0]
    assert future.result(WAIT_S) == 1
    board.wait_for(RUNS, 2)


def test_what_may_run_only_once_is_not_run_again_after_a_loss(client: Client, board: Board) -> None:
    once = client.options(at_most_once=True)
    assert once.submit("lab.board.adc", 1).result(WAIT_S) == 1007
    future = once.submit("lab.board.blink", 1, ms=5_000)
    board.wait_for(RUNS, 2)
    board.kill()
    board.start()
    with pytest.raises(forage.DeviceLost):
        future.result(WAIT_S)
    until_alive(client, board)
    last = client.submit("lab.board.adc", 1)
    assert last.result(WAIT_S) == 1007
    assert runs_until(board, last) == 3


def test_one_that_freezes_is_noticed_by_its_silence(client: Client, board: Board) -> None:
    future = blink(client, 1)
    board.wait_for(RUNS)
    board.freeze()
    until(lambda: is_lost(client, board), "its silence")
    board.thaw()
    until_alive(client, board)
    assert future.result(WAIT_S) == 1
    assert client.submit("lab.board.adc", 1).result(WAIT_S) == 1007


def test_a_controller_restart_in_the_midst_of_a_call(
    cluster: LocalCluster, client: Client, board: Board
) -> None:
    future = blink(client, 1)
    board.wait_for(RUNS)
    cluster.controller.kill()
    cluster.controller.start()
    assert future.result(WAIT_S) == 1
    last = client.submit("lab.board.adc", 1)
    assert last.result(WAIT_S) == 1007
    assert runs_until(board, last) == 2
    assert board.count("connected as") == 1


def test_an_outcome_outlives_the_controller_that_never_read_it(
    cluster: LocalCluster, client: Client, board: Board, tap: Tap
) -> None:
    future = blink(client, 0.6)
    board.wait_for(RUNS)
    cluster.controller.kill()
    tap.wait_for_outcomes(1)
    cluster.controller.start()
    # It is said again on the new link, acknowledged, and room for the next.
    last = client.submit("lab.board.adc", 1)
    assert last.result(WAIT_S) == 1007
    assert future.result(WAIT_S) == 1
    assert runs_until(board, last) == 2


def test_a_broker_that_comes_back_empty(
    cluster: LocalCluster, client: Client, board: Board
) -> None:
    before = client.device(board.name).session
    future = blink(client, 1)
    board.wait_for(RUNS)
    assert cluster.broker is not None
    cluster.broker.kill()
    cluster.broker.start()
    assert future.result(WAIT_S) == 1
    board.wait_for("connected as", 2)
    until_alive(client, board)
    start, _, counter = client.device(board.name).session.partition("-")
    assert start == before.partition("-")[0]
    assert int(counter) > 1
    last = client.submit("lab.board.adc", 1)
    assert last.result(WAIT_S) == 1007
    # The call itself went on through it.
    assert runs_until(board, last) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_broker_and_a_controller_that_have_both_lost_their_disks(
    kind: str, engine: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cluster"
    with LocalCluster(devices=["pi"], engine=engine, state_dir=folder) as cluster:
        board = make_board(kind, cluster, tmp_path, "lamp")
        tap = Tap(cluster, "lamp")
        board.start()
        try:
            lose_both_disks(cluster, board, tap, folder)
        finally:
            board.kill()
            tap.close()


def lose_both_disks(cluster: LocalCluster, board: Board, tap: Tap, folder: Path) -> None:
    with cluster.client() as client:
        assert client.submit("lab.board.adc", 1).result(WAIT_S) == 1007
        # So that the one after the next begins below the epoch that the board knows.
        cluster.controller.kill()
        cluster.controller.start()
        assert client.submit("lab.board.adc", 2).result(WAIT_S) == 2007
    # Else the board keeps an outcome of a task that nobody knows, for a minute.
    tap.wait_for_acknowledgements(2)
    tap.synchronise()
    assert cluster.broker is not None
    cluster.controller.kill()
    cluster.broker.kill()
    shutil.rmtree(folder / "controller" / "state")
    cluster.broker.start()
    cluster.controller.start()
    board.wait_for("connected as", 2)
    with cluster.client() as client:
        assert client.submit("lab.board.adc", 3).result(WAIT_S) == 3007


# -- orders -----------------------------------------------------------------------------------------


def test_a_second_board_of_the_same_name_is_told_so_and_ends(
    kind: str, cluster: LocalCluster, client: Client, board: Board, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    second = make_board(kind, cluster, tmp_path / "other", board.name)
    second.start()
    try:
        second.end()
        second.wait_for("forage: refused: another device named")
        last = client.submit("lab.board.adc", 1)
        assert last.result(WAIT_S) == 1007
        assert runs_until(board, last) == 1
    finally:
        second.kill()


def test_a_drained_one_finishes_and_takes_nothing_new(client: Client, board: Board) -> None:
    future = blink(client, 0.5)
    board.wait_for(RUNS)
    client.drain(board.name)
    until(lambda: client.device(board.name).state == "draining", "it says that it is draining")
    assert future.result(WAIT_S) == 1
    waiting = client.submit("lab.board.adc", 1)
    client.drain(board.name, False)
    assert waiting.result(WAIT_S) == 1007


def test_a_forced_cancellation_ends_a_call_that_runs(client: Client, board: Board) -> None:
    future = blink(client, 600)
    board.wait_for(RUNS)
    assert future.cancel(force=True)
    assert client.submit("lab.board.adc", 1).result(WAIT_S) == 1007

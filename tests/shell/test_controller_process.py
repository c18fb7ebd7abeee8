"""`forage controller` as a process: its start, its broker's absence, its end, its refusals."""

import json
import resource
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forage_controller.shell.database import APPLICATION_ID
from forage_wire.messages import Acknowledged, Answer, Query, Submit
from shell.controller_tools import TOPICS, Caller, ControllerProcess, arguments_for
from transport.mosquitto import Mosquitto, free_port, mosquitto_program
from transport.owner import Owner, Party

Start = Callable[..., ControllerProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a controller process that ends with the test."""
    started: list[ControllerProcess] = []

    def start_one(*arguments: str, environment: dict[str, str] | None = None) -> ControllerProcess:
        process = ControllerProcess(*arguments, environment=environment)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A mosquitto that is not started yet."""
    if mosquitto_program() is None:
        pytest.skip("mosquitto is not installed")
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = Mosquitto(folder)
    yield broker
    broker.kill()


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


def states(party: Party, name: str = "main") -> list[str]:
    """What this controller has said of itself, in order."""
    topic = TOPICS.controller_presence(name)
    return [json.loads(one.payload)["state"] for one in party.messages if one.topic == topic]


def watcher(owner: Owner, broker: Mosquitto) -> Party:
    return owner.online(broker.address, [(f"{TOPICS.prefix}controller/+/presence", 1)])


def test_it_says_ready_and_says_goodbye(
    start: Start, broker: Mosquitto, owner: Owner, tmp_path: Path
) -> None:
    broker.start()
    watch = watcher(owner, broker)
    controller = start(*arguments_for(broker.address, tmp_path / "state"))
    assert controller.ready() == {
        "controller": "main",
        "broker": str(broker.address),
        "epoch": "1",
        "pid": str(controller.process.pid),
    }
    owner.until(lambda: states(watch)[-1:] == ["active"])
    assert controller.stop() == 0
    owner.until(lambda: states(watch)[-1:] == ["offline"])
    assert states(watch) == ["starting", "active", "offline"], "and no will"
    late = watcher(owner, broker)
    owner.until(lambda: states(late) == ["offline"])
    assert len(controller.out.all()) == 1


def test_an_interrupted_one_ends_with_130(start: Start, broker: Mosquitto, tmp_path: Path) -> None:
    broker.start()
    controller = start(*arguments_for(broker.address, tmp_path / "state"))
    controller.ready()
    controller.send(signal.SIGINT)
    assert controller.wait() == 130
    assert not any("Traceback" in line for line in controller.log.all())


def test_its_will_says_lost(start: Start, broker: Mosquitto, owner: Owner, tmp_path: Path) -> None:
    broker.start()
    watch = watcher(owner, broker)
    controller = start(*arguments_for(broker.address, tmp_path / "state"))
    controller.ready()
    controller.send(signal.SIGKILL)
    owner.until(lambda: states(watch)[-1:] == ["lost"])


def test_it_waits_for_its_broker_and_says_so_once(
    start: Start, broker: Mosquitto, owner: Owner, tmp_path: Path
) -> None:
    controller = start(*arguments_for(broker.address, tmp_path / "state", "--log-level", "debug"))
    controller.wait_for_log(f"broker {broker.address}: connection refused")
    broker.start()
    controller.ready()
    assert controller.log_count("connection refused") == 1
    broker.kill()
    controller.wait_for_log("trying again")
    broker.start()
    watch = watcher(owner, broker)
    owner.until(lambda: states(watch)[-1:] == ["active"])
    sessions = [json.loads(one.payload)["session"] for one in watch.messages]
    beginning, _, counter = sessions[-1].rpartition("-")
    assert len(beginning) == 16
    assert int(counter) >= 2, "a new session of the same start"
    assert len(controller.out.wait_for(lambda lines: True)) == 1, "ready is said once"
    assert controller.stop() == 0


def test_without_a_broker_it_still_ends_when_told(start: Start, tmp_path: Path) -> None:
    controller = start(*arguments_for(f"mqtt://127.0.0.1:{free_port()}", tmp_path / "state"))
    controller.wait_for_log("trying again until it answers")
    assert controller.stop() == 0
    assert controller.out.all() == []


def test_a_refused_login_is_said_in_words_and_retried(
    start: Start, broker: Mosquitto, owner: Owner, tmp_path: Path
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    closed = Mosquitto(folder, ("allow_anonymous false",))
    closed.start()
    try:
        controller = start(*arguments_for(closed.address, tmp_path / "state"))
        controller.wait_for_log("no user name was given")
        assert controller.stop() == 0
    finally:
        closed.kill()


def test_what_it_acknowledged_is_there_after_sigkill(
    start: Start, broker: Mosquitto, owner: Owner, tmp_path: Path
) -> None:
    broker.start()
    arguments = arguments_for(broker.address, tmp_path / "state")
    controller = start(*arguments)
    controller.ready()
    caller = Caller(owner, broker.address)
    task = f"{caller.client}-1"
    caller.send(Submit(pages=(caller.page(task, 7),)))
    acknowledged = caller.wait_for(Acknowledged)
    assert isinstance(acknowledged, Acknowledged)
    assert acknowledged.rows == ((task, 0),)
    controller.kill()
    again = start(*arguments)
    assert again.ready()["epoch"] == "2"
    later = Caller(owner, broker.address, client="1" * 13)
    later.send(Query(id=5, what="task", name=task))
    answer = later.wait_for(Answer)
    assert isinstance(answer, Answer)
    assert (answer.id, answer.ok) == (5, True)
    row = json.loads(answer.body)
    assert (row["task"], row["calls"], row["settled"]) == (task, 7, 0)


def test_a_disk_that_takes_no_more_ends_it_in_words(
    start: Start, broker: Mosquitto, owner: Owner, tmp_path: Path
) -> None:
    broker.start()
    watch = watcher(owner, broker)
    controller = start(*arguments_for(broker.address, tmp_path / "state"))
    controller.ready()
    resource.prlimit(controller.process.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    caller = Caller(owner, broker.address)
    for number in range(1, 200):
        caller.send(Submit(pages=(caller.page(f"{caller.client}-{number:d}", 800),)))
    caller.until(lambda: states(watch)[-1:] == ["offline"])
    assert controller.wait() == 1
    said = controller.log.all()[-1]
    assert "the store cannot be written" in said
    assert f"{tmp_path / 'state' / 'state.db'} cannot be written or read" in said


def test_a_second_one_on_the_same_state_is_refused(
    start: Start, broker: Mosquitto, tmp_path: Path
) -> None:
    broker.start()
    arguments = arguments_for(broker.address, tmp_path / "state")
    first = start(*arguments)
    first.ready()
    second = start(*arguments)
    assert second.wait() == 2
    [said] = second.log.all()
    assert said.startswith(f"forage controller: Another controller (pid {first.process.pid}) uses")
    assert first.stop() == 0


@pytest.mark.parametrize("name", ["main", "other"])
def test_a_second_one_on_the_same_broker_gives_way(
    start: Start, broker: Mosquitto, owner: Owner, tmp_path: Path, name: str
) -> None:
    broker.start()
    first = start(*arguments_for(broker.address, tmp_path / "first"))
    first.ready()
    second = start(*arguments_for(broker.address, tmp_path / "second", "--name", name))
    assert second.wait() == 2
    assert "is active on this broker" in second.log.all()[-1]
    assert second.out.all() == [], "it was never ready"
    late = watcher(owner, broker)
    owner.until(lambda: states(late)[-1:] == ["active"])
    if name != "main":
        # (What is retained comes in no order, and not all of it at once.)
        owner.until(lambda: states(late, name) == ["offline"])
    assert first.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--no-such"], "unrecognized arguments: --no-such"),
        (["--broker", "http://127.0.0.1"], "speaks mqtt and mqtts"),
        (["--broker", "mqtt://broker.example"], "pass --insecure if that is what you want"),
        (["--detect-s", "soon"], "--detect-s: must be 0.1 to 3600 seconds or auto, not 'soon'"),
        (["--name", "Not A Name"], "--name: must be 1 to 32 of a-z"),
        (["--state-dir", "{file}/state"], "cannot be used (not a directory)"),
        (["--state-dir", "{newer}"], "was written by a newer forage"),
        (["--config", "{file}x"], "cannot be read (No such file or directory)"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_exit_2(
    start: Start, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "newer").mkdir()
    connection = sqlite3.connect(tmp_path / "newer" / "state.db")
    connection.executescript(
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 99; CREATE TABLE t (x);"
    )
    connection.close()
    places = {"file": tmp_path / "file", "newer": tmp_path / "newer"}
    controller = start(
        *[argument.format(**places) for argument in arguments],
        environment={"XDG_STATE_HOME": str(tmp_path / "home")},
    )
    assert controller.wait() == 2
    [said] = controller.log.all()
    assert said.startswith("forage controller: ")
    assert says in said
    assert controller.out.all() == []


def test_the_service_manager_is_told_when_it_is_active(
    start: Start, broker: Mosquitto, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind(str(tmp_path / "notify"))
        controller = start(
            *arguments_for(broker.address, tmp_path / "state"),
            environment={"NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        assert manager.recv(4096).startswith(b"STATUS=waiting for the broker")
        broker.start()
        said = manager.recv(4096)
        assert said.startswith(b"READY=1\n")
        assert controller.stop() == 0
        assert manager.recv(4096) == b"STOPPING=1"


def test_its_settings_are_printed_with_their_origins(start: Start, tmp_path: Path) -> None:
    controller = start(
        "--print-config",
        "--detect-s",
        "2",
        environment={"STATE_DIRECTORY": str(tmp_path), "FORAGE_ROOT": "shed"},
    )
    assert controller.wait() == 0
    printed = {line.split(" = ")[0]: line for line in controller.out.all()}
    assert printed["detect_s"].endswith("# --detect-s")
    assert printed["root"].startswith('root = "shed"')
    assert printed["root"].endswith("# $FORAGE_ROOT")
    assert str(tmp_path) in printed["state_dir"]
    assert not (tmp_path / "state.db").exists()

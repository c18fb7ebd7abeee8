"""`forage agent` as a process, over a real broker: its work, its deaths, its end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forage_wire.messages import (
    Acknowledge,
    Beat,
    CancelAssigned,
    DeviceInventory,
    DeviceRefused,
    Options,
    Outcomes,
    Report,
    Started,
)
from forage_wire.values import rebuild_error
from shell.agent_tools import TASK, TOPICS, AgentProcess, FakeController, is_alive
from transport.mosquitto import Mosquitto, free_port, mosquitto_program
from transport.owner import Owner

Start = Callable[..., AgentProcess]


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    if mosquitto_program() is None:
        pytest.skip("mosquitto is not installed (Debian: apt install mosquitto)")
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = Mosquitto(folder)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start an agent that ends with the test."""
    started: list[AgentProcess] = []

    def start_one(*arguments: str, **options: Any) -> AgentProcess:
        process = AgentProcess(*arguments, "--state-dir", str(tmp_path / "state"), **options)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()


@pytest.fixture
def agent(start: Start, broker: Mosquitto) -> AgentProcess:
    found = start("--broker", str(broker.address), "--name", "dev", "--slots", "2")
    found.ready()
    return found


@pytest.fixture
def controller(owner: Owner, broker: Mosquitto, agent: AgentProcess) -> FakeController:
    found = FakeController(owner, broker.address)
    found.adopt()
    return found


def test_online_agent_says_so_in_one_line_and_in_retained_documents(
    owner: Owner, broker: Mosquitto, start: Start
) -> None:
    agent = start(
        "--broker",
        str(broker.address),
        "--name",
        "dev",
        "--slots",
        "3",
        "--label",
        "room=attic",
        "--resource",
        "camera=2",
    )
    ready = agent.ready()
    assert (ready["device"], ready["broker"]) == ("dev", str(broker.address))
    assert int(ready["pid"]) == agent.pid
    controller = FakeController(owner, broker.address)
    capabilities = controller.document("capabilities")
    assert (capabilities["slots"], capabilities["labels"]) == (3, {"room": "attic"})
    assert capabilities["resources"] == {"camera": 2}
    assert capabilities["python"] == f"3.{sys.version_info.minor}"
    assert (capabilities["address"], capabilities["network"]) == ("127.0.0.1", "local")
    assert capabilities["strength"] > 0
    assert capabilities["session"] == controller.document("presence")["session"]
    assert controller.document("load")["running"] == 0
    assert all(one.retain for one in controller.party.messages)


def test_calls_run_and_outcomes_go_to_the_clients_topic(controller: FakeController) -> None:
    def square(number: int) -> int:
        return number * number

    controller.assign(square, [(index,) for index in range(200)])
    assert controller.values(200) == [index**2 for index in range(200)]
    [one] = {
        (found.task, found.tag) for message in controller.of(Outcomes) for found in message.sets
    }
    assert one == (TASK, bytes(16))


def test_agent_answers_a_controllers_presence(
    owner: Owner, broker: Mosquitto, agent: AgentProcess
) -> None:
    controller = FakeController(owner, broker.address)
    controller.adopt()
    controller.until(lambda: controller.of(DeviceInventory))
    other = FakeController(owner, broker.address)
    other.session = controller.session.replace("-1", "-2")
    other.adopt()
    other.received.clear()
    other.appear()
    other.until(lambda: other.of(DeviceInventory))


def test_death_of_a_worker_is_its_calls_alone(
    controller: FakeController, agent: AgentProcess
) -> None:
    def crash(number: int) -> int:
        if number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        return number

    controller.assign(crash, [(index,) for index in range(5)])
    controller.until(lambda: len(controller.outcomes()) == 5)
    found = controller.outcomes()
    assert [index for index, outcome in found.items() if not outcome.ok] == [2]
    assert "SIGSEGV" in str(rebuild_error(found[2].value, "dev", 1))
    assert agent.process.poll() is None


def test_call_above_its_time_is_ended(controller: FakeController) -> None:
    def spin() -> None:
        while True:
            pass

    controller.assign(spin, [()], options=Options(timeout_ms=100))
    controller.until(lambda: controller.outcomes())
    error = rebuild_error(controller.outcomes()[0].value, "dev", 1)
    assert isinstance(error, TimeoutError)
    assert "0.1 s" in str(error)


def test_running_call_is_reported_started_and_killed_by_a_forced_cancel(
    controller: FakeController,
) -> None:
    def wait() -> None:
        import time

        time.sleep(60)

    number = controller.assign(wait, [()], beat_ms=50)
    controller.until(lambda: controller.of(Started))
    controller.until(lambda: len(controller.of(Beat)) >= 3)
    controller.send(CancelAssigned(assignment=number, ranges=((0, 1),), force=True))
    controller.until(lambda: controller.outcomes())
    assert controller.outcomes()[0].value["reason"] == "cancelled"


def test_fresh_calls_run_in_processes_of_their_own(controller: FakeController) -> None:
    def pid() -> int:
        return os.getpid()

    controller.assign(pid, [()] * 3, options=Options(fresh=True))
    assert len(set(controller.values(3))) == 3


def test_output_reaches_the_log_topic_of_the_task(controller: FakeController) -> None:
    def speak(text: str) -> None:
        print("hello", text)
        print("careful", file=sys.stderr)

    controller.assign(speak, [("world",)], first=17)
    controller.until(lambda: len(controller.lines) == 2)
    assert set(controller.lines) == {(TASK, "17 out hello world"), (TASK, "17 err careful")}


def test_large_arguments_and_results_go_in_parts(controller: FakeController) -> None:
    def reverse(data: bytes) -> bytes:
        return data[::-1]

    data = os.urandom(3 << 20)
    controller.assign(reverse, [(data,)])
    assert controller.values(1) == [data[::-1]]


def test_function_that_the_device_has_runs_by_its_name(
    owner: Owner, broker: Mosquitto, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "house.py").write_text("def rooms(factor):\n    return 7 * factor\n")
    start(
        "--broker",
        str(broker.address),
        "--name",
        "dev",
        "--function",
        "org.house.rooms=house:rooms",
        environment={"PYTHONPATH": str(tmp_path)},
    )
    controller = FakeController(owner, broker.address)
    controller.adopt()
    assert controller.document("capabilities")["functions"] == {"org.house.rooms": "1"}
    controller.assign(("org.house.rooms", "1"), [(6,)])
    assert controller.values(1) == [42]


def test_broker_that_comes_back_empty_gets_everything_again(
    owner: Owner, broker: Mosquitto, agent: AgentProcess
) -> None:
    def wait_for(path: str) -> str:
        import time

        while path and not os.path.exists(path):
            time.sleep(0.001)
        return path

    first = FakeController(owner, broker.address)
    before = first.adopt()
    folder = Path(broker._folder)
    path = str(folder / "go")
    first.assign(wait_for, [("",)])
    first.assign(wait_for, [(path,)], first=1)
    first.until(lambda: first.of(Started) and first.outcomes())
    broker.kill()
    agent.log.wait_for(lambda lines: any("No connection to the broker" in one for one in lines))
    Path(path).touch()
    broker.start()
    second = FakeController(owner, broker.address)
    second.session = first.session
    session = second.adopt()
    assert session.partition("-")[0] == before.partition("-")[0]
    assert session != before
    assert second.values(2) == ["", path]
    # The same outcomes until they are acknowledged; then none.
    second.send(Acknowledge(rows=tuple((2**40 + n, ((n - 1, n),)) for n in (1, 2))))
    second.received.clear()
    second.send(Report())
    second.until(lambda: second.of(DeviceInventory))
    assert second.of(DeviceInventory)[-1].rows == ()
    assert second.outcomes() == {}


def test_garbage_on_every_topic_changes_nothing(
    controller: FakeController, agent: AgentProcess
) -> None:
    def double(number: int) -> int:
        return 2 * number

    topics = [
        TOPICS.inbox("dev"),
        TOPICS.controller_presence("main"),
        TOPICS.device_presence("dev"),
    ]
    for topic in topics:
        for payload in (b"", b"\xff\x00garbage", b"{}", b"[" * 10_000, os.urandom(300_000)):
            controller.party.connection.publish(topic, payload, qos=1)
    controller.party.connection.publish(TOPICS.inbox("dev"), bytes(5 << 20), qos=1)
    controller.assign(double, [(21,)])
    assert controller.values(1) == [42]
    lines = agent.log.wait_for(lambda lines: any("dropped input" in line for line in lines))
    assert len([line for line in lines if "dropped input" in line]) < 12


def test_sigkill_leaves_a_will_and_no_process(
    controller: FakeController, agent: AgentProcess
) -> None:
    def wait() -> None:
        import time

        time.sleep(60)

    controller.assign(wait, [()])
    controller.until(lambda: controller.of(Started))
    family = agent.family()
    assert len(family) == 3
    agent.kill()
    presence = controller.until_state("lost")
    assert presence["session"] == controller.link.session  # type: ignore[union-attr]
    controller.until(lambda: not any(map(is_alive, family)))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_asked_to_end_it_says_offline_and_leaves_no_process(
    controller: FakeController, agent: AgentProcess, number: signal.Signals, code: int
) -> None:
    family = agent.family()
    assert agent.end(number) == code
    controller.until_state("offline")
    assert [pid for pid in family if is_alive(pid)] == []


def test_signals_drain_the_device_and_take_work_again(
    controller: FakeController, agent: AgentProcess
) -> None:
    agent.process.send_signal(signal.SIGUSR1)
    controller.until_state("draining")
    agent.process.send_signal(signal.SIGUSR2)
    controller.until_state("online")


def test_refused_device_exits_2_with_reason_and_address(
    controller: FakeController, agent: AgentProcess
) -> None:
    controller.send(DeviceRefused(reason="another device has this name", address="10.9.8.7"))
    controller.until(lambda: agent.process.poll() is not None)
    assert agent.process.wait() == 2
    text = "\n".join(agent.log.all())
    assert "another device has this name" in text
    assert "10.9.8.7" in text


def test_without_a_broker_it_keeps_trying_and_says_so_once(start: Start, tmp_path: Path) -> None:
    port = free_port()
    agent = start("--broker", f"mqtt://127.0.0.1:{port}", "--name", "dev")
    lines = agent.log.wait_for(lambda lines: bool(lines))
    assert f"127.0.0.1:{port}" in lines[0]
    assert "connection refused" in lines[0]
    # Somebody who is no broker answers: another reason, another line, and it still tries.
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(30)
        for _ in range(2):
            server.accept()[0].close()
        agent.log.wait_for(lambda lines: len(lines) >= 2)
    assert agent.end() == 0
    reasons = [line for line in agent.log.all() if "No connection" in line]
    assert len(reasons) == len(dict.fromkeys(line.split(":", 3)[-1] for line in reasons))


def test_agent_finds_a_broker_that_comes_later(
    owner: Owner, broker: Mosquitto, start: Start
) -> None:
    broker.kill()
    agent = start("--broker", str(broker.address), "--name", "dev")
    agent.log.wait_for(lambda lines: bool(lines))
    broker.start()
    agent.ready()
    FakeController(owner, broker.address).until_state("online")


def test_service_manager_hears_that_it_is_ready(
    broker: Mosquitto, start: Start, tmp_path: Path
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(30)
        agent = start(
            "--broker",
            str(broker.address),
            "--name",
            "dev",
            environment={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"},
        )
        heard: dict[bytes, None] = {}
        while not {b"READY=1", b"WATCHDOG=1"} <= heard.keys():
            heard[manager.recv(4_096)] = None
        agent.end()


IMPORTS = """
import sys
import forage_agent.main, forage_agent.shell.agent
print(len(sys.modules))
print(*sorted(sys.modules))
"""


def test_agent_loads_less_than_200_modules_and_nothing_of_the_other_programs() -> None:
    text = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    ).stdout
    count, names = text.splitlines()
    assert int(count) < 200
    packages = {name.partition(".")[0] for name in names.split()}
    assert not packages & {
        "forage",
        "forage_controller",
        "forage_broker",
        "cloudpickle",
        "numpy",
        "sqlite3",
        "asyncio",
        "click",
        "rich",
        "amqtt",
    }


CORE = """
import sys
import forage_agent.core.agent
print(*sorted(sys.modules))
"""


def test_core_loads_nothing_that_touches_the_world() -> None:
    text = subprocess.run(
        [sys.executable, "-c", CORE], capture_output=True, text=True, check=True
    ).stdout
    forbidden = {"paho", "sqlite3", "socket", "ssl", "asyncio", "subprocess", "selectors"}
    assert not {name.partition(".")[0] for name in text.split()} & forbidden


def test_connected_agent_is_one_thread(controller: FakeController, agent: AgentProcess) -> None:
    controller.until(lambda: len(os.listdir(f"/proc/{agent.pid}/task")) == 1)

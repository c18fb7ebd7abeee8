"""`forage broker` as a process: the ready line, refusals, signals, exit codes."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from broker.conftest import NEEDS_MOSQUITTO
from broker.raw_mqtt import LIMIT_S, RawMqtt, listening_pids
from forage_broker.embedded import EmbeddedBroker
from forage_broker.mosquitto import find_mosquitto

COMMAND = [sys.executable, "-m", "forage_broker"]
ENGINES = ["embedded", pytest.param("mosquitto", marks=NEEDS_MOSQUITTO)]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("FORAGE_")}
    return {**kept, **variables}


def refused(*flags: str, **variables: str) -> tuple[int, str]:
    """Run a broker that must end by itself: exit code and stderr; stdout must be empty."""
    done = subprocess.run(
        [*COMMAND, *flags],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


class Running:
    """A broker's process, ready; `port` and `engine` as its ready line says."""

    def __init__(self, process: "subprocess.Popen[str]", host: str) -> None:
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(rf"ready mqtt://{re.escape(host)}:(\d+) engine=(\w+)\n", line)
        assert match is not None, (line, process.poll())
        self.port, self.engine = int(match[1]), match[2]
        (self.broker_pid,) = listening_pids(self.port)
        child = self.broker_pid != process.pid
        assert child == (self.engine == "mosquitto")
        assert not child or psutil.Process(self.broker_pid).ppid() == process.pid

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal to the process alone: its exit code and stderr."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        rest, errors = self.process.communicate(timeout=LIMIT_S)
        assert rest == "", "one line on stdout, no more"
        return self.process.returncode, errors


@contextmanager
def running(*flags: str, host: str = "127.0.0.1", **variables: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [*COMMAND, *flags],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield Running(process, host)
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_it_serves_until_it_is_told_to_stop(engine: str, number: int, code: int) -> None:
    with running("--engine", engine, "--port", "0") as broker:
        assert broker.engine == engine
        with RawMqtt.connected(broker.port, "client") as client:
            client.subscribe("t")
            client.publish("t", b"x", qos=0)
            assert client.message().payload == b"x"
            exit_code, errors = broker.end(number)
        assert exit_code == code
        assert "Traceback" not in errors
        assert listening_pids(broker.port) == set()


@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_in_a_terminal_reaches_the_whole_group_and_is_no_death(engine: str) -> None:
    with running("--engine", engine, "--port", "0") as broker:
        os.killpg(broker.process.pid, signal.SIGINT)
        exit_code, errors = broker.ended()
        assert exit_code == 130
        assert "died" not in errors


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_broker_leaves_no_process_and_its_port_is_free_at_once(engine: str) -> None:
    with running("--engine", engine, "--port", "0") as first:
        listening = psutil.Process(first.broker_pid)
        with RawMqtt.connected(first.port, "client") as client:
            first.process.kill()
            client.expect_end()
        first.process.wait(LIMIT_S)
        psutil.wait_procs([listening], timeout=LIMIT_S)
        assert not listening.is_running() or listening.status() == psutil.STATUS_ZOMBIE
        with running("--engine", engine, "--port", str(first.port)) as second:
            assert second.port == first.port


@NEEDS_MOSQUITTO
def test_the_death_of_mosquitto_is_an_error_in_words() -> None:
    with running("--engine", "mosquitto", "--port", "0") as broker:
        os.kill(broker.broker_pid, signal.SIGKILL)
        exit_code, errors = broker.ended()
    assert exit_code == 5
    assert (
        f"forage broker: mosquitto (process {broker.broker_pid}) died with signal 9. "
        "Start `forage broker` again.\n"
    ) in errors


def test_auto_takes_mosquitto_where_it_is_installed() -> None:
    with running("--port", "0") as broker:
        assert broker.engine == ("embedded" if find_mosquitto() is None else "mosquitto")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_port_in_use_is_refused_in_one_sentence(embedded: EmbeddedBroker, engine: str) -> None:
    code, errors = refused("--engine", engine, "--port", str(embedded.port))
    assert code == 2
    assert errors == (
        f"forage broker: port {embedded.port} on 127.0.0.1 is in use by another program, perhaps "
        "another broker; stop that one, or choose another port with --port (0 takes a free one).\n"
    )
    with RawMqtt.connected(embedded.port, "client") as client:
        client.ping()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "bus.example"])
def test_an_open_host_is_refused_without_insecure(host: str) -> None:
    code, errors = refused("--host", host, "--port", "0")
    assert code == 2
    assert errors.startswith(f"forage broker: the host {host!r} can be reached by others")
    assert errors.count("\n") == 1
    assert "--insecure" in errors


def test_a_broker_that_nobody_else_can_reach_is_not_announced() -> None:
    code, errors = refused("--port", "0", "--announce")
    assert code == 2
    assert "nobody else can reach '127.0.0.1'" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_an_open_host_is_served_with_insecure(engine: str) -> None:
    with (
        running(
            "--engine", engine, "--host", "0.0.0.0", "--port", "0", "--insecure", host="0.0.0.0"
        ) as broker,
        RawMqtt.connected(broker.port, "client") as client,
    ):
        client.ping()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--port", "65536"], "'65536' is not a number from 0 to 65535"),
        (["--port", "x"], "'x' is not a number"),
        (["--engine", "nats"], "'nats' is not one of auto, embedded, mosquitto"),
        (["--root", "a/b"], "'a/b' is not a name"),
        (["--log-level", "loud"], "'loud' is not one of"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_flags_are_usage_errors(flags: list[str], complaint: str) -> None:
    code, errors = refused(*flags)
    assert code == 2
    assert complaint in errors


def test_an_address_of_another_machine_is_refused_in_words() -> None:
    # TEST-NET-1: documentation's own, so nobody's interface.
    code, errors = refused("--host", "192.0.2.1", "--port", "0", "--insecure")
    assert code == 2
    assert errors.startswith("forage broker: cannot listen on 192.0.2.1 port 0: ")


def test_the_environment_stands_in_for_flags_and_flags_win() -> None:
    variables = {"FORAGE_BROKER_ENGINE": "nats", "FORAGE_BROKER_PORT": "0"}
    code, errors = refused(**variables)
    assert code == 2
    assert "'nats' is not one of" in errors
    with running("--engine", "embedded", **variables) as broker:
        assert broker.engine == "embedded"


def test_the_service_manager_is_told_of_start_and_stop(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(LIMIT_S)
        with running("--engine", "embedded", "--port", "0", NOTIFY_SOCKET=str(path)) as broker:
            assert manager.recv(100) == b"READY=1"
            assert broker.end(signal.SIGTERM)[0] == 0
            assert manager.recv(100) == b"STOPPING=1"

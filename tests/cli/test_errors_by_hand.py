"""Whatever a user can do wrong ends in one sentence and the right exit code, never in a traceback."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import Run, begin, finish
from forage import LocalCluster
from forage_broker.embedded import EmbeddedBroker
from forage_wire.address import BrokerAddress
from forage_wire.link import Link
from forage_wire.messages import Hello, Linked, Welcome
from sdk.fleet import Fleet


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# -- the fleet cannot be reached ------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [("device", "ls"), ("run", "math:sqrt", "4"), ("watch",)], ids=lambda words: words[0]
)
def test_no_broker(run: Run, closed_port: int, words: tuple[str, ...]) -> None:
    ended = run("--broker", f"mqtt://127.0.0.1:{closed_port}", *words)
    assert ended.code == 5
    assert ended.sentence.startswith(f"There is no broker at mqtt://127.0.0.1:{closed_port}: ")
    assert "`forage up`" in ended.sentence


@pytest.mark.parametrize(
    "words",
    [
        ("watch", "\udcff/#"),
        ("decode", "\udcff"),
        ("--root", "\udcff", "device", "ls"),
        ("run", "math:sqrt", "4", "--requires", "\udcff"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.usefixtures("broker")
def test_words_that_are_not_utf_8(run: Run, words: tuple[str, ...]) -> None:
    ended = run(*words)
    assert ended.code == 2
    assert "udcff" in ended.sentence.lower()


def test_a_host_that_nobody_knows(run: Run) -> None:
    ended = run("device", "ls", "--broker", "mqtt://user:secret@nowhere.invalid")
    assert ended.code == 5
    assert "nowhere.invalid" in ended.sentence
    assert "secret" not in ended.sentence


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://host", "forage speaks mqtt and mqtts"),
        ("mqtt://host:port", "not a number from 1 to 65535"),
        ("mqtt://192.0.2.1", "or pass --insecure if that is what you want"),
    ],
)
def test_a_wrong_address(run: Run, address: str, words: str) -> None:
    ended = run("device", "ls", "--broker", address)
    assert ended.code == 2
    assert words in ended.sentence


def test_a_wrong_address_in_a_file_names_the_file(run: Run, own_place: Path) -> None:
    (own_place / "forage.toml").write_text('broker = "mqtt://"\n')
    ended = run("device", "ls")
    assert ended.code == 2
    assert "forage.toml" in ended.sentence


def test_a_flag_is_stronger_than_the_environment_and_that_than_a_file(
    run: Run, own_place: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_place / "forage.toml").write_text(f'broker = "mqtt://127.0.0.1:{closed_port}"\n')
    assert f":{closed_port}: " in run("device", "ls").sentence
    monkeypatch.setenv("FORAGE_BROKER", "mqtt://localhost:1")
    assert "localhost:1: " in run("device", "ls").sentence
    assert "127.0.0.1:1: " in run("device", "ls", "--broker", "127.0.0.1:1").sentence


@pytest.fixture(scope="module")
def lonely_broker() -> Iterator[str]:
    """A broker without a controller."""
    with EmbeddedBroker() as running:
        yield f"mqtt://127.0.0.1:{running.port}"


def test_no_controller(run: Run, lonely_broker: str) -> None:
    ended = run("--broker", lonely_broker, "--root", "nobody", "device", "ls")
    assert ended.code == 5
    assert ended.sentence.startswith("No controller answered under the root topic 'nobody'")
    assert "`forage controller`" in ended.sentence


class NewerController(Fleet):
    """One that speaks a protocol of the future."""

    def _on_ready(self, link: Link, message: Linked) -> None:
        if isinstance(message, Hello):
            link.send(Welcome(minor=9, devices=1))


def test_a_controller_of_another_version(run: Run, lonely_broker: str) -> None:
    port = int(lonely_broker.rpartition(":")[2])
    address = BrokerAddress(host="127.0.0.1", port=port)
    with NewerController(address, root="newer"):
        ended = run("--broker", lonely_broker, "--root", "newer", "device", "ls")
    assert ended.code == 7
    assert "The controller speaks protocol 1.9, this client 1.0" in ended.sentence


# -- the work cannot be done ----------------------------------------------------------------------


@pytest.mark.usefixtures("broker")
class TestWork:
    def test_no_device_that_may_run_it(self, run: Run, forage_cluster: LocalCluster) -> None:
        ended = run("run", "--requires", "camera", "--wait-s", "0.2", "jobs.py:double", "1")
        assert ended.code == 3
        assert "camera" in ended.sentence
        for device in forage_cluster.devices:
            assert device.name in ended.sentence

    def test_no_such_device(self, run: Run) -> None:
        ended = run("run", "--device", "nobody", "--wait-s", "0.2", "jobs.py:double", "1")
        assert ended.code == 3
        assert "not one of the devices asked for" in ended.sentence

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--retries", "-1"), "retries takes an integer from 0 to 1000"),
            (("--device", "No Name"), "device takes a device's name"),
            (("--retries", "many"), "Invalid value for '--retries'"),
        ],
    )
    def test_an_option_that_cannot_be(self, run: Run, flags: tuple[str, ...], words: str) -> None:
        ended = run("run", *flags, "jobs.py:double", "1")
        assert ended.code == 2
        assert words in ended.sentence

    def test_an_unknown_function(self, run: Run) -> None:
        ended = run("run", "jobs.py:doubel", "1")
        assert ended.code == 2
        assert ended.sentence.startswith("jobs.py has no function 'doubel'; it has ")

    def test_a_function_that_raises(self, run: Run) -> None:
        ended = run("run", "jobs.py:fail", "7")
        assert ended.code == 1
        assert ended.sentence.startswith(
            "jobs.py:fail raised ValueError: no such thing: 7 (jobs.py:"
        )
        assert " in fail, on device device-" in ended.sentence

    def test_its_traceback_is_shown_where_that_is_asked_for(self, run: Run) -> None:
        ended = run("--debug", "run", "jobs.py:fail", "7")
        assert ended.code == 1
        assert 'raise ValueError(f"no such thing: {x}")' in ended.err

    def test_wrong_arguments(self, run: Run) -> None:
        ended = run("run", "jobs.py:double", "1", "2")
        assert ended.code == 1
        assert "raised TypeError: double() takes 1 positional argument but 2" in ended.sentence

    def test_a_result_that_cannot_travel(self, run: Run) -> None:
        ended = run("run", "jobs.py:give_lock")
        assert ended.code == 2
        assert "lock" in ended.sentence

    def test_a_function_that_cannot_travel(self, run: Run, own_place: Path) -> None:
        (own_place / "locked.py").write_text(
            "import functools, threading\ntask = functools.partial(print, threading.Lock())\n"
        )
        ended = run("run", "locked.py:task")
        assert ended.code == 2
        assert "lock" in ended.sentence

    def test_a_worker_that_dies(self, run: Run) -> None:
        ended = run("run", "jobs.py:die")
        assert ended.code == 1
        assert "SIGKILL" in ended.sentence

    def test_a_call_that_takes_too_long(self, run: Run) -> None:
        ended = run("run", "--timeout-s", "0.2", "jobs.py:wait_for", "never")
        assert ended.code == 124
        assert ended.err.splitlines()[0] == "waiting"
        assert "Traceback" not in ended.err

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ctrl_c_cancels(self, number: signal.Signals, run: Run, own_place: Path) -> None:
        process = begin("run", "jobs.py:wait_for", "never")
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "waiting\n"
            process.send_signal(number)
            ended = finish(process)
        finally:
            process.kill()
            process.wait()
        assert ended.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert (
            ended.err == f"forage: {'Interrupted' if number == signal.SIGINT else 'Terminated'}.\n"
        )
        # The worker is killed with it: its slot is free for this.
        for _ in range(2):
            assert run("run", "jobs.py:double", "1").out == "2\n"
        # The controller lets the task go when its device has said that the call is dead.
        deadline_s = time.monotonic() + 30
        while left := run("task", "ls", "-o", "name").out:
            assert time.monotonic() < deadline_s, left

    def test_ctrl_c_ends_a_map_that_waits_for_its_input(self) -> None:
        process = begin("map", "math:factorial", "--from-jsonl", "-", stdin=subprocess.PIPE)
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("3\n")
            process.stdin.flush()
            assert process.stdout.readline() == "6\n"
            process.send_signal(signal.SIGINT)
            # Its input stays open: nothing but the signal ends it.
            assert process.wait(60) == 130
            assert process.stderr is not None
            assert process.stderr.read() == "forage: Interrupted.\n"
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def test_commands_write_no_colours_into_files() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forage.cli", "device", "get", "x", "--broker", "ftp://x"],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert b"\x1b" not in done.stdout + done.stderr

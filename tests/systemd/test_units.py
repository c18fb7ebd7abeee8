"""The units say what systemd must know, and the services keep what the units promise for them."""

import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
SERVICES = ("agent", "controller")
LIMIT_S = 30


def unit(service: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(UNITS / f"forage-{service}.service")
    return found


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)
@pytest.mark.parametrize("service", SERVICES)
def test_systemd_has_nothing_to_say_about_the_unit(service: str) -> None:
    path = UNITS / f"forage-{service}.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("service", SERVICES)
def test_the_unit_is_started_again_but_for_what_only_a_person_can_repair(service: str) -> None:
    section = unit(service)["Service"]
    assert section["Type"] == "notify"
    assert section["Restart"] == "always"
    assert section["RestartPreventExitStatus"] == "2"
    assert section["DynamicUser"] == "yes"
    assert section["StateDirectory"] == f"forage-{service}"


@pytest.fixture
def broker() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "forage_broker", "--engine", "embedded", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[1]
    finally:
        process.terminate()
        process.wait(LIMIT_S)
        process.stdout.close()


def command_of(service: str) -> list[str]:
    """The unit's own command line; `env` finds `forage` where the tests' Python has it."""
    command = unit(service)["Service"]["ExecStart"].split()
    assert command == ["/usr/bin/env", "forage", service]
    return [sys.executable, "-m", "forage.cli", *command[2:]]


def started(service: str, environment: dict[str, str], tmp_path: Path) -> "subprocess.Popen[bytes]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FORAGE_")}
    return subprocess.Popen(
        command_of(service),
        env={**kept, "FORAGE_CONFIG": os.devnull, "STATE_DIRECTORY": str(tmp_path), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("service", SERVICES)
def test_the_service_tells_systemd_what_its_unit_waits_for(
    service: str, broker: str, tmp_path: Path
) -> None:
    assert int(unit(service)["Service"]["WatchdogSec"]) > 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(LIMIT_S)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "FORAGE_BROKER": broker}
        # Shorter than in the unit, so that the test does not take as long.
        environment["WATCHDOG_USEC"] = "400000"
        process = started(service, environment, tmp_path)
        try:
            said: list[str] = []

            def hear(what: str) -> None:
                while what not in said:
                    said.extend(notified.recv(4096).decode().splitlines())

            hear("READY=1")
            hear("WATCHDOG=1")
            process.terminate()
            hear("STOPPING=1")
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("service", SERVICES)
def test_a_loop_that_hangs_is_silent_to_the_watchdog_until_it_turns_again(
    service: str, broker: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        environment = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "FORAGE_BROKER": broker,
            "WATCHDOG_USEC": "200000",
        }
        process = started(service, environment, tmp_path)

        def heard(timeout_s: float) -> bytes:
            notified.settimeout(timeout_s)
            try:
                return notified.recv(4096)
            except (TimeoutError, BlockingIOError):
                return b""

        try:
            while heard(LIMIT_S) != b"WATCHDOG=1":
                assert process.poll() is None
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            # What it had said before is still in the socket; then comes nothing, for five times as
            # long as the service manager would wait.
            while heard(0):
                pass
            assert heard(1.0) == b""
            process.send_signal(signal.SIGCONT)
            while heard(LIMIT_S) != b"WATCHDOG=1":
                assert process.poll() is None
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("service", SERVICES)
def test_a_setting_that_cannot_be_used_ends_in_the_code_that_stops_restarts(
    service: str, tmp_path: Path
) -> None:
    process = started(service, {"FORAGE_BROKER": "http://nowhere"}, tmp_path)
    assert process.wait(LIMIT_S) == int(unit(service)["Service"]["RestartPreventExitStatus"])


@pytest.mark.parametrize("service", SERVICES)
def test_the_state_lies_where_systemd_made_a_place_for_it(service: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*command_of(service), "--print-config"],
        env={**os.environ, "FORAGE_CONFIG": os.devnull, "STATE_DIRECTORY": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith("state_dir")]
    assert str(tmp_path) in line

"""Readings of the machine: plausible here, and never an error where something is missing."""

import json
import os
from pathlib import Path

import pytest

from forage_agent.shell.host import (
    NETWORK_CLASSES,
    HostReader,
    Network,
    core_strength,
    cores,
    memory_bytes,
    network_class,
    network_of,
    os_name,
)


def test_readings_are_within_their_bounds() -> None:
    found = HostReader().read()
    assert 0 <= found.cpu_percent <= 100
    assert 0 < found.memory_percent <= 100


def machine(root: Path, files: dict[str, str]) -> str:
    """A machine that has these files alone."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


BOARD = {
    # Ticks of user, nice, system, idle, iowait, irq, softirq, steal.
    "proc/stat": "cpu 100 0 0 900 0 0 0 0\ncpu0 100 0 0 900 0 0 0 0\n",
    "proc/meminfo": "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n",
    "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "40000",
    "sys/class/thermal/thermal_zone1/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "61500",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005",
    "sys/class/power_supply/ups/type": "Battery",
    "sys/class/power_supply/ups/capacity": "83",
    "etc/os-release": 'ID=raspbian\nPRETTY_NAME="Raspbian 12"\n',
}


def test_a_board_with_everything_is_read(tmp_path: Path) -> None:
    root = machine(tmp_path, BOARD)
    reader = HostReader(root)
    machine(tmp_path, {"proc/stat": "cpu 175 0 0 925 0 0 0 0\n"})
    found = reader.read()
    assert (found.cpu_percent, found.memory_percent) == (75, 75)
    assert (found.temperature_c, found.throttled, found.battery_percent) == (61.5, True, 83)
    assert memory_bytes(root) == 1_024_000
    assert os_name(root) == "Raspbian 12"


def test_throttling_that_is_over_is_not_told(tmp_path: Path) -> None:
    name = "sys/devices/platform/soc/soc:firmware/get_throttled"
    assert HostReader(machine(tmp_path, BOARD | {name: "50000"})).read().throttled is False


def test_a_services_share_of_the_memory_is_its_memory(tmp_path: Path) -> None:
    share = {"sys/fs/cgroup/memory.max": "512000"}
    assert memory_bytes(machine(tmp_path, BOARD | share)) == 512_000


def test_machine_without_any_of_these_files_has_unknown_values(tmp_path: Path) -> None:
    root = str(tmp_path)
    found = HostReader(root).read()
    assert (found.cpu_percent, found.memory_percent) == (0, 0)
    assert (found.temperature_c, found.throttled, found.battery_percent) == (None, None, None)
    assert memory_bytes(root) == 0
    assert os_name(root) == os.uname().sysname


def test_cores_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_strength_is_measured_once_and_kept(tmp_path: Path) -> None:
    state = tmp_path / "state"
    strength = core_strength(str(state))
    assert strength >= 0.01
    path = state / "strength.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"strength": 123.5}))
    assert core_strength(str(state)) == 123.5


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": "another", "strength": 9999}'])
def test_strength_that_was_kept_badly_is_measured_again(tmp_path: Path, text: str) -> None:
    path = tmp_path / "strength.json"
    path.write_text(text)
    assert core_strength(str(tmp_path)) < 9_999
    assert json.loads(path.read_text())["strength"] < 9_999


def test_strength_is_known_without_a_place_to_keep_it() -> None:
    assert core_strength("/proc/no/such/folder") >= 0.01


def test_network_is_a_class_or_a_rate() -> None:
    assert network_class("LAN100") == Network(name="LAN100", bytes_s=NETWORK_CLASSES["LAN100"])
    assert network_class("5000").bytes_s == 5_000
    with pytest.raises(ValueError, match="carrier"):
        network_class("carrier pigeon")


def test_loopback_is_local_and_an_unknown_address_is_no_error() -> None:
    assert network_of("127.0.0.1") == Network(address="127.0.0.1", name="local")
    assert network_of("::1").name == "local"
    assert network_of("192.0.2.77") == Network(address="192.0.2.77")
    assert network_of("") == Network()

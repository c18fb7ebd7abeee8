"""What the machine is and how it is doing, read from Linux directly: no library is worth its memory.

Everything here is optional: a file that is not there, on another board or in a container, is a
value that is not known, never an error.
"""

import fcntl
import json
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass

from forage_agent.core.events import LoadMeasured

__all__ = [
    "NETWORK_CLASSES",
    "HostReader",
    "Network",
    "core_strength",
    "cores",
    "memory_bytes",
    "network_class",
    "network_of",
    "os_name",
    "python_minor",
]

NETWORK_CLASSES = {
    "BT-1": 34_000,
    "BT-2": 100_000,
    "WLAN-b": 500_000,
    "LAN10": 937_500,
    "WLAN-g": 2_500_000,
    "LAN100": 9_375_000,
    "LAN1K": 93_750_000,
}
"""Bytes a second that a network of each class carries in practice."""

_SIOCGIFADDR = 0x8915

# Iterations of the loop below in a second on one core of a Raspberry Pi 4 (1.5 GHz, CPython 3.11):
# an estimate, about a quarter of what a desktop of its time does. Strengths compare devices with
# each other; only their scale depends on this figure.
_REFERENCE_PER_S = 3_500_000
_LOOP = 50_000
_MEASURE_S_MAX = 0.15


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _read_int(path: str) -> int | None:
    try:
        return int(_read(path), 0)
    except ValueError:
        return None


# -- what it is -----------------------------------------------------------------------------------


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) or 1


def memory_bytes(root: str = "") -> int:
    """The machine's memory, or this service's share of it where it has one; 0: not known.

    Args:
        root: Where /proc and /sys are, if not at the top.
    """
    found = [
        limit
        for limit in (
            _read_int(f"{root}/sys/fs/cgroup/memory.max"),
            _read_int(f"{root}/sys/fs/cgroup/memory/memory.limit_in_bytes"),
            _memory(root).get("MemTotal"),
        )
        if limit
    ]
    return min(found, default=0)


def _memory(root: str) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found: dict[str, int] = {}
    for line in _read(f"{root}/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * 1_024
    return found


def os_name(root: str = "") -> str:
    """The distribution by its full name, else the kernel's."""
    for line in _read(f"{root}/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')[:64]
    return os.uname().sysname


def python_minor() -> str:
    """The running Python, as 3.11."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def core_strength(state_dir: str) -> float:
    """The speed of one core relative to a Raspberry Pi 4's, at least 0.01.

    Measured once (0.15 s at most) and kept in `state_dir` for this machine and Python.

    Args:
        state_dir: Where to keep it; a folder that cannot be written only costs the measurement.
    """
    path = os.path.join(state_dir, "strength.json")
    key = f"{os.uname().machine} {sys.version.split()[0]} {_processor()}"
    try:
        kept = json.loads(_read(path) or "{}")
        if kept.get("machine") == key:
            return float(kept["strength"])
    except (ValueError, TypeError, KeyError, AttributeError):
        pass  # Not ours, or damaged: measured again.
    strength = _measure_strength()
    try:
        os.makedirs(state_dir, exist_ok=True)
        part = f"{path}.{os.getpid()}"
        with open(part, "w", encoding="utf-8") as file:
            json.dump({"machine": key, "strength": strength}, file)
        os.replace(part, path)
    except OSError:
        pass
    return strength


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return ""


def _measure_strength() -> float:
    """The best of a few runs, in processor time: the zygote starts meanwhile, and on a board of one
    core it takes half of it."""
    end_s = time.perf_counter() + _MEASURE_S_MAX / 2
    best_s = 1e9
    while True:
        began_s = time.thread_time()
        number = 1
        for _ in range(_LOOP):
            number = (number * 1_103_515_245 + 12_345) & 0x7FFFFFFF
        best_s = min(best_s, time.thread_time() - began_s)
        if time.perf_counter() >= end_s:
            return max(0.01, round(_LOOP / best_s / _REFERENCE_PER_S, 2))


# -- its network ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The way to the broker."""

    address: str = ""
    """The device's own address on it."""
    name: str = ""
    """The class, such as LAN100; `local` on the same machine; empty: not known."""
    bytes_s: int = 0
    """0: not known."""


def network_class(text: str) -> Network:
    """A network as configured: a class's name, or bytes a second.

    Raises ValueError, with a sentence, where it is neither.
    """
    if text in NETWORK_CLASSES:
        return Network(name=text, bytes_s=NETWORK_CLASSES[text])
    if text.isdigit() and int(text) > 0:
        return Network(name="configured", bytes_s=int(text))
    raise ValueError(
        f"The network {text!r} is not known; use auto, bytes a second, or one of "
        f"{', '.join(NETWORK_CLASSES)}."
    )


def network_of(address: str) -> Network:
    """The network on which this machine has an address."""
    if address.startswith("127.") or address == "::1":
        return Network(address=address, name="local")
    name = _class_of(_interface_of(address.removeprefix("::ffff:")))
    return Network(address=address, name=name, bytes_s=NETWORK_CLASSES.get(name, 0))


def _interface_of(address: str) -> str:
    """The interface that has an IPv4 address; empty: not known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _index, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, asked)
            except OSError:
                continue  # It has no IPv4 address.
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def _class_of(interface: str) -> str:
    if not interface:
        return ""
    if os.path.isdir(f"/sys/class/net/{interface}/wireless"):
        return "WLAN-g"
    speed = _read_int(f"/sys/class/net/{interface}/speed")
    if speed is None or speed <= 0:
        return ""
    if speed >= 1_000:
        return "LAN1K"
    return "LAN100" if speed >= 100 else "LAN10"


# -- how it is doing ------------------------------------------------------------------------------


class HostReader:
    """Readings of the machine; finds once where they stand.

    Args:
        root: Where /proc and /sys are, if not at the top.
    """

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._thermal = _thermal_path(root)
        self._battery = _battery_path(root)
        throttled = f"{root}/sys/devices/platform/soc/soc:firmware/get_throttled"
        self._throttled = throttled if os.path.exists(throttled) else ""
        self._busy, self._total = _cpu_ticks(root)

    def read(self) -> LoadMeasured:
        """How the machine is doing; the processor's share is of the time since the last call."""
        busy, total = _cpu_ticks(self._root)
        passed = total - self._total
        cpu_percent = 100 * (busy - self._busy) / passed if passed > 0 else 0.0
        self._busy, self._total = busy, total
        memory = _memory(self._root)
        whole = memory.get("MemTotal", 0)
        used = whole - memory.get("MemAvailable", whole)
        temperature = _read_int(self._thermal) if self._thermal else None
        throttled = _read(self._throttled)
        battery = _read_int(self._battery) if self._battery else None
        return LoadMeasured(
            cpu_percent=round(min(100.0, max(0.0, cpu_percent)), 1),
            memory_percent=round(100 * used / whole, 1) if whole else 0.0,
            temperature_c=None if temperature is None else round(temperature / 1_000, 1),
            # The lowest four bits are what is so now; the higher ones what has been since boot.
            throttled=bool(int(throttled, 16) & 0xF) if _is_hex(throttled) else None,
            battery_percent=None if battery is None else float(battery),
        )


def _is_hex(text: str) -> bool:
    try:
        int(text, 16)
    except ValueError:
        return False
    return True


def _cpu_ticks(root: str) -> tuple[int, int]:
    """(busy, all) ticks of all cores since boot."""
    fields = [int(word) for word in _read(f"{root}/proc/stat").partition("\n")[0].split()[1:9]]
    if len(fields) < 5:
        return 0, 0
    total = sum(fields)
    return total - fields[3] - fields[4], total


def _entries(folder: str) -> list[str]:
    """The paths of what is in a folder; none where there is no such folder."""
    try:
        return sorted(os.path.join(folder, name) for name in os.listdir(folder))
    except OSError:
        return []


def _thermal_path(root: str) -> str:
    """The processor's thermal zone, or the first one."""
    zones = [zone for zone in _entries(f"{root}/sys/class/thermal") if "/thermal_zone" in zone]
    preferred = [
        zone for zone in zones if any(word in _read(f"{zone}/type") for word in ("cpu", "x86_pkg"))
    ]
    found = preferred or zones
    return f"{found[0]}/temp" if found else ""


def _battery_path(root: str) -> str:
    for supply in _entries(f"{root}/sys/class/power_supply"):
        if _read(f"{supply}/type") == "Battery" and os.path.exists(f"{supply}/capacity"):
            return f"{supply}/capacity"
    return ""

"""What the kernel says of processes, and what passes on the wire."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from forage import LocalCluster

__all__ = ["describe", "modules_of", "pss_mib", "rss_bytes", "tree_of", "wire_bytes"]

FRAME_BYTES = 66
"""Of Ethernet, IP and TCP around each packet of a device on a network."""


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(psutil.Process(pid).memory_info().rss)


def pss_mib(pid: int) -> float:
    """A process's share of memory, what it shares divided among those that share it."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1_024
    raise LookupError(pid)


def tree_of(pid: int) -> list[int]:
    """A process and all below it, parents first."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def modules_of(module: str) -> int:
    """How many modules a Python has that has imported one."""
    script = f"import sys, {module}; print(len(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    return int(done.stdout)


def wire_bytes(cluster: LocalCluster, watch_s: float, processes: list[int]) -> tuple[float, float]:
    """CPU seconds of the processes, and bytes on their device's connection, within a time.

    Counted by the kernel on the agent's own socket: payload both ways, and a header for each
    segment.
    """
    port = int(cluster.broker_url.rsplit(":", 1)[1])
    own = {
        connection.laddr.port
        for connection in psutil.Process(cluster.devices[0].pid).net_connections("tcp")
        if connection.raddr and connection.raddr.port == port
    }

    def counted() -> int:
        listing = subprocess.run(
            ["ss", "-tinH", "state", "established", "dport", "=", f":{port}"],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout.splitlines()
        total = 0
        for line, details in zip(listing[::2], listing[1::2], strict=False):
            if int(line.split()[2].rsplit(":", 1)[1]) in own:
                words = dict(word.split(":", 1) for word in details.split() if word.count(":") == 1)
                segments = int(words.get("segs_in", 0)) + int(words.get("segs_out", 0))
                total += int(words.get("bytes_sent", 0)) + int(words.get("bytes_received", 0))
                total += FRAME_BYTES * segments
        return total

    def cpu_s() -> float:
        times = [psutil.Process(pid).cpu_times() for pid in processes]
        return sum(each.user + each.system for each in times)

    bytes_before, cpu_before = counted(), cpu_s()
    time.sleep(watch_s)
    return cpu_s() - cpu_before, counted() - bytes_before


def describe() -> dict[str, object]:
    """What a figure is worth only together with."""
    return {
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "load_before": round(os.getloadavg()[0], 2),
    }

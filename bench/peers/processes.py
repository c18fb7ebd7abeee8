"""Processes of this machine: their memory, who belongs to whom, and ends bounded in time."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = [
    "command_of",
    "descendants",
    "end",
    "free_port",
    "memory_bytes",
    "wait_until",
]

_PROC = Path("/proc")


def _children_of_all() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The command's name may hold anything, but ends at the last parenthesis.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    return children


def descendants(process: int) -> list[int]:
    """All that live below `process`, parents before children."""
    children = _children_of_all()
    found: list[int] = []
    waiting = [process]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def command_of(process: int) -> str:
    """Its command line; empty where it has ended."""
    try:
        return (_PROC / str(process) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def memory_bytes(processes: Iterable[int]) -> tuple[int, int]:
    """RSS and PSS together (PSS shares out what several processes have in common)."""
    sums = {"Rss": 0, "Pss": 0}
    for process in processes:
        try:
            text = (_PROC / str(process) / "smaps_rollup").read_text()
        except OSError:
            continue
        for line in text.splitlines():
            key, _, rest = line.partition(":")
            if key in sums:
                sums[key] += int(rest.split()[0]) * 1024
    return sums["Rss"], sums["Pss"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    """Poll until `condition` holds; TimeoutError that names `what` after `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {limit_s:g} s: {what}")
        time.sleep(0.002)


def end(process: subprocess.Popen[bytes], limit_s: float = 5.0) -> None:
    """End a child of ours: asked first, then killed with all that it has left below it."""
    below = descendants(process.pid)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(limit_s)
    for pid in below:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

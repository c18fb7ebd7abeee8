"""The few things that Linux is asked for directly: parents' deaths, orphans, trees of processes."""

import ctypes
import os
import signal
from collections.abc import Callable

__all__ = [
    "become_subreaper",
    "children_of",
    "die_with_parent",
    "kill_tree",
    "remove_tree",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def die_with_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Get this signal when the parent dies, or now, if it has died already."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def become_subreaper() -> None:
    """Orphaned descendants become this process's children, so that they can be found."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children_of(pid: int) -> list[int]:
    """The children of all threads of a process; none if it is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
    except FileNotFoundError:
        # The process is gone, or the kernel was built without this file.
        return [] if os.path.exists(f"/proc/self/task/{os.getpid()}/children") else _scan(pid)
    except ProcessLookupError:
        return []
    return found


def _scan(parent_pid: int) -> list[int]:
    """The children of a process by looking at all processes."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The command's name stands in parentheses and may hold anything.
                    fields = file.read().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == parent_pid:
                found.append(int(name))
    return found


def kill_tree(pid: int) -> None:
    """Kill a process of ours, its group and all its descendants, as far as they can be found."""
    # Stopped, it cannot fork away from us; its descendants can, which is why the caller sweeps.
    _signal(pid, signal.SIGSTOP)
    waiting, seen = [pid], {pid: None}
    while waiting:
        for child in children_of(waiting.pop()):
            if child not in seen:
                seen[child] = None
                waiting.append(child)
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # It leads no group (any more).
    for found in reversed(seen):
        _signal(found, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # Gone, or another user's now: a set-uid program.


def remove_tree(path: str) -> None:
    """Remove a folder with all that is in it, as far as we may."""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            _quietly(os.unlink, os.path.join(folder, name))
        for name in folders:
            inner = os.path.join(folder, name)
            _quietly(os.unlink if os.path.islink(inner) else os.rmdir, inner)
    _quietly(os.rmdir, path)


def _quietly(remove: Callable[[str], None], path: str) -> None:
    try:
        remove(path)
    except OSError:
        pass

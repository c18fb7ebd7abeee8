"""Whoever holds the lock of a state directory, as a standby on the same machine sees it.

The kernel frees a `flock` when its process ends, however that ends: a thread that waits for it is
woken at once. It does not free the lock of a process that is stopped, or hangs. Such a one is
ended: by its id, checked against the time it began and the sessions that it spoke with, so that
nobody else is meant.
"""

import fcntl
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from forage_controller.shell.database import LOCK_FILE, began

__all__ = ["end_holder", "wait_for_lock"]


def wait_for_lock(directory: Path, freed: Callable[[], None]) -> None:
    """Call `freed`, in a thread of its own, once nobody holds the directory.

    The lock is not kept: whoever is called takes it as everybody does.
    """
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def wait() -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        finally:
            os.close(descriptor)
        freed()

    threading.Thread(target=wait, name="forage-lock", daemon=True).start()


def end_holder(directory: Path, start: str) -> str:
    """SIGKILL the process that holds the directory, if it is the one of this start.

    Returns:
        What was done, or why not, in words.
    """
    words = (directory / LOCK_FILE).read_bytes()[:128].decode(errors="replace").split()
    if len(words) != 3 or words[2] != start:
        return "it is left alone: another process than the silent one holds the state directory"
    pid = int(words[0])
    try:
        process = os.pidfd_open(pid)
        try:
            if began(pid) != int(words[1]):
                return f"it is gone, and pid {pid} is another program's by now"
            signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
    except ProcessLookupError:
        return f"pid {pid} has ended"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return f"pid {pid} cannot be ended ({reason}): end it, or this one waits for ever"
    return f"pid {pid} was killed: a process that hangs keeps its lock"

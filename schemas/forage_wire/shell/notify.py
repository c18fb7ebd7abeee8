"""Tells the service manager how this service is: the sd_notify protocol, and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

__all__ = ["Watchdog", "sd_notify"]


def sd_notify(text: str) -> bool:
    """Send `text` to the service manager.

    Args:
        text: Lines such as `READY=1`, `STOPPING=1`, `WATCHDOG=1`, `STATUS=one sentence`.

    Returns:
        True once sent; False where no service manager listens (`NOTIFY_SOCKET` is not set) or it
        cannot be reached: never an error, for a service must run without one.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    # A name that begins with "@" lies in Linux's abstract namespace, written with a NUL there.
    name = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(text.encode(), name)
    except OSError:
        return False
    return True


class Watchdog:
    """Says that the service's loop turns, twice in the time after which systemd would end it.

    Nobody feeds it but the loop itself, so a loop that hangs is noticed. Without a watchdog
    (`WATCHDOG_USEC` is not set, or is another process's) it does nothing.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        limit_us = environment.get("WATCHDOG_USEC", "")
        pid = environment.get("WATCHDOG_PID", "")
        is_ours = limit_us.isdecimal() and (not pid or pid == str(os.getpid()))
        self._every_ms = int(limit_us) // 2_000 if is_ours else 0
        self._due_ms = 0

    def due_ms(self) -> int | None:
        """When the loop must turn at the latest, in its monotonic milliseconds; None: no matter."""
        return self._due_ms if self._every_ms else None

    def feed(self, now_ms: int) -> None:
        """The loop turns."""
        if self._every_ms and now_ms >= self._due_ms:
            self._due_ms = now_ms + self._every_ms
            sd_notify("WATCHDOG=1")

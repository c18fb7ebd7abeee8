"""Tells the service manager how this service is: the sd_notify protocol, and nothing else."""

from __future__ import annotations

import os
import socket

__all__ = ["sd_notify"]


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

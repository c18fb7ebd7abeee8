"""The end of a process with open connections: at exit, and in a fork's child.

An interpreter that ends without `shutdown` hands over what was submitted (5 s at most), and names
the tasks whose outcomes somebody may still want. A fork's child has none of the threads that a
connection needs: there, every use says so.
"""

import atexit
import os
import sys
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from forage.shell.network import Network

__all__ = ["watch"]

FLUSH_S = 5.0

_networks: "WeakSet[Network]" = WeakSet()


def watch(network: "Network") -> None:
    """See to this connection when the process ends or forks."""
    _networks.add(network)


def _leave() -> None:
    """Runs once the main thread has ended, while the daemon threads still run."""
    lines: list[str] = []
    for network in list(_networks):
        for calls, is_handed_over in network.leave(FLUSH_S):
            open_calls = calls.count - calls.ended
            what = f"{calls.label or 'a task'}, {open_calls} of {calls.count} calls open"
            if is_handed_over:
                lines.append(f"  forage.connect().attach({calls.id!r})  # {what}")
            else:
                lines.append(f"  {calls.id}: not handed over, for no controller took it  # {what}")
    if lines:
        head = "forage: this program ended before its calls did. Fetch their outcomes within 24 h:"
        sys.stderr.write("\n".join([head, *lines, ""]))


def _after_fork() -> None:
    for network in list(_networks):
        network.is_forked = True


atexit.register(_leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

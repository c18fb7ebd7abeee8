"""Starting the zygote: a new interpreter, so that nothing of the agent is in it.

Apart from what the agent does with its workers, because it comes first: the zygote loads what
every worker needs while the agent loads its own modules and connects, so that a device that says
it is online has somebody to run a call. Hence this module needs next to nothing.
"""

import os
import signal
import socket
import sys

__all__ = ["ZygoteProcess", "start_zygote", "workers_environment"]

_SINGLE_THREADED = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class ZygoteProcess:
    """A zygote that runs: its process, and this end of its socket (which does not block)."""

    def __init__(self, pid: int, socket: socket.socket) -> None:
        self.pid = pid
        self.socket = socket


def start_zygote(environment: dict[str, str]) -> ZygoteProcess | None:
    """A zygote in this environment; None, and a line on stderr, where there can be no process."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setblocking(False)
    there.set_inheritable(True)
    arguments = [
        sys.executable,
        # Users' modules must not be found in whatever folder the agent was started in.
        "-P",
        "-m",
        "forage_agent.shell.zygote",
        str(there.fileno()),
        str(os.getpid()),
    ]
    try:
        pid = os.posix_spawn(
            sys.executable,
            arguments,
            environment,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGCHLD),
        )
    except OSError as error:
        sys.stderr.write(f"forage agent: no process for workers could be started: {error}\n")
        here.close()
        return None
    finally:
        there.close()
    return ZygoteProcess(pid, here)


def workers_environment(environment: dict[str, str]) -> dict[str, str]:
    """What workers have in their environment: nothing that is the agent's own business."""
    for name in list(environment):
        if name.startswith(("FORAGE_", "WATCHDOG_")) or name == "NOTIFY_SOCKET":
            del environment[name]
    for name in _SINGLE_THREADED:
        # A call has one slot, which is one core; numpy alone would start a thread for each.
        environment.setdefault(name, "1")
    return environment

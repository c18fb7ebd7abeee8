"""Uses a client where much of what Linux has is hidden: `python other_system.py BROKER`.

Modules that Windows lacks cannot be imported, functions that it lacks are gone, and `select` takes
sockets alone. (What a system *does differently* is not shown by this.)
"""

import os
import select
import signal
import stat
import sys
from importlib.abc import MetaPathFinder
from typing import Any

MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "crypt", "psutil")
OF_OS = (
    "fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "memfd_create", "pipe", "pipe2",
    "pidfd_open", "posix_spawn", "register_at_fork", "sched_getaffinity", "set_blocking", "setsid",
    "uname", "wait", "waitid",
)  # fmt: skip
OF_SELECT = ("epoll", "poll", "devpoll", "kqueue")
OF_SIGNAL = ("SIGHUP", "SIGKILL", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGPIPE", "pthread_sigmask")


class Refusing(MetaPathFinder):
    """Finds nothing, but is asked first."""

    def find_spec(self, name: str, *_others: object) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class SelectSockets:
    """`select` as Windows has it. (No function, for `selectors` would make a method of that.)"""

    def __init__(self, select_files: Any) -> None:
        self._select_files = select_files

    def __call__(self, reads: Any, writes: Any, others: Any, timeout: Any = None) -> Any:
        for one in (*reads, *writes, *others):
            descriptor = one if isinstance(one, int) else one.fileno()
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                raise OSError(10_038, "An operation was attempted on something not a socket")
        return self._select_files(reads, writes, others, timeout)


def hide() -> None:
    sys.meta_path.insert(0, Refusing())
    for name in MODULES:
        sys.modules.pop(name, None)
    for module, names in ((os, OF_OS), (select, OF_SELECT), (signal, OF_SIGNAL)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    select.select = SelectSockets(select.select)


def main(broker: str) -> None:
    import selectors

    assert selectors.DefaultSelector is selectors.SelectSelector
    import forage

    large = bytes(1 << 20)
    with forage.connect(broker) as client:
        assert client.submit(pow, 2, 100).result(30) == 2**100
        assert list(client.map(len, [large] * 8, timeout=60)) == [1 << 20] * 8
        batch = client.submit_all(divmod, range(500), [7] * 500)
        assert batch.results(timeout=60) == [divmod(number, 7) for number in range(500)]
        assert [device.state for device in client.devices()] == ["online"]
    from forage.cli import main as terminal

    assert terminal(["--broker", broker, "device", "ls", "-o", "name"]) == 0
    sys.platform = "plan9"
    assert terminal(["agent", "--name", "pi"]) == 2
    try:
        forage.LocalCluster()
        said = ""
    except forage.ForageError as error:
        said = str(error)
    assert "LocalCluster needs Linux" in said


if __name__ == "__main__":
    hide()
    main(sys.argv[1])

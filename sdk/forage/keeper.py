"""The process between a `LocalCluster` and its services; run by path, never imported by forage.

Owns starting, signalling and reaping the services, and that nothing outlives the program that asked
for them, however that one ends:

- The keeper watches its parent through the end of a pipe and through a pidfd. The pipe alone would
  miss the death of a parent whose forked children still hold the other end; PDEATHSIG would fire at
  the end of the thread that made the cluster.
- Services ask the kernel to be killed when the keeper dies (PDEATHSIG). It has one thread, which
  lives as long as it does, and it may fork and prepare the child in Python for the same reason.
- As a "subreaper" the keeper inherits whatever loses its parent: workers of a killed agent, and
  what a user's function started and left, whatever session or group it has moved to. Each service
  has a mark in its environment, which what it starts inherits, so an orphan's service is known
  also where two have died at once; what has lost the mark belongs to the service whose process was
  just reaped. At the end it kills until it has no children.

Only builtin and small modules are imported: a cluster's start waits for this process.

Frames on stdin and stdout are a length of 4 bytes, then a marshalled dictionary; both ends are the
same Python. Orders: `start`; `signal`, to the service itself or with all that descends from it. Reports:
`started`, `line` (of stdout), `exited` (of the service itself), `gone` (nothing is left of it).
"""

import ctypes
import marshal
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

EXIT_NOT_STARTED = 127
MARK = "LOCAL_CLUSTER_SERVICE"
READ_BYTES = 65_536

libc = ctypes.CDLL(None)


class Service:
    """One service: its process, which leads a group, and what descends from it."""

    def __init__(self, name: str, mark: str, pid: int, stdout: int) -> None:
        self.name = name
        self.mark = mark.encode()
        self.pid = pid
        self.stdout = stdout
        self.text = b""
        self.has_exited = False
        self.is_killed = False
        self.children = {pid}
        """Our own children that are of this service: itself, and what it left us."""


class Keeper:
    """The loop: orders, lines of the services, deaths."""

    def __init__(self, parent: int) -> None:
        self.services: dict[str, Service] = {}
        self.started = 0
        self.orders = b""
        self.is_over = False
        self.poll = select.poll()
        self.poll.register(0, select.POLLIN)
        self.parent_fd = self._watch_parent(parent)
        self.wake_fd = self._watch_children()
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def _watch_parent(self, parent: int) -> int:
        try:
            fd = os.pidfd_open(parent)
        except OSError:  # A kernel before 5.3, or no such process: the pipe's end tells.
            fd = -1
        if fd >= 0:
            self.poll.register(fd, select.POLLIN)
        # Looked at after the descriptor was opened, so it is the parent's or the parent is dead.
        self.is_over = os.getppid() != parent
        return fd

    def _watch_children(self) -> int:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        self.poll.register(reader, select.POLLIN)
        return reader

    def _on_terminate(self, *_: object) -> None:
        self.is_over = True

    def run(self) -> None:
        while not self.is_over:
            for fd, _ in self.poll.poll():
                if fd == self.wake_fd:
                    os.read(fd, READ_BYTES)
                    self._reap()
                    break  # What else was ready may be closed now, and its number another's.
                if fd == self.parent_fd:
                    self.is_over = True
                elif fd == 0:
                    self._read_orders()
                else:
                    self._read_stdout(fd)

    def _report(self, **report: object) -> None:
        frame = marshal.dumps(report)
        frame = len(frame).to_bytes(4, "big") + frame
        try:
            while frame:
                frame = frame[os.write(1, frame) :]
        except OSError:
            self.is_over = True

    # -- orders ---------------------------------------------------------------------------------

    def _read_orders(self) -> None:
        received = os.read(0, READ_BYTES)
        if not received:
            self.is_over = True
        self.orders += received
        while len(self.orders) >= 4:
            end = 4 + int.from_bytes(self.orders[:4], "big")
            if len(self.orders) < end:
                break
            order = marshal.loads(self.orders[4:end])
            self.orders = self.orders[end:]
            self._carry_out(order)

    def _carry_out(self, order: dict) -> None:  # type: ignore[type-arg]
        match order["do"]:
            case "start":
                self._start(order)
            case "signal":
                service = self.services.get(order["name"])
                if service is not None:
                    self._signal(service, order["signal"], order["to_all"])

    def _signal(self, service: Service, number: int, to_all: bool) -> None:
        # None of these numbers can be a stranger's: our children stay ours until we reap them.
        if not to_all:
            if not service.has_exited:
                os.kill(service.pid, number)
            return
        service.is_killed = service.is_killed or number == signal.SIGKILL
        signalled: set[int] = set()
        # What is not yet stopped or killed may start another while we look.
        while found := _descendants(service.children) - signalled:
            for pid in sorted(found):
                _kill(pid, number)
            signalled |= found

    def _start(self, order: dict) -> None:  # type: ignore[type-arg]
        name = order["name"]
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        reader, writer = os.pipe()
        # What a service left may hold the other end for longer than anybody waits.
        os.set_blocking(reader, False)
        keeper = os.getpid()
        self.started += 1
        mark = f"{keeper}-{self.started}"
        order["environment"][MARK] = mark
        pid = os.fork()
        if pid == 0:
            _become(order, keeper, writer, log)
        try:
            os.setpgid(pid, pid)  # By both, so that neither has to wait for the other.
        except OSError:
            pass  # The child was quicker and is already another program.
        os.close(writer)
        os.close(log)
        self.services[name] = Service(name, mark, pid, reader)
        self.poll.register(reader, select.POLLIN)
        self._report(report="started", name=name, pid=pid)

    # -- what services do -----------------------------------------------------------------------

    def _read_stdout(self, fd: int) -> None:
        service = next(item for item in self.services.values() if item.stdout == fd)
        try:
            received = os.read(fd, READ_BYTES)
        except BlockingIOError:
            received = (
                b""  # All its processes are gone: another's holds the pipe, and says nothing.
            )
        *lines, service.text = (service.text + received).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace")
            self._report(report="line", name=service.name, pid=service.pid, text=text)
        if not received:
            self.poll.unregister(fd)
            os.close(fd)
            service.stdout = -1

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for service in list(self.services.values()):
                if pid in service.children:
                    self._on_death(service, pid, status)

    def _on_death(self, service: Service, pid: int, status: int) -> None:
        service.children.discard(pid)
        if pid == service.pid:
            service.has_exited = True
            code = os.waitstatus_to_exitcode(status)
            self._report(report="exited", name=service.name, pid=pid, code=code)
        self._adopt(service)
        if service.has_exited and not service.children:
            while service.stdout >= 0:
                self._read_stdout(service.stdout)
            del self.services[service.name]
            self._report(report="gone", name=service.name, pid=service.pid)

    def _adopt(self, reaped: Service) -> None:
        """Find whose the orphans are that a death has left us; kill those of a killed service."""
        owned = set().union(*(other.children for other in self.services.values()))
        marks = {service.mark: service for service in self.services.values()}
        heirs = set()
        for pid in _children(os.getpid()) - owned:
            service = marks.get(_mark_of(pid), reaped)
            service.children.add(pid)
            heirs.add(service)
        for service in heirs:
            if service.is_killed:
                self._signal(service, signal.SIGKILL, to_all=True)

    # -- the end --------------------------------------------------------------------------------

    def end_all(self) -> None:
        """Kill every descendant; return when none is left."""
        keeper = os.getpid()
        while True:
            for pid in _descendants({keeper}) - {keeper}:
                _kill(pid, signal.SIGKILL)
            # Each death may leave us orphans, so we look again after each.
            try:
                os.waitpid(-1, 0)
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return


def _become(order: dict, keeper: int, stdout: int, log: int) -> None:  # type: ignore[type-arg]
    """In the forked child: become the service. Does not return."""
    try:
        os.setpgid(0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            return  # The keeper died before the kernel knew of our wish; `finally` ends us.
        # Python ignores it, and exec keeps what is ignored.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(log, 2)
        for fd, wanted in ((nothing, 0), (stdout, 1)):
            os.dup2(fd, wanted)
        os.chdir(order["directory"])
        os.execve(order["argv"][0], order["argv"], order["environment"])
    except OSError as error:
        os.write(2, f"cannot run {order['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(EXIT_NOT_STARTED)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # It has ended, or it has become another user's: the kernel knows better.


def _mark_of(pid: int) -> bytes:
    """The mark of the service that started a process, or nothing."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            items = environ.read().split(b"\0")
    except OSError:
        return b""  # It ended meanwhile, or has become another user's.
    prefix = f"{MARK}=".encode()
    return next((item[len(prefix) :] for item in items if item.startswith(prefix)), b"")


def _parents() -> dict[int, int]:
    """Each process of this machine, and its parent."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    # After the name, which may hold anything: the state, then the parent.
                    parents[int(entry)] = int(stat.read().rpartition(b")")[2].split()[1])
            except OSError:
                pass  # It ended meanwhile.
    return parents


def _children(parent: int) -> set[int]:
    return {pid for pid, its_parent in _parents().items() if its_parent == parent}


def _descendants(roots: set[int]) -> set[int]:
    """The roots and all below them; zombies too."""
    parents = _parents()
    found = set(roots)
    count = 0
    while len(found) > count:
        count = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found


def main() -> None:
    """`keeper.py PARENT [FOLDER]`: the folder is removed at the end."""
    keeper = Keeper(int(sys.argv[1]))
    try:
        keeper.run()
    finally:
        keeper.end_all()
        if len(sys.argv) > 2:
            import shutil  # It costs more than all of the above, and nobody waits now.

            shutil.rmtree(sys.argv[2], ignore_errors=True)


if __name__ == "__main__":
    main()

"""The zygote: a small single-threaded process from which all workers are forked.

It holds no MQTT and no thread, so that a fork of it is clean, and it has loaded what every worker
needs, so that a worker is there in a millisecond. It is the parent of all workers: it tells the
agent how each of them ended, and kills what they leave behind.

It is also the watchdog of exclusive calls: it kills a worker whose lease is over even if the agent
itself hangs.

The agent asks it through a socket, and is told of every end (module `frames` says how).
When the agent's end closes, for whatever reason, the zygote kills all and ends.
"""

import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time

import cbor2

from forage_agent.shell.clock import now_ms
from forage_agent.shell.frames import (
    WORKER_DESCRIPTORS,
    ZYGOTE_EXITED,
    ZYGOTE_KILL,
    ZYGOTE_LEASE,
    ZYGOTE_START,
)
from forage_agent.shell.system import (
    become_subreaper,
    children_of,
    die_with_parent,
    kill_tree,
    remove_tree,
)
from forage_agent.shell.worker import run_worker

__all__ = ["Zygote", "main"]

_MESSAGE_BYTES_MAX = 4_096
_DESCRIPTORS_MAX = 1 << 20
_NOT_STARTED_STATUS = 71 << 8
"""As if a process had ended with exit code 71."""
_SWEEP_AGAIN_S = 0.02
_SWEEP_S_MAX = 2.0
"""What does not die within this time (it hangs in the kernel) is not waited for."""
_LOOK_EVERY_MS = 250
"""At leases: a wait does not count the time in which the machine is suspended, a lease does."""


class _Worker:
    def __init__(self, slot: int, folder: str) -> None:
        self.slot = slot
        self.folder = folder
        self.status = 0
        self.died_s = 0.0
        self.until_ms = 0
        self.lease_over = False


class Zygote:
    """Forks, watches and kills workers, as the agent at the other end of `agent` asks."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._workers: dict[int, _Worker] = {}
        self._dead: dict[int, _Worker] = {}
        self._pids: dict[int, int] = {}
        self._leased: dict[int, _Worker] = {}
        self._root = _make_folder(os.environ.get("TMPDIR") or "/tmp", "forage-agent-")
        # Those who clean up old files leave a locked folder alone.
        self._lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._agent.shutdown(socket.SHUT_RD))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until the agent is gone."""
        poll = select.poll()
        poll.register(self._agent, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        try:
            while True:
                ready = poll.poll(self._wait_ms())
                readable = {descriptor: None for descriptor, _events in ready}
                if self._wake_read in readable:
                    os.read(self._wake_read, 4_096)
                if self._agent.fileno() in readable and not self._on_message():
                    return
                self._reap()
                self._end_leases()
                self._sweep()
        finally:
            self._end()

    def _wait_ms(self) -> float | None:
        if self._dead:
            return _SWEEP_AGAIN_S * 1_000
        if self._leased:
            first_ms = min([worker.until_ms for worker in self._leased.values()])
            return max(0, min(first_ms - now_ms(), _LOOK_EVERY_MS))
        return None

    def _end_leases(self) -> None:
        """Kill the workers that the agent has not prolonged the lease of."""
        for pid, worker in list(self._leased.items()):
            if worker.until_ms <= now_ms():
                worker.lease_over = True
                del self._leased[pid]
                kill_tree(pid)

    def _on_message(self) -> bool:
        try:
            message, descriptors, _flags, _address = socket.recv_fds(
                self._agent, _MESSAGE_BYTES_MAX, WORKER_DESCRIPTORS
            )
        except ConnectionResetError:
            # The agent was killed before it read what we had to say.
            return False
        if not message:
            return False
        order = cbor2.loads(message)
        if order[0] == ZYGOTE_START:
            self._start(order[1], descriptors)
        elif order[0] == ZYGOTE_KILL:
            pid = self._pids.get(order[1])
            if pid is not None:
                kill_tree(pid)
        elif order[0] == ZYGOTE_LEASE:
            pid = self._pids.get(order[1])
            if pid in self._workers:
                worker = self._leased[pid] = self._workers[pid]
                worker.until_ms = order[2]
        return True

    def _start(self, slot: int, descriptors: list[int]) -> None:
        zygote_pid = os.getpid()
        try:
            folder = _make_folder(self._root, f"worker-{slot}-")
            pid = os.fork()
        except OSError as error:
            # No room for a folder or another process: the agent tries again, ever more slowly.
            sys.stderr.write(f"forage agent: no worker process could be started: {error}\n")
            for descriptor in descriptors:
                os.close(descriptor)
            self._agent.send(cbor2.dumps([ZYGOTE_EXITED, slot, 0, _NOT_STARTED_STATUS, False]))
            return
        if pid == 0:
            # From here on this is the worker: it must never return into the zygote's loop.
            try:
                signal.set_wakeup_fd(-1)
                self._agent.close()
                for descriptor in (self._wake_read, self._wake_write, self._lock):
                    os.close(descriptor)
                run_worker(zygote_pid, folder, *descriptors)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(70)
        for descriptor in descriptors:
            os.close(descriptor)
        self._workers[pid] = _Worker(slot, folder)
        self._pids[slot] = pid

    def _reap(self) -> None:
        """Take notice of every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._leased.pop(pid, None)
            worker = self._workers.pop(pid, None)
            if worker is not None:
                worker.status = status
                worker.died_s = time.monotonic()
                self._dead[pid] = worker

    def _sweep(self) -> None:
        """Kill what dead workers left behind; tell of those of whom nothing is left.

        Workers adopt their own orphans, so every other child of the zygote is a dead one's.
        """
        if not self._dead:
            return
        left = [pid for pid in children_of(os.getpid()) if pid not in self._workers]
        for pid in left:
            kill_tree(pid)
        now_s = time.monotonic()
        for pid, worker in list(self._dead.items()):
            if left and now_s < worker.died_s + _SWEEP_S_MAX:
                continue
            del self._dead[pid]
            if self._pids.get(worker.slot) == pid:
                del self._pids[worker.slot]
            remove_tree(worker.folder)
            try:
                last = [ZYGOTE_EXITED, worker.slot, pid, worker.status, worker.lease_over]
                self._agent.send(cbor2.dumps(last))
            except OSError:
                pass  # The agent is gone; the next read says so.

    def _end(self) -> None:
        """Nothing of this agent stays behind."""
        for pid in list(self._workers):
            kill_tree(pid)
        deadline_s = time.monotonic() + _SWEEP_S_MAX
        while time.monotonic() < deadline_s:
            self._reap()
            left = children_of(os.getpid())
            if not left:
                break
            for pid in left:
                kill_tree(pid)
            select.select([self._wake_read], [], [], _SWEEP_AGAIN_S)
        remove_tree(self._root)


def _make_folder(parent: str, prefix: str) -> str:
    """A new folder for this user alone; `tempfile` would cost every worker a megabyte."""
    path = os.path.join(parent, prefix + os.urandom(6).hex())
    os.makedirs(path, 0o700)
    return path


def main() -> None:
    """`python -m forage_agent.shell.zygote DESCRIPTOR AGENT_PID`."""
    descriptor = int(sys.argv[1])
    # Whatever the agent itself was given by those who started it is not for workers.
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, _DESCRIPTORS_MAX)
    agent = socket.socket(fileno=descriptor)
    os.set_inheritable(agent.fileno(), False)
    # Ctrl-C at the terminal is the agent's business.
    os.setsid()
    zygote = Zygote(agent)
    become_subreaper()
    die_with_parent(int(sys.argv[2]), signal.SIGTERM)
    # What is there now is shared with all workers; the collector must not touch (and so copy) it.
    gc.collect()
    gc.freeze()
    zygote.run()


if __name__ == "__main__":
    main()

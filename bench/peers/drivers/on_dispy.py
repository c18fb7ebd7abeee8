"""dispy: a JobCluster here and one dispynode with two CPUs."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dispy
from peer import Function, Peer, in_parts
from processes import descendants, end, free_port, wait_until

__all__ = ["Dispy"]


def prepare() -> int:
    """On the node, before any call: a process that has the modules, from which jobs are forked.

    Without it dispynode 4.15 forks jobs itself, and fails some that end before it has noted them.
    """
    global calls
    import calls

    return 0


def compute(name: str, values: list) -> list:
    """The call, on the node: this source alone goes there, so it names nothing of this module."""
    function = getattr(calls, name)
    return [function(value) for value in values]


def _accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _free_pair() -> int:
    """A port for the client; the node takes the next one."""
    for _ in range(100):
        port = free_port()
        if port < 65_535 and not _accepts(port + 1):
            return port
    raise OSError("no two free ports one after the other")


class Dispy(Peer):
    name = "dispy"
    queued_max = 5_000
    batch_ways = ("jobs of 100 calls", "jobs of 500 calls")

    def start(self) -> str:
        port = _free_pair()
        script = Path(sys.executable).with_name("dispynode.py")
        command = [sys.executable, str(script), "--daemon", "--clean", "--cpus", "2"]
        command += ["--host", "127.0.0.1", "--dispy_port", str(port)]
        command += ["--dest_path_prefix", str(self.folder / "node")]
        self.node = subprocess.Popen(command, stdout=sys.stderr, stdin=subprocess.DEVNULL)
        wait_until(lambda: _accepts(port + 1), 30, "the node listens")
        self.cluster = dispy.JobCluster(
            compute,
            nodes=["127.0.0.1"],
            host="127.0.0.1",
            dispy_port=port,
            loglevel=dispy.logger.ERROR,
            setup=prepare,
            reentrant=True,
        )
        return f"dispy {dispy.__version__}"

    def close(self) -> None:
        self.cluster.close(timeout=5, terminate=True)
        end(self.node)

    def submit(self, function: Function, value: Any) -> Any:
        return self.cluster.submit(function.__name__, [value])

    def _values(self, job: Any) -> list[Any]:
        values = job()
        if job.status != dispy.DispyJob.Finished:
            raise RuntimeError(f"job status {job.status}: {job.exception}")
        return list(values)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return [self._values(job)[0] for job in futures]

    def batch(self, function: Function, values: Sequence[Any], way: str) -> list[Any]:
        parts = in_parts(values, int(way.split()[2]))
        jobs = [self.cluster.submit(function.__name__, list(part)) for part in parts]
        return [value for job in jobs for value in self._values(job)]

    def outcome(self, future: Any, limit_s: float) -> Any:
        if not future.finish.wait(limit_s):
            raise TimeoutError
        return self._values(future)[0]

    def worker_processes(self) -> list[int]:
        return [self.node.pid, *descendants(self.node.pid)]

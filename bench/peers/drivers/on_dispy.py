"""dispy: a JobCluster here and one dispynode with two CPUs."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dispy
from peer import Function, Peer, in_parts
from processes import descendants, end, free_port

__all__ = ["Dispy"]


def compute(name: str, values: list[Any]) -> list[Any]:
    """Its source goes to the node, which imports the calls themselves from its path."""
    import calls

    function = getattr(calls, name)
    return [function(value) for value in values]


class Dispy(Peer):
    name = "dispy"
    batch_ways = ("jobs of 100 calls", "jobs of 1000 calls")

    def start(self) -> str:
        port = free_port()
        script = Path(sys.executable).with_name("dispynode.py")
        command = [sys.executable, str(script), "--daemon", "--clean", "--cpus", "2"]
        command += ["--host", "127.0.0.1", "--dispy_port", str(port)]
        command += ["--dest_path_prefix", str(self.folder / "node")]
        self.node = subprocess.Popen(command, stdout=sys.stderr, stdin=subprocess.DEVNULL)
        self.cluster = dispy.JobCluster(
            compute,
            nodes=["127.0.0.1"],
            host="127.0.0.1",
            dispy_port=port,
            dest_path=str(self.folder.name),
            loglevel=dispy.logger.ERROR,
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

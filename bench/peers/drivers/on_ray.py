"""Ray: a local node with two CPUs, no dashboard, nothing reported."""

import os
from collections.abc import Sequence
from typing import Any

from peer import Function, Peer, in_parts
from processes import command_of, descendants

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# The one switch that keeps a single node on loopback, for all its name: an address of 127.0.0.1
# asked for is replaced by one that others reach.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"

import ray

__all__ = ["Ray"]


def _each(function: Function, values: Sequence[Any]) -> list[Any]:
    return [function(value) for value in values]


class Ray(Peer):
    name = "ray"
    batch_ways = ("tasks of 100 calls", "tasks of 500 calls")

    def start(self) -> str:
        ray.init(
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=100 * 1024 * 1024,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(self.folder),
        )
        self.remotes: dict[str, Any] = {}
        self.each = ray.remote(_each)
        return f"ray {ray.__version__}"

    def close(self) -> None:
        ray.shutdown()

    def submit(self, function: Function, value: Any) -> Any:
        remote = self.remotes.get(function.__name__)
        if remote is None:
            remote = self.remotes[function.__name__] = ray.remote(function)
        return remote.remote(value)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return list(ray.get(list(futures)))

    def batch(self, function: Function, values: Sequence[Any], way: str) -> list[Any]:
        parts = in_parts(values, int(way.split()[2]))
        done = ray.get([self.each.remote(function, part) for part in parts])
        return [value for part in done for value in part]

    def outcome(self, future: Any, limit_s: float) -> Any:
        # Its GetTimeoutError is a TimeoutError.
        return ray.get(future, timeout=limit_s)

    def worker_processes(self) -> list[int]:
        below = descendants(os.getpid())
        raylets = [pid for pid in below if command_of(pid).split(" ")[0].endswith("/raylet")]
        return raylets + [pid for raylet in raylets for pid in descendants(raylet)]

"""dask.distributed: a scheduler and two worker processes of one thread each, no dashboard."""

import os
from collections.abc import Sequence
from typing import Any

import dask
import dask.bag
import distributed
from distributed import Client, LocalCluster
from peer import Function, Peer
from processes import descendants

__all__ = ["Dask"]


class Dask(Peer):
    name = "dask"
    batch_ways = ("client.map", "bag of 20 partitions")

    def start(self) -> str:
        dask.config.set(
            {
                # Quicker here: nothing that looks on, and workers that are told of all calls at once.
                "distributed.diagnostics.nvml": False,
                "distributed.worker.profile.enabled": False,
                "distributed.admin.tick.interval": "500ms",
                "distributed.admin.system-monitor.interval": "5s",
                "distributed.scheduler.active-memory-manager.start": False,
                "distributed.scheduler.work-stealing": False,
                "distributed.scheduler.worker-saturation": "inf",
                "temporary-directory": str(self.folder),
                "logging.distributed": "error",
            }
        )
        self.cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=50,
        )
        self.client = Client(self.cluster)
        self.client.wait_for_workers(2, timeout=60)
        return f"distributed {distributed.__version__}"

    def close(self) -> None:
        self.client.close()
        self.cluster.close()

    def submit(self, function: Function, value: Any) -> Any:
        # pure: the same call again would be answered from the scheduler's memory.
        return self.client.submit(function, value, pure=False)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(list(futures)))

    def batch(self, function: Function, values: Sequence[Any], way: str) -> list[Any]:
        if way == "client.map":
            return self.gather(self.client.map(function, values, pure=False))
        bag = dask.bag.from_sequence(values, npartitions=20).map(function)
        return list(bag.compute(scheduler=self.client))

    def outcome(self, future: Any, limit_s: float) -> Any:
        return future.result(timeout=limit_s)

    def worker_processes(self) -> list[int]:
        return descendants(os.getpid())

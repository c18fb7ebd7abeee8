"""concurrent.futures.ProcessPoolExecutor: this machine alone, no network."""

import os
import platform
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from peer import Function, Peer
from processes import descendants

__all__ = ["Pool"]


class Pool(Peer):
    name = "pool"
    batch_ways = ("map, chunksize 50", "map, chunksize 500")

    def start(self) -> str:
        self.pool = ProcessPoolExecutor(max_workers=2)
        return f"Python {platform.python_version()}"

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def submit(self, function: Function, value: Any) -> Any:
        return self.pool.submit(function, value)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return [future.result() for future in futures]

    def batch(self, function: Function, values: Sequence[Any], way: str) -> list[Any]:
        return list(self.pool.map(function, values, chunksize=int(way.split()[-1])))

    def outcome(self, future: Any, limit_s: float) -> Any:
        return future.result(timeout=limit_s)

    def worker_processes(self) -> list[int]:
        return descendants(os.getpid())

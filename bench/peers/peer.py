"""The small interface that each peer's driver implements."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from processes import descendants

__all__ = ["Function", "Peer", "in_parts"]

Function = Callable[[Any], Any]


class Peer(ABC):
    """Two workers of one slot on this machine, with the settings that make the peer look best."""

    name: ClassVar[str]
    batch_ways: ClassVar[tuple[str, ...]]
    """The peer's ways to run many calls in bulk; each is measured and the best one counts."""
    queued_max: ClassVar[int] = 20_000
    """Fewer queued calls where so many would take minutes."""

    def __init__(self, folder: Path) -> None:
        """`folder`: empty, for the files of this run."""
        self.folder = folder

    @abstractmethod
    def start(self) -> str:
        """Start everything on loopback; returns the versions that run."""

    @abstractmethod
    def close(self) -> None:
        """End everything."""

    @abstractmethod
    def submit(self, function: Function, value: Any) -> Any:
        """One call; returns the peer's own future."""

    @abstractmethod
    def gather(self, futures: Sequence[Any]) -> list[Any]:
        """The values of many futures, the quickest way the peer has."""

    @abstractmethod
    def batch(self, function: Function, values: Sequence[Any], way: str) -> list[Any]:
        """All values of a bulk, by one of `batch_ways`."""

    @abstractmethod
    def outcome(self, future: Any, limit_s: float) -> Any:
        """The value, or the call's own error; TimeoutError where there is none within `limit_s`."""

    @abstractmethod
    def worker_processes(self) -> list[int]:
        """All processes that would run on the workers' machines."""

    def service_processes(self) -> list[int]:
        """All others that are neither workers nor this process: brokers, schedulers, monitors."""
        workers = self.worker_processes()
        return [process for process in descendants(os.getpid()) if process not in workers]


def in_parts(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """In parts of `size`, as a user cuts a bulk where the peer has no way of its own."""
    return [values[start : start + size] for start in range(0, len(values), size)]

"""`Batch`: the calls of one task, with futures made only where somebody asks for one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from forage.future import Future

__all__ = ["Batch", "Progress"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a batch is, in calls."""

    total: int
    done: int
    """Ended in any way."""
    failed: int
    """Of those done: ended with an error, or cancelled."""
    running: int
    """Reported as started and not done."""


class Batch(Generic[_T]):
    """The calls of one task, in order."""

    @property
    def id(self) -> str:
        """The task's id: what `attach` and the terminal take."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Future[_T]]:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Future[_T]:
        raise NotImplementedError

    def results(self, *, partial: bool = False, timeout: float | None = None) -> list[_T]:
        """All results in order; with `partial` those that are there, others None."""
        raise NotImplementedError

    def as_completed(self, timeout: float | None = None) -> Iterator[Future[_T]]:
        """The futures in the order in which they end."""
        raise NotImplementedError

    def progress(self) -> Progress:
        """How far it is now."""
        raise NotImplementedError

    def cancel(self, *, force: bool = False) -> int:
        """Cancel what is pending (with `force` also what runs); how many calls that were."""
        raise NotImplementedError

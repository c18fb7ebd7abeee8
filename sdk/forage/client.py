"""`Client`: a `concurrent.futures.Executor` whose workers are devices behind an MQTT broker."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, TypeVar

from forage.batch import Batch
from forage.future import Future
from forage.info import Attempt, DeviceInfo, Explanation, TaskInfo

__all__ = ["Client"]

_T = TypeVar("_T")


class Client(Executor):
    """A connection to a fleet; made by `forage.connect`. Safe for use by several threads."""

    def submit(  # type: ignore[override]
        self, fn: Callable[..., _T] | str, /, *args: Any, **kwargs: Any
    ) -> Future[_T]:
        """Run `fn(*args, **kwargs)` on a device. A text names a function installed there."""
        raise NotImplementedError

    def map(  # type: ignore[override]
        self,
        fn: Callable[..., _T] | str,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[_T]:
        """`Executor.map`: results in the order of the arguments."""
        raise NotImplementedError

    def submit_all(self, fn: Callable[..., _T] | str, *iterables: Iterable[Any]) -> Batch[_T]:
        """One task of as many calls as the shortest iterable has items."""
        raise NotImplementedError

    def options(self, **options: Any) -> "Client":
        """A view on this connection whose submissions carry these options."""
        raise NotImplementedError

    def attach(self, name: str) -> Batch[Any]:
        """The outcomes of a task submitted by another process of the same user."""
        raise NotImplementedError

    def devices(self) -> list[DeviceInfo]:
        """All devices that the controller knows."""
        raise NotImplementedError

    def device(self, name: str) -> DeviceInfo:
        """One device by name."""
        raise NotImplementedError

    def tasks(self) -> list[TaskInfo]:
        """All tasks that the controller still keeps."""
        raise NotImplementedError

    def task(self, name: str) -> TaskInfo:
        """One task, by its id or by the name of one of its calls."""
        raise NotImplementedError

    def history(self, name: str) -> list[Attempt]:
        """The attempts of a task or call, oldest first."""
        raise NotImplementedError

    def explain(self, name: str) -> Explanation:
        """Why a task or call is where it is."""
        raise NotImplementedError

    def logs(self, name: str) -> list[str]:
        """What a task's or call's code wrote, as lines `17 out text`."""
        raise NotImplementedError

    def cancel(self, name: str, *, force: bool = False) -> None:
        """Cancel a task or call by name, also another process's of the same user."""
        raise NotImplementedError

    def drain(self, device: str, on: bool = True) -> None:
        """Let a device finish what it runs and take nothing new, or take work again."""
        raise NotImplementedError

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, wait for those there are, and disconnect."""
        raise NotImplementedError

"""`Future`: one call's outcome; a `concurrent.futures.Future` that can also be awaited."""

import concurrent.futures
from collections.abc import Generator
from typing import Any, TypeVar

from forage.info import Attempt, Explanation

__all__ = ["Future"]

_T = TypeVar("_T")


class Future(concurrent.futures.Future[_T]):
    """One call's outcome."""

    @property
    def id(self) -> str:
        """The call's name."""
        raise NotImplementedError

    @property
    def device(self) -> str | None:
        """The device that runs or ran it; None until one reported its start."""
        raise NotImplementedError

    @property
    def attempts(self) -> int:
        """Runs so far, as far as this client was told."""
        raise NotImplementedError

    @property
    def state(self) -> str:
        """pending, running, done, failed or cancelled."""
        raise NotImplementedError

    def cancel(self, force: bool = False) -> bool:
        """Cancel the call."""
        raise NotImplementedError

    def history(self) -> list[Attempt]:
        """The call's attempts, oldest first."""
        raise NotImplementedError

    def logs(self) -> list[str]:
        """What the call wrote."""
        raise NotImplementedError

    def explain(self) -> Explanation:
        """Why the call is where it is."""
        raise NotImplementedError

    def __await__(self) -> Generator[Any, None, _T]:
        raise NotImplementedError

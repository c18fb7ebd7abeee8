"""A selector that another one watches, on every system.

Linux and macOS have selectors that are files, so one can stand in another. Windows has `select`
alone, which takes sockets and nothing else: there the inner selector is a list, and the loop around
it watches what stands in the list, and is told when the list changes.
"""

from __future__ import annotations

import selectors
import threading
from collections.abc import Callable
from typing import Any, Protocol, cast

__all__ = ["InnerSelector", "ListedSelector", "inner_selector"]


class InnerSelector(Protocol):
    """What is watched can change; what is ready is the outer loop's to find out."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> object: ...
    def modify(self, fileobj: Any, events: int, data: Any = None) -> object: ...
    def unregister(self, fileobj: Any) -> object: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class ListedSelector(selectors.SelectSelector):
    """Only a list of what to watch; `on_change` is called, from any thread, when it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.on_change: Callable[[], None] = _nothing
        self._changing = threading.Lock()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        with self._changing:
            key = super().register(fileobj, events, data)
        self.on_change()
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        with self._changing:
            key = super().unregister(fileobj)
        self.on_change()
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        # As the base class does it, which is one change and not two.
        with self._changing:
            super().unregister(fileobj)
            key = super().register(fileobj, events, data)
        self.on_change()
        return key

    def fileno(self) -> int:
        """There is none: register the owner, which has this as its `selector`, with a `Loop`."""
        raise ValueError("this selector is no file")

    def listed(self) -> list[tuple[int, int]]:
        """(descriptor, events) of all there is now."""
        with self._changing:
            return [(key.fd, key.events) for key in self.get_map().values()]


def _nothing() -> None:
    """Nobody watches the list yet."""


def inner_selector() -> InnerSelector:
    """The system's best selector where that is a file, else a `ListedSelector`."""
    selector = selectors.DefaultSelector()
    if hasattr(selector, "fileno"):
        return cast("InnerSelector", selector)
    selector.close()
    return ListedSelector()

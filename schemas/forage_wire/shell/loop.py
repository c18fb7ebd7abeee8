"""The selector loop that the shells share: readable things, and a wake-up from other threads.

Owns a selector and a wake-up socket, and no decisions: the owner's `while` stays in the owner.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from typing import Protocol

from forage_wire.shell.nesting import ListedSelector

__all__ = ["HasFileno", "Loop"]

READ = selectors.EVENT_READ


class HasFileno(Protocol):
    """A socket, a pipe, an `MqttConnection`."""

    def fileno(self) -> int: ...


class Loop:
    """`register` things, `poll` in one thread, `wake` from any thread or signal handler."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        # Not a pipe: on Windows only sockets can be waited for.
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, READ, None)
        self._wake_is_pending = False
        # Selectors that are no files, with what to call; and what stands in `_selector` for them.
        self._lists: dict[ListedSelector, Callable[[], None]] = {}
        self._listed: dict[int, None] = {}

    def register(
        self, fileobj: HasFileno | int, callback: Callable[[], None], *, events: int = READ
    ) -> None:
        """Call `callback` from `poll` when `fileobj` is ready; again replaces callback and events.

        Args:
            events: `selectors.EVENT_READ`, `EVENT_WRITE` or both.
        """
        inner = getattr(fileobj, "selector", None)
        if isinstance(inner, ListedSelector):
            self._lists[inner] = callback
            inner.on_change = self.wake
            self.wake()
            return
        if fileobj in self._selector.get_map():
            self._selector.modify(fileobj, events, callback)
        else:
            self._selector.register(fileobj, events, callback)

    def unregister(self, fileobj: HasFileno | int) -> None:
        """Forget `fileobj`, before it is closed; unknown ones are no error."""
        inner = getattr(fileobj, "selector", None)
        if isinstance(inner, ListedSelector):
            self._lists.pop(inner, None)
            self._watch_lists()
            return
        if fileobj in self._selector.get_map():
            self._selector.unregister(fileobj)

    def wake(self) -> None:
        """Make the current or the next `poll` return. What is to be seen is stored before."""
        if not self._wake_is_pending:
            self._wake_is_pending = True
            try:
                self._wake_write.send(b"\0")
            except BlockingIOError:
                pass  # It is full of wake-ups.

    def poll(self, timeout_s: float | None) -> None:
        """Wait until something is ready, a `wake`, or the timeout; call what is ready, in turn.

        Args:
            timeout_s: None waits for ever; 0 and less does not wait.
        """
        if self._lists:
            self._watch_lists()
        ready = self._select(timeout_s)
        for key, _ in ready:
            if key.data is not None:
                # An earlier callback of this turn may have unregistered a later one, and its
                # descriptor may already be somebody else's.
                if len(ready) == 1 or self._selector.get_map().get(key.fd) is key:
                    key.data()
            else:
                self._wake_read.recv(4096)
                # Cleared after the read and before the owner looks at its queues: a `wake` from
                # here on writes again, one before is seen by that look.
                self._wake_is_pending = False

    def _select(self, timeout_s: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        try:
            return self._selector.select(timeout_s)
        except (OSError, ValueError):
            if not self._lists:
                raise
            # `select` was given what another thread has closed meanwhile; the lists know of it.
            return []

    def _watch_lists(self) -> None:
        """Make `_selector` watch what stands in the lists now, and nothing that did before."""
        for descriptor in self._listed:
            self._selector.unregister(descriptor)
        self._listed.clear()
        for inner, callback in self._lists.items():
            for descriptor, events in inner.listed():
                self._selector.register(descriptor, events, callback)
                self._listed[descriptor] = None

    def close(self) -> None:
        """Give the descriptors back; registered things stay their owners'."""
        for inner in self._lists:
            inner.on_change = _nothing
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()


def _nothing() -> None:
    """The loop is closed: what changes concerns it no more."""

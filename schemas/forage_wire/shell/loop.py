"""The selector loop that the shells share: readable things, and a wake-up from other threads.

Owns a selector and a wake-up pipe, and no decisions: the owner's `while` stays in the owner.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from typing import Protocol

__all__ = ["HasFileno", "Loop"]

READ = selectors.EVENT_READ


class HasFileno(Protocol):
    """A socket, a pipe, an `MqttConnection`."""

    def fileno(self) -> int: ...


class Loop:
    """`register` things, `poll` in one thread, `wake` from any thread or signal handler."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, READ, None)
        self._wake_is_pending = False

    def register(
        self, fileobj: HasFileno | int, callback: Callable[[], None], *, events: int = READ
    ) -> None:
        """Call `callback` from `poll` when `fileobj` is ready; again replaces callback and events.

        Args:
            events: `selectors.EVENT_READ`, `EVENT_WRITE` or both.
        """
        if fileobj in self._selector.get_map():
            self._selector.modify(fileobj, events, callback)
        else:
            self._selector.register(fileobj, events, callback)

    def unregister(self, fileobj: HasFileno | int) -> None:
        """Forget `fileobj`, before it is closed; unknown ones are no error."""
        if fileobj in self._selector.get_map():
            self._selector.unregister(fileobj)

    def wake(self) -> None:
        """Make the current or the next `poll` return. What is to be seen is stored before."""
        if not self._wake_is_pending:
            self._wake_is_pending = True
            try:
                os.write(self._wake_write, b"\0")
            except BlockingIOError:
                pass  # The pipe is full of wake-ups.

    def poll(self, timeout_s: float | None) -> None:
        """Wait until something is ready, a `wake`, or the timeout; call what is ready, in turn.

        Args:
            timeout_s: None waits for ever; 0 and less does not wait.
        """
        for key, _ in self._selector.select(timeout_s):
            if key.data is not None:
                # An earlier callback of this turn may have unregistered a later one, and its
                # descriptor may already be somebody else's.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            else:
                os.read(self._wake_read, 4096)
                # Cleared after the read and before the owner looks at its queues: a `wake` from
                # here on writes again, one before is seen by that look.
                self._wake_is_pending = False

    def close(self) -> None:
        """Give the descriptors back; registered things stay their owners'."""
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

"""The thread that runs users' callbacks, so that none of them ever holds up the network's.

One for the process, started with the first callback. It runs them in the order in which their
futures ended.
"""

import os
import queue
import threading
from collections.abc import Iterable
from typing import Any

from forage.future import Future, run_callbacks

__all__ = ["CallbackThread", "callback_thread"]


class CallbackThread:
    """Runs the callbacks of finished futures, one after the other."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Future[Any] | threading.Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self, finished: Iterable[Future[Any]]) -> None:
        """Run the callbacks of these futures, soon."""
        for future in finished:
            self._queue.put(future)
        self._start()

    def drain(self, timeout_s: float | None = None) -> None:
        """Wait until all callbacks given so far have run; at once in the thread itself."""
        thread = self._thread
        if thread is None or not thread.is_alive() or thread is threading.current_thread():
            return
        mark = threading.Event()
        self._queue.put(mark)
        mark.wait(timeout_s)

    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="forage-callbacks", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    # The interpreter is ending and starts no threads: what is left runs nowhere,
                    # as with every executor of the standard library then.
                    return
                self._thread = thread

    def _serve(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
            else:
                run_callbacks(item, item._extra)
            # Waiting for the next one must not keep the last one.
            del item


callback_thread = CallbackThread()
"""The process's own."""


def _after_fork() -> None:
    """The thread did not come along."""
    global callback_thread
    callback_thread = CallbackThread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

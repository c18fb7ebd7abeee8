"""The broker that needs no installation: amqtt, repaired, in a thread of this process.

Owns the thread, its event loop and the listening socket. What the broker promises and what it
does not is told in `amqtt_repaired`.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from forage_broker.amqtt_repaired import RepairedBroker
from forage_broker.listener import open_listener

__all__ = ["EmbeddedBroker"]

logger = logging.getLogger(__name__)


class EmbeddedBroker:
    """An MQTT 3.1.1 broker for anonymous clients, in its own daemon thread.

    `start` and `stop` may be called from any thread, once each; as a context manager it does both.
    Nothing is stored: a broker that is stopped or dies leaves nothing behind.
    """

    name = "embedded"

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        plugins: Mapping[str, Mapping[str, Any]] | None = None,
        on_death: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            host: The name or address to listen on. A name is resolved, to IPv4 where it has one.
            port: 0 takes a free one.
            plugins: amqtt's authentication and topic plugins: options by dotted path. None lets
                everybody in.
            on_death: Called once, from another thread, with one sentence, if the broker ends
                without `stop`.
        """
        self.host = host
        self.port = port
        self.pid = os.getpid()
        """The process that listens."""
        self._plugins = plugins
        self._on_death = on_death
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_asked: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="forage-broker", daemon=True)

    def start(self) -> int:
        """Listen, and return the port.

        Raises:
            PortInUse: Another process listens there.
            OSError: The host is unknown or not this machine's, or the port needs more rights.
        """
        self._listener = open_listener(self.host, self.port)
        self.host, self.port = self._listener.getsockname()[:2]
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise RuntimeError("the embedded broker did not start") from self._failure
        return self.port

    def stop(self) -> None:
        """Close all connections and the port, and wait until that is done."""
        if self._loop is not None and self._stop_asked is not None and self._thread.is_alive():
            try:
                self._loop.call_soon_threadsafe(self._stop_asked.set)
            except RuntimeError:
                pass  # The loop has closed in between.
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> "EmbeddedBroker":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            logger.exception("the embedded broker died")
            self._failure = error
            if self._ready.is_set() and self._on_death is not None:
                self._on_death(f"The embedded broker died: {error!r}.")
        finally:
            self._listener.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop_asked = asyncio.Event()
        broker = RepairedBroker(self._listener, self._plugins)
        await broker.start()
        self._ready.set()
        await self._stop_asked.wait()
        await broker.shutdown()

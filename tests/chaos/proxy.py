"""TCP proxies that know MQTT's packets and do to them what rules say.

One thread serves all proxies of a `Proxies`, each with its own listening port on loopback, rules and
seeded randomness. Everything that changes a proxy is done in that thread, so that a rule is in
force for every packet that is read after `add` has returned.
"""

import contextlib
import heapq
import itertools
import random
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from chaos.faults import DOWN, UP, Rule
from chaos.packets import Cutter, Packet

__all__ = ["Proxies", "Proxy"]

_T = TypeVar("_T")

HOST = "127.0.0.1"
READ_BYTES = 1 << 16
QUEUED_BYTES_MAX = 1 << 20
"""Above this a direction is not read on: its sender feels it, as with TCP."""
CALL_LIMIT_S = 20.0


@dataclass
class _Late:
    """A packet that waits until others have overtaken it."""

    packet: Packet
    passing: int


class _Direction:
    """One direction of one connection: read, cut into packets, faults, written."""

    def __init__(self, passage: "_Passage", direction: str, into: socket.socket) -> None:
        self.direction = direction
        self.is_ended = False
        """Its reader has had the end of the stream."""
        self._passage = passage
        self._into = into
        self._cutter = Cutter()
        self._queue: deque[tuple[Packet, bool]] = deque()
        self._queued_bytes = 0
        self._unsent = bytearray()
        self._late: list[_Late] = []
        self._is_stalled = False

    @property
    def is_full(self) -> bool:
        """Whether it shall not be read on."""
        return self._queued_bytes + len(self._unsent) > QUEUED_BYTES_MAX

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits for its socket."""
        return bool(self._unsent)

    def feed(self, chunk: bytes) -> None:
        """Bytes from its sender."""
        for packet in self._cutter.feed(chunk):
            self._queue.append((packet, False))
            self._queued_bytes += len(packet.raw)
        self.pump()

    def pump(self) -> None:
        """Pass on what may be passed on."""
        proxy = self._passage.proxy
        while self._queue and not self._is_stalled and self.direction not in proxy.held:
            if self._passage.is_silent or self._passage.is_closed:
                self._queue.clear()
                self._queued_bytes = 0
                return
            packet, was_judged = self._queue.popleft()
            self._queued_bytes -= len(packet.raw)
            rule = None if was_judged else proxy.judge(self.direction, packet)
            if rule is None:
                self.forward(packet.raw)
            else:
                rule.action.apply(self, packet, proxy.source)
            self._let_late_ones_pass()
        if self.is_ended and not self._queue and self.direction not in proxy.held:
            for late in self._late:
                self.forward(late.packet.raw)
            self._late.clear()
            self.forward(self._cutter.rest())
            self._passage.end_after_sending()

    def _let_late_ones_pass(self) -> None:
        for late in self._late:
            late.passing -= 1
        due = [late for late in self._late if late.passing < 0]
        self._late = [late for late in self._late if late.passing >= 0]
        for late in due:
            self.forward(late.packet.raw)

    # -- for actions (`faults.Pipe`) ------------------------------------------------------------

    def forward(self, data: bytes) -> None:
        """See `Pipe`."""
        if self._passage.is_silent or self._passage.is_closed:
            return
        self._unsent += data
        self.send()

    def answer(self, data: bytes) -> None:
        """See `Pipe`."""
        self._passage.other(self).forward(data)

    def stall(self, pause_s: float, packet: Packet) -> None:
        """See `Pipe`."""
        self._is_stalled = True
        self._queue.appendleft((packet, True))
        self._queued_bytes += len(packet.raw)

        def go_on() -> None:
            self._is_stalled = False
            self._passage.pump()

        self._passage.proxy.proxies.after(pause_s, go_on)

    def put_back(self, packet: Packet, passing: int, limit_s: float) -> None:
        """See `Pipe`."""
        # Counted down in this turn too, in which it does not pass itself.
        late = _Late(packet, passing)
        self._late.append(late)

        def at_last() -> None:
            if late in self._late:
                self._late.remove(late)
                self.forward(packet.raw)
                self._passage.settle()

        self._passage.proxy.proxies.after(limit_s, at_last)

    def cut(self) -> None:
        """See `Pipe`."""
        self._passage.close()

    def silence(self) -> None:
        """See `Pipe`."""
        self._passage.is_silent = True
        self._unsent.clear()

    # -- the socket -------------------------------------------------------------------------------

    def send(self) -> None:
        """As much as the socket takes."""
        if not self._unsent:
            return
        try:
            sent = self._into.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            # Who sends to a program that is gone learns of it, unless the way back is held.
            self._unsent.clear()
            if self._passage.other(self).direction not in self._passage.proxy.held:
                self._passage.close()
            return
        del self._unsent[:sent]


class _Passage:
    """One connection through a proxy."""

    def __init__(self, proxy: "Proxy", program: socket.socket, broker: socket.socket) -> None:
        self.proxy = proxy
        self.is_silent = False
        self.is_closed = False
        self._is_ending = False
        self._up = _Direction(self, UP, broker)
        self._down = _Direction(self, DOWN, program)
        self._sockets = {program: self._up, broker: self._down}
        for each in self._sockets:
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            proxy.proxies.selector.register(each, selectors.EVENT_READ, self.on_ready)

    def other(self, direction: _Direction) -> _Direction:
        """The other way."""
        return self._down if direction is self._up else self._up

    def on_ready(self, ready: socket.socket, events: int) -> None:
        """One of its sockets can be read or written."""
        direction = self._sockets[ready]
        if events & selectors.EVENT_WRITE:
            self.other(direction).send()
        if events & selectors.EVENT_READ and not self.is_closed:
            self._read(ready, direction)
        self.settle()

    def _read(self, ready: socket.socket, direction: _Direction) -> None:
        try:
            chunk = ready.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if chunk and not self.is_silent:
            direction.feed(chunk)
        elif not chunk:
            direction.is_ended = True
            if self.is_silent:
                # Nobody hears of it; what is left of the connection goes with the proxy's.
                self.proxy.proxies.selector.unregister(ready)
            else:
                direction.pump()

    def pump(self) -> None:
        """The proxy's rules or its hold have changed."""
        self._up.pump()
        self._down.pump()
        self.settle()

    def end_after_sending(self) -> None:
        """One side has ended: the other is told when it has everything."""
        self._is_ending = True

    def settle(self) -> None:
        """After every turn: close what has ended, and ask the selector for what is wanted."""
        if self.is_closed:
            return
        if self._is_ending and not (self._up.wants_to_write or self._down.wants_to_write):
            self.close()
            return
        selector = self.proxy.proxies.selector
        for each, direction in self._sockets.items():
            wanted = 0
            if not (direction.is_full or direction.is_ended):
                wanted |= selectors.EVENT_READ
            if self.other(direction).wants_to_write:
                wanted |= selectors.EVENT_WRITE
            known = selector.get_map().get(each.fileno())
            if known is None:
                if wanted and not direction.is_ended:
                    selector.register(each, wanted, self.on_ready)
            elif not wanted:
                selector.unregister(each)
            elif known.events != wanted:
                selector.modify(each, wanted, self.on_ready)

    def close(self) -> None:
        """Close both ends."""
        if self.is_closed:
            return
        self.is_closed = True
        for each in self._sockets:
            with contextlib.suppress(KeyError, ValueError):
                self.proxy.proxies.selector.unregister(each)
            each.close()
        self.proxy.forget(self)


class Proxy:
    """Stands between one program and the broker. Made by `Proxies.add`."""

    def __init__(self, proxies: "Proxies", name: str, seed: int) -> None:
        self.proxies = proxies
        self.name = name
        self.source = random.Random(f"{name} {seed}")
        self.upstream_port = 0
        """The broker's, on loopback; set before anybody connects."""
        self.held: frozenset[str] = frozenset()
        """Directions in which nothing passes, as behind a cable that is pulled for a while."""
        self._rules: list[Rule] = []
        self._watchers: list[Callable[[str, Packet], None]] = []
        self._lasting_watchers: list[Callable[[str, Packet], None]] = []
        self._passages: list[_Passage] = []
        self._is_refusing = False
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        proxies.selector.register(self._listener, selectors.EVENT_READ, self._on_arrival)

    # -- from any thread --------------------------------------------------------------------------

    def add(self, *rules: Rule) -> None:
        """Rules, behind those that are there."""
        self.proxies.call(lambda: self._rules.extend(rules))

    def watch(self, watcher: Callable[[str, Packet], None], *, lasts: bool = False) -> None:
        """Have this called with (direction, packet) for each packet, before any rule.

        Until `heal`; for as long as the proxy is there where it `lasts`.
        """
        watchers = self._lasting_watchers if lasts else self._watchers
        self.proxies.call(lambda: watchers.append(watcher))

    def hold(self, *directions: str) -> None:
        """Nothing passes these ways, until `heal`; connections stay open. None: both ways."""

        def act() -> None:
            self.held = frozenset(directions or (UP, DOWN))

        self.proxies.call(act)

    def refuse(self) -> None:
        """End every connection and take no new one, until `heal`."""

        def act() -> None:
            self._is_refusing = True
            self._close_all()

        self.proxies.call(act)

    def cut(self) -> None:
        """End every connection; new ones are taken."""
        self.proxies.call(self._close_all)

    def heal(self, *, spares_silent: bool = False) -> None:
        """No rules, no hold; connections that were made dead in silence end now, or are spared."""

        def act() -> None:
            self._rules.clear()
            self._watchers.clear()
            self._is_refusing = False
            self.held = frozenset()
            for passage in list(self._passages):
                if passage.is_silent and not spares_silent:
                    passage.close()
                else:
                    passage.pump()

        self.proxies.call(act)

    @property
    def connections(self) -> int:
        """How many pass through it now."""
        return self.proxies.call(lambda: len(self._passages))

    # -- in the proxies' thread ---------------------------------------------------------------------

    def judge(self, direction: str, packet: Packet) -> Rule | None:
        """The rule for this packet."""
        for watcher in (*self._watchers, *self._lasting_watchers):
            watcher(direction, packet)
        for rule in self._rules:
            if rule.matches(direction, packet, self.source):
                self.proxies.counts[rule.name] += 1
                return rule
        return None

    def forget(self, passage: _Passage) -> None:
        """It has ended."""
        self._passages.remove(passage)

    def _on_arrival(self, listener: socket.socket, events: int) -> None:
        del events
        try:
            program, _ = listener.accept()
        except OSError:
            return
        if self._is_refusing:
            program.close()
            return
        try:
            broker = socket.create_connection((HOST, self.upstream_port), timeout=CALL_LIMIT_S)
        except OSError:
            program.close()
            return
        self._passages.append(_Passage(self, program, broker))

    def _close_all(self) -> None:
        for passage in list(self._passages):
            passage.close()

    def close(self) -> None:
        """The end of it."""
        self._close_all()
        self.proxies.selector.unregister(self._listener)
        self._listener.close()


class Proxies:
    """The thread that all proxies share. Use it as a context manager."""

    def __init__(self, seed: int = 0) -> None:
        self.selector = selectors.DefaultSelector()
        self.counts: Counter[str] = Counter()
        """How often each rule has met a packet, by the rules' names."""
        self._seed = seed
        self._proxies: dict[str, Proxy] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._calls: deque[Callable[[], None]] = deque()
        self._is_closing = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self.selector.register(self._wake_read, selectors.EVENT_READ, self._on_wake)
        self._thread = threading.Thread(target=self._run, name="chaos-proxies", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, name: str) -> Proxy:
        """A new proxy; or the one of that name."""

        def act() -> Proxy:
            if name not in self._proxies:
                self._proxies[name] = Proxy(self, name, self._seed)
            return self._proxies[name]

        return self.call(act)

    def heal(self, *, spares_silent: bool = False) -> None:
        """All of them."""
        for proxy in list(self._proxies.values()):
            proxy.heal(spares_silent=spares_silent)

    def close(self) -> None:
        """End all connections and the thread; again is no error."""
        if not self._thread.is_alive():
            return

        def act() -> None:
            self._is_closing = True

        self.call(act)
        self._thread.join(CALL_LIMIT_S)
        for proxy in self._proxies.values():
            proxy.close()
        self.selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def call(self, act: Callable[[], _T]) -> _T:
        """Do it in the thread and return what it returns; at once where this is that thread."""
        if threading.current_thread() is self._thread:
            return act()
        done = threading.Event()
        results: list[_T] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(act())
            except Exception as error:
                errors.append(error)
            finally:
                done.set()

        self._calls.append(run)
        self._wake_write.send(b"\0")
        if not done.wait(CALL_LIMIT_S):
            raise TimeoutError("the proxies' thread does not answer")
        if errors:
            raise errors[0]
        return results[0]

    def after(self, pause_s: float, act: Callable[[], None]) -> None:
        """Do it in the thread when this time is over; called in the thread."""
        heapq.heappush(self._timers, (time.monotonic() + pause_s, next(self._numbers), act))

    def _on_wake(self, ready: socket.socket, events: int) -> None:
        del events
        with contextlib.suppress(BlockingIOError):
            ready.recv(READ_BYTES)
        while self._calls:
            self._calls.popleft()()

    def _run(self) -> None:
        while not self._is_closing:
            wait_s = None
            if self._timers:
                wait_s = max(0.0, self._timers[0][0] - time.monotonic())
            for key, events in self.selector.select(wait_s):
                # What an earlier one of these did may have closed it, and opened another.
                known = self.selector.get_map().get(key.fd)
                if known is not None and known.fileobj is key.fileobj:
                    key.data(key.fileobj, events)
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()

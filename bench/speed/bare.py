"""The yardstick: the same processes and messages with nothing decided, kept or checked.

Client, controller, two devices and their workers pass calls over the broker as forage's do: a page
from the client, a slice to a device, a frame to its worker, outcomes from the device to the client
and to the controller. Nobody fences, saves, repeats, measures or times anything, each process
is one loop of blocking sockets, and MQTT is the few lines below. What this reaches at a moment is what
the machine, its kernel, the broker and the interpreter allow then, so that forage's figures of the
same run can be read as ratios to it.
"""

import multiprocessing
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cbor2

from speed import calls

__all__ = ["BareClient", "bare_chain"]

PAGE_CALLS = 1_000
WINDOW = 32
"""Slices at a device at a time."""
SLICE_CALLS = 500
ROOT = "bare/"
ENOUGH_BYTES = 1 << 16


class BareMqtt:
    """One MQTT 3.1.1 connection of QoS 1 and nothing else; sends when told to, in one piece."""

    def __init__(self, port: int, name: str, topics: list[str]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = bytearray()
        self._out: list[bytes] = []
        self._id = 0
        self._packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x00" + _text(name))
        subscription = b"".join(_text(topic) + b"\x01" for topic in topics)
        self._packet(0x82, b"\x00\x01" + subscription)
        self.flush()
        answers: list[int] = []
        while 0x90 not in answers:
            answers += [head for head, _body in self._packets()]

    def publish(self, topic: str, payload: bytes) -> None:
        self._id = self._id % 65_535 + 1
        self._packet(0x32, _text(topic) + struct.pack(">H", self._id) + payload)

    def flush(self) -> None:
        if self._out:
            self.socket.sendall(b"".join(self._out))
            self._out.clear()

    def read(self) -> list[tuple[str, bytes]]:
        """(topic, payload) of what there is; waits for bytes, and acknowledges with the flush."""
        found = []
        for head, body in self._packets():
            if head & 0xF0 == 0x30:
                end = 2 + int.from_bytes(body[:2], "big")
                self._packet(0x40, body[end : end + 2])
                found.append((body[2:end].decode(), body[end + 2 :]))
        return found

    def _packet(self, head: int, body: bytes) -> None:
        length, left = bytearray(), len(body)
        while left > 127:
            length.append(left & 0x7F | 0x80)
            left >>= 7
        length.append(left)
        self._out.append(bytes((head,)) + length + body)

    def _packets(self) -> list[tuple[int, bytes]]:
        self._read += self.socket.recv(ENOUGH_BYTES)
        data, at, found = bytes(self._read), 0, []
        while len(data) - at >= 2:
            length = shift = 0
            start = at + 1
            while True:
                length |= (data[start] & 0x7F) << shift
                shift += 7
                start += 1
                if data[start - 1] < 0x80 or start == len(data):
                    break
            if start + length > len(data):
                break
            found.append((data[at], data[start : start + length]))
            at = start + length
        del self._read[:at]
        return found


def _text(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode()


def _controller(port: int, ready: Callable[[], None]) -> None:
    mqtt = BareMqtt(port, "bare-controller", [ROOT + "page", ROOT + "done/+"])
    ready()
    waiting: deque[tuple[int, list[object]]] = deque()
    held = [0, 0]
    while True:
        for topic, payload in mqtt.read():
            if topic == ROOT + "page":
                for first, arguments in cbor2.loads(payload):
                    for low in range(0, len(arguments), SLICE_CALLS):
                        waiting.append((first + low, arguments[low : low + SLICE_CALLS]))
            else:
                held[int(topic[-1])] -= len(cbor2.loads(payload))
        for device in sorted((0, 1), key=held.__getitem__):
            share = -(-len(waiting) // (2 - device if held[0] <= held[1] else device + 1))
            room = min(WINDOW - held[device], share)
            if room > 0 and waiting:
                out = [waiting.popleft() for _ in range(min(room, len(waiting)))]
                held[device] += len(out)
                mqtt.publish(f"{ROOT}inbox/{device}", cbor2.dumps(out))
        mqtt.flush()


def _device(port: int, number: int, ready: Callable[[], None]) -> None:
    mine, its = socket.socketpair()
    worker = multiprocessing.get_context("fork").Process(
        target=_worker, args=(its, mine), daemon=True
    )
    worker.start()
    its.close()
    mqtt = BareMqtt(port, f"bare-device-{number}", [f"{ROOT}inbox/{number}"])
    ready()
    frames = b""
    while True:
        for one in select.select([mqtt.socket, mine], [], [])[0]:
            if one is mine:
                data = mine.recv(ENOUGH_BYTES)
                if not data:
                    return
                *whole, frames = _frames(frames + data)
                outcomes = [item for frame in whole for item in cbor2.loads(frame)]
                if outcomes:
                    mqtt.publish(f"{ROOT}done/{number}", cbor2.dumps(outcomes))
            else:
                for _topic, payload in mqtt.read():
                    mine.sendall(struct.pack(">I", len(payload)) + payload)
        mqtt.flush()


def _worker(pipe: socket.socket, devices_end: socket.socket) -> None:
    devices_end.close()  # Or the pipe would never end, with a copy of its other end here.
    frames = b""
    while data := pipe.recv(ENOUGH_BYTES):
        *whole, frames = _frames(frames + data)
        done = [
            (first, [calls.same(argument) for argument in arguments])
            for frame in whole
            for first, arguments in cbor2.loads(frame)
        ]
        if done:
            payload = cbor2.dumps(done)
            pipe.sendall(struct.pack(">I", len(payload)) + payload)


def _frames(data: bytes) -> list[bytes]:
    """The whole frames, then what is left."""
    found, at = [], 0
    while len(data) - at >= 4:
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        found.append(data[at + 4 : end])
        at = end
    return [*found, data[at:]]


class BareClient:
    """Submits numbers and gathers what comes back, in one thread."""

    def __init__(self, port: int) -> None:
        self._mqtt = BareMqtt(port, "bare-client", [ROOT + "done/+"])
        self._next = 0

    def call(self) -> None:
        """One call, there and back."""
        self._gather(*self._submit([[7]]))

    def one_task(self, count: int) -> None:
        """Calls of one task, a page for each thousand."""
        pages = range(0, count, PAGE_CALLS)
        self._gather(*self._submit([list(range(at, min(at + PAGE_CALLS, count))) for at in pages]))

    def own_tasks(self, count: int) -> None:
        """Calls that nothing may merge."""
        self._gather(*self._submit([[number] for number in range(count)]))

    def _submit(self, tasks: list[list[int]]) -> tuple[int, list[int]]:
        first = self._next
        rows = []
        for task in tasks:
            rows.append((self._next, task))
            self._next += len(task)
            if len(rows) * len(task) >= PAGE_CALLS:
                self._mqtt.publish(ROOT + "page", cbor2.dumps(rows))
                self._mqtt.flush()
                rows = []
        if rows:
            self._mqtt.publish(ROOT + "page", cbor2.dumps(rows))
            self._mqtt.flush()
        return first, [number for task in tasks for number in task]

    def _gather(self, first: int, expected: list[int]) -> None:
        results: list[object] = [None] * len(expected)
        left = len(expected)
        while left:
            for _topic, payload in self._mqtt.read():
                for at, values in cbor2.loads(payload):
                    results[at - first : at - first + len(values)] = values
                    left -= len(values)
            self._mqtt.flush()
        if results != expected:
            raise AssertionError("wrong results")


@contextmanager
def bare_chain(port: int) -> Iterator[BareClient]:
    """The processes on a broker at this port of 127.0.0.1, ended at the end."""
    context = multiprocessing.get_context("fork")
    ready = context.Semaphore(0)
    processes = [
        context.Process(target=_controller, args=(port, ready.release), daemon=True),
        *(context.Process(target=_device, args=(port, n, ready.release)) for n in (0, 1)),
    ]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            if not ready.acquire(timeout=30):
                raise TimeoutError("the bare chain did not start")
        yield BareClient(port)
    finally:
        for process in processes:
            process.kill()
            process.join()

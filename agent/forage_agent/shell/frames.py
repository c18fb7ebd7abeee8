"""What agent and worker say to each other: CBOR frames behind their length, through a socket.

To a worker:

    [drop: [key, ...], code: [[key, form, python, data], ...],
     chunks: [[assignment, low, high, key, client_python, calls, is_awaited, checkpoints], ...],
     may_follow: bool, until_ms: 0, or when exclusive calls must not begin any more]

where checkpoints are [[index, data], ...] of those calls that have one, and the last outcome of
a chunk that is awaited is to leave at once.

From a worker, each an array that begins with its kind:

    [READY, pid]
    [OUTCOMES, assignment, first, count, run_us, [[index, reason], ...], items]
    [RETURNED, assignment, index]
    [LOADED]
    [CHECKPOINT, assignment, index, data]

Beside the socket a worker has a control socket: each 8 bytes there ask it to give back what it
has not begun, and say how many frames it was sent before.

Agent and zygote say, in one CBOR array each: [START, slot] with the worker's five descriptors
(socket, control, stdout, stderr, shared page); [KILL, slot]; [LEASE, slot, until_ms], at which time
the worker is killed whatever the agent does; and back [EXITED, slot, pid, status, lease_over].
"""

import socket
import struct
from collections import deque
from typing import Any, Final

import cbor2

from forage_wire.limits import CALL_BYTES_MAX

__all__ = [
    "CHECKPOINT",
    "CONTROL_BYTES",
    "FRAME_BYTES_MAX",
    "LENGTH_BYTES",
    "LOADED",
    "OUTCOMES",
    "READY",
    "RETURNED",
    "WORKER_DESCRIPTORS",
    "ZYGOTE_EXITED",
    "ZYGOTE_KILL",
    "ZYGOTE_LEASE",
    "ZYGOTE_START",
    "FrameError",
    "FrameReader",
    "FrameWriter",
    "pack",
]

READY: Final = 0
OUTCOMES: Final = 1
RETURNED: Final = 2
LOADED: Final = 3
CHECKPOINT: Final = 4

ZYGOTE_START: Final = 0
ZYGOTE_KILL: Final = 1
ZYGOTE_EXITED: Final = 2
ZYGOTE_LEASE: Final = 3
WORKER_DESCRIPTORS: Final = 5

LENGTH_BYTES: Final = 4
_LENGTH = struct.Struct(">I")
CONTROL_BYTES: Final = 8
FRAME_BYTES_MAX: Final = 2 * CALL_BYTES_MAX
"""From a worker: one outcome at its limit, and what was held before it. More is nonsense."""
_RECEIVE_BYTES = 256 * 1024

# What is received lands here first, whoever sent it: a buffer for each receive would be mapped and
# unmapped by the kernel each time.
_space = memoryview(bytearray(_RECEIVE_BYTES))


class FrameError(Exception):
    """A worker sends what is no frame."""


def pack(frame: Any) -> bytes:
    """A frame behind its length."""
    data = cbor2.dumps(frame)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


class FrameReader:
    """Takes frames out of a socket.

    Args:
        source: Where a blocking one has nothing, `read` waits.
        frame_bytes_max: A longer frame is an error.
    """

    def __init__(self, source: socket.socket, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._source = source
        self._frame_bytes_max = frame_bytes_max
        self._data = bytearray()
        self.is_over = False
        """The other end is closed."""

    def read(self) -> list[Any] | None:
        """All frames that are complete after one receive; None where there was nothing to receive.

        Raises FrameError where the bytes are no frames.
        """
        try:
            count = self._source.recv_into(_space)
        except BlockingIOError:
            return None
        except OSError:
            count = 0
        if not count:
            self.is_over = True
            return None
        data = self._data
        data += _space[:count]
        frames: list[Any] = []
        at = 0
        while len(data) - at >= LENGTH_BYTES:
            (length,) = _LENGTH.unpack_from(data, at)
            if length > self._frame_bytes_max:
                raise FrameError(f"a frame of {length} bytes")
            end = at + LENGTH_BYTES + length
            if len(data) < end:
                break
            try:
                frames.append(cbor2.loads(data[at + LENGTH_BYTES : end]))
            # Hostile bytes make cbor2 raise many things.
            except Exception as error:
                raise FrameError(f"not CBOR: {type(error).__name__}") from None
            at = end
        del data[:at]
        return frames


class FrameWriter:
    """Puts bytes into a non-blocking socket, in order, as it takes them."""

    def __init__(self, target: socket.socket) -> None:
        self._target = target
        self._waiting: deque[memoryview] = deque()

    def write(self, data: bytes) -> bool:
        """Send, or keep what does not go; True where something is left for `flush`."""
        self._waiting.append(memoryview(data))
        return self.flush()

    def flush(self) -> bool:
        """Go on sending; True where something is left."""
        while self._waiting:
            first = self._waiting[0]
            try:
                sent = self._target.send(first)
            except BlockingIOError:
                return True
            except OSError:
                # The worker is gone: its end is told by other means.
                self._waiting.clear()
                return False
            if sent < len(first):
                self._waiting[0] = first[sent:]
            else:
                self._waiting.popleft()
        return False

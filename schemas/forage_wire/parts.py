"""Messages above the packet limit, in parts: cut by the sender, put together by the receiver."""

import hashlib

from forage_wire.errors import DecodeError
from forage_wire.limits import (
    ENVELOPE_BYTES,
    PART_BYTES,
    PARTS_MAX,
    UNFINISHED_PART_BYTES_MAX,
)
from forage_wire.messages import Part

__all__ = ["PartAssembler", "cut_parts"]


def cut_parts(whole: bytes, message: int, packet_bytes_max: int) -> list[Part]:
    """The parts of an encoded message, in order; `message` tells them from another's.

    Raises ValueError where the message is above what a receiver holds.
    """
    if len(whole) > UNFINISHED_PART_BYTES_MAX:
        raise ValueError(
            f"a message of {len(whole)} bytes is above the limit of {UNFINISHED_PART_BYTES_MAX}"
        )
    size = min(PART_BYTES, packet_bytes_max - ENVELOPE_BYTES)
    count = -(-len(whole) // size)
    if count > PARTS_MAX:
        raise ValueError(f"a message of {len(whole)} bytes makes more than {PARTS_MAX} parts")
    return [
        Part(
            message=message,
            index=index,
            count=count,
            digest=hashlib.sha256(whole).digest() if index == 0 else None,
            data=whole[index * size : (index + 1) * size],
        )
        for index in range(count)
    ]


class PartAssembler:
    """Puts one sender's parted messages together, one at a time.

    Parts may come twice or out of order; a part of another message drops what was unfinished.
    """

    __slots__ = ("_bytes", "_count", "_data", "_digest", "_message", "bytes_max")

    def __init__(self, bytes_max: int = UNFINISHED_PART_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._forget()

    def _forget(self) -> None:
        self._message = -1
        self._count = 0
        self._digest: bytes | None = None
        self._data: dict[int, bytes] = {}
        self._bytes = 0

    def add(self, part: Part) -> bytes | None:
        """The whole message when `part` completes it, else None.

        Raises:
            DecodeError: The parts contradict each other, are above the limit, or do not have
                the digest that part 0 gave; what was unfinished is dropped.
        """
        if part.message != self._message or part.count != self._count:
            self._forget()
            self._message = part.message
            self._count = part.count
        if part.index >= part.count:
            self._forget()
            raise DecodeError("a part's index is not below its count")
        if part.index in self._data:
            return None
        if self._bytes + len(part.data) > self.bytes_max:
            self._forget()
            raise DecodeError(f"unfinished parts are above the limit of {self.bytes_max} bytes")
        self._data[part.index] = part.data
        self._bytes += len(part.data)
        if part.index == 0:
            self._digest = part.digest
        if len(self._data) < self._count:
            return None
        whole = b"".join([self._data[index] for index in range(self._count)])
        digest = self._digest
        self._forget()
        if digest != hashlib.sha256(whole).digest():
            raise DecodeError("parts do not have the digest that part 0 gave")
        return whole

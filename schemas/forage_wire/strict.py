"""Strict CBOR reading for envelopes: plain data in its one shortest form, or nothing.

Messages and headers come from peers that may be broken or hostile, so they are read by this
small reader and not by a general one, which would build whatever tags ask for (big numbers,
fractions, shared references, sets), at a cost that grows faster than the message. What is
read is linear in the bytes: integers of 64 bits and a sign, byte strings, texts, arrays, maps
with text keys, false, true and null. Everything else is refused: tags, floats, indefinite
lengths, heads longer than need be, duplicate keys, trailing bytes, nesting above a limit.
So whatever is read encodes to the same bytes again.
"""

from typing import Any

from forage_wire.errors import DecodeError
from forage_wire.limits import NESTING_MAX

__all__ = ["load_plain", "read_item"]

_SIMPLE = {0xF4: False, 0xF5: True, 0xF6: None}


def load_plain(payload: bytes, nesting_max: int = NESTING_MAX) -> Any:
    """The one item in `payload`: int, bytes, str, list, dict, bool or None.

    Raises:
        DecodeError: It is not exactly one item of those kinds in its shortest form.
    """
    try:
        item, end = read_item(payload, 0, nesting_max)
    except IndexError:
        raise DecodeError("not CBOR: it ends too early") from None
    except UnicodeDecodeError:
        raise DecodeError("not CBOR: a text is not UTF-8") from None
    # A string's length is not checked where it is read: one that reaches beyond the end gives
    # a position beyond the end, from where there is nothing to read, or which is no end.
    if end != len(payload):
        raise DecodeError("not CBOR: it ends too early or something follows it")
    return item


def read_item(data: bytes, at: int, nesting: int) -> tuple[Any, int]:
    """The item at a position and where it ends; for `load_plain` and readers like it.

    Raises DecodeError, IndexError or UnicodeDecodeError. The end may lie beyond that of `data`.
    """
    head = data[at]
    size = head & 0x1F
    at += 1
    if size >= 24:
        size, at = _long_size(data, at, size, head)
    major = head >> 5
    if major == 0:
        return size, at
    if major == 2:
        end = at + size
        return data[at:end], end
    if major == 3:
        end = at + size
        return data[at:end].decode(), end
    if major == 4:
        return _array(data, at, size, nesting - 1)
    if major == 5:
        return _map(data, at, size, nesting - 1)
    if major == 1:
        return -1 - size, at
    if head in _SIMPLE:
        return _SIMPLE[head], at
    raise DecodeError("a tag, float or other value that messages do not hold")


def _long_size(data: bytes, at: int, size: int, head: int) -> tuple[int, int]:
    if head >= 0xE0:
        raise DecodeError("a tag, float or other value that messages do not hold")
    if size == 24:
        size = data[at]
        if size < 24:
            raise DecodeError("not in its shortest form")
        return size, at + 1
    if size > 27:
        raise DecodeError("an indefinite or reserved length")
    end = at + (1 << (size - 24))
    shortest = 1 << (4 << (size - 24))
    size = int.from_bytes(data[at:end], "big")
    if size < shortest:
        raise DecodeError("not in its shortest form, or it ends too early")
    return size, end


# The two loops below read the commonest items themselves (small integers, short texts, byte
# strings of one length byte): a call for each would be most of the time that reading takes.


def _array(data: bytes, at: int, count: int, nesting: int) -> tuple[list[Any], int]:
    if nesting < 0:
        raise DecodeError("nested too deep")
    found: list[Any] = []
    append = found.append
    for _ in range(count):
        head = data[at]
        if head < 24:
            append(head)
            at += 1
        elif head == 0x58 and data[at + 1] >= 24:
            start = at + 2
            at = start + data[at + 1]
            append(data[start:at])
        elif 0x40 <= head < 0x58:
            start = at + 1
            at = start + head - 0x40
            append(data[start:at])
        elif 0x80 <= head < 0x98:
            item, at = _array(data, at + 1, head - 0x80, nesting - 1)
            append(item)
        else:
            item, at = read_item(data, at, nesting)
            append(item)
    return found, at


def _map(data: bytes, at: int, count: int, nesting: int) -> tuple[dict[str, Any], int]:
    if nesting < 0:
        raise DecodeError("nested too deep")
    found: dict[str, Any] = {}
    for _ in range(count):
        head = data[at]
        if 0x60 <= head < 0x78:
            start = at + 1
            at = start + head - 0x60
            key = data[start:at].decode()
        else:
            key, at = read_item(data, at, nesting)
            if type(key) is not str:
                raise DecodeError("a key that is no text")
        head = data[at]
        if head < 24:
            found[key] = head
            at += 1
        elif 0x60 <= head < 0x78:
            start = at + 1
            at = start + head - 0x60
            found[key] = data[start:at].decode()
        elif head == 0x58 and data[at + 1] >= 24:
            start = at + 2
            at = start + data[at + 1]
            found[key] = data[start:at]
        elif 0x40 <= head < 0x58:
            start = at + 1
            at = start + head - 0x40
            found[key] = data[start:at]
        else:
            found[key], at = read_item(data, at, nesting)
    if len(found) != count:
        raise DecodeError("a key stands twice in one map")
    return found, at

"""CBOR as a microcontroller of forage reads and writes it (MicroPython and Python).

Reading is strict, as the protocol wants it: one item in its one shortest form, texts as keys and
none of them twice, nothing behind it. What is not that raises ValueError, whatever the bytes are, and
never takes more memory than their length allows for.
"""

import struct

__all__ = ["dump", "load"]

NESTING_MAX = 5
"""Arrays and maps within each other in an envelope."""
_SECOND = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}
"""What may follow these in UTF-8, where MicroPython takes more: surrogates and longer forms."""
_SIMPLE = {0xF4: False, 0xF5: True, 0xF6: None}


def load(data, nesting_max=NESTING_MAX, floats=False):
    """The one item in `data`; with `floats` also floats, which arguments hold and envelopes do not."""
    try:
        item, at = _item(data, 0, nesting_max, floats)
    except (IndexError, UnicodeError):
        raise ValueError("it ends early, or a text is not UTF-8")
    if at != len(data):
        raise ValueError("something follows")
    return item


def _item(data, at, nesting, floats):
    head = data[at]
    at += 1
    major, size = head >> 5, head & 31
    if major == 7:
        if head in _SIMPLE:
            return _SIMPLE[head], at
        if floats and 25 <= size <= 27:
            end = at + (1 << (size - 24))
            if end > len(data):
                raise ValueError("it ends early")
            return _float(data[at:end], size), end
        raise ValueError("no plain value")
    if size >= 24:
        if size > 27:
            raise ValueError("an indefinite or reserved length")
        width = 1 << (size - 24)
        if at + width > len(data):
            raise ValueError("it ends early")
        size = int.from_bytes(data[at : at + width], "big")
        at += width
        if size < (24 if width == 1 else 1 << (4 * width)):
            raise ValueError("not in its shortest form")
    if major == 0:
        return size, at
    if major == 1:
        return -1 - size, at
    if major == 6 or size > len(data) - at:
        # An item of an array has a byte at least: nothing is made for what cannot be there.
        raise ValueError("a tag, or longer than what is there")
    if major == 2:
        return bytes(data[at : at + size]), at + size
    if major == 3:
        return _text(data[at : at + size]), at + size
    if not nesting:
        raise ValueError("too deep")
    if major == 4:
        items = []
        for _ in range(size):
            item, at = _item(data, at, nesting - 1, floats)
            items.append(item)
        return items, at
    found = {}
    for _ in range(size):
        key, at = _item(data, at, 0, False)
        if type(key) is not str or key in found:
            raise ValueError("a key that is no text, or stands twice")
        found[key], at = _item(data, at, nesting - 1, floats)
    return found, at


def _text(data):
    for at, byte in enumerate(data):
        if byte > 0xBF:
            low, high = _SECOND.get(byte, (0x80, 0xBF))
            if not 0xC2 <= byte <= 0xF4 or not low <= data[at + 1] <= high:
                raise ValueError("a text is not UTF-8")
    return str(data, "utf-8")


def _float(data, size):
    if size > 25:
        return struct.unpack(">f" if size == 26 else ">d", data)[0]
    # `struct` knows no half floats on boards.
    bits = data[0] << 8 | data[1]
    exponent, fraction = bits >> 10 & 31, bits & 1023
    if exponent == 31:
        value = float("nan" if fraction else "inf")
    else:
        value = (fraction + (1024 if exponent else 0)) * 2.0 ** (max(exponent, 1) - 25)
    return -value if bits & 0x8000 else value


def dump(value, nesting_max=8):
    """The bytes of None, bool, int of 64 bits, float, str, bytes, list, tuple or dict.

    Raises ValueError for anything else, and for what is nested deeper.
    """
    out = bytearray()
    _put(out, value, nesting_max)
    return bytes(out)


def _put(out, value, nesting):
    kind = type(value)
    if value is None or kind is bool:
        out.append(0xF6 if value is None else 0xF4 + value)
    elif kind is int:
        _head(out, 0 if value >= 0 else 1, value if value >= 0 else -1 - value)
    elif kind is float:
        out.extend(b"\xfb" + struct.pack(">d", value))
    elif kind is str:
        data = value.encode()
        _head(out, 3, len(data))
        out.extend(data)
    elif kind in (bytes, bytearray):
        _head(out, 2, len(value))
        out.extend(value)
    elif kind in (list, tuple, dict) and nesting:
        _head(out, 5 if kind is dict else 4, len(value))
        for item in value:
            if kind is dict:
                if type(item) is not str:
                    raise ValueError("a map whose keys are not all texts")
                _put(out, item, 0)
                item = value[item]
            _put(out, item, nesting - 1)
    else:
        raise ValueError(f"a {kind.__name__}, or nested too deep")


def _head(out, major, size):
    if size < 24:
        out.append(major << 5 | size)
        return
    for power, code in enumerate((">B", ">H", ">I", ">Q")):
        if not size >> (8 << power):
            out.append(major << 5 | 24 + power)
            out.extend(struct.pack(code, size))
            return
    raise ValueError("an integer above 64 bits")

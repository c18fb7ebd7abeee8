"""The memory that a worker shares with its agent: the call that it is in, and how far that is.

    0   assignment, index       of the call that began last (`worker` writes it before each call)
    16  checksum, permille, length of the text, assignment, index, text

Progress is written without a lock by whatever thread or child of the call has something to say,
and read by the agent when it likes: a record that is caught half-written, or that two have written
at once, does not fit its checksum, and the next look finds a whole one. So a call pays no system
call for it, and can never be made to wait by an agent that is busy or frozen.
"""

import mmap
import struct
from typing import Final
from zlib import crc32

from forage_wire.running import PROGRESS_TEXT_MAX

__all__ = ["PAGE_BYTES", "POSITION", "read_progress", "write_progress"]

POSITION: Final = struct.Struct("<QQ")
_AT: Final = POSITION.size
_CHECKSUM: Final = struct.Struct("<I")
_RECORD: Final = struct.Struct("<HHQQ")
_TEXT_BYTES_MAX = 4 * PROGRESS_TEXT_MAX
PAGE_BYTES: Final = _AT + _CHECKSUM.size + _RECORD.size + _TEXT_BYTES_MAX

Progress = tuple[int, int, int, str]
"""(assignment, index, permille, text)."""


def write_progress(page: mmap.mmap, assignment: int, index: int, permille: int, text: str) -> None:
    """Replace what was said before.

    Args:
        page: `PAGE_BYTES` long.
        assignment: Of the call ...
        index: ... and which of it.
        permille: 0 to 1,000.
        text: At most `PROGRESS_TEXT_MAX` characters.
    """
    data = text.encode(errors="backslashreplace")[:_TEXT_BYTES_MAX]
    record = _RECORD.pack(permille, len(data), assignment, index) + data
    page[_AT : _AT + _CHECKSUM.size + len(record)] = _CHECKSUM.pack(crc32(record)) + record


def read_progress(page: mmap.mmap) -> Progress | None:
    """What was said last; None where nothing was, or it is just being said."""
    at = _AT + _CHECKSUM.size
    permille, length, assignment, index = _RECORD.unpack_from(page, at)
    if assignment == 0 or permille > 1_000 or length > _TEXT_BYTES_MAX:
        return None
    end = at + _RECORD.size + length
    if crc32(page[at:end]) != _CHECKSUM.unpack_from(page, _AT)[0]:
        return None
    text = page[at + _RECORD.size : end].decode(errors="replace")[:PROGRESS_TEXT_MAX]
    return assignment, index, permille, text

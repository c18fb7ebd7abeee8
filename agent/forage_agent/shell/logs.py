"""Reads what workers write to stdout and stderr: lines, whose they are, not too many of them."""

import os
import re
import select
from typing import Final

from forage_wire.limits import LOG_LINE_BYTES_MAX

__all__ = ["LINES_PER_S_MAX", "LINE_BYTES_PER_S_MAX", "LogReader"]

LINES_PER_S_MAX: Final = 2_000
LINE_BYTES_PER_S_MAX: Final = 256 * 1024
"""Above either, what a worker writes within the second is dropped, and a line says how much."""
_RECEIVE_BYTES = 64 * 1024
_MARK = re.compile(rb"([0-9]{1,19})\.([0-9]{1,10})")
_CUT = b" ... (cut: the line is longer)"

Row = tuple[int, int, str, str]


class LogReader:
    """One stream of one worker.

    Args:
        descriptor: The non-blocking end to read from.
        stream: `out` or `err`.
    """

    def __init__(self, descriptor: int, stream: str) -> None:
        self.descriptor = descriptor
        self.stream = stream
        self._partial = b""
        self._is_in_mark = False
        self._is_skipping = False
        self._owner = (0, 0)
        self._second = -1
        self._lines = 0
        self._line_bytes = 0
        self._dropped = 0

    def read(self, now_ms: int) -> list[Row] | None:
        """The complete lines of one receive, as `LogLines` wants them; None where it is over."""
        try:
            data = os.read(self.descriptor, _RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            return None
        rows: list[Row] = []
        self._begin_second(now_ms, rows)
        self._split(data, rows)
        return rows

    def finish(self, now_ms: int) -> list[Row]:
        """All that can still be read, and the last line though it has no end."""
        rows: list[Row] = []
        while True:
            found = self.read(now_ms)
            if not found:
                # A receive without a whole line is not the end.
                if found is None or not _is_readable(self.descriptor):
                    break
                continue
            rows.extend(found)
        if self._partial and not self._is_in_mark:
            self._end_line(rows)
        self._tell_dropped(rows)
        return rows

    def _begin_second(self, now_ms: int, rows: list[Row]) -> None:
        if now_ms // 1_000 != self._second:
            self._second = now_ms // 1_000
            self._lines = self._line_bytes = 0
            self._tell_dropped(rows)

    def _tell_dropped(self, rows: list[Row]) -> None:
        if self._dropped:
            text = f"... {self._dropped} lines dropped: more than a log can carry"
            rows.append((*self._owner, self.stream, text))
            self._dropped = 0

    def _split(self, data: bytes, rows: list[Row]) -> None:
        at = 0
        while at < len(data):
            newline = data.find(b"\n", at)
            nul = (
                -1 if self._is_in_mark else data.find(b"\0", at, newline if newline >= 0 else None)
            )
            end = nul if nul >= 0 else newline
            self._append(data[at : end if end >= 0 else None])
            if end < 0:
                return
            if self._is_in_mark:
                self._end_mark(rows)
            else:
                self._is_in_mark = end == nul
                # A mark ends a line that has no end of its own; an empty line needs its newline.
                if self._partial or not self._is_in_mark:
                    self._end_line(rows)
            at = end + 1

    def _append(self, piece: bytes) -> None:
        if self._is_skipping:
            return
        self._partial += piece
        if len(self._partial) > LOG_LINE_BYTES_MAX:
            self._partial = self._partial[: LOG_LINE_BYTES_MAX - len(_CUT)] + _CUT
            self._is_skipping = True

    def _end_mark(self, rows: list[Row]) -> None:
        self._is_in_mark = False
        self._is_skipping = False
        text, self._partial = self._partial, b""
        if not text:
            self._owner = (0, 0)
            return
        match = _MARK.fullmatch(text)
        if match is not None:
            self._owner = (int(match[1]), int(match[2]))
        else:
            # No mark of ours: a task that writes NUL.
            self._partial = text
            self._end_line(rows)

    def _end_line(self, rows: list[Row]) -> None:
        self._is_skipping = False
        line, self._partial = self._partial, b""
        self._lines += 1
        self._line_bytes += len(line)
        if self._lines > LINES_PER_S_MAX or self._line_bytes > LINE_BYTES_PER_S_MAX:
            self._dropped += 1
            return
        text = line.rstrip(b"\r").decode(errors="replace")
        rows.append((*self._owner, self.stream, text))


def _is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])

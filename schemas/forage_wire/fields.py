"""The kinds of fields that several messages and documents share."""

from forage_wire import kinds
from forage_wire.limits import (
    PACKET_BYTES_MAX,
    PACKET_BYTES_MIN,
    TASK_CALLS_MAX,
    UNFINISHED_PART_BYTES_MAX,
)
from forage_wire.topics import CLIENT_PATTERN, NAME_PATTERN, TASK_PATTERN

__all__ = [
    "SESSION_PATTERN",
    "SESSION",
    "SESSION_OR_EMPTY",
    "NAME",
    "NAME_OR_EMPTY",
    "CLIENT",
    "TASK",
    "PYTHON",
    "UINT",
    "INDEX",
    "HASH",
    "RANGES",
    "TASK_RANGES",
    "BLOB",
    "SENTENCE",
    "PACKET",
    "DURATION",
    "FORM",
    "REASON",
]

SESSION_PATTERN = r"[0-9a-f]{16}-[0-9]{1,10}"
"""A session: 64 random bits drawn at process start, and the connect counter."""

SESSION = kinds.pattern(SESSION_PATTERN, "a session")
SESSION_OR_EMPTY = kinds.pattern(SESSION_PATTERN, "a session", empty=True)
NAME = kinds.pattern(NAME_PATTERN, "a name")
NAME_OR_EMPTY = kinds.pattern(NAME_PATTERN, "a name", empty=True)
CLIENT = kinds.pattern(CLIENT_PATTERN, "a client")
TASK = kinds.pattern(TASK_PATTERN, "a task id")
PYTHON = kinds.pattern(r"3\.[0-9]{1,3}", "a Python minor such as 3.11", empty=True)
UINT = kinds.unsigned()
INDEX = kinds.unsigned(TASK_CALLS_MAX)
HASH = kinds.data(32, 32)
RANGES = kinds.ranges()
TASK_RANGES = kinds.list_of(kinds.row(TASK, RANGES))
BLOB = kinds.data(UNFINISHED_PART_BYTES_MAX)
SENTENCE = kinds.text(1_024)
PACKET = kinds.unsigned(PACKET_BYTES_MAX * 1_024, PACKET_BYTES_MIN)
DURATION = kinds.unsigned(2**53)
FORM = kinds.one_of("pickle", "source", "named")
REASON = kinds.text(32)

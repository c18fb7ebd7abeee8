"""Calls as a worker has them: read as far as they can be before it is their turn."""

from typing import Any

import cbor2

from forage_wire.values import read_plain_calls

__all__ = ["Chunk", "read_chunk"]

_READ_AHEAD_BYTES_MAX = 64 * 1024


class Chunk:
    """Consecutive calls of one assignment, as they came.

    Args:
        assignment: Whose calls they are ...
        low: ... and the index of the first of them.
        function: Its key.
        python: The client's.
        bodies: One for each call, unread.
        arguments: Of each call, where they are read already.
        states: Call -> the checkpoint that it came with.
        is_awaited: The outcome of the last one leaves at once.
    """

    __slots__ = (
        "arguments",
        "assignment",
        "begun",
        "bodies",
        "count",
        "function",
        "is_awaited",
        "low",
        "python",
        "states",
    )

    def __init__(
        self,
        assignment: int,
        low: int,
        function: bytes,
        python: str,
        bodies: list[Any],
        arguments: list[tuple[Any, ...] | None],
        states: dict[int, bytes],
        is_awaited: bool,
    ) -> None:
        self.assignment = assignment
        self.low = low
        self.function = function
        self.python = python
        self.bodies = bodies
        self.arguments = arguments
        self.states = states
        self.is_awaited = is_awaited
        self.count = len(bodies)
        """How many are to be run: fewer than there are where the others were given back."""
        self.begun = 0


def read_chunk(
    assignment: int,
    low: int,
    high: int,
    function: bytes,
    python: str,
    calls: bytes,
    is_awaited: bool,
    checkpoints: list[tuple[int, bytes]],
) -> Chunk:
    """The chunk in a frame of the agent's: see `frames`."""
    try:
        bodies = cbor2.loads(calls)
    # Unreadable calls are each their own error: an empty body cannot be read either.
    except Exception:
        bodies = None
    if type(bodies) is not list or len(bodies) != high - low:
        bodies = [b""] * (high - low)
    # Not so what is long: it would be twice in memory for as long as it waits.
    if len(bodies) > 1 and len(calls) <= _READ_AHEAD_BYTES_MAX:
        arguments = read_plain_calls(bodies)
    else:
        arguments = [None] * len(bodies)
    return Chunk(
        assignment, low, function, python, bodies, arguments, dict(checkpoints), is_awaited
    )

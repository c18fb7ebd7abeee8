"""The states of a worker's calls: `forage.checkpoint` and `forage.restore`, at the worker's end.

Only the thread that runs the calls may use them. A thread that a call has left behind, or a child
that it has forked, would name whatever call is running by then, and one call would go on from
another's state.
"""

import threading
from collections.abc import Callable
from typing import Any

import cbor2

from forage_wire.errors import DecodeError, NotSerializable, VersionMismatch
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.values import decode_outcome_item, encode_outcome_value

__all__ = ["CallStates"]


class CallStates:
    """Of the call that runs now: what it was given to go on from, and where its states go.

    Args:
        send: Takes a state as bytes, on behalf of the call that runs now.
        is_fork: Whether this process is a child of the worker's.
    """

    def __init__(self, send: Callable[[bytes], None], is_fork: Callable[[], bool]) -> None:
        self._send = send
        self._is_fork = is_fork
        self._thread = threading.get_ident()
        self.given: bytes | None = None
        """The checkpoint that the call came with."""

    def keep(self, state: Any) -> None:
        """Send a state to the agent, which has it when this returns or this process dies."""
        self._check_caller("checkpoint")
        try:
            data = encode_outcome_value(state, what="the checkpoint")
        except NotSerializable as error:
            raise NotSerializable(f"The state is not kept: {error}.") from error
        if len(data) > CALL_BYTES_MAX:
            raise NotSerializable(
                f"A checkpoint of {len(data)} bytes is not kept, for the limit is "
                f"{CALL_BYTES_MAX}; keep less, or write it to a place that all devices reach."
            )
        self._send(data)

    def kept(self) -> tuple[Any] | None:
        """The state that the call was given, read anew each time."""
        self._check_caller("restore")
        if self.given is None:
            return None
        try:
            outcome = decode_outcome_item(cbor2.loads(self.given))
        except VersionMismatch as error:
            raise VersionMismatch(
                f"The checkpoint of an earlier attempt cannot be read here: {error}. Keep plain "
                "values, which every version reads."
            ) from error
        # Hostile or damaged bytes make cbor2 and pickle raise nearly anything.
        except Exception as error:
            raise DecodeError(
                f"The checkpoint of an earlier attempt cannot be read here: {error}"
            ) from error
        if not outcome.ok:
            raise DecodeError("The checkpoint of an earlier attempt is no value.")
        return (outcome.value,)

    def _check_caller(self, name: str) -> None:
        if self._is_fork():
            raise RuntimeError(
                f"forage.{name} is for the process that runs the call, not for its children: hand "
                "them what they need, and keep what they bring back."
            )
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                f"forage.{name} is for the thread that runs the call: from others there is no "
                "knowing whether that call is still the one that runs."
            )

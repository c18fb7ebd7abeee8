"""Calls and outcomes: (args, kwargs) and values to bytes and back, each in its best kind."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

__all__ = [
    "KIND_CBOR",
    "KIND_CODE",
    "KIND_HANDLE",
    "KIND_PICKLE",
    "KIND_PLAIN",
    "Outcome",
    "decode_call",
    "decode_outcome_item",
    "encode_call",
    "encode_outcome_value",
]

KIND_PLAIN: Final = 0
KIND_CBOR: Final = 1
KIND_PICKLE: Final = 2
KIND_CODE: Final = 3
KIND_HANDLE: Final = 4


class Outcome(NamedTuple):
    """What a call came to: a value (`ok`), or the error map for `rebuild_error`."""

    ok: bool
    value: Any


def encode_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    function: Callable[..., Any] | None = None,
) -> bytes:
    """The call body for these arguments.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        function: Names the parameters in errors; not otherwise used.

    Raises:
        NotSerializable: An argument cannot travel; the message names it.
    """
    raise NotImplementedError


def decode_call(body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in a call body. Load the call's function first: it may bring modules.

    Raises:
        DecodeError: Not a call body, or its pickle cannot be loaded here (says why).
        VersionMismatch: It holds code of another Python minor.
    """
    raise NotImplementedError


def encode_outcome_value(value: Any, *, client_python: str = "") -> bytes:
    """The outcome item (CBOR) of a call's result.

    Args:
        value: The result.
        client_python: The client's Python minor ("3.13"), where known.

    Raises:
        NotSerializable: It cannot travel.
        VersionMismatch: It holds code, and the client's Python minor is another; names the class.
    """
    raise NotImplementedError


def decode_outcome_item(item: object) -> Outcome:
    """The outcome in an item of an outcomes message (already loaded by cbor2).

    Raises:
        DecodeError: Not an outcome item, or its pickle cannot be loaded here.
        VersionMismatch: It holds code of another Python minor.
    """
    raise NotImplementedError

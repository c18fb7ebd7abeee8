"""Exceptions as data: a worker describes one as a map, a client makes one of the same type.

An exception never travels as a pickle.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["RemoteTraceback", "encode_error", "rebuild_error"]


class RemoteTraceback(Exception):
    """Stands as the `__cause__` of a rebuilt error: its text is the device's traceback."""


def encode_error(exception: BaseException, *, traceback_text: str | None = None) -> bytes:
    """The outcome item (CBOR map) of an exception.

    Args:
        exception: What the user's function raised.
        traceback_text: As users shall read it; None formats the exception's own traceback.
    """
    raise NotImplementedError


def rebuild_error(item: Mapping[str, Any], device: str, attempt: int) -> BaseException:
    """The exception that an error map describes, ready to be raised.

    Its type is the original where that is a builtin or a class already imported here, else
    `TaskFailed`. `__cause__` holds the remote traceback as text; a note names device and
    attempt. Never raises: a malformed map becomes a `TaskFailed` that says so.
    """
    raise NotImplementedError

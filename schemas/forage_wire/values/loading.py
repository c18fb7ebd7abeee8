"""How a worker makes a shipped function callable again."""

from collections.abc import Callable
from typing import Any

__all__ = ["load"]


def load(blob: bytes, form: str, python: str) -> Callable[..., Any]:
    """The function in a blob.

    Args:
        blob: `ShippedFunction.blob`.
        form: `ShippedFunction.form`.
        python: `ShippedFunction.python`.

    Raises:
        VersionMismatch: A pickle of another Python minor, or source with a newer grammar.
        DecodeError: Not a blob.
        Exception: Whatever the user's modules raise while they are imported.
    """
    raise NotImplementedError

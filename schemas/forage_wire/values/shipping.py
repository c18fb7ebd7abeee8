"""How a function is made ready to travel: as source where it can, as a pickle where it cannot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FunctionCache", "ShippedFunction", "ship"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedFunction:
    """A function's code as it travels.

    Attributes:
        hash: SHA-256 of `blob`, 32 bytes: the function's name on the wire.
        blob: The code. Equal functions give equal blobs.
        form: "source" runs on any Python from `python_min` on; "pickle" on `python` alone.
        python: The Python minor that made the blob, as "3.13".
        python_min: The lowest minor (11 = 3.11) that can load it.
        name: For people: "helpers.resize".
        reason_not_source: Why it goes as a pickle, as a clause ("it is a lambda"); else empty.
    """

    hash: bytes
    blob: bytes
    form: Literal["pickle", "source"]
    python: str
    python_min: int
    name: str
    reason_not_source: str


def ship(function: Callable[..., Any]) -> ShippedFunction:
    """Make a function ready to travel.

    Raises:
        NotSerializable: Something that it needs cannot travel; names it.
    """
    raise NotImplementedError


class FunctionCache:
    """Shipped functions, reused while nothing that they depend on can have changed.

    Holds functions weakly. Safe for use by several threads.
    """

    def get(self, function: Callable[..., Any]) -> ShippedFunction:
        """The function as shipped last, or shipped anew where anything in it can have changed."""
        raise NotImplementedError

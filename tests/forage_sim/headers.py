"""Headers as those who look on read them: each once, for every page and assignment repeats its own."""

from functools import lru_cache

from forage_wire import codec
from forage_wire.messages import Header

__all__ = ["decode_header"]


@lru_cache(maxsize=1_024)
def decode_header(data: bytes) -> Header:
    """As the codec's."""
    return codec.decode_header(data)

"""Errors of the wire.

WireError
  DecodeError      bytes of a peer that are not a message of ours: count, drop, go on
"""

__all__ = ["DecodeError", "WireError"]


class WireError(Exception):
    """Something is wrong with a message."""


class DecodeError(WireError):
    """The peer's fault: bytes that are no valid message."""

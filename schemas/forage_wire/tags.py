"""Slice tags: what lets a device answer only for what it was given.

The controller makes a tag for each assignment with the task's key, which the client drew and
which no device sees; outcomes carry it, and client and controller check it.
"""

from hashlib import blake2s
from hmac import compare_digest

import cbor2

__all__ = ["slice_tag", "slice_tag_valid"]


def slice_tag(key: bytes, task: str, assignment: int, low: int, high: int, device: str) -> bytes:
    """16 bytes: BLAKE2s keyed with the task's key over CBOR [task, assignment, low, high, device].

    Args:
        key: The task's 16 random bytes.
        task: The task's id.
        assignment: The assignment's number.
        low: First index of the slice as assigned.
        high: End of the slice as assigned (not of what is left after a trim).
        device: The name of the device it is given to.
    """
    said = cbor2.dumps([task, assignment, low, high, device])
    return blake2s(said, digest_size=16, key=key).digest()


def slice_tag_valid(
    tag: bytes, key: bytes, task: str, assignment: int, low: int, high: int, device: str
) -> bool:
    """Whether `tag` is the tag of that slice; takes the same time for any wrong one."""
    return compare_digest(tag, slice_tag(key, task, assignment, low, high, device))

"""Errors that no user's code raised: made by agent, worker or controller, told apart by reason.

    error map   {"reason": text code, "message": one sentence, "details": map of plain values}

An error of a user's code has no `reason` (see `forage_wire.values.failures`). Both are outcome
items; `forage_wire.values.rebuild_error` makes exceptions of them at the client.
"""

from typing import Final

import cbor2

__all__ = [
    "CANCELLED",
    "DATA_LOST",
    "DEVICE_LOST",
    "NOT_SERIALIZABLE",
    "NO_DEVICE",
    "OUT_OF_MEMORY",
    "REFUSED",
    "TIMEOUT",
    "VERSION_MISMATCH",
    "WORKER_DIED",
    "system_error",
]

CANCELLED: Final = "cancelled"
"""TaskCancelled."""
TIMEOUT: Final = "timeout"
"""TaskTimeout. Details: `timeout_ms`."""
DEVICE_LOST: Final = "device-lost"
"""DeviceLost. Details: `device`."""
NO_DEVICE: Final = "no-device"
"""NoDevice. Details: `reasons`, a map of device name to sentence."""
DATA_LOST: Final = "data-lost"
"""DataLost."""
REFUSED: Final = "refused"
"""Refused."""
VERSION_MISMATCH: Final = "version-mismatch"
"""VersionMismatch."""
NOT_SERIALIZABLE: Final = "not-serializable"
"""NotSerializable: the result cannot travel, or is above the limit."""
WORKER_DIED: Final = "worker-died"
"""TaskFailed. Details: `signal` or `exit_code`, and `deaths`."""
OUT_OF_MEMORY: Final = "out-of-memory"
"""TaskFailed: the kernel ended the worker for its memory."""


def system_error(reason: str, message: str, **details: object) -> bytes:
    """An outcome item (CBOR) for an error that no user's code raised.

    Args:
        reason: One of this module's constants. An unknown one becomes `TaskFailed`.
        message: One sentence: what happened, why, and what to do.
        details: Plain values (text, integers, lists and maps of them).
    """
    item: dict[str, object] = {"reason": reason, "message": message}
    if details:
        item["details"] = details
    return cbor2.dumps(item)

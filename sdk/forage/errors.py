"""Every error that forage raises: the tree stands in `forage_wire.errors`, which all parts share."""

from forage_wire.errors import (
    DataLost,
    DecodeError,
    DeviceLost,
    ForageError,
    NoDevice,
    NoQuorum,
    NotConnected,
    NotSerializable,
    Refused,
    TaskCancelled,
    TaskFailed,
    TaskTimeout,
    VersionMismatch,
    WireError,
)

__all__ = [
    "ForageError",
    "NotConnected",
    "NoDevice",
    "DeviceLost",
    "TaskTimeout",
    "TaskCancelled",
    "NoQuorum",
    "TaskFailed",
    "DataLost",
    "NotSerializable",
    "VersionMismatch",
    "Refused",
    "WireError",
    "DecodeError",
]

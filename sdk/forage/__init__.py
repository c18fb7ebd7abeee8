"""forage: run Python functions on a drawer of devices, over MQTT.

    import forage

    with forage.connect("mqtt://localhost") as client:
        print(client.submit(pow, 2, 10).result())

Importing this package costs next to nothing: everything is loaded when it is first used.
"""

from forage_wire.version import __version__

# Type checkers take this name for true; `typing` itself would be the dearest import here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from forage.agreement import Replicas
    from forage.batch import Batch, Progress
    from forage.client import Client
    from forage.cluster import LocalCluster
    from forage.connecting import connect
    from forage.errors import (
        DataLost,
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
    )
    from forage.future import Future
    from forage.info import Attempt, CallCheckpoint, CallProgress, DeviceInfo, Explanation, TaskInfo
    from forage.within import checkpoint, progress, restore

__all__ = [
    "connect",
    "LocalCluster",
    "progress",
    "checkpoint",
    "restore",
    "Client",
    "Future",
    "Batch",
    "Progress",
    "DeviceInfo",
    "TaskInfo",
    "Attempt",
    "CallCheckpoint",
    "CallProgress",
    "Explanation",
    "Replicas",
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
    "__version__",
]

_HOMES = {
    "connect": "forage.connecting",
    "LocalCluster": "forage.cluster",
    "progress": "forage.within",
    "checkpoint": "forage.within",
    "restore": "forage.within",
    "Client": "forage.client",
    "Future": "forage.future",
    "Batch": "forage.batch",
    "Progress": "forage.batch",
    "DeviceInfo": "forage.info",
    "TaskInfo": "forage.info",
    "Attempt": "forage.info",
    "CallCheckpoint": "forage.info",
    "CallProgress": "forage.info",
    "Explanation": "forage.info",
    "Replicas": "forage.agreement",
    "ForageError": "forage.errors",
    "NotConnected": "forage.errors",
    "NoDevice": "forage.errors",
    "DeviceLost": "forage.errors",
    "TaskTimeout": "forage.errors",
    "TaskCancelled": "forage.errors",
    "NoQuorum": "forage.errors",
    "TaskFailed": "forage.errors",
    "DataLost": "forage.errors",
    "NotSerializable": "forage.errors",
    "VersionMismatch": "forage.errors",
    "Refused": "forage.errors",
}
"""Which module each public name lives in; it is imported when the name is first used."""


# Hidden from type checkers, which would take any name of the module for a good one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'forage' has no attribute {name!r}")
        value: object = getattr(__import__(home, fromlist=[name]), name)
        # Found at once from now on; this function is not asked again.
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

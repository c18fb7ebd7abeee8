"""The text documents of the protocol: what people and monitors read, as JSON.

One frozen class for each rule of `forage.cddl`; fields as in `forage_wire.messages`.
"""

from typing import Annotated

from forage_wire import fields, kinds
from forage_wire.limits import PACKET_BYTES_MAX
from forage_wire.records import dataclass, field

__all__ = [
    "JSON_DOCUMENTS",
    "DevicePresence",
    "DeviceCapabilities",
    "DeviceLoad",
    "ControllerPresence",
    "ControllerStats",
    "DeviceVerdict",
    "ClientPresence",
    "TaskStatus",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePresence:
    """A device's own word, retained; its will says `lost`."""

    state: Annotated[
        str, "state", kinds.one_of("online", "draining", "sleeping", "offline", "lost")
    ]
    session: Annotated[str, "session", fields.SESSION]
    protocol: Annotated[str, "protocol", kinds.pattern(r"[0-9]{1,3}\.[0-9]{1,3}", "a version")] = (
        "1.0"
    )
    software: Annotated[str, "software", kinds.text(64)] = ""
    uptime_s: Annotated[int, "uptime_s", fields.UINT] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCapabilities:
    """What a device is and has, retained."""

    session: Annotated[str, "session", fields.SESSION]
    slots: Annotated[int, "slots", kinds.unsigned(4_096)]
    cores: Annotated[int, "cores", kinds.unsigned(65_536)] = 1
    strength: Annotated[float, "strength", kinds.number()] = 1
    """Speed of one core relative to a Raspberry Pi 4's."""
    memory_bytes: Annotated[int, "memory_bytes", fields.UINT] = 0
    queue_bytes_max: Annotated[int, "queue_bytes_max", fields.UINT] = 0
    """Argument bytes it holds at a time."""
    packet_bytes_max: Annotated[int, "packet_bytes_max", fields.PACKET] = PACKET_BYTES_MAX
    profile: Annotated[str, "profile", kinds.one_of("python", "mcu")] = "python"
    arch: Annotated[str, "arch", kinds.text(32)] = ""
    os: Annotated[str, "os", kinds.text(64)] = ""
    python: Annotated[str, "python", fields.PYTHON] = ""
    network: Annotated[str, "network", kinds.text(32)] = ""
    network_bytes_s: Annotated[int, "network_bytes_s", fields.UINT] = 0
    address: Annotated[str, "address", kinds.text(256)] = ""
    """Its own address towards the broker."""
    broker: Annotated[str, "broker", kinds.text(256)] = ""
    """The broker's address as it sees it (no credentials)."""
    labels: Annotated[dict[str, str], "labels", kinds.text_map()] = field(default_factory=dict)
    resources: Annotated[dict[str, int], "resources", kinds.text_map(value=fields.UINT)] = field(
        default_factory=dict
    )
    functions: Annotated[dict[str, str], "functions", kinds.text_map()] = field(
        default_factory=dict
    )
    """Named functions and their versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoad:
    """How busy a device is, retained; every 30 s idle, on real change otherwise."""

    session: Annotated[str, "session", fields.SESSION]
    seq: Annotated[int, "seq", fields.UINT]
    cpu_percent: Annotated[float, "cpu_percent", kinds.number()] = 0
    memory_percent: Annotated[float, "memory_percent", kinds.number()] = 0
    temperature_c: Annotated[float | None, "temperature_c", kinds.nullable(kinds.number())] = None
    throttled: Annotated[bool | None, "throttled", kinds.nullable(kinds.boolean())] = None
    battery_percent: Annotated[float | None, "battery_percent", kinds.nullable(kinds.number())] = (
        None
    )
    running: Annotated[int, "running", fields.UINT] = 0
    queued: Annotated[int, "queued", fields.UINT] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerPresence:
    """A controller's word, retained; its will says `lost`."""

    state: Annotated[str, "state", kinds.one_of("starting", "active", "standby", "offline", "lost")]
    epoch: Annotated[int, "epoch", kinds.unsigned(2**23 - 1)]
    session: Annotated[str, "session", fields.SESSION]
    protocol: Annotated[str, "protocol", kinds.pattern(r"[0-9]{1,3}\.[0-9]{1,3}", "a version")] = (
        "1.0"
    )
    reconnect_spread_ms: Annotated[int, "reconnect_spread_ms", kinds.unsigned(3_600_000)] = 500
    software: Annotated[str, "software", kinds.text(64)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerStats:
    """The controller's figures, retained, at most one a second."""

    session: Annotated[str, "session", fields.SESSION]
    devices: Annotated[int, "devices", fields.UINT] = 0
    """Alive now."""
    slots: Annotated[int, "slots", fields.UINT] = 0
    clients: Annotated[int, "clients", fields.UINT] = 0
    tasks: Annotated[int, "tasks", fields.UINT] = 0
    """Not released."""
    queued: Annotated[int, "queued", fields.UINT] = 0
    running: Annotated[int, "running", fields.UINT] = 0
    """Calls assigned and not settled."""
    settled: Annotated[int, "settled", fields.UINT] = 0
    """Since start."""
    settled_per_s: Annotated[float, "settled_per_s", kinds.number()] = 0
    clones: Annotated[int, "clones", fields.UINT] = 0
    """Second attempts of calls that took long, since start ..."""
    clones_first: Annotated[int, "clones_first", fields.UINT] = 0
    """... and those of them that ended first."""
    dropped: Annotated[int, "dropped", fields.UINT] = 0
    """Messages that could not be read, since start."""
    ignored: Annotated[int, "ignored", fields.UINT] = 0
    """Keys in messages that it did not know, since start."""
    detect_ms: Annotated[int, "detect_ms", fields.UINT] = 0
    """Longest effective detection time of any device."""
    standbys: Annotated[dict[str, int], "standbys", kinds.text_map(value=fields.UINT)] = field(
        default_factory=dict
    )
    """Controllers that stand by and follow: name -> committed groups that they have not."""
    copying: Annotated[tuple[str, ...], "copying", kinds.list_of(fields.NAME, 64)] = ()
    """Controllers that stand by and have no complete copy yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceVerdict:
    """What the controller makes of a device, retained."""

    verdict: Annotated[str, "verdict", kinds.one_of("alive", "suspect", "dead")]
    why: Annotated[str, "why", kinds.text(256)] = ""
    since_s: Annotated[int, "since_s", fields.UINT] = 0
    """Seconds since the device was last heard, when this was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPresence:
    """A client is here, retained; its will and its goodbye are empty messages."""

    state: Annotated[str, "state", kinds.one_of("online")]
    session: Annotated[str, "session", fields.SESSION]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """How far a task is, retained while it lives; at most one a second."""

    label: Annotated[str, "label", kinds.text(64)] = ""
    calls: Annotated[int, "calls", fields.UINT]
    queued: Annotated[int, "queued", fields.UINT]
    running: Annotated[int, "running", fields.UINT]
    """Assigned and not settled."""
    settled: Annotated[int, "settled", fields.UINT]
    failed: Annotated[int, "failed", fields.UINT] = 0
    attempts: Annotated[int, "attempts", fields.UINT] = 0
    """Assignments made so far."""
    devices: Annotated[tuple[str, ...], "devices", kinds.list_of(fields.NAME, 256)] = ()


JSON_DOCUMENTS: dict[str, type] = {
    "device-presence": DevicePresence,
    "device-capabilities": DeviceCapabilities,
    "device-load": DeviceLoad,
    "controller-presence": ControllerPresence,
    "controller-stats": ControllerStats,
    "verdict": DeviceVerdict,
    "client-presence": ClientPresence,
    "status": TaskStatus,
}
"""The document of each text branch of `forage_wire.topics`."""

"""What a device says of itself in public: presence, capabilities and load, retained, as JSON."""

from dataclasses import replace
from typing import Literal

from forage_agent.core.events import LoadMeasured
from forage_agent.core.settings import (
    LOAD_EVERY_MS,
    LOAD_EVERY_MS_MIN,
    PRESENCE_REPAIR_EVERY_MS,
    Settings,
)
from forage_wire.codec import encode_json
from forage_wire.io import Publish
from forage_wire.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR
from forage_wire.messages import DeviceCapabilities, DeviceLoad, DevicePresence
from forage_wire.topics import Topics

__all__ = ["PublicWord"]

_State = Literal["online", "draining", "offline", "lost"]

# A change of the load that is worth a message before its time.
_CPU_POINTS = 20
_MEMORY_POINTS = 5
_TEMPERATURE_DEGREES = 3
_BATTERY_POINTS = 5


class PublicWord:
    """Makes the device's text documents, and knows when one is due."""

    def __init__(self, settings: Settings, topics: Topics) -> None:
        self._settings = settings
        self._topics = topics
        self.capabilities: DeviceCapabilities = settings.capabilities
        self.state: _State = "online"
        self._session = ""
        self._started_ms: int | None = None
        self._measured = LoadMeasured(cpu_percent=0, memory_percent=0)
        self._said: DeviceLoad | None = None
        self._said_ms = 0
        self._sequence = 0
        self._repaired_ms: int | None = None
        self._is_broken = False
        self._has_moved = False
        """The readings differ from what was said of them."""
        self.silent_until_ms = 0
        """`due` names nothing before."""

    def begin(self, session: str, now_ms: int) -> None:
        """A connection with this session is here."""
        self._session = session
        self._said = None
        self._is_broken = False
        self.silent_until_ms = 0
        if self._started_ms is None:
            self._started_ms = now_ms

    def measured(self, event: LoadMeasured) -> None:
        """Fresh readings; the load is said again when they are news."""
        self._measured = event
        self._has_moved = self._said is not None and _have_moved(self._said, event)

    def will(self, session: str) -> Publish:
        """What the broker is to say if this session's connection breaks."""
        return self._presence("lost", session, 0)

    def presence(self, now_ms: int) -> Publish:
        """The device's word now."""
        uptime_ms = now_ms - (self._started_ms if self._started_ms is not None else now_ms)
        return self._presence(self.state, self._session, uptime_ms // 1_000)

    def _presence(self, state: _State, session: str, uptime_s: int) -> Publish:
        document = DevicePresence(
            state=state,
            session=session,
            protocol=f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}",
            software=self._settings.software,
            uptime_s=uptime_s,
        )
        topic = self._topics.device_presence(self._settings.device)
        return Publish(topic=topic, payload=encode_json(document), retain=True)

    def capabilities_document(self) -> Publish:
        """What the device is and has."""
        document = replace(self.capabilities, session=self._session)
        topic = self._topics.device_capabilities(self._settings.device)
        return Publish(topic=topic, payload=encode_json(document), retain=True)

    def heard(self, stands: DevicePresence) -> None:
        """What the broker has for this device's presence; another start's word is left alone."""
        is_up = self.state in ("online", "draining")
        self._is_broken = is_up and stands.state in ("lost", "offline")
        self.silent_until_ms = 0

    def due(self, running: int, queued: int, now_ms: int) -> list[Publish]:
        """What is to be said now: the load, and our state where the broker has another."""
        said = (self._load(running, queued, now_ms), self._repair(now_ms))
        self.silent_until_ms = 0 if self._is_broken else self._said_ms + LOAD_EVERY_MS_MIN
        return [one for one in said if one is not None]

    def next_wakeup_ms(self, running: int, queued: int) -> int:
        """When `due` will name something without further readings."""
        load_ms = self._load_due_ms(running, queued)
        repair_ms = self._repair_due_ms()
        return load_ms if repair_ms is None else min(load_ms, repair_ms)

    def _repair_due_ms(self) -> int | None:
        """When what stands is to be overwritten; None: it need not be."""
        if not self._is_broken:
            return None
        return 0 if self._repaired_ms is None else self._repaired_ms + PRESENCE_REPAIR_EVERY_MS

    def _repair(self, now_ms: int) -> Publish | None:
        """The device's word again, where it is due."""
        due_ms = self._repair_due_ms()
        if due_ms is None or now_ms < due_ms:
            return None
        self._is_broken = False
        self._repaired_ms = now_ms
        return self.presence(now_ms)

    def _load(self, running: int, queued: int, now_ms: int) -> Publish | None:
        """The load, if it is time for it or if it has changed."""
        if now_ms < self._load_due_ms(running, queued):
            return None
        measured = self._measured
        found = DeviceLoad(
            session=self._session,
            seq=self._sequence + 1,
            cpu_percent=measured.cpu_percent,
            memory_percent=measured.memory_percent,
            temperature_c=measured.temperature_c,
            throttled=measured.throttled,
            battery_percent=measured.battery_percent,
            running=running,
            queued=queued,
        )
        self._said = found
        self._said_ms = now_ms
        self._has_moved = False
        self._sequence += 1
        topic = self._topics.device_load(self._settings.device)
        return Publish(topic=topic, payload=encode_json(found), qos=0, retain=True)

    def _load_due_ms(self, running: int, queued: int) -> int:
        said = self._said
        if said is None:
            return self._said_ms
        is_news = (
            self._has_moved
            or (said.running > 0) != (running > 0)
            or (said.queued > 0) != (queued > 0)
            or abs(running - said.running) * 4 > self.capabilities.slots
        )
        return self._said_ms + (LOAD_EVERY_MS_MIN if is_news else LOAD_EVERY_MS)


def _have_moved(said: DeviceLoad, now: LoadMeasured) -> bool:
    """Whether readings are worth a message before its time."""
    return (
        said.throttled != now.throttled
        or _differs(said.cpu_percent, now.cpu_percent, _CPU_POINTS)
        or _differs(said.memory_percent, now.memory_percent, _MEMORY_POINTS)
        or _differs(said.temperature_c, now.temperature_c, _TEMPERATURE_DEGREES)
        or _differs(said.battery_percent, now.battery_percent, _BATTERY_POINTS)
    )


def _differs(before: float | None, now: float | None, by: float) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(now - before) >= by

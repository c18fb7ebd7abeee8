"""How long a device may be silent: its detection time, how often it is to beat, what does not count.

Silence counts only while we listened: not before we were there, and not while our own loop was late.
"""

from forage_controller.core.config import CoreConfig
from forage_controller.core.state import Device

__all__ = ["Silence"]

_DETECT_LOOPBACK_MS = 500
_DETECT_MS = 15_000
_BEATS_PER_S = 1_000
"""All devices' beats together stay below this."""
_BEAT_MS_MIN = 10
_BEAT_MS_MAX = 5_000
"""A busy device beats at least this often, so that `_BROKERS_PATIENCE_MS` tells of it."""
_BROKERS_PATIENCE_MS = 10_000
"""The keepalive of all. A broker ends a connection that was silent for 1.5 of it or more, so a will
that comes sooner than this after a sign of life tells of a process that died."""
_GAPS_MAX = 64
"""Gaps of our own loop remembered: each shorter than the one before, as only those tell more."""


class Silence:
    """What the silence of each device means."""

    __slots__ = ("_config", "_gaps", "busy", "listening_since_ms")

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self._gaps: list[tuple[int, int]] = []
        self.busy = 0
        """Devices that hold work now."""
        self.listening_since_ms = 0

    def detect_ms(self, device: Device) -> int:
        """Effective detection time of a device: a busy one is dead after this much silence."""
        base = self._config.detect_ms
        if base is None:
            base = _DETECT_LOOPBACK_MS if device.is_beside_broker else _DETECT_MS
        return max(base, 4 * self.busy * 1_000 // _BEATS_PER_S)

    def beat_ms(self, device: Device) -> int:
        """How often a device gives a sign of life while it holds work."""
        quarter_ms = max(_BEAT_MS_MIN, self.detect_ms(device) // 4)
        return min(quarter_ms, max(_BEAT_MS_MAX, self.busy * 1_000 // _BEATS_PER_S))

    def patience_ms(self, device: Device) -> int:
        """After how much silence a device is dead, busy or not."""
        if device.assignments:
            return self.detect_ms(device)
        return self._config.limits.idle_load_ms * 7 // 2

    def listen_from(self, now_ms: int) -> None:
        """Silence before this does not count: we were not there to hear."""
        self.listening_since_ms = max(self.listening_since_ms, now_ms)

    def paused(self, length_ms: int, now_ms: int) -> None:
        """Our own loop came this late: silence in a gap above a quarter of a device's detection
        time does not count, while a loop that is always a little late still finds the dead."""
        while self._gaps and self._gaps[-1][0] <= length_ms:
            self._gaps.pop()
        self._gaps.append((length_ms, now_ms))
        del self._gaps[:-_GAPS_MAX]

    def since_ms(self, device: Device) -> int:
        """From when on a device's silence counts."""
        since_ms = max(device.heard_ms, self.listening_since_ms, device.busy_since_ms)
        if self._gaps and self._gaps[-1][1] >= since_ms:
            quarter_ms = self.detect_ms(device) // 4
            for length_ms, end_ms in reversed(self._gaps):
                if end_ms <= since_ms:
                    break
                if length_ms > quarter_ms:
                    return end_ms
        return since_ms

    def will_tells_nothing(self, device: Device, now_ms: int) -> bool:
        """Whether a will may be of a device that lives, and only lost its connection.

        Where it holds work and was silent for longer than brokers are patient, the will tells no
        more than the silence itself, which is for the detection time to judge: on a network that
        loses packets the device finds a new connection in time.
        """
        silent_ms = now_ms - self.since_ms(device)
        return bool(device.assignments) and silent_ms >= _BROKERS_PATIENCE_MS

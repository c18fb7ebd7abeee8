"""Devices that held work when the controller stopped, and have not come since it rules again."""

from collections.abc import Callable

from forage_controller.core.state import Device

__all__ = ["Unheard"]


class Unheard:
    """Who is waited for, and until when.

    Args:
        names: Those that the store knows work of.
        devices: All.
        lose_all: Told (device, why, now_ms) when a device's work is to go to others.
    """

    __slots__ = ("_devices", "_lose_all", "_names", "due_ms")

    def __init__(
        self,
        names: list[str],
        devices: dict[str, Device],
        lose_all: Callable[[Device, str, int], None],
    ) -> None:
        self._names = names
        self._devices = devices
        self._lose_all = lose_all
        self.due_ms: int | None = None
        """When `check` has something to do."""

    def wait_until(self, due_ms: int) -> None:
        """From now on we would hear them."""
        if self._names:
            self.due_ms = due_ms

    def check(self, now_ms: int) -> None:
        """Give the work of those that have not come to others, when their time is up."""
        if self.due_ms is None or now_ms < self.due_ms:
            return
        self.due_ms = None
        names, self._names = self._names, []
        for name in names:
            device = self._devices[name]
            if not device.verified:
                self._lose_all(device, "not heard since the controller's restart", now_ms)

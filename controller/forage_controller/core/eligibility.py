"""Which devices may run what, and which of those have room: kept up to date, device by device.

A slice is placed without a look at devices that are full or may not run it, so its cost does not
grow with the fleet. Membership changes when a device comes, goes or says what it has; room
changes with every assignment and outcome.
"""

from dataclasses import dataclass, field

from forage_controller.core.backlog import Requirement
from forage_controller.core.feasible import why_not
from forage_controller.core.state import Device
from forage_wire.messages import Header

__all__ = ["FREE", "FULL", "ROOMY", "SPARE", "Eligible", "Eligibility"]

FULL = 0
"""Nothing more."""
SPARE = 1
"""Its window is full; a function with nothing running gets one slice beyond it."""
ROOMY = 2
"""Its window has room, though all slots may be at work."""
FREE = 3
"""A slot has nothing to do."""

_REQUIREMENTS_MAX = 1_024
"""Requirements that no calls wait with, kept because they often come again."""


@dataclass(slots=True, eq=False, repr=False)
class Eligible:
    """The devices that may run calls of one requirement."""

    header: Header
    devices: dict[str, Device] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    """Their slots ..."""
    slots: int = 0
    """... and all together."""
    spare: dict[str, Device] = field(default_factory=dict)
    """With room for a function that has nothing running ..."""
    roomy: dict[str, Device] = field(default_factory=dict)
    """... and for any."""

    def set_room(self, device: Device, room: int) -> None:
        """Note how much room a device has."""
        # Calls that may run once only wait here, not there: where they wait, they may be lost.
        once = self.header.options.at_most_once
        _include(self.roomy, device, room >= (FREE if once else ROOMY))
        _include(self.spare, device, room >= (FREE if once else SPARE))


def _include(devices: dict[str, Device], device: Device, included: bool) -> None:
    if included:
        devices[device.name] = device
    else:
        devices.pop(device.name, None)


class Eligibility:
    """An index over the fleet: requirement -> devices, by the room they have."""

    __slots__ = ("_entries", "_of_device", "_room", "roomy", "spare")

    def __init__(self) -> None:
        self._entries: dict[Requirement, Eligible] = {}
        self._of_device: dict[str, dict[Requirement, Eligible]] = {}
        self._room: dict[str, int] = {}
        self.roomy: dict[Requirement, Eligible] = {}
        """Those with a roomy device."""
        self.spare: dict[Requirement, Eligible] = {}
        """Those with a device that has at least spare room."""

    def __getitem__(self, requirement: Requirement) -> Eligible:
        """The entry of a requirement that was `add`ed."""
        return self._entries[requirement]

    def add(self, requirement: Requirement, header: Header, fleet: dict[str, Device]) -> Eligible:
        """Index a requirement, with a look at every device; the next time it is known."""
        entry = self._entries.pop(requirement, None)
        if entry is None:
            entry = Eligible(header=header)
            self._entries[requirement] = entry
            for device in fleet.values():
                self._judge(requirement, entry, device)
        self._entries[requirement] = entry
        return entry

    def forget_unused(self, used: dict[Requirement, object]) -> None:
        """Drop the oldest entries above the limit that no calls wait with."""
        surplus = len(self._entries) - len(used) - _REQUIREMENTS_MAX
        if surplus <= 0:
            return
        for requirement in [each for each in self._entries if each not in used][:surplus]:
            entry = self._entries.pop(requirement)
            self.roomy.pop(requirement, None)
            self.spare.pop(requirement, None)
            for name in entry.devices:
                del self._of_device[name][requirement]

    def changed(self, device: Device) -> list[Requirement]:
        """A device may run other calls now; the answer is what some device may (not) run now."""
        news: list[Requirement] = []
        for requirement, entry in self._entries.items():
            before = bool(entry.devices)
            self._judge(requirement, entry, device)
            if bool(entry.devices) != before:
                news.append(requirement)
        return news

    def _judge(self, requirement: Requirement, entry: Eligible, device: Device) -> None:
        name = device.name
        was_there = name in entry.devices
        if why_not(device, entry.header):
            if was_there:
                del entry.devices[name]
                del self._of_device[name][requirement]
                entry.slots -= entry.counted.pop(name)
                entry.set_room(device, FULL)
                self._note_room(requirement, entry)
            return
        entry.slots += device.slots - entry.counted.get(name, 0)
        entry.counted[name] = device.slots
        if was_there:
            return
        entry.devices[name] = device
        self._of_device.setdefault(name, {})[requirement] = entry
        entry.set_room(device, self._room.get(name, FULL))
        self._note_room(requirement, entry)

    def set_room(self, device: Device, room: int) -> None:
        """A device has more or less room than it had."""
        if self._room.get(device.name, FULL) == room:
            return
        self._room[device.name] = room
        for requirement, entry in self._of_device.get(device.name, {}).items():
            entry.set_room(device, room)
            self._note_room(requirement, entry)

    def _note_room(self, requirement: Requirement, entry: Eligible) -> None:
        for devices, index in ((entry.roomy, self.roomy), (entry.spare, self.spare)):
            if devices:
                index[requirement] = entry
            else:
                index.pop(requirement, None)

    def room_of(self, device: Device) -> int:
        """What was last noted of a device."""
        return self._room.get(device.name, FULL)

    def forget(self, device: Device) -> None:
        """A device is not known any more; it may run nothing."""
        self._room.pop(device.name, None)
        self._of_device.pop(device.name, None)

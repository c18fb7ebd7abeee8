"""Second attempts: when nothing waits and a slot is free, a call that takes long gets a clone.

The rule is LATE's (Zaharia, Konwinski, Joseph, Katz and Stoica, "Improving MapReduce performance
in heterogeneous environments", OSDI 2008): of the calls that are slow, clone the one that would
end last, a few at a time, and only where the copy is expected to end before the first. Whichever
ends first wins; the other is killed.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog
from forage_controller.core.feasible import why_not
from forage_controller.core.state import Device, Open

__all__ = ["Stragglers", "copy_us", "left_us"]

_LOOK_EVERY_MS = 500
_LOOK_EVERY_MS_MAX = 10_000
_SHARE = 4
"""What runs is looked at again when it has run for a quarter longer."""
_CLONE_AFTER_MS = 1_000
"""A call that has run for less is nobody's concern."""
_SLOW = 2.0
"""A call is slow that has run so many times as long as others of its function take."""
_SLOTS_A_CLONE = 10
"""One clone at a time for so many slots of the fleet, and one at least: LATE's cap."""
_LOOKED_AT = 1_024
"""Assignments looked at in one batch, those that run for longest first."""
_THIEVES_LOOKED_AT = 64


def left_us(elapsed_us: int, mean_us: float | None, permille: int) -> float | None:
    """How long a running call is expected to take yet; None: it is not known to be slow.

    Args:
        elapsed_us: How long it has run.
        mean_us: How long calls of its function take; None: not known.
        permille: How far it says it is; 0: it says nothing.
    """
    if permille:
        left = elapsed_us * (1_000 - permille) / permille
        is_slow = mean_us is None or elapsed_us + left > _SLOW * mean_us
        return left if is_slow else None
    if mean_us is None or elapsed_us < _SLOW * mean_us:
        return None
    # What has run for so long, against expectation, is expected to take as long again.
    return float(elapsed_us)


def copy_us(
    elapsed_us: int, mean_us: float | None, permille: int, *, strength: float, other: float
) -> float:
    """How long a copy is expected to take on another device.

    Args:
        elapsed_us: As in `left_us`, which is not None.
        mean_us: As there.
        permille: As there; above 0 where `mean_us` is None.
        strength: Of a core where the call runs.
        other: Of a core there.
    """
    if mean_us is not None:
        return mean_us
    return elapsed_us * 1_000 / permille * strength / max(other, 0.01)


class Stragglers:
    """Looks for calls worth a second attempt while slots are free.

    `clone(opened, index, device, now_ms)` makes one; None where it cannot (now).
    """

    __slots__ = ("_assignments", "_backlog", "_clone", "_clones", "_devices", "_look_ms")

    def __init__(
        self,
        assignments: Assignments,
        backlog: Backlog,
        devices: dict[str, Device],
        clone: Callable[[Open, int, Device, int], Open | None],
    ) -> None:
        self._assignments = assignments
        self._backlog = backlog
        self._devices = devices
        self._clone = clone
        self._clones: dict[int, None] = {}
        """Numbers of those that were made and may be open."""
        self._look_ms: int | None = None

    def next_wakeup_ms(self) -> int | None:
        """When `look` has something to do."""
        return self._look_ms

    def look(self, free: Iterable[Device], now_ms: int) -> None:
        """Give clones of the slowest calls to free devices.

        Args:
            free: Devices with a slot that nothing is meant for.
            now_ms: Now.
        """
        is_of_use = self._assignments.busy and not self._backlog.waiting
        idle = list(islice(free, _THIEVES_LOOKED_AT)) if is_of_use else []
        if not idle:
            self._look_ms = None
            return
        if self._look_ms is None:
            self._look_ms = now_ms + _LOOK_EVERY_MS
        if now_ms < self._look_ms:
            return
        pause_ms = self._pause_ms(now_ms)
        self._look_ms = None if pause_ms is None else now_ms + pause_ms
        for number in [each for each in self._clones if each not in self._assignments.open]:
            del self._clones[number]
        slots = sum(device.slots for device in self._devices.values() if device.verdict != "dead")
        room = max(1, slots // _SLOTS_A_CLONE) - len(self._clones)
        if room <= 0:
            return
        for _left, opened, index in sorted(self._slow(now_ms), key=_by_left, reverse=True):
            made = self._give(opened, index, idle, now_ms)
            if made is not None:
                idle.remove(made)
                room -= 1
            if room <= 0 or not idle:
                return

    def _pause_ms(self, now_ms: int) -> int | None:
        """How long nothing changes much: a fleet with one call of an hour is left alone.

        None: until something happens.
        """
        youngest_ms = min(
            (
                now_ms - opened.running[1]
                for opened in islice(self._assignments.open.values(), _LOOKED_AT)
                if opened.running is not None
            ),
            default=None,
        )
        if youngest_ms is None:
            return None
        return min(_LOOK_EVERY_MS_MAX, max(_LOOK_EVERY_MS, youngest_ms // _SHARE))

    def _slow(self, now_ms: int) -> Iterator[tuple[float, Open, int]]:
        """The calls known to be slow: how long each may take yet."""
        for opened in islice(self._assignments.open.values(), _LOOKED_AT):
            if opened.running is None or not _may_be_cloned(opened):
                continue
            index, since_ms = opened.running
            elapsed_us = 1_000 * (now_ms - since_ms)
            if elapsed_us < 1_000 * _CLONE_AFTER_MS or index in opened.task.done:
                continue
            permille, _text = opened.task.progress.get(index, (0, ""))
            left = left_us(elapsed_us, opened.measure.mean_us, permille)
            if left is not None and not opened.page.has_other(opened, index):
                yield left, opened, index

    def _give(self, opened: Open, index: int, idle: list[Device], now_ms: int) -> Device | None:
        """The device that got a clone of a call; None: none is expected to be quicker."""
        assert opened.running is not None
        elapsed_us = 1_000 * (now_ms - opened.running[1])
        mean_us = opened.measure.mean_us
        permille, _text = opened.task.progress.get(index, (0, ""))
        left = left_us(elapsed_us, mean_us, permille)
        here = opened.device
        for device in sorted(idle, key=_strength, reverse=True):
            if device is here or why_not(device, opened.page.header):
                continue
            copy = copy_us(
                elapsed_us, mean_us, permille, strength=_strength(here), other=_strength(device)
            )
            if left is None or copy >= left:
                return None
            made = self._clone(opened, index, device, now_ms)
            if made is not None:
                self._clones[made.number] = None
                return device
        return None


def _may_be_cloned(opened: Open) -> bool:
    options = opened.page.header.options
    return (
        options.clones
        and not options.at_most_once
        and not options.exclusive
        # Which device has which is not for chance to decide.
        and options.replicas < 2
        # It may be what its last device died of.
        and not opened.announce
        and not opened.is_clone
    )


def _by_left(row: tuple[float, Open, int]) -> float:
    return row[0]


def _strength(device: Device) -> float:
    return 0.0 if device.capabilities is None else float(device.capabilities.strength)

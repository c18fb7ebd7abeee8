"""Judging outcomes: who may say them, whether they can be read, which of them are news."""

import cbor2

from forage.core.tasks import TaskRecord
from forage_wire.messages import OutcomeSet
from forage_wire.ranges import Ranges
from forage_wire.system_errors import system_error
from forage_wire.tags import slice_tag_valid

__all__ = ["judge", "only_fresh"]

UNREADABLE = cbor2.loads(
    system_error("unreadable", "The device's outcome for this call cannot be read.")
)


def is_given(outcomes: OutcomeSet, task: TaskRecord, device: str) -> bool:
    """Whether a device was given the calls that it answers for, and tells us of them itself.

    Where the controller settles, an outcome counts when that has committed it.
    """
    key, ranges = task.key, outcomes.ranges
    return (
        bool(key)
        and task.settle == "direct"
        and outcomes.low <= ranges[0][0]
        and ranges[-1][1] <= outcomes.high
        and slice_tag_valid(
            outcomes.tag,
            key,
            outcomes.task,
            outcomes.assignment,
            outcomes.low,
            outcomes.high,
            device,
        )
    )


def items_of(outcomes: OutcomeSet, count: int) -> list[object] | None:
    """The outcome items, one for each of `count` indices; None where they cannot be read."""
    try:
        items = cbor2.loads(outcomes.data)
    # Hostile bytes make cbor2 raise many things (also RecursionError and OverflowError).
    except Exception:
        return None
    if type(items) is not list:
        return None
    if len(items) == 1 and outcomes.assignment == 0:
        # The controller ended them all for one reason.
        return items * count
    return items if len(items) == count else None


def judge(
    outcomes: OutcomeSet, task: TaskRecord, device: str, count: int, *, archived: bool
) -> list[object] | str:
    """The outcome items, one for each index, or why they do not count.

    Args:
        outcomes: Of calls of `task`.
        task: As this client knows it.
        device: Who sent them, or had.
        count: How many they are.
        archived: Whether they come from the controller, which has judged them.
    """
    ranges = outcomes.ranges
    if ranges[-1][1] > task.submitted or not (archived or is_given(outcomes, task, device)):
        return "an outcome without a right"
    items = items_of(outcomes, count)
    if items is None:
        # The archive's copy decides; the controller offers it when nobody collects.
        return [UNREADABLE] * count if archived else "unreadable outcomes"
    return items


def only_fresh(
    task: TaskRecord, ranges: Ranges, items: list[object], retried: set[int]
) -> tuple[Ranges, list[object]]:
    """The ranges and items of calls that have no outcome yet and will not run again."""
    fresh_ranges: list[tuple[int, int]] = []
    fresh_items: list[object] = []
    position = 0
    for low, high in ranges:
        for index in range(low, high):
            if index not in retried and index not in task.resolved:
                if fresh_ranges and fresh_ranges[-1][1] == index:
                    fresh_ranges[-1] = (fresh_ranges[-1][0], index + 1)
                else:
                    fresh_ranges.append((index, index + 1))
                fresh_items.append(items[position])
            position += 1
    return tuple(fresh_ranges), fresh_items

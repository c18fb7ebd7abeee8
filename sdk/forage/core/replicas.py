"""Calls with replicas at a client: users count their calls, the wire counts every run.

All that goes out is spread over the runs of a call, and what comes in is told with the call's own
number. A run's outcome is *held* until whoever compares values says that its call is decided: only
then it has ended and the controller may let go of it, so that until then a controller that starts
again, and another client that attaches, find every outcome.
"""

from forage.core.commands import Command, NoteAttempts, NoteProgress, NoteStarted, ReplicasEnded
from forage.core.events import AttachAsked
from forage.core.tasks import TaskRecord
from forage_wire.messages import Progress, Started
from forage_wire.ranges import Ranges
from forage_wire.records import replace
from forage_wire.replicas import ReplicaLayout

__all__ = ["attached_record", "attempts_of", "decide", "hold", "news_of", "open_calls"]


def attached_record(event: AttachAsked) -> TaskRecord:
    """The record of another client's task."""
    record = TaskRecord(task=event.task)
    record.attached = True
    record.submitted = event.calls * event.replicas
    record.sealed = True
    if event.replicas > 1:
        record.layout = ReplicaLayout(event.replicas, event.blocks, event.calls)
    return record


def hold(
    task: TaskRecord,
    device: str,
    ranges: Ranges,
    items: list[object],
    again: dict[int, str],
    out: list[Command],
) -> int:
    """Take in outcomes of runs, and say which of them are news.

    Args:
        task: Whose.
        device: Whose word they are; empty where the controller made them.
        ranges: Runs that have ended, or will be tried again.
        items: One for each.
        again: Those of them that will be.
        out: Gets the news.

    Returns:
        How many were known.
    """
    assert task.layout is not None
    rows: list[tuple[int, object]] = []
    known = position = 0
    for low, high in ranges:
        for run in range(low, high):
            item = items[position]
            position += 1
            if task.is_here(run):
                known += 1
            elif run not in again:
                task.hold(run)
                rows.append((task.layout.call_of(run), item))
    if rows:
        out.append(ReplicasEnded(task=task.task, device=device, rows=tuple(rows)))
    return known


def decide(task: TaskRecord, calls: Ranges) -> tuple[list[tuple[int, int]], Ranges]:
    """Calls are decided: (their runs that have not ended by that, those without any outcome)."""
    assert task.layout is not None
    fresh: list[tuple[int, int]] = []
    for low, high in task.layout.runs_of(calls):
        fresh += task.resolved.missing(low, high)
    unwanted = task.without_held(fresh)
    task.force(unwanted)
    if task.held is not None:
        for low, high in fresh:
            task.held.remove(low, high)
    return fresh, tuple(unwanted)


def open_calls(task: TaskRecord) -> Ranges:
    """The calls of a task that are not decided, as their user counts them."""
    if task.layout is None:
        return task.open_ranges()
    return task.layout.calls_missing(task.resolved)


def attempts_of(task: TaskRecord, device: str, retried: list[tuple[int, str]]) -> NoteAttempts:
    """Runs failed and go out again: their calls' attempts."""
    rows = tuple([(_call(task, index), reason) for index, reason in retried])
    return NoteAttempts(task=task.task, device=device, rows=rows)


def news_of(
    tasks: dict[str, TaskRecord], device: str, message: Started | Progress
) -> list[Command]:
    """What a device says of runs that have not ended, as news of their calls."""
    if isinstance(message, Progress):
        task = _open_task(tasks, message.task, message.index)
        if task is None:
            return []
        said = replace(message, index=_call(task, message.index))
        return [NoteProgress(device=device, said=said)]
    rows: list[tuple[str, int]] = []
    for row in message.rows:
        task = _open_task(tasks, row[0], row[1])
        if task is not None:
            rows.append((row[0], _call(task, row[1])))
    return [NoteStarted(device=device, rows=tuple(rows))] if rows else []


def _open_task(tasks: dict[str, TaskRecord], name: str, index: int) -> TaskRecord | None:
    """The task of ours that a run without an outcome belongs to."""
    task = tasks.get(name)
    if task is None or index >= task.submitted or task.is_here(index):
        return None
    return task


def _call(task: TaskRecord, index: int) -> int:
    return index if task.layout is None else task.layout.call_of(index)

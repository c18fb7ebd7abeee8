"""From what the store held to where the controller was."""

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog, queue_key
from forage_controller.core.clients import Clients
from forage_controller.core.codes import CodeShelf
from forage_controller.core.fleet import Fleet
from forage_controller.core.ledger import Ledger
from forage_controller.core.operations import RecoveredState, RecoveredTask
from forage_controller.core.running import RunningTime
from forage_controller.core.state import Device, Open, Page, Task
from forage_wire.codec import decode_header

__all__ = ["recover"]


def recover(
    state: RecoveredState,
    clients: Clients,
    fleet: Fleet,
    ledger: Ledger,
    assignments: Assignments,
    backlog: Backlog,
    codes: CodeShelf,
    running: RunningTime,
) -> list[str]:
    """Rebuild tasks, open assignments and the backlog (at time 0).

    Calls under an open assignment wait for its device; all others are queued at once.

    Returns:
        The names of devices that hold open assignments and have not been heard.
    """
    codes.recovered(state.codes)
    ledger.released.update(dict.fromkeys(state.released, ledger.keep_ms))
    for row in state.tasks:
        _task(row, clients, ledger, running)
    for checkpoint in state.checkpoints:
        kept_of = ledger.tasks.get(checkpoint.task)
        if kept_of is not None and checkpoint.index not in kept_of.done:
            ledger.checkpoints.recovered(kept_of, checkpoint)
    for saved in state.assignments:
        task = ledger.tasks.get(saved.task)
        page = task.pages.get(saved.first) if task else None
        if task is None or page is None:
            continue
        device = fleet.devices.setdefault(saved.device, Device(name=saved.device))
        # Whoever parses no presence is asked by the session that we knew.
        device.session, device.state = saved.session, "online"
        opened = Open(
            number=saved.assignment,
            task=task,
            page=page,
            low=saved.low,
            high=saved.high,
            end=saved.high,
            device=device,
            session=saved.session,
            counters=(saved.tries, saved.deaths, saved.losses),
            measure=backlog.measure_of(page.header.function),
            sent=True,
        )
        assignments.register(opened, 0)
        assignments.settled_before(opened, 0)
    for opened in assignments.open.values():
        # Two attempts of a call are on purpose, whichever of them was the first.
        opened.has_clone = len(opened.page.holding(opened.low, opened.end)) > 1
    for task in list(ledger.tasks.values()):
        for page in task.pages.values():
            ledger.queue(task, page, 0)
        ledger.release_if_over(task, 0)
    return [device.name for device in fleet.devices.values() if device.assignments]


def _task(row: RecoveredTask, clients: Clients, ledger: Ledger, running: RunningTime) -> None:
    client = clients.client(row.user, row.client)
    # A status of it may stand on the broker.
    task = Task(id=row.task, client=client, key=row.key, label=row.label, made_ms=0, status_ms=0)
    for saved in row.pages:
        header = decode_header(saved.header)
        page = Page(
            first=saved.first,
            n=saved.n,
            last=saved.last,
            header_bytes=saved.header,
            header=header,
            queue_key=queue_key(header),
            calls_bytes=saved.calls_bytes,
            due_ms=None if saved.due_ms is None else running.now_of(saved.due_ms),
            committed=True,
        )
        ledger.add_page(task, page)
    task.settled.update(row.settled)
    task.committed.update(row.settled)
    task.collected.update(row.collected)
    task.done.update(row.settled)
    task.done.update(row.collected)
    task.failed = row.failed
    for low, high, tries, deaths, losses in row.counters:
        for index in range(low, high):
            if index not in task.done:
                task.counters[index] = (tries, deaths, losses)
    task.archived = sum(
        gap_high - gap_low
        for low, high in task.settled
        for gap_low, gap_high in task.collected.missing(low, high)
    )
    task.archive_bytes = row.archive_bytes
    ledger.archived += task.archived
    ledger.archive_bytes += row.archive_bytes
    ledger.add_task(task, header)
    if task.replicas > 1:
        for device, ranges in row.answered:
            task.note_answered(ranges, device)
        task.forget_replicas(task.collected)

"""Outcomes that come in: which of them count, and which are still to be asked for."""

from forage.core.collecting import Collecting
from forage.core.commands import Command, ResolveCalls
from forage.core.outcomes import judge, only_fresh
from forage.core.replicas import attempts_of, hold
from forage.core.sending import Sending
from forage.core.tasks import TaskRecord
from forage_wire.messages import Fetch, OutcomeSet, Settled
from forage_wire.ranges import Ranges, ranges_count

__all__ = ["Receiving"]


class Receiving:
    """The first valid outcome of a call counts.

    Args:
        tasks: The client's, until they are released.
        sending: What is said to the controller.
        collecting: What is said to have been collected.
    """

    __slots__ = ("_collecting", "_sending", "_tasks", "repeated")

    def __init__(
        self, tasks: dict[str, TaskRecord], sending: Sending, collecting: Collecting
    ) -> None:
        self._tasks = tasks
        self._sending = sending
        self._collecting = collecting
        self.repeated = 0
        """Outcomes of calls that had one already."""

    def on_outcomes(
        self,
        outcomes: OutcomeSet,
        device: str,
        now_ms: int,
        out: list[Command],
        *,
        archived: bool,
    ) -> str:
        """Take a set; why it cannot be used, or nothing."""
        task = self._tasks.get(outcomes.task)
        ranges = outcomes.ranges
        if task is None or not ranges:
            self.repeated += ranges_count(ranges)
            return ""
        count = ranges_count(ranges)
        items = judge(outcomes, task, device, count, archived=archived)
        if isinstance(items, str):
            return items
        for page in task.take_unopened(ranges[0][0], ranges[-1][1]):
            self._sending.opened(page, now_ms)
        retried = [
            (index, reason)
            for index, reason, final in outcomes.errors
            if not final and index not in task.resolved
        ]
        if retried:
            out.append(attempts_of(task, device, retried))
        if task.layout is not None:
            self.repeated += hold(task, device, ranges, items, dict(retried), out)
            return ""
        if retried or (task.resolved.count and any(task.resolved.common(*each) for each in ranges)):
            ranges, items = only_fresh(task, ranges, items, {index for index, _ in retried})
        self.repeated += count - len(items) - len(retried)
        if items:
            self._collecting.note_ended(task, ranges, now_ms)
            out.append(ResolveCalls(task=task.task, device=device, ranges=ranges, items=items))
        return ""

    def on_settled(self, message: Settled, now_ms: int) -> None:
        """Ask for what has an outcome there and none here."""
        lacking: list[tuple[str, Ranges]] = []
        for task, ranges in message.rows:
            record = self._tasks.get(task)
            if record is None:
                # Released, or never known: whatever it is, nobody waits for it here.
                self._sending.say_collected([(task, ranges)])
                continue
            missing, ended = record.judge_settled(ranges)
            if missing:
                lacking.append((task, tuple(missing)))
            # What has ended and is offered all the same was said too early: it is said again.
            self._collecting.note_ended(record, ended, now_ms)
        if lacking:
            self._sending.send(Fetch(rows=tuple(lacking)))

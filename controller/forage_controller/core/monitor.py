"""What people and monitors are shown: tasks' status, the controller's figures, tasks' output."""

from itertools import islice

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog
from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.fleet import Fleet
from forage_controller.core.ledger import Ledger
from forage_controller.core.replicas import Replicas
from forage_controller.core.state import Task
from forage_wire.codec import encode_json
from forage_wire.limits import LOG_LINE_BYTES_MAX
from forage_wire.messages import ControllerStats, TaskStatus
from forage_wire.topics import Topics

__all__ = ["Monitor"]

_STATUSES_AT_ONCE = 64
"""Tasks whose status is said in one batch: thousands may change in a second, and the fleet waits."""
_PORTIONS = 4
"""As often in the time between two words of a task while there are more."""
_LOOKED_AT = 2_048
"""Changed tasks looked at in one batch."""
_LINE_BYTES = 16
"""What a line counts for beside its characters: empty ones take room too."""


class Monitor:
    """Publishes documents at most once a second; keeps the last output of each task."""

    def __init__(
        self,
        config: CoreConfig,
        effects: Effects,
        topics: Topics,
        fleet: Fleet,
        ledger: Ledger,
        backlog: Backlog,
        assignments: Assignments,
        replicas: Replicas,
    ) -> None:
        self._config = config
        self._limits = config.limits
        self._effects = effects
        self._topics = topics
        self._fleet = fleet
        self._ledger = ledger
        self._backlog = backlog
        self._assignments = assignments
        self._replicas = replicas
        self._next_ms: int | None = None
        self._last_stats: ControllerStats | None = None
        self._last_settled = 0
        self._last_stats_ms = 0
        self._logs: dict[str, Task] = {}
        self.logs_bytes = 0
        """What the output that is kept counts for."""
        self._dirty: dict[str, Task] = {}

    def next_wakeup_ms(self) -> int | None:
        """When `publish` has something to say."""
        return self._next_ms

    def connected(self) -> None:
        """The broker may have forgotten what it kept: say it again."""
        self._last_stats = None
        for task in self._ledger.tasks.values():
            if task.status_ms is not None:
                self._dirty[task.id] = task

    def publish(self, now_ms: int, *, clients: int) -> None:
        """Once a second while anything changes: status of changed tasks, and the figures."""
        if self._ledger.dirty:
            self._take_changed()
        every_ms = self._limits.status_every_ms
        if self._next_ms is None:
            if self._dirty or self._stats_changed(clients):
                self._next_ms = now_ms + every_ms
            return
        if now_ms < self._next_ms:
            return
        left = _STATUSES_AT_ONCE
        for task in list(islice(self._dirty.values(), _LOOKED_AT)):
            # Of one that lives for less than this nobody is told.
            if now_ms - task.made_ms >= every_ms:
                self._publish_task(task, now_ms)
                left -= 1
                if left == 0:
                    break
        is_early = now_ms - self._last_stats_ms < every_ms
        if not is_early:
            self._publish_stats(now_ms, clients)
        if left == 0:
            self._next_ms = now_ms + every_ms // _PORTIONS
        else:
            self._next_ms = now_ms + every_ms if self._dirty or is_early else None

    def _take_changed(self) -> None:
        """Note whose status is to be said, and take back what was said of those that have ended."""
        changed, self._ledger.dirty = self._ledger.dirty, {}
        for task in changed.values():
            if task.id in self._ledger.tasks:
                self._dirty[task.id] = task
                continue
            self._dirty.pop(task.id, None)
            if task.id not in self._ledger.ended:
                self._drop_log(task)
            if task.status_ms is not None:
                task.status_ms = None
                self._effects.publish(self._topic(task), b"", retain=True)

    def _publish_task(self, task: Task, now_ms: int) -> None:
        del self._dirty[task.id]
        task.status_ms = now_ms
        running = sum(opened.left for opened in task.open.values())
        status = TaskStatus(
            label=task.label,
            calls=task.calls,
            queued=max(0, task.calls - task.done.count - running),
            running=running,
            settled=task.settled.count,
            failed=task.failed,
            attempts=task.assigned,
            devices=tuple(task.devices)[:256],
        )
        self._effects.publish(self._topic(task), encode_json(status), retain=True)

    def _topic(self, task: Task) -> str:
        return self._topics.status(task.client.user, task.client.name, task.id)

    def _stats(self, clients: int, per_s: float) -> ControllerStats:
        alive = [device for device in self._fleet.devices.values() if device.verdict != "dead"]
        running = sum(opened.left for device in alive for opened in device.assignments.values())
        return ControllerStats(
            session=self._fleet.session,
            devices=len(alive),
            slots=sum(device.slots for device in alive),
            clients=clients,
            tasks=len(self._ledger.tasks),
            queued=self._backlog.waiting,
            running=running,
            settled=self._ledger.settled,
            settled_per_s=round(per_s, 1),
            clones=self._assignments.clones,
            clones_first=self._assignments.clones_first,
            dropped=self._effects.dropped,
            ignored=self._effects.ignored.count,
            detect_ms=max((self._fleet.silence.detect_ms(device) for device in alive), default=0),
            standbys=self._replicas.behind(),
            copying=self._replicas.copying(),
        )

    def _stats_changed(self, clients: int) -> bool:
        last = self._last_stats
        return (
            last is None
            or last.session != self._fleet.session
            or last.settled != self._ledger.settled
            or last.queued != self._backlog.waiting
            or last.devices != self._fleet.alive
            or last.clients != clients
            or last.tasks != len(self._ledger.tasks)
            or last.dropped != self._effects.dropped
            or last.ignored != self._effects.ignored.count
            or last.settled_per_s != 0
            or last.clones != self._assignments.clones
            or last.standbys != self._replicas.behind()
            or last.copying != self._replicas.copying()
        )

    def _publish_stats(self, now_ms: int, clients: int) -> None:
        if not self._fleet.session:
            return
        elapsed_ms = max(1, now_ms - self._last_stats_ms)
        per_s = 1_000 * (self._ledger.settled - self._last_settled) / elapsed_ms
        stats = self._stats(clients, per_s)
        self._last_settled, self._last_stats_ms = self._ledger.settled, now_ms
        if stats == self._last_stats:
            return
        self._last_stats = stats
        self._effects.publish(
            self._topics.controller_stats(self._config.name), encode_json(stats), qos=0, retain=True
        )

    # -- output -----------------------------------------------------------------------------

    def on_log(self, task_id: str, payload: bytes) -> None:
        """Lines of a task's output, as a device published them."""
        # The last lines may come after the outcome, and after that was collected.
        task = self._ledger.tasks.get(task_id) or self._ledger.ended.get(task_id)
        if task is None:
            return
        for line in payload[: 64 * LOG_LINE_BYTES_MAX].decode("utf-8", "replace").splitlines():
            self._add_line(task, line[:LOG_LINE_BYTES_MAX])
        self._logs.pop(task_id, None)
        self._logs[task_id] = task
        while self.logs_bytes > self._limits.logs_bytes and len(self._logs) > 1:
            self._drop_log(next(iter(self._logs.values())))

    def _add_line(self, task: Task, line: str) -> None:
        task.log.append(line)
        task.log_bytes += len(line) + _LINE_BYTES
        self.logs_bytes += len(line) + _LINE_BYTES
        while task.log_bytes > self._limits.log_bytes and len(task.log) > 1:
            dropped = len(task.log.pop(0)) + _LINE_BYTES
            task.log_bytes -= dropped
            self.logs_bytes -= dropped
            task.log_dropped += 1

    def _drop_log(self, task: Task) -> None:
        if self._logs.pop(task.id, None) is None:
            return
        self.logs_bytes -= task.log_bytes
        task.log_dropped += len(task.log)
        task.log.clear()
        task.log_bytes = 0

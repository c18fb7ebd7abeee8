"""Calls' checkpoints: the last one of each call that has not ended, for its next attempt.

Each stands in its task; this counts what they take together and sees to it that the store has the
same. They come from open assignments alone, and only forward: two attempts of one call may be
under way at once, and of what they have made the one that is further on is kept. A call goes on
from what is here, committed or not: what a crash takes, the device that runs the call sends again.
"""

from collections.abc import Iterable

from forage_controller.core.config import Limits
from forage_controller.core.effects import Effects
from forage_controller.core.operations import (
    ForgetCheckpoints,
    RecoveredCheckpoint,
    SaveCheckpoint,
)
from forage_controller.core.state import Checkpoint, Open, Task
from forage_wire.messages import Checkpoint as CheckpointMessage

__all__ = ["Checkpoints"]

_ENTRY_BYTES = 256
"""What a checkpoint takes beside its data: that of a million small ones is bounded, too."""
_TELL_EVERY_MS = 60_000


class Checkpoints:
    """What all of them take, and how they come and go."""

    def __init__(self, effects: Effects, limits: Limits) -> None:
        self._effects = effects
        self._bytes_max = limits.checkpoint_bytes
        self.bytes = 0
        """Of all that are kept."""
        self.stale = 0
        """Those that came too late, of attempts that were over or calls that had ended."""
        self._refused = 0
        self._tell_ms = 0

    def take(self, opened: Open | None, message: CheckpointMessage, now_ms: int) -> None:
        """Keep what a device sends, if the call is its own and has not ended.

        Args:
            opened: The assignment that the message names; None: it is not open.
            message: Of that assignment's device and task.
            now_ms: Now.
        """
        index = message.index
        if (
            opened is None
            or not opened.low <= index < opened.end
            or index in opened.reported
            or index in opened.task.done
        ):
            self.stale += 1
            return
        if opened.page.header.options.at_most_once:
            return
        task = opened.task
        former = task.checkpoints.get(index) if task.checkpoints else None
        if former is not None and former.number >= message.number:
            return
        added = _size(message.data) - (0 if former is None else _size(former.data))
        if self.bytes + added > self._bytes_max:
            self._refuse(task, index, len(message.data), now_ms)
            return
        kept = Checkpoint(message.number, message.data, now_ms, opened.device.name)
        self._put(task, index, kept, added)
        self._effects.save(
            SaveCheckpoint(
                task=task.id,
                index=index,
                number=message.number,
                data=message.data,
                device=kept.device,
            )
        )

        def is_committed(_at_ms: int) -> None:
            kept.committed = True

        self._effects.after_commit(is_committed)

    def recovered(self, task: Task, row: RecoveredCheckpoint) -> None:
        """The store has this one."""
        kept = Checkpoint(row.number, row.data, None, row.device, committed=True)
        self._put(task, row.index, kept, _size(row.data))

    def _put(self, task: Task, index: int, checkpoint: Checkpoint, added: int) -> None:
        if task.checkpoints is None:
            task.checkpoints = {}
        task.checkpoints[index] = checkpoint
        self.bytes += added

    def _refuse(self, task: Task, index: int, size: int, now_ms: int) -> None:
        self._refused += 1
        if now_ms < self._tell_ms:
            return
        self._tell_ms = now_ms + _TELL_EVERY_MS
        self._effects.note(
            "warning",
            f"checkpoints take {self.bytes} bytes of {self._bytes_max}: count={self._refused} "
            f"not kept, last of call={task.id}.{index} bytes={size}; the former ones stay",
        )
        self._refused = 0

    # -- ends -------------------------------------------------------------------------------

    def ended(self, task: Task, ranges: Iterable[tuple[int, int]]) -> None:
        """Calls have ended."""
        gone = [
            index for low, high in ranges for index in task.checkpoints or () if low <= index < high
        ]
        self._forget(task, gone)

    def drop(self, task: Task, index: int, level: str, why: str) -> None:
        """A call begins anew without its state."""
        self._effects.note(level, f"call={task.id}.{index} begins anew: {why}")
        self._forget(task, [index])

    def _forget(self, task: Task, indices: list[int]) -> None:
        if not indices or task.checkpoints is None:
            return
        for index in indices:
            self.bytes -= _size(task.checkpoints.pop(index).data)
        self._effects.save(ForgetCheckpoints(task=task.id, indices=tuple(indices)))

    def released(self, task: Task) -> None:
        """A task is let go, in the store too."""
        for checkpoint in (task.checkpoints or {}).values():
            self.bytes -= _size(checkpoint.data)
        task.checkpoints = None


def _size(data: bytes) -> int:
    return len(data) + _ENTRY_BYTES

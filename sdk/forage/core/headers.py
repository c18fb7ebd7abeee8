"""The headers of a client's pages: what the tasks of one function share is put together once."""

from forage.core.tasks import TaskRecord
from forage_wire.codec import SharedHeader
from forage_wire.messages import Header, Options

__all__ = ["Headers"]

_KEPT_MAX = 256
"""Functions, each with its options; beyond that all are made anew."""


class Headers:
    """Of one client.

    Args:
        user: On whose behalf.
        client: Its id.
        python: Its Python minor.
    """

    __slots__ = ("_client", "_known", "_python", "_user")

    def __init__(self, *, user: str, client: str, python: str) -> None:
        self._user = user
        self._client = client
        self._python = python
        # Options by identity, as hashing them costs much of what is saved; they are kept with it.
        self._known: dict[tuple[object, ...], tuple[Options, SharedHeader]] = {}

    def of(self, task: TaskRecord, packet_bytes_max: int) -> SharedHeader:
        """What is the same in the headers of all pages of this task, and of others like it."""
        key = (
            task.function,
            task.form,
            task.label,
            task.python_min,
            task.settle,
            id(task.options),
            packet_bytes_max,
        )
        known = self._known.get(key)
        if known is not None:
            return known[1]
        if len(self._known) >= _KEPT_MAX:
            self._known.clear()
        shared = SharedHeader(
            Header(
                user=self._user,
                client=self._client,
                task=task.task,
                function=task.function,
                form=task.form,
                label=task.label,
                python=self._python,
                python_min=task.python_min,
                packet_bytes_max=packet_bytes_max,
                settle=task.settle,
                options=task.options,
                first=0,
                n=1,
                last=False,
            )
        )
        self._known[key] = (task.options, shared)
        return shared

"""What the code of tasks writes while it runs, shown on the terminal that started it."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from forage.cli.listening import Listener, Received
from forage.config import ClientConfig
from forage.errors import ForageError
from forage_wire.topics import Topics, split_call

if TYPE_CHECKING:
    from forage import Client

__all__ = ["TaskOutput"]

_LINES_KEPT = 65_536
"""The controller keeps 64 KiB of a task, so no more lines than that can be missing."""


class TaskOutput:
    """Shows the lines of one client's tasks from the `with` on, as they are written.

    Lines come straight from the devices, at most once. `finish` adds what got lost on the way and
    what came late, from what the controller has.

    Args:
        client: Whose tasks.
        config: The broker's, for a connection beside the client's.
        show: Gets (call index, line), in the listener's thread or in that of `finish`.
        live: Whether to show lines as they come; those of replicas name a run, and not a call.
    """

    def __init__(
        self,
        client: "Client",
        config: ClientConfig,
        show: Callable[[int, str], None],
        *,
        live: bool = True,
    ) -> None:
        self._live = live
        self._client = client
        self._show = show
        self._seen: dict[str, list[str]] = {}
        """Lines by call, as they came."""
        topics = Topics(config.root)
        self._topics = topics
        # As Topics.log has it, for all tasks and devices.
        self._listener = Listener(
            config, [topics.log(client.user, client.id, "+", "+")], self._on_message
        )

    def __enter__(self) -> "TaskOutput":
        try:
            if self._live:
                self._listener.start()
        except ForageError:
            # A login that may not read its log still gets its results, and `finish` the lines.
            pass
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()

    def _on_message(self, message: Received) -> None:
        parsed = self._topics.parse(message.topic)
        if parsed is None or parsed.branch != "log":
            return
        for line in message.payload.decode("utf-8", "replace").split("\n"):
            self._take(parsed.task, line)

    def _take(self, task: str, line: str) -> None:
        index, _, rest = line.partition(" ")
        _stream, _, text = rest.partition(" ")
        if not index.isdigit():
            return
        seen = self._seen.setdefault(f"{task}.{index}", [])
        seen.append(line)
        if len(seen) > 2 * _LINES_KEPT:
            del seen[:_LINES_KEPT]
        self._show(int(index), text)

    def finish(self, name: str) -> None:
        """Show what the controller has of an ended call and was not shown; listens no more.

        Args:
            name: The call's name.
        """
        self._listener.close()
        found = split_call(name)
        try:
            lines = self._client.logs(name)
        except ForageError:
            # What was shown is all there is: the controller keeps nothing of it any more.
            return
        for line in missing(self._seen.get(name, []), lines):
            if found is not None:
                self._take(found[0], line)


def missing(seen: list[str], kept: list[str]) -> list[str]:
    """The lines of `kept` that come after what was seen.

    Args:
        seen: What came, in order, from the first line on; the last lines may be missing.
        kept: The last lines that there are; earlier ones may be missing.
    """
    for count in range(min(len(seen), len(kept)), 0, -1):
        if seen[-count:] == kept[:count]:
            return kept[count:]
    # Nothing in common: either nothing was seen, or more than is kept went by unseen; but what
    # was seen is not shown again.
    known = set(seen)
    return [line for line in kept if line not in known]

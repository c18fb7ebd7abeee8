"""What waits on the device: slices with calls to run, by priority, streams taking turns."""

from forage_agent.core.slices import Slice, Stream

__all__ = ["SliceQueue"]


class SliceQueue:
    """The slices that workers may be given calls of. One queue for all slots."""

    def __init__(self) -> None:
        self.calls = 0
        """Calls in all slices of the queue."""
        self._calls: dict[int, int] = {}
        self._levels: dict[int, dict[Stream, dict[int, Slice]]] = {}
        """Priority -> stream -> its slices; of each the first is next."""
        self._order: list[int] = []

    @property
    def priority(self) -> int:
        """The highest that waits; the queue must not be empty."""
        return self._order[0]

    def has(self, stream: Stream) -> bool:
        """Whether calls of a stream wait."""
        return any(stream in level for level in self._levels.values())

    def update(self, part: Slice, *, first: bool = False) -> None:
        """Let the queue know what a slice has to run now, after any change of it.

        Args:
            part: In the queue if it is runnable, else not.
            first: Where it is new here, it goes before all others of its stream.
        """
        calls = part.todo.count if part.is_runnable else 0
        before = self._calls.get(part.assignment, 0)
        self.calls += calls - before
        if calls:
            self._calls[part.assignment] = calls
            if not before:
                self._put(part, first=first)
        elif before:
            del self._calls[part.assignment]
            self._remove(part)

    def _put(self, part: Slice, *, first: bool) -> None:
        priority = part.header.options.priority
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = {}
            self._order = sorted(self._levels, reverse=True)
        slices = level.setdefault(part.stream, {})
        if first:
            others = dict(slices)
            slices.clear()
            slices[part.assignment] = part
            slices.update(others)
        else:
            slices[part.assignment] = part

    def _remove(self, part: Slice) -> None:
        priority = part.header.options.priority
        level = self._levels[priority]
        slices = level[part.stream]
        del slices[part.assignment]
        if not slices:
            del level[part.stream]
        if not level:
            del self._levels[priority]
            self._order.remove(priority)

    def pick(self, *begun: Slice) -> Slice:
        """The slice that a worker takes from next, out of a queue that has calls.

        Of the highest priority, and of the stream whose turn it is (one call does not wait for
        all of another's thousand): a slice that the worker is in already (of those in `begun`),
        else the first that no worker is in, else the first.
        """
        level = self._levels[self._order[0]]
        slices = next(iter(level.values()))
        for part in begun:
            if part.assignment in slices:
                return part
        for part in slices.values():
            if part.workers == 0:
                return part
        return next(iter(slices.values()))

    def had_turn(self, part: Slice) -> None:
        """Calls of a slice went to a worker: other streams of its priority are next."""
        level = self._levels.get(part.header.options.priority, {})
        if len(level) > 1 and part.stream in level:
            level[part.stream] = level.pop(part.stream)

    def goes_first(self, part: Slice) -> None:
        """A slice's stream is next of all of its priority, where it waits at all."""
        priority = part.header.options.priority
        level = self._levels.get(priority, {})
        if len(level) > 1 and part.stream in level:
            slices = level.pop(part.stream)
            self._levels[priority] = {part.stream: slices, **level}

"""Assignments as the device holds them: what is still to do, what is with workers, what ended."""

from dataclasses import dataclass, field
from typing import Any, Literal

from forage_wire.codec import cut_calls, join_calls
from forage_wire.errors import DecodeError
from forage_wire.limits import DEATHS_MAX
from forage_wire.messages import Assignment, Header
from forage_wire.ranges import RangeSet

__all__ = ["Piece", "RunTimes", "Slice", "Stream", "assigned_bytes", "function_key"]

Stream = tuple[str, str, bytes, int]
"""The calls of one function of one client: (user, client, function, priority)."""


def function_key(header: Header) -> bytes:
    """The name under which workers keep a header's function."""
    function = header.function
    return function if isinstance(function, bytes) else function[0].encode()


def assigned_bytes(assignment: Assignment) -> int:
    """What an assignment takes of the device's room for arguments."""
    checkpoint = assignment.checkpoint
    return len(assignment.calls) + (0 if checkpoint is None else len(checkpoint[1]))


@dataclass(slots=True, kw_only=True, eq=False)
class Piece:
    """Outcomes of consecutive calls: reported together, acknowledged together."""

    first: int
    count: int
    items: bytes
    """The outcome items, one after the other."""
    errors: tuple[tuple[int, str, bool], ...] = ()
    """(index, reason, final)."""
    run_us: int = 0
    is_held: bool = False
    """It waits for a checkpoint that is to arrive before it."""


@dataclass(slots=True, kw_only=True, eq=False)
class Slice:
    """One assignment, from its acceptance to the acknowledgement of its last outcome."""

    assignment: int
    header: Header
    low: int
    assigned_high: int
    """As assigned: the tag was made for it."""
    high: int
    """As trimmed."""
    tries: int
    deaths: int
    beat_ms: int
    tag: bytes
    calls: bytes
    announce: bool
    """To be announced before anything of it starts."""
    function: bytes
    stream: Stream
    """Streams take turns, lest one client's call wait for another's million."""
    todo: RangeSet
    """Neither with a worker nor ended."""
    given: int = 0
    """Calls that are with workers."""
    workers: int = 0
    """Workers that have calls of it."""
    cancelled: RangeSet = field(default_factory=RangeSet)
    """To be killed if it still runs."""
    pieces: dict[int, Piece] = field(default_factory=dict)
    """Outcomes that are not acknowledged, by their first index."""
    has_code: bool = False
    has_lease: bool = True
    """Whether exclusive calls of it may be run now; others always may."""
    leased_until_ms: int = 0
    """... and until when; 0: they are not exclusive."""
    is_expired: bool = False
    """Its lease is over: what is still killed of it ends for that reason."""
    is_through: bool = False
    """Nothing of it is to be run any more, and its arguments are not kept."""
    is_forgotten: bool = False
    announced: Literal["no", "sent", "yes"] = "no"
    announced_ms: int = 0
    given_bytes: int = 0
    """Of the calls as they came, and of the checkpoint that came with them."""
    checkpoints: dict[int, tuple[int, bytes]] | None = None
    """Call -> (number, state) of its last checkpoint; None: there never was any."""
    _cut: list[Any] | None = None

    @classmethod
    def of(cls, assignment: Assignment, header: Header) -> "Slice":
        """A slice of which nothing has begun."""
        checkpoint = assignment.checkpoint
        function = function_key(header)
        return cls(
            assignment=assignment.assignment,
            header=header,
            low=assignment.low,
            assigned_high=assignment.high,
            high=assignment.high,
            tries=assignment.tries,
            deaths=assignment.deaths,
            beat_ms=assignment.beat_ms,
            tag=assignment.tag,
            calls=assignment.calls,
            announce=assignment.announce,
            function=function,
            stream=(header.user, header.client, function, header.options.priority),
            has_lease=not header.options.exclusive,
            todo=RangeSet([(assignment.low, assignment.high)]),
            given_bytes=assigned_bytes(assignment),
            checkpoints=None if checkpoint is None else {assignment.low: checkpoint},
        )

    @property
    def is_runnable(self) -> bool:
        """Whether a worker may be given calls of it now."""
        return (
            self.todo.count > 0
            and self.has_code
            and self.has_lease
            and (not self.announce or self.announced == "yes")
        )

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is to be run any more."""
        return self.todo.count == 0 and self.given == 0

    @property
    def runs_alone(self) -> bool:
        """Whether each of its calls must be the only one that a worker has.

        If such a worker dies there is no doubt which call was begun.
        """
        return self.header.options.at_most_once or self.is_fresh or self.announce

    @property
    def is_fresh(self) -> bool:
        """Whether each of its calls has a worker of its own, of which nothing outlives the call."""
        options = self.header.options
        return options.fresh or options.exclusive

    @property
    def state(self) -> Literal["running", "queued", "unacknowledged"]:
        """The word for an inventory."""
        if self.has_ended:
            return "unacknowledged"
        return "queued" if self.todo.count == self.high - self.low else "running"

    def take(self, count: int) -> tuple[int, int]:
        """Give away up to `count` calls from the front of what is to do: [low, high)."""
        low, high = self.todo.take_first(count)
        self.given += high - low
        return low, high

    def checkpoints_of(self, low: int, high: int) -> tuple[tuple[int, bytes], ...]:
        """(index, state) of those of the calls [low, high) that have one."""
        return tuple(
            [
                (index, state)
                for index, (_number, state) in sorted((self.checkpoints or {}).items())
                if low <= index < high
            ]
        )

    def calls_of(self, low: int, high: int) -> bytes:
        """A CBOR array of the calls [low, high). They stay unread.

        Raises DecodeError where `calls` is not an array of as many calls.
        """
        if (low, high) == (self.low, self.assigned_high):
            return self.calls
        if self._cut is None:
            cut = cut_calls(self.calls)
            if len(cut) != self.assigned_high - self.low:
                raise DecodeError("calls: not as many as assigned")
            self._cut = cut
        return join_calls(self._cut[low - self.low : high - self.low])

    def drop_calls(self) -> None:
        """All of it has ended: the arguments are not needed any more."""
        self.calls = b""
        self._cut = None

    def trim(self, wished: int) -> int:
        """Give up what is neither given nor ended from `wished` on; the answer is the real end."""
        begun = self.todo.missing(self.low, self.high)
        real = min(self.high, max(wished, begun[-1][1] if begun else self.low))
        self.todo.remove(real, self.high)
        self.high = real
        return real

    def is_final(self, reason: str) -> bool:
        """Whether an error of this reason ends its call, or another attempt may follow."""
        if reason in ("cancelled", "lost"):
            # Whoever ordered that knows what became of the call: its client has ended it, or
            # another attempt settles it (also a controller's that gave this device up too early).
            return False
        if self.header.options.at_most_once:
            return True
        match reason:
            case "error" | "timeout":
                return self.tries + 1 > self.header.options.retries
            case "died":
                return self.deaths + 1 >= DEATHS_MAX
            case _:
                return True


class RunTimes:
    """How long calls of each function take here, as far as measured."""

    __slots__ = ("_mean_us", "functions_max")

    def __init__(self, functions_max: int = 1_024) -> None:
        self.functions_max = functions_max
        self._mean_us: dict[bytes, int] = {}

    def mean_us(self, function: bytes) -> int | None:
        """The recent mean, at least 1; None while not measured."""
        return self._mean_us.get(function)

    def measured(self, function: bytes, count: int, run_us: int) -> None:
        """`count` calls took `run_us` together. Later ones count for more."""
        mean = max(1, run_us // count)
        before = self._mean_us.pop(function, None)
        if before is not None:
            # A surprise upwards counts at once: giving too little costs less than too much.
            mean = max(1, (7 * before + 3 * mean) // 10) if mean < before else (before + mean) // 2
        elif len(self._mean_us) >= self.functions_max:
            del self._mean_us[next(iter(self._mean_us))]
        self._mean_us[function] = mean

    def at_least(self, function: bytes, run_us: int) -> None:
        """A call has been running for so long and goes on."""
        if self._mean_us.get(function, 0) < run_us:
            self._mean_us[function] = run_us

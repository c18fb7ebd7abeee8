"""A client's tasks: pages kept until they are acknowledged, and what has an outcome.

Pages are cut here: at 4,096 calls, and so that a page and its envelope fit one packet; a call
that does not fit by itself has a page of its own, which its link sends in parts.
"""

from bisect import bisect_right

from forage_wire.codec import SharedHeader, join_calls
from forage_wire.limits import (
    CALLS_PER_PAGE_MAX,
    ENVELOPE_BYTES,
    HEADER_BYTES_MAX,
    TASK_CALLS_MAX,
)
from forage_wire.messages import Options, Page
from forage_wire.ranges import Ranges, RangeSet
from forage_wire.replicas import ReplicaLayout

__all__ = ["PageRecord", "TaskRecord"]

_CALL_OVERHEAD_BYTES = 9
"""At most this much stands before a byte string in a CBOR array."""
_PAGE_OVERHEAD_BYTES = 128
"""Keys, the task's key and lengths around header and calls."""


class PageRecord:
    """One page until its acknowledgement."""

    __slots__ = (
        "calls",
        "first",
        "header",
        "is_open",
        "is_repeated",
        "is_sent",
        "n",
        "payload_bytes",
        "task",
        "token",
    )

    def __init__(self, task: "TaskRecord", first: int, n: int, header: bytes, calls: bytes) -> None:
        self.task = task
        self.first = first
        self.n = n
        self.header = header
        self.calls = calls
        self.payload_bytes = len(header) + len(calls) + _PAGE_OVERHEAD_BYTES
        """About what it takes in a message."""
        self.token = 0
        """Under which the link tells the number of its message."""
        self.is_sent = False
        """Handed to the present link."""
        self.is_repeated = False
        """It was sent on an earlier link too: its outcomes tell nothing of the present one."""
        self.is_open = False
        """One of its calls has an outcome: the controller has the page, committed or not."""

    def message(self) -> Page:
        """The page as it is sent now: with what has ended since."""
        end = self.first + self.n
        collected: Ranges = ()
        if self.task.resolved.count:
            collected = tuple(self.task.resolved.common(self.first, end))
        return Page(header=self.header, calls=self.calls, key=self.task.key, collected=collected)


class TaskRecord:
    """One task until the controller has released it."""

    __slots__ = (
        "attached",
        "code",
        "forced",
        "form",
        "function",
        "header_bytes",
        "held",
        "key",
        "label",
        "layout",
        "options",
        "pages",
        "python_min",
        "resolved",
        "sealed",
        "settle",
        "submitted",
        "task",
        "uncollected",
        "unopened",
    )

    def __init__(
        self,
        *,
        task: str,
        key: bytes = b"",
        function: bytes | tuple[str, str] = b"",
        form: str = "named",
        label: str = "",
        python_min: int = 11,
        code: bytes = b"",
        options: Options | None = None,
        settle: str = "direct",
    ) -> None:
        self.task = task
        self.key = key
        self.function = function
        self.form = form
        self.label = label
        self.python_min = python_min
        self.code = code
        self.options = Options() if options is None else options
        is_strict = self.options.exclusive or self.options.replicas > 1
        self.settle = "controller" if is_strict else settle
        """Who decides which outcome counts: direct (whoever hears it first), or controller."""
        self.attached = False
        """Another client's: it has no pages here, and no key."""
        self.header_bytes = 0
        self.submitted = 0
        self.sealed = False
        self.layout: ReplicaLayout | None = None
        """How the runs of its calls are numbered; None: each call is run for itself."""
        if self.options.replicas > 1:
            self.layout = ReplicaLayout(self.options.replicas)
        self.held: RangeSet | None = None
        """With replicas: runs whose outcome is here, of calls that are not decided."""
        self.resolved = RangeSet()
        """Calls that have ended here: with an outcome, or cancelled."""
        self.uncollected: list[tuple[int, int]] = []
        """Of those, what the controller has not been told, as it came."""
        self.forced: RangeSet | None = None
        """Cancelled with force."""
        self.pages: dict[int, PageRecord] = {}
        """By first index: not acknowledged."""
        self.unopened: list[PageRecord] = []
        """Of those sent on the present link, in order of `first`: no outcome yet either."""

    @property
    def is_complete(self) -> bool:
        """Whether every call of it has ended."""
        return self.sealed and self.resolved.count >= self.submitted

    @property
    def is_known(self) -> bool:
        """Whether a controller has committed any page of it."""
        return sum([page.n for page in self.pages.values()]) < self.submitted

    def open_ranges(self) -> Ranges:
        """The calls without an outcome."""
        return tuple(self.resolved.missing(0, self.submitted))

    def acknowledged_open(self) -> Ranges:
        """Of those, the ones whose pages are not here any more: a controller has them."""
        if not self.pages:
            return self.open_ranges()
        here = RangeSet([(page.first, page.first + page.n) for page in self.pages.values()])
        return tuple([gap for each in self.open_ranges() for gap in here.missing(*each)])

    def force(self, ranges: Ranges | list[tuple[int, int]]) -> None:
        """Note that these calls were cancelled with force."""
        if self.forced is None:
            self.forced = RangeSet()
        self.forced.update(ranges)

    def hold(self, run: int) -> None:
        """Note that the outcome of a run is here."""
        if self.held is None:
            self.held = RangeSet()
        self.held.add(run, run + 1)

    def is_here(self, run: int) -> bool:
        """Whether the outcome of a run is here, or its call has ended."""
        return run in self.resolved or (self.held is not None and run in self.held)

    def judge_settled(self, ranges: Ranges) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Of calls that the controller has settled: those not here, and those that ended here."""
        missing: list[tuple[int, int]] = []
        ended: list[tuple[int, int]] = []
        for low, high in ranges:
            missing += self.resolved.missing(low, min(high, self.submitted))
            ended += self.resolved.common(low, high)
        return self.without_held(missing), ended

    def without_held(self, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Of these runs, those whose outcome is not here."""
        if self.held is None:
            return ranges
        return [gap for low, high in ranges for gap in self.held.missing(low, high)]

    def take_unopened(self, low: int, high: int) -> list[PageRecord]:
        """The pages that hold calls of [low, high) and were unopened until now."""
        unopened = self.unopened
        if not unopened:
            return []
        start = 0
        if len(unopened) > 1:
            start = max(0, bisect_right(unopened, low, key=_first_of) - 1)
        end = start
        while end < len(unopened) and unopened[end].first < high:
            end += 1
        if start < end and unopened[start].first + unopened[start].n <= low:
            start += 1
        taken = unopened[start:end]
        del unopened[start:end]
        return taken

    def cut_pages(
        self,
        calls: tuple[bytes, ...],
        *,
        last: bool,
        header: SharedHeader,
        packet_bytes_max: int,
    ) -> list[PageRecord]:
        """Make pages of the task's next calls; `header` is what theirs have in common."""
        count = len(calls)
        room = packet_bytes_max - ENVELOPE_BYTES - _PAGE_OVERHEAD_BYTES
        # Most fit, whatever their header is.
        if sum(map(len, calls)) + count * _CALL_OVERHEAD_BYTES + HEADER_BYTES_MAX > room:
            cuts = _cut(calls, room - self._header_bytes(header))
        elif count <= CALLS_PER_PAGE_MAX:
            cuts = [(0, count)]
        else:
            cuts = [
                (start, min(start + CALLS_PER_PAGE_MAX, count))
                for start in range(0, count, CALLS_PER_PAGE_MAX)
            ]
        pages = []
        for start, end in cuts:
            joined = join_calls(list(calls[start:end]))
            n = end - start
            firsts = [self.submitted] if self.layout is None else self.layout.add(n)
            for replica, first in enumerate(firsts):
                is_last = last and end == count and first == firsts[-1]
                own = header.encode(task=self.task, first=first, n=n, last=is_last, replica=replica)
                page = PageRecord(self, first, n, own, joined)
                self.pages[first] = page
                self.submitted += n
                pages.append(page)
        self.sealed = self.sealed or last
        return pages

    def _header_bytes(self, header: SharedHeader) -> int:
        """The longest that a header of this task gets."""
        if not self.header_bytes:
            longest = header.encode(
                task=self.task,
                first=TASK_CALLS_MAX,
                n=CALLS_PER_PAGE_MAX,
                last=False,
                replica=self.options.replicas - 1,
            )
            self.header_bytes = len(longest)
        return self.header_bytes


def _cut(calls: tuple[bytes, ...], room: int) -> list[tuple[int, int]]:
    """(start, end) of the calls of each page; one that is longer than the room is alone."""
    cuts: list[tuple[int, int]] = []
    start = size = 0
    for position, call in enumerate(calls):
        call_bytes = len(call) + _CALL_OVERHEAD_BYTES
        if position > start and (
            size + call_bytes > room or position - start >= CALLS_PER_PAGE_MAX
        ):
            cuts.append((start, position))
            start, size = position, 0
        size += call_bytes
    if start < len(calls):
        cuts.append((start, len(calls)))
    return cuts


def _first_of(page: PageRecord) -> int:
    return page.first

"""What the controller knows: devices, clients, tasks, pages, assignments (data, no decisions)."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from forage_wire.codec import cut_calls
from forage_wire.link import Link
from forage_wire.messages import DeviceCapabilities, DeviceLoad, Header
from forage_wire.ranges import RangeSet

__all__ = [
    "Attempt",
    "Checkpoint",
    "Client",
    "Counters",
    "Device",
    "Measure",
    "NEVER_HEARD",
    "Open",
    "Page",
    "Task",
]

NEVER_HEARD = "never heard"

Counters = tuple[int, int, int]
"""(tries, deaths, losses) of a call."""


@dataclass(slots=True, eq=False, repr=False)
class Device:
    """A device, as it says and as we see it."""

    name: str
    session: str = ""
    """Its current session; "" while none has been heard."""
    past: dict[str, str] = field(default_factory=dict)
    """Starts that had its name before, or wanted it -> the last session of each."""
    state: str = "offline"
    """Its own word."""
    verdict: str = "dead"
    """Ours: alive, suspect or dead."""
    why: str = NEVER_HEARD
    capabilities: DeviceCapabilities | None = None
    is_beside_broker: bool = False
    """The broker is on the device itself."""
    load: DeviceLoad | None = None
    link: Link | None = None
    link_number: int = 0
    """Which link of this pair of sessions `link` is, or the next one."""
    heard_ms: int = 0
    verified: bool = False
    """Whether this session has sent its inventory on the present link: only then it gets work."""
    reported_ms: int | None = None
    """When it was last asked for its inventory, on this link."""
    is_in_doubt: bool = False
    """It is to be asked again: what is known of what it runs may be old."""
    assignments: dict[int, "Open"] = field(default_factory=dict)
    """What is open here, oldest first."""
    strays: dict[int, str] = field(default_factory=dict)
    """Assignments that it said it runs and that are not open here, and their task: they keep slots
    busy all the same."""
    work_us: int = 0
    """Estimated work of those."""
    work_bytes: int = 0
    """Argument bytes of those."""
    codes: dict[bytes, None] = field(default_factory=dict)
    """Code sent to this session."""
    code_wanted: dict[bytes, "Client | None"] = field(default_factory=dict)
    """Code this session asked for that is not here yet, and whose it is."""
    candidate: str = ""
    """Another start under the same name, while the current one is asked for a sign of life."""
    candidate_until_ms: int | None = None
    refusing_until_ms: int = 0
    """It refused work: nothing more until then ..."""
    refusals: int = 0
    """... as many times in a row."""
    lacks: dict[bytes | tuple[str, str], None] = field(default_factory=dict)
    """Functions that it refused as unknown."""
    uncommitted: int = 0
    """Sets of outcomes that it sent and that are not committed, so not acknowledged, yet."""
    busy_since_ms: int = 0
    """When it last began to hold work: it has one detection time for its first beat."""
    check_ms: int | None = None
    """When its silence is looked at next."""

    @property
    def slices(self) -> int:
        """What it has on its plate, whoever gave it that."""
        return len(self.assignments) + len(self.strays)

    @property
    def slots(self) -> int:
        """Calls it runs at a time; 0 while unknown."""
        return self.capabilities.slots if self.capabilities else 0


@dataclass(slots=True, eq=False, repr=False)
class Client:
    """A client process."""

    user: str
    name: str
    session: str = ""
    link: Link | None = None
    link_number: int | None = None
    """Which link of this pair of sessions that is, or was before it was said to be gone."""
    python: str = ""
    packet_bytes_max: int = 0
    here: bool = False
    gone_ms: int | None = None
    """When it left, by its goodbye or will."""
    tasks: dict[str, "Task"] = field(default_factory=dict)
    attached: dict[str, "Task"] = field(default_factory=dict)
    acknowledged: dict[tuple[str, int], None] = field(default_factory=dict)
    """Pages committed in this batch, to be told in one message."""
    released: dict[str, None] = field(default_factory=dict)
    wanted: dict[str, RangeSet] = field(default_factory=dict)
    """Task -> calls whose outcomes are to be read from the archive for it, a few at a time."""
    reading: int = 0
    """The request to the store that is under way for it; 0: none."""
    named: set[str] = field(default_factory=set)
    """The tasks in its inventory, as far as that has come on this link."""
    heard_ms: int = 0
    minor: int = 0
    told_minor: bool = False


def _blocks(low: int, high: int) -> range:
    """The numbers of the blocks of eight calls that [low, high) touches."""
    return range(low >> 3, ((high - 1) >> 3) + 1)


@dataclass(slots=True, eq=False, repr=False)
class Page:
    """Calls of a task as submitted; their bytes may be in memory or only in the store."""

    first: int
    n: int
    last: bool
    header_bytes: bytes
    header: Header
    calls: bytes | None = None
    cut: list[object] | None = None
    """The calls one by one, while they are being assigned."""
    calls_bytes: int = 0
    due_ms: int | None = None
    """When its calls are too late, in our time; None: never, or that time does not run yet."""
    committed: bool = False
    loading: bool = False
    lost: bool = False
    """The store does not have its calls any more."""
    queue_key: bytes = b""
    """Which calls of other pages they may share a slice with."""
    pending: dict[Any, None] = field(default_factory=dict)
    """What waits of it (`Pending`)."""
    open: dict[int, "Open"] = field(default_factory=dict)
    """What is assigned of it ..."""
    near: dict[int, dict[int, "Open"]] = field(default_factory=dict)
    """... and the same by blocks of calls: of thousands of slices, few hold a certain call."""

    @property
    def runs_once(self) -> bool:
        """Whether a second run of its calls must not begin before the first one is accounted for."""
        return self.header.options.at_most_once or self.header.settle == "controller"

    def hold(self, opened: "Open") -> None:
        """Calls of it are assigned."""
        self.open[opened.number] = opened
        for block in _blocks(opened.low, opened.high):
            self.near.setdefault(block, {})[opened.number] = opened

    def let_go(self, opened: "Open") -> None:
        """An assignment of it is over."""
        del self.open[opened.number]
        for block in _blocks(opened.low, opened.high):
            found = self.near[block]
            del found[opened.number]
            if not found:
                del self.near[block]

    def holding(self, low: int, high: int) -> "list[Open]":
        """The assignments that hold any of [low, high)."""
        blocks = _blocks(low, high)
        if len(blocks) > len(self.open):
            near = self.open
        else:
            near = {}
            for block in blocks:
                near.update(self.near.get(block, ()))
        return [opened for opened in near.values() if opened.low < high and low < opened.end]

    def has_other(self, opened: "Open", index: int) -> bool:
        """Whether a call has another attempt that is still to answer for it."""
        return any(
            other is not opened and index not in other.reported
            for other in self.holding(index, index + 1)
        )

    def free(self, done: RangeSet, low: int, high: int) -> list[tuple[int, int]]:
        """What of [low, high) is neither done nor with a device that is still to answer for it."""
        if not self.open:
            return done.missing(low, high)
        taken = RangeSet(done.common(low, high))
        for opened in self.holding(low, high):
            for start, end in opened.reported.missing(opened.low, opened.end):
                taken.add(start, end)
        return taken.missing(low, high)

    def items(self) -> list[object] | None:
        """The calls one by one; None where they must be loaded. DecodeError: they are none."""
        if self.cut is None and self.calls is not None:
            self.cut = cut_calls(self.calls)
        return self.cut

    @property
    def end(self) -> int:
        """The index after the page's last call."""
        return self.first + self.n


@dataclass(slots=True, eq=False, repr=False)
class Checkpoint:
    """The state of a call, from which its next attempt goes on."""

    number: int
    """Of two, the higher one is further on."""
    data: bytes
    made_ms: int | None
    """When it came here; None: before our start."""
    device: str
    """Whose attempt made it; "" where an older store did not say."""
    committed: bool = False
    """The store has it."""


@dataclass(slots=True, eq=False, repr=False)
class Attempt:
    """An assignment, as `explain` remembers it."""

    assignment: int
    device: str
    low: int
    high: int
    began_ms: int
    ended_ms: int | None = None
    how: str = "open"
    """open, done, trimmed, cancelled, or why it was lost."""
    resumed: Checkpoint | None = None
    """What it went on from."""


@dataclass(slots=True, eq=False, repr=False)
class Task:
    """A task that has not been released."""

    id: str
    client: Client
    key: bytes
    label: str
    made_ms: int
    settled_ms: int = 0
    """When the last of its outcomes came (else when it was made)."""
    function: bytes | tuple[str, str] = b""
    settle: str = "direct"
    replicas: int = 1
    """Runs of each of its calls, each on a device of its own."""
    answered: dict[int, str] = field(default_factory=dict)
    """With replicas: run settled and not collected -> the device whose outcome that was."""
    aside: dict[int, Any] = field(default_factory=dict)
    """With replicas: runs that no device may take that is there (`siblings.Aside`)."""
    pages: dict[int, Page] = field(default_factory=dict)
    firsts: list[int] = field(default_factory=list)
    """Of its pages, sorted."""
    calls: int = 0
    """Calls of the pages here."""
    total: int | None = None
    """Calls in all, once the last page is here."""
    settled: RangeSet = field(default_factory=RangeSet)
    """An outcome is here."""
    committed: RangeSet = field(default_factory=RangeSet)
    """... and saved."""
    collected: RangeSet = field(default_factory=RangeSet)
    done: RangeSet = field(default_factory=RangeSet)
    """Settled or collected: not to be run again."""
    strays: dict[int, tuple[Device, int, int]] = field(default_factory=dict)
    """Assignments of it that a device runs though they are not open here: (device, low, high)."""
    started: dict[int, int] = field(default_factory=dict)
    """Call reported started -> its assignment, until it is done or assigned again."""
    lost_on: dict[int, list[str]] = field(default_factory=dict)
    """Call -> devices that were lost while it ran."""
    counters: dict[int, Counters] = field(default_factory=dict)
    """Calls with any counter above 0."""
    checkpoints: dict[int, Checkpoint] | None = None
    """Calls with a checkpoint, until they have ended; most tasks never have any."""
    open: dict[int, "Open"] = field(default_factory=dict)
    # (Lists: a deque takes 600 bytes before it holds anything, and most tasks have one of each.)
    attempts: list[Attempt] = field(default_factory=list)
    assigned: int = 0
    """Assignments made so far."""
    waiting: int = 0
    """Calls in the backlog."""
    told: RangeSet | None = None
    """Committed calls that the client was told of, as it had not collected them."""
    settled_due_ms: int | None = None
    """When it is told next."""
    failed: int = 0
    devices: dict[str, int] = field(default_factory=dict)
    """Device -> calls whose outcomes came from it."""
    archived: int = 0
    """Calls settled and not collected ..."""
    archive_bytes: int = 0
    """... and what their outcomes take."""
    attached: dict[str, Client] = field(default_factory=dict)
    inherited: RangeSet | None = None
    """Calls that somebody attached to it has collected: for its client too, if that is gone."""
    status_ms: int | None = None
    """When its status was last published."""
    progress: dict[int, tuple[int, str]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    log_bytes: int = 0
    log_dropped: int = 0

    @property
    def end(self) -> int:
        """The index after the last call that is known."""
        return self.pages[self.firsts[-1]].end if self.firsts else 0

    @property
    def complete(self) -> bool:
        """Whether every call has been collected."""
        return self.total is not None and self.collected.covers(0, self.total)

    def add_page(self, page: Page) -> None:
        """Take a page in."""
        self.pages[page.first] = page
        if self.firsts and page.first < self.firsts[-1]:
            insort(self.firsts, page.first)
        else:
            self.firsts.append(page.first)
        self.calls += page.n
        if page.last:
            self.total = page.end

    def page_of(self, index: int) -> Page | None:
        """The page that holds a call."""
        return next(self.pages_of(index, index + 1), None)

    def pages_of(self, low: int, high: int) -> Iterator[Page]:
        """The pages that hold any of [low, high), in order."""
        at = max(0, bisect_right(self.firsts, low) - 1)
        for first in self.firsts[at : bisect_left(self.firsts, high)]:
            page = self.pages[first]
            if page.end > low:
                yield page

    def runs_of(self, call: int) -> list[int]:
        """The runs of a user's call: itself, or its replicas, as far as their pages are here."""
        if self.replicas == 1:
            return [call]
        page = self.page_of(call * self.replicas)
        if page is None:
            return []
        base = page.first - page.header.replica * page.n
        first = base + call - base // self.replicas
        return [first + replica * page.n for replica in range(self.replicas)]

    def call_of(self, run: int) -> int:
        """The user's call that a run is for."""
        page = self.page_of(run) if self.replicas > 1 else None
        if page is None:
            return run
        base = page.first - page.header.replica * page.n
        return base // self.replicas + run - page.first

    def note_answered(self, ranges: Iterable[tuple[int, int]], device: str) -> None:
        """Runs of calls with replicas are settled, by a device."""
        for low, high in ranges:
            self.answered.update(dict.fromkeys(range(low, high), device))

    def forget_replicas(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Runs have ended: it does not matter any more where they ran."""
        for states in (self.answered, self.aside):
            for low, high in ranges if states else ():
                for index in range(low, high):
                    states.pop(index, None)

    def forget_states(self, low: int, high: int) -> None:
        """Calls have ended: nothing is kept of how they came to it."""
        for states in (self.started, self.counters, self.lost_on, self.progress):
            if not states:
                continue
            if len(states) <= high - low:
                for index in [index for index in states if low <= index < high]:
                    del states[index]
            else:
                for index in range(low, high):
                    states.pop(index, None)


@dataclass(slots=True, eq=False, repr=False)
class Open:
    """An assignment that is not over."""

    number: int
    task: Task
    page: Page
    low: int
    high: int
    """As assigned: what the tag covers."""
    end: int
    """As it stands now: below `high` after a trim."""
    device: Device
    session: str
    counters: Counters
    measure: "Measure"
    queue: Any = None
    """Where its calls come from and go back to (`CallQueue`)."""
    tag: bytes = b""
    """What its outcomes must carry, if that is known already."""
    announce: bool = False
    reported: RangeSet = field(default_factory=RangeSet)
    """Calls whose outcome this device has sent."""
    left: int = 0
    """Calls not reported."""
    work_us: int = 0
    bytes: int = 0
    assigned_ms: int = 0
    link: Link | None = None
    """The link its message went out on."""
    trim_to: int | None = None
    """A take-back that is not answered."""
    kept_until_ms: int = 0
    """Its device had nothing of it to give back: it is not asked again before."""
    attempt: Attempt | None = None
    called_off: RangeSet | None = None
    """Calls of it that its device was told to skip ..."""
    killed: RangeSet | None = None
    """... or to kill."""
    sent: bool = False
    """Its device may have it."""
    leased_ms: int | None = None
    """When its device was last told that it may run these (exclusive) calls; None: never."""
    running: tuple[int, int] | None = None
    """The call of it that was last reported started, and when; None: none is known to run."""
    is_clone: bool = False
    """A second attempt of a call that runs elsewhere."""
    has_clone: bool = False
    """A call of it has a second attempt elsewhere."""

    @property
    def has_arrived(self) -> bool:
        """Whether its device has it: what it does not have yet it cannot give back.

        A large assignment goes in parts, which a question about it overtakes.
        """
        link = self.device.link
        if link is None or not self.sent:
            return False
        if self.link is not link:
            return True
        number = link.numbers.get(self.number)
        return number is not None and number <= link.reported

    @property
    def is_running(self) -> bool:
        """Whether its device has reported the start of a call of it that has not ended."""
        started, calls = self.task.started, range(self.low, self.end)
        for index in calls if len(calls) < len(started) else started:
            if index in calls and started.get(index) == self.number and index not in self.reported:
                return True
        return False


@dataclass(slots=True, eq=False, repr=False)
class Measure:
    """How long calls of one function take."""

    mean_us: float | None = None
    growth: int = 1
    """Calls in a slice at most; doubles with every outcome."""

    def add(self, calls: int, run_us: int) -> None:
        """Learn from outcomes: a moving average with weight 0.3 for the newest."""
        if calls <= 0:
            return
        sample = run_us / calls
        self.mean_us = (
            sample if self.mean_us is None else self.mean_us + 0.3 * (sample - self.mean_us)
        )
        self.growth = min(2 * self.growth, 4_096)

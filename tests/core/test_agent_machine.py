"""The agent's core against a naive model: any order of orders, deaths and reconnects.

The model keeps a set for every state that a call can be in. Whatever happens: no call is with two
workers, none that has ended or was given up is run, an at-most-once call is given once, nothing
is forgotten, no slot idles while a call waits.
"""

from collections import deque
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.agent_harness import CODE_HASH, Harness, assignment, number, session
from forage_agent.core.events import (
    KillWorker,
    RunCalls,
    StartWorker,
    TakeBack,
    WorkerExited,
    WorkerReady,
    WorkerReturned,
)
from forage_agent.core.settings import OUTCOMES_AFTER_MS
from forage_wire.messages import (
    Acknowledge,
    AssignmentRefused,
    CancelAssigned,
    Code,
    DeviceInventory,
    Forget,
    Options,
    Outcomes,
    Report,
    Trim,
    Trimmed,
)

SLOTS = 2
OTHER_CODE = b"other code"
OTHER_HASH = sha256(OTHER_CODE).digest()
WORK = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.sampled_from(["plain", "plain", "other", "timeout", "once", "fresh"]),
        st.integers(-1, 1),
    ),
    min_size=1,
    max_size=4,
)
"""(calls, kind, priority) of assignments that come in one message."""
Call = tuple[int, int]


class Slot:
    """What the model knows of a worker."""

    def __init__(self) -> None:
        self.state = "none"
        self.given: deque[Call] = deque()
        self.must_return = False


class AgentMachine(RuleBasedStateMachine):
    """Rules are what can happen to an agent; the model says what may follow."""

    @initialize(work=WORK)
    def begin(self, work: list[tuple[int, str, int]]) -> None:
        self.bench = Harness(slots=SLOTS)
        self.slots = [Slot() for _ in range(SLOTS)]
        self.connections = 0
        self.counter = 0
        # Of each assignment: its range as it is now, and whether a call may be given once only.
        self.ranges: dict[int, tuple[int, int]] = {}
        self.once: set[int] = set()
        self.accepted: set[int] = set()
        self.forgotten: set[int] = set()
        self.ended: set[Call] = set()
        self.given_ever: set[Call] = set()
        self.reported: set[Call] = set()
        self.unacknowledged: set[Call] = set()
        self.bench.start()
        for slot in self.slots:
            slot.state = "ready"
        self.bench.send(Code(hash=OTHER_HASH, form="pickle", data=OTHER_CODE))
        self.bench.measured_as(20)
        self.assign(work)

    # -- the model ------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let both ends say what they have seen, then look at all that was said and ordered."""
        for _ in range(2):
            self.bench.say_seen()
        # Outcomes may wait so long for those of short calls behind them.
        self.bench.advance(OUTCOMES_AFTER_MS)
        self.take_orders()
        for message in self.bench.messages(Outcomes):
            for one in message.sets:
                for low, high in one.ranges:
                    for index in range(low, high):
                        self.on_outcome((one.assignment, index))
        for refused in self.bench.messages(AssignmentRefused):
            raise AssertionError(f"refused: {refused.reason}")
        self.bench.forget_said()

    def on_outcome(self, call: Call) -> None:
        assert call[0] not in self.forgotten or call in self.ended
        assert not any(call in slot.given for slot in self.slots), "it still runs"
        self.ended.add(call)
        if call[0] not in self.forgotten:
            self.unacknowledged.add(call)

    def take_orders(self) -> None:
        for order in self.bench.orders:
            slot = self.slots[order.slot]  # type: ignore[union-attr]
            if isinstance(order, StartWorker):
                assert slot.state == "none"
                slot.state = "starting"
            elif isinstance(order, KillWorker):
                assert slot.state == "ready"
                slot.state = "killed"
            elif isinstance(order, TakeBack):
                assert len(slot.given) > 1
                slot.must_return = True
            elif isinstance(order, RunCalls):
                assert slot.state in ("ready", "killed")
                assert not slot.must_return
                self.on_given(slot, order)
        self.bench.orders.clear()

    def on_given(self, slot: Slot, order: RunCalls) -> None:
        for chunk in order.chunks:
            low, high = self.ranges[chunk.assignment]
            assert low <= chunk.low < chunk.high <= high, "trimmed away"
            assert chunk.assignment not in self.forgotten
            for index in range(chunk.low, chunk.high):
                call = (chunk.assignment, index)
                assert call not in self.reported, "it has ended"
                assert not any(call in other.given for other in self.slots), "it runs already"
                assert chunk.assignment not in self.once or call not in self.given_ever
                self.given_ever.add(call)
                slot.given.append(call)

    def running(self) -> set[Call]:
        return {call for slot in self.slots for call in slot.given}

    def waiting(self) -> set[Call]:
        """Calls that are to be run and that no worker has."""
        return {
            (one, index)
            for one in self.accepted - self.forgotten
            for index in range(*self.ranges[one])
        } - (self.ended | self.reported | self.running())

    @property
    def held(self) -> set[int]:
        """Assignments with anything to run, running or not acknowledged."""
        calls = self.waiting() | self.running() | self.unacknowledged
        return {call[0] for call in calls} - self.forgotten

    # -- what the controller does ---------------------------------------------------------------

    @rule(work=WORK)
    def assign(self, work: list[tuple[int, str, int]]) -> None:
        given = []
        for calls, kind, priority in work:
            self.counter += 1
            options = Options(
                at_most_once=kind == "once",
                fresh=kind == "fresh",
                timeout_ms=200 if kind == "timeout" else 0,
                priority=priority,
            )
            function = OTHER_HASH if kind == "other" else CODE_HASH
            one = assignment(self.counter, 3, 3 + calls, options=options, function=function)
            given.append(one)
            self.accepted.add(one.assignment)
            self.ranges[one.assignment] = (3, 3 + calls)
            if kind == "once":
                self.once.add(one.assignment)
        self.bench.assign(*given)
        self.settle()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), wished=st.integers(0, 45))
    def trim(self, data: st.DataObject, wished: int) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.held)))
        low, high = self.ranges[chosen]
        self.bench.send(Trim(rows=((chosen, wished),)))
        answers = [row for message in self.bench.messages(Trimmed) for row in message.rows]
        [(answered, real)] = answers
        begun = [
            index
            for index in range(low, high)
            if (chosen, index) in self.ended | self.reported
            or any((chosen, index) in slot.given for slot in self.slots)
        ]
        assert answered == chosen
        assert real == min(high, max(wished, max(begun, default=low - 1) + 1, low))
        self.ranges[chosen] = (low, real)
        self.settle()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), low=st.integers(0, 40), size=st.integers(1, 10), force=st.booleans())
    def cancel(self, data: st.DataObject, low: int, size: int, force: bool) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.held)))
        before = {call for call in self.waiting() if call[0] == chosen}
        ranges = ((low, low + size),)
        self.bench.send(CancelAssigned(assignment=chosen, ranges=ranges, force=force))
        self.settle()
        skipped = {call for call in before if low <= call[1] < low + size}
        assert skipped <= self.ended
        if force:
            for slot in self.slots:
                if any(one[0] == chosen and low <= one[1] < low + size for one in slot.given):
                    assert slot.state == "killed"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.held)))
        self.forgotten.add(chosen)
        self.unacknowledged = {call for call in self.unacknowledged if call[0] != chosen}
        self.bench.send(Forget(assignments=(chosen,)))
        self.settle()
        for slot in self.slots:
            assert slot.state == "killed" or not any(call[0] == chosen for call in slot.given)

    @precondition(lambda self: self.unacknowledged)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(sorted({call[0] for call in self.unacknowledged})))
        committed = sorted(call[1] for call in self.unacknowledged if call[0] == chosen)
        self.unacknowledged = {call for call in self.unacknowledged if call[0] != chosen}
        rows = ((chosen, tuple((index, index + 1) for index in committed)),)
        self.bench.send(Acknowledge(rows=rows))
        self.settle()

    def acknowledge_all(self) -> None:
        for chosen in sorted({call[0] for call in self.unacknowledged}):
            self.bench.send(Acknowledge(rows=((chosen, ((0, 100),)),)))
        self.unacknowledged = set()
        self.settle()

    @rule()
    def reconnect(self) -> None:
        """A new session: the inventory is the model's, and all outcomes are said again."""
        expected = set(self.unacknowledged)
        self.connections += 1
        self.bench.connect(session(0xD0, 1 + self.connections))
        self.bench.forget_said()
        self.bench.send(Report())
        [inventory] = self.bench.messages(DeviceInventory)
        # Outcomes may wait so long for those of short calls behind them.
        self.bench.advance(OUTCOMES_AFTER_MS)
        assert {row[0] for row in inventory.rows} == self.held
        for held, _task, low, high, _state in inventory.rows:
            assert (low, high) == self.ranges[held]
        said = {
            (one.assignment, index)
            for message in self.bench.messages(Outcomes)
            for one in message.sets
            for low, high in one.ranges
            for index in range(low, high)
        }
        assert expected <= said
        self.settle()

    # -- what workers and time do ---------------------------------------------------------------

    @precondition(lambda self: any(slot.state == "starting" for slot in self.slots))
    @rule()
    def workers_get_ready(self) -> None:
        for index, slot in enumerate(self.slots):
            if slot.state == "starting":
                slot.state = "ready"
                self.bench.put(WorkerReady(slot=index, pid=1))
        self.settle()

    def pick(self, data: st.DataObject, wanted: Callable[[Slot], Any]) -> tuple[int, Slot]:
        """One of the slots of which this is true."""
        found = [index for index, slot in enumerate(self.slots) if wanted(slot)]
        index = data.draw(st.sampled_from(found))
        return index, self.slots[index]

    @precondition(lambda self: any(slot.given for slot in self.slots))
    @rule(data=st.data(), count=st.integers(1, 9), each_us=st.sampled_from([20, 20, 900, 9_000]))
    def some_calls_end(self, data: st.DataObject, count: int, each_us: int) -> None:
        index, _slot = self.pick(data, lambda slot: slot.given)
        self.finish(index, count, each_us)

    @precondition(lambda self: any(slot.given for slot in self.slots))
    @rule(data=st.data(), each_us=st.sampled_from([20, 20, 900]))
    def all_calls_end(self, data: st.DataObject, each_us: int) -> None:
        index, slot = self.pick(data, lambda slot: slot.given)
        for _ in range(len(slot.given)):
            self.finish(index, 1_000, each_us)

    @precondition(lambda self: any(slot.must_return for slot in self.slots))
    @rule(data=st.data())
    def a_worker_gives_back(self, data: st.DataObject) -> None:
        self.give_back(self.pick(data, lambda slot: slot.must_return)[0])

    @precondition(lambda self: any(slot.state != "none" for slot in self.slots))
    @rule(data=st.data(), signal=st.sampled_from(["SIGSEGV", "SIGKILL", ""]))
    def a_worker_dies(self, data: st.DataObject, signal: str) -> None:
        self.die(self.pick(data, lambda slot: slot.state != "none")[0], signal)

    def finish(self, index: int, count: int, each_us: int) -> None:
        slot = self.slots[index]
        if not slot.given:
            return
        held, first = slot.given[0]
        calls = []
        while slot.given and len(calls) < count and slot.given[0] == (held, first + len(calls)):
            calls.append(slot.given.popleft())
        if held not in self.forgotten:
            self.reported.update(calls)
        self.bench.finish(
            held - number(0), first, len(calls), slot=index, run_us=each_us * len(calls)
        )
        self.settle()
        if held not in self.forgotten:
            assert set(calls) <= self.ended

    def give_back(self, index: int) -> None:
        slot = self.slots[index]
        if not slot.must_return:
            return
        slot.must_return = False
        held, at = slot.given[0] if slot.given else (0, 0)
        slot.given = deque([slot.given[0]] if slot.given else [])
        self.bench.put(WorkerReturned(slot=index, assignment=held, index=at))
        self.settle()

    def die(self, index: int, signal: str) -> None:
        slot = self.slots[index]
        lost, why = list(slot.given), slot.state
        held, at = lost[0] if lost else (0, 0)
        self.slots[index] = Slot()
        self.bench.put(
            WorkerExited(
                slot=index,
                signal=signal,
                exit_code=None if signal else 1,
                assignment=held,
                index=at,
            )
        )
        self.settle()
        if lost and why != "killed" and held not in self.forgotten:
            assert lost[0] in self.ended, "the call that it was in is to blame"
        assert not set(lost[1:]) & self.ended or why == "killed", "the others are not"
        if why != "killed":
            alive = {call for call in lost[1:] if call[0] not in self.forgotten}
            assert alive <= self.waiting() | self.running()

    @rule(duration_ms=st.sampled_from([1, 6, 100, 300, 1_500]))
    def time_passes(self, duration_ms: int) -> None:
        self.bench.advance(duration_ms)
        self.settle()

    # -- always ---------------------------------------------------------------------------------

    @invariant()
    def no_slot_idles_while_a_call_waits(self) -> None:
        if any(slot.state == "ready" and not slot.given for slot in self.slots):
            idle = [slot for slot in self.slots if slot.state == "ready" and not slot.given]
            assert not self.waiting() or all(slot.must_return for slot in idle)

    def teardown(self) -> None:
        """Once deaths end, everything that is held ends, and nothing is kept after that."""
        if not hasattr(self, "held"):
            return
        # A call may cost a round to start its worker, one to run and one to end the worker.
        for _ in range(3 * len(self.waiting() | self.running()) + 100):
            if any(slot.state == "starting" for slot in self.slots):
                self.workers_get_ready()
            for index, slot in enumerate(self.slots):
                self.give_back(index)
                if slot.state == "killed":
                    self.die(index, "SIGKILL")
                else:
                    self.finish(index, 1_000, 20)
            self.bench.now_ms += 1_000
            self.settle()
            if not self.waiting() and not any(slot.given for slot in self.slots):
                break
        assert not self.waiting()
        self.acknowledge_all()
        self.bench.send(Report())
        assert self.bench.messages(DeviceInventory)[-1].rows == ()


AgentMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, report_multiple_bugs=False
)
TestAgentMachine: Any = AgentMachine.TestCase

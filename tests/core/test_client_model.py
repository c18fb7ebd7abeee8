"""The client's core against a naive controller, under loss, restarts and repeats.

Whatever is lost on the way: no call has two outcomes, none that was cancelled has any, and once
nothing is lost any more every other call has one, and the controller knows that all have ended.
"""

import cbor2
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.client_desk import CLIENT, USER, Desk, task_id
from forage.core.commands import RefuseTask, ResolveCalls
from forage.core.events import CallsCancelled
from forage_wire.codec import decode, decode_header
from forage_wire.io import Disconnected, MessageReceived
from forage_wire.link import Link, link_number
from forage_wire.messages import (
    Acknowledged,
    ClientInventory,
    Collected,
    Fetch,
    Hello,
    Linked,
    Outcomes,
    OutcomeSet,
    Released,
    Settled,
    Submit,
    Welcome,
)

Calls = set[tuple[str, int]]


class NaiveController:
    """Commits what it is told to commit, and forgets all else when it restarts."""

    def __init__(self) -> None:
        self.starts = 0
        self.session = ""
        self.link: Link | None = None
        self.committed: dict[tuple[str, int], int] = {}
        """(task, first) -> calls in the page."""
        self.uncommitted: dict[tuple[str, int], int] = {}
        self.collected: Calls = set()
        self.archive: Calls = set()
        """Calls whose outcome it has."""
        self.restart()

    def restart(self) -> None:
        self.starts += 1
        self.session = f"{self.starts:016x}-1"
        self.link = None
        self.uncommitted.clear()

    def read(self, payload: bytes, topic: str, now_ms: int) -> None:
        message = decode(payload)
        if message.controller not in ("", self.session):
            return
        number = link_number(message)
        current = self.link
        is_new = current is None or current.session != message.session or number > current.number
        if is_new:
            if type(message) is not Hello:
                return
            self.link = Link(
                session=message.session,
                controller=self.session,
                number=number,
                epoch=self.starts,
                topic=topic,
                window=16,
            )
        elif current is not None and number < current.number:
            return
        assert self.link is not None
        for ready in self.link.receive(message, now_ms):
            self.take(self.link, ready)

    def take(self, link: Link, message: Linked) -> None:
        match message:
            case Hello():
                link.send(Welcome(minor=0))
            case Submit():
                for page in message.pages:
                    header = decode_header(page.header)
                    key = (header.task, header.first)
                    self.note(header.task, page.collected)
                    if key in self.committed:
                        link.send(Acknowledged(rows=(key,)))
                    else:
                        self.uncommitted[key] = header.n
            case Collected():
                for task, ranges in message.rows:
                    self.note(task, ranges)
            case ClientInventory():
                for task, _calls, ranges in message.rows:
                    self.note(task, ranges)
            case Fetch():
                for task, ranges in message.rows:
                    found = [
                        index
                        for low, high in ranges
                        for index in range(low, high)
                        if (task, index) in self.archive
                    ]
                    for index in found:
                        outcomes = OutcomeSet(
                            task=task,
                            ranges=((index, index + 1),),
                            data=cbor2.dumps([[index]]),
                            device="pi1",
                        )
                        link.send(Outcomes(sets=(outcomes,)))
            case _:
                pass

    def note(self, task: str, ranges: tuple[tuple[int, int], ...]) -> None:
        self.collected |= {(task, index) for low, high in ranges for index in range(low, high)}

    def commit(self) -> None:
        rows = tuple(self.uncommitted)
        self.committed.update(self.uncommitted)
        self.uncommitted.clear()
        if self.link is not None and rows:
            self.link.send(Acknowledged(rows=rows))

    def known(self) -> Calls:
        pages = {**self.committed, **self.uncommitted}
        return {(task, first + i) for (task, first), n in pages.items() for i in range(n)}

    def settle(self) -> None:
        by_task: dict[str, list[int]] = {}
        for task, index in sorted(self.archive - self.collected):
            by_task.setdefault(task, []).append(index)
        rows = tuple(
            (task, tuple((index, index + 1) for index in indices))
            for task, indices in by_task.items()
        )
        if self.link is not None and rows:
            self.link.send(Settled(rows=rows))


class ClientModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.controller = NaiveController()
        self.connections = 1
        self.desk.connect()
        self.sizes: dict[str, int] = {}
        self.cancelled: Calls = set()
        self.resolved: Calls = set()

    # -- what the user does -----------------------------------------------------------------------

    @rule(calls=st.integers(1, 6), more=st.integers(0, 3))
    def submit(self, calls: int, more: int) -> None:
        number = len(self.sizes) + 1
        self.desk.open(number)
        self.desk.submit([b"\x82\x00\x80"] * calls, number, last=not more)
        if more:
            self.desk.submit([b"\x82\x00\x80"] * more, number, first=calls)
        self.sizes[task_id(number)] = calls + more

    @precondition(lambda self: self.sizes)
    @rule(data=st.data(), force=st.booleans())
    def cancel(self, data: st.DataObject, force: bool) -> None:
        task = data.draw(st.sampled_from(sorted(self.sizes)))
        low = data.draw(st.integers(0, self.sizes[task] - 1))
        high = data.draw(st.integers(low + 1, self.sizes[task]))
        open_calls = {
            (task, index) for index in range(low, high) if (task, index) not in self.resolved
        }
        ranges = tuple((index, index + 1) for _, index in sorted(open_calls))
        if ranges:
            self.desk.tell(CallsCancelled(task=task, ranges=ranges, force=force))
            self.cancelled |= open_calls

    # -- what the network does --------------------------------------------------------------------

    @rule()
    def arrive(self) -> None:
        sent, self.desk.sent = self.desk.sent, []
        for topic, payload in sent:
            if topic == self.desk.topics.from_client(USER, CLIENT):
                where = self.desk.topics.to_client(USER, CLIENT)
                self.controller.read(payload, where, self.desk.now_ms)

    @rule()
    def lose_what_the_client_sent(self) -> None:
        self.desk.lose()

    @rule(lost=st.booleans())
    def controller_speaks(self, lost: bool) -> None:
        link = self.controller.link
        if link is None:
            return
        for outgoing in link.poll(self.desk.now_ms):
            if not lost:
                self.desk.tell(MessageReceived(topic=outgoing.topic, payload=outgoing.payload))
        self.take()

    @rule()
    def reconnect(self) -> None:
        self.connections += 1
        self.desk.lose()
        self.desk.tell(Disconnected())
        self.desk.connect(f"{'a' * 16}-{self.connections}")
        self.show_presence()

    @rule()
    def restart_the_controller(self) -> None:
        self.controller.restart()
        self.show_presence()

    def show_presence(self) -> None:
        self.desk.presence(self.controller.session, epoch=self.controller.starts)

    @rule(ms=st.sampled_from([5, 50, 250, 1_500]))
    def wait(self, ms: int) -> None:
        self.desk.sleep(ms)

    # -- what the fleet does ------------------------------------------------------------------------

    @rule()
    def commit(self) -> None:
        self.controller.commit()

    @rule(data=st.data(), lost=st.booleans())
    def a_device_answers(self, data: st.DataObject, lost: bool) -> None:
        known = sorted(self.controller.known())
        if known:
            self.answer(*data.draw(st.sampled_from(known)), lost=lost)

    def answer(self, task: str, index: int, *, lost: bool) -> None:
        self.controller.archive.add((task, index))
        if not lost:
            number = int(task.split("-")[1])
            self.desk.resolve(((index, index + 1),), number=number)
            self.take()

    @rule()
    def settle(self) -> None:
        self.controller.settle()

    # -- what must hold ---------------------------------------------------------------------------

    def take(self) -> None:
        for command in self.desk.take(ResolveCalls):
            for low, high in command.ranges:
                for index in range(low, high):
                    call = (command.task, index)
                    assert call not in self.resolved, "two outcomes"
                    assert call not in self.cancelled, "an outcome of a cancelled call"
                    assert [index] in command.items
                    self.resolved.add(call)

    @invariant()
    def no_task_is_refused(self) -> None:
        assert self.desk.take(RefuseTask) == []

    def teardown(self) -> None:
        everything = {(task, i) for task, n in self.sizes.items() for i in range(n)}
        self.show_presence()
        for _ in range(60):
            self.arrive()
            self.controller.commit()
            for call in sorted(self.controller.known() - self.controller.collected):
                self.answer(*call, lost=True)
            self.controller.settle()
            self.controller_speaks(lost=False)
            self.desk.sleep(300)
        assert self.resolved | self.cancelled == everything
        assert self.controller.collected >= everything
        assert self.desk.core.unacknowledged_pages == 0
        assert self.controller.link is not None
        self.controller.link.send(Released(tasks=tuple(self.sizes)))
        self.controller_speaks(lost=False)
        assert self.desk.core.tasks == {}


ClientModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestClientModel = ClientModel.TestCase

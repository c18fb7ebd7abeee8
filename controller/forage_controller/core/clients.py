"""The clients: their links, what they submit and collect, what they are told."""

from collections import deque
from collections.abc import Callable, Iterable

from forage_controller.core.archive import Archive, in_messages
from forage_controller.core.codes import CodeShelf
from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.ledger import Ledger, PageRefused
from forage_controller.core.links import Links
from forage_controller.core.reconcile import Reconciler
from forage_controller.core.sessions import is_newer
from forage_controller.core.settlement import Settlement
from forage_controller.core.state import Client, Task
from forage_controller.core.state import Page as StoredPage
from forage_wire.errors import DecodeError
from forage_wire.limits import (
    LIST_ITEMS_MAX,
    PACKET_BYTES_MAX,
    PACKET_BYTES_MIN,
    PROTOCOL_MINOR,
)
from forage_wire.link import Link, link_number
from forage_wire.messages import (
    Acknowledged,
    Attach,
    Cancel,
    ClientInventory,
    Code,
    Collected,
    Fetch,
    Hello,
    Linked,
    OutcomeSet,
    Page,
    Query,
    Released,
    Seen,
    Settled,
    SubmissionRefused,
    Submit,
    Welcome,
)
from forage_wire.ranges import Ranges, RangeSet
from forage_wire.strict import load_plain
from forage_wire.topics import Topics, is_task

__all__ = ["Clients"]

_COLLECTED_AT_ONCE = 16
"""Rows of calls that clients have, taken in with one batch: a client says it of a hundred tasks at a
time, and nobody waits for that but those who wait for something else ..."""
_COLLECTED_MAX = 8_192
"""... unless there are more than this, with each of their ranges."""
_RANGES_AT_ONCE = 3_000
"""Rows and ranges of one message together: some 20 bytes each, so that they fit a packet."""


class Clients:
    """Every client that is here or has tasks here.

    `on_query(client, query, now_ms)` answers questions.
    """

    def __init__(
        self,
        config: CoreConfig,
        effects: Effects,
        links: Links,
        topics: Topics,
        ledger: Ledger,
        settlement: Settlement,
        archive: Archive,
        codes: CodeShelf,
        reconciler: Reconciler,
        on_query: Callable[[Client, Query, int], None],
    ) -> None:
        self._config = config
        self._effects = effects
        self._links = links
        self._topics = topics
        self._limits = config.limits
        self._ledger = ledger
        self._settlement = settlement
        self._archive = archive
        self._codes = codes
        self._reconciler = reconciler
        self._on_query = on_query
        self.clients: dict[tuple[str, str], Client] = {}
        self.session = ""
        self.epoch = 0
        self.devices_alive: Callable[[], int] = lambda: 0
        self.stranger = False
        """Whether somebody spoke to a controller session that is not ours (any more)."""
        self.waiting_collected: deque[tuple[Client, Task, Ranges]] = deque()
        """Calls that clients have, which are done, and not taken in as collected yet ..."""
        self._collected_size = 0
        """... rows and ranges ..."""
        self._collected_ms: int | None = None
        """... and when that goes on."""
        self.came: list[Client] = []
        """Clients that began a link since somebody looked."""

    def client(self, user: str, name: str) -> Client:
        """The client of a name, made when it is first heard of."""
        client = self.clients.get((user, name))
        if client is None:
            client = self.clients[(user, name)] = Client(user=user, name=name)
        return client

    def _drop_link(self, client: Client) -> None:
        self._archive.forget(client)
        if client.link is not None:
            client.link.closed = True
            client.link = None

    def connected(self, session: str, epoch: int, now_ms: int) -> None:
        """We are active under a new session: every link starts anew."""
        self.session, self.epoch = session, epoch
        self.disconnected(now_ms)
        self.session = session

    def new_epoch(self, epoch: int) -> None:
        """We go on under a higher epoch; links stay."""
        self.epoch = epoch
        for client in self.clients.values():
            if client.link is not None:
                client.link.epoch = epoch

    def disconnected(self, now_ms: int) -> None:
        """Links end with our connection."""
        self.take_all_collected(now_ms)
        self.session = ""
        for client in self.clients.values():
            self._drop_link(client)
            client.link_number = None

    # -- coming and going -------------------------------------------------------------------

    def on_presence(self, user: str, name: str, here: bool, now_ms: int) -> None:
        """A client's retained word, or its end."""
        client = self.clients.get((user, name))
        if client is None or here:
            return
        client.gone_ms = now_ms
        self._gone(client)
        self._knock(client)
        self._reconciler.client_gone(name)
        self._drop_if_idle(client)

    def _knock(self, client: Client) -> None:
        """Ask a client that is said to be gone whether it is.

        Its goodbye names no session, so it may be an earlier connection's, come late; and a
        client that waits says nothing by itself. One that lives begins the link that we name.
        """
        if not self.session or client.link_number is None:
            return
        link = self._links.make(
            session=client.session,
            controller=self.session,
            # The next one, by which it knows that this one is over, whatever it has heard on it.
            number=client.link_number + 1,
            epoch=self.epoch,
            topic=self._topics.to_client(client.user, client.name),
            packet_bytes_max=PACKET_BYTES_MAX,
        )
        self._effects.outgoing([link.unnumbered(Seen(gap=True), qos=1)])

    def _drop_if_idle(self, client: Client) -> None:
        if not client.here and not client.tasks and not client.attached:
            self.clients.pop((client.user, client.name), None)

    def expire(self, now_ms: int) -> None:
        """Drop clients that are gone, or silent for long, and have nothing here any more."""
        for client in list(self.clients.values()):
            if client.heard_ms + self._limits.keep_ms <= now_ms and not client.tasks:
                # Its goodbye was lost. If it is there after all, it begins a new link.
                self._gone(client)
                self._detach(client)
            elif client.gone_ms is not None:
                self._knock(client)
                for task in list(client.tasks.values()):
                    self._inherit(task, now_ms)
            self._drop_if_idle(client)

    def _gone(self, client: Client) -> None:
        client.here = False
        self._drop_link(client)

    def _detach(self, client: Client) -> None:
        for task in client.attached.values():
            task.attached.pop(client.name, None)
        client.attached = {}

    # -- messages ---------------------------------------------------------------------------

    def on_message(self, user: str, name: str, message: Linked, now_ms: int) -> None:
        """A message of a client's `from` topic."""
        if not self.session:
            return
        client = self.clients.get((user, name))
        if client is None and len(self.clients) < self._limits.clients:
            client = self.client(user, name)
        link = None if client is None else self._link_for(client, message, now_ms)
        if client is None or link is None:
            self.stranger = self.stranger or message.controller not in ("", self.session)
            self._effects.drop(f"{user}/{name}", "a message for another session")
            return
        client.here = True
        client.gone_ms = None
        client.heard_ms = now_ms
        dropped = link.dropped
        for ready in link.receive(message, now_ms):
            self._on_ready(client, ready, now_ms)
        if link.dropped > dropped:
            self._effects.drop(f"{user}/{name}", "parts that make no message")
        # What it has seen may have made room for more.
        self._archive.go_on(client)

    def _link_for(self, client: Client, message: Linked, now_ms: int) -> Link | None:
        """The link of a message, a new one where it opens one; None for another session's."""
        session = message.session
        if message.controller not in ("", self.session) or not session:
            return None
        if client.session and session != client.session:
            if not is_newer(session, client.session):
                return None
            self._drop_link(client)
            client.link_number = None
        number = link_number(message)
        if client.link is not None and number == client.link.number:
            return client.link
        if client.link_number is not None and number <= client.link_number:
            if client.link is None and number == client.link_number:
                # We let go of this link: what we would say on it is told already, for its client.
                self._knock(client)
            return None
        self._drop_link(client)
        # It attaches again on each link.
        self._detach(client)
        client.session = session
        client.link_number = number
        client.named.clear()
        client.link = self._links.make(
            session=session,
            controller=self.session,
            number=number,
            epoch=self.epoch,
            topic=self._topics.to_client(client.user, client.name),
            # Its hello may be lost, and come after what opened the link: until then, what any
            # client takes. A message above its limit would keep all others from it for ever.
            packet_bytes_max=min(
                client.packet_bytes_max or PACKET_BYTES_MIN, self._config.packet_bytes_max
            ),
        )
        for task in client.tasks.values():
            task.told = None
            self._ledger.tell_settled(task, now_ms)
        self.came.append(client)
        return client.link

    def _on_ready(self, client: Client, message: Linked, now_ms: int) -> None:
        match message:
            case Submit():
                self._on_submit(client, message, now_ms)
            case Collected():
                self._hear_collected(client, message.rows, now_ms)
            case Hello():
                self._on_hello(client, message)
            case Code():
                if not self._codes.put(message):
                    who = f"{client.user}/{client.name}"
                    self._effects.drop(who, "code that is not what its hash says, or too much")
            case Cancel():
                self._on_cancel(client, message, now_ms)
            case Fetch():
                for task, ranges in self._known(client, message.rows):
                    self._archive.want(client, task, ranges)
            case ClientInventory():
                self._on_inventory(client, message, now_ms)
            case Attach():
                self._on_attach(client, message)
            case Query():
                self._on_query(client, message, now_ms)
            case _:
                self._effects.drop(
                    f"{client.user}/{client.name}", f"{type(message).__name__} from a client"
                )

    def _known(
        self, client: Client, rows: tuple[tuple[str, Ranges], ...]
    ) -> list[tuple[Task, Ranges]]:
        """The rows of tasks that are this client's, or that it is attached to."""
        found: list[tuple[Task, Ranges]] = []
        for task_id, ranges in rows:
            task = client.tasks.get(task_id) or client.attached.get(task_id)
            if task is not None:
                found.append((task, ranges))
        return found

    def _on_hello(self, client: Client, hello: Hello) -> None:
        assert client.link is not None
        client.minor = hello.minor
        client.python = hello.python
        client.packet_bytes_max = hello.packet_bytes_max
        client.link.packet_bytes_max = min(hello.packet_bytes_max, self._config.packet_bytes_max)
        client.link.send(
            Welcome(
                minor=PROTOCOL_MINOR,
                packet_bytes_max=self._config.packet_bytes_max,
                devices=self.devices_alive(),
            )
        )

    def _on_submit(self, client: Client, submit: Submit, now_ms: int) -> None:
        assert client.link is not None
        is_stranger = abs(client.minor - PROTOCOL_MINOR) > 1
        for page in submit.pages:
            try:
                if is_stranger:
                    raise PageRefused(
                        "version",
                        f"the client speaks protocol 1.{client.minor} and this controller "
                        f"1.{PROTOCOL_MINOR}: bring both to versions at most one minor apart",
                    )
                taken = self._take_page(client, page, now_ms)
            except PageRefused as refused:
                self._refuse(client, _task_of(page.header), refused, now_ms)
                continue
            if taken is None:
                self._ledger.tell_released(client, _task_of(page.header))
                continue
            task, known = taken
            if known.committed:
                self._ledger.tell_acknowledged(client, (task.id, known.first), now_ms)
            self._reconciler.page_came(task, now_ms)

    def _refuse(self, client: Client, task_id: str, refused: PageRefused, now_ms: int) -> None:
        assert client.link is not None
        if not task_id:
            # A header that names no task: there is nobody to tell.
            self._effects.drop(f"{client.user}/{client.name}", refused.text)
            return
        client.link.send(
            SubmissionRefused(task=task_id, reason=refused.reason, text=refused.text[:1_024])
        )
        task = client.tasks.get(task_id)
        # The client ends all of its calls by this; pages that it has sent may still come.
        self._ledger.refuse(task_id, refused)
        if task is not None:
            self._settlement.abandon(task, now_ms)

    def _take_page(self, client: Client, page: Page, now_ms: int) -> tuple[Task, StoredPage] | None:
        """As `Ledger.on_page`, of a ledger that knows all that was said before."""
        try:
            return self._ledger.on_page(client, page, now_ms)
        except PageRefused as refused:
            if refused.reason != "full" or not self.waiting_collected:
                raise
        self.take_all_collected(now_ms)
        return self._ledger.on_page(client, page, now_ms)

    def _hear_collected(
        self, client: Client, rows: tuple[tuple[str, Ranges], ...], now_ms: int
    ) -> None:
        """Take in a few rows at once; of many the most wait."""
        known = self._known(client, rows)
        if len(known) <= _COLLECTED_AT_ONCE:
            for task, ranges in known:
                self._on_collected(client, task, ranges, now_ms)
            return
        for task, ranges in known:
            # What is not known of a task yet comes with its page.
            here = tuple([(low, min(high, task.end)) for low, high in ranges if low < task.end])
            if task.client is client:
                # Whatever comes before the rest is done: nobody is to run them any more.
                task.done.update(here)
            self.waiting_collected.append((client, task, here))
            self._collected_size += 1 + len(here)
        while self._collected_size > _COLLECTED_MAX:
            self._take_collected(1, now_ms)

    def take_all_collected(self, now_ms: int) -> None:
        """Nothing of what clients have said that they have is to wait any more."""
        self._take_collected(len(self.waiting_collected), now_ms)

    def _take_collected(self, rows: int, now_ms: int) -> None:
        """Take in so many of what clients have said that they have."""
        for _ in range(min(rows, len(self.waiting_collected))):
            client, task, ranges = self.waiting_collected.popleft()
            self._collected_size -= 1 + len(ranges)
            if self._ledger.tasks.get(task.id) is task:
                self._on_collected(client, task, ranges, now_ms)
        self._collected_ms = now_ms if self.waiting_collected else None

    def _on_collected(self, client: Client, task: Task, ranges: Ranges, now_ms: int) -> None:
        if task.client is client:
            self._ledger.collect(task, ranges, now_ms, kills=True)
            return
        # What somebody attached to the task has collected counts only if its owner is gone, and
        # stays so: one whose connection broke comes back for it.
        task.inherited = task.inherited or RangeSet()
        for low, high in ranges:
            task.inherited.add(low, min(high, task.end))
        self._inherit(task, now_ms)

    def _inherit(self, task: Task, now_ms: int) -> None:
        gone_ms = task.client.gone_ms
        if task.inherited and gone_ms is not None and gone_ms + self._limits.gone_ms <= now_ms:
            self._ledger.collect(task, task.inherited.freeze(), now_ms)

    def _on_cancel(self, client: Client, cancel: Cancel, now_ms: int) -> None:
        task = self._ledger.tasks.get(cancel.task)
        if task is None or task.client.user != client.user:
            return
        self._settlement.cancel(
            task,
            cancel.ranges,
            force=cancel.force,
            owner=task.client is client,
            now_ms=now_ms,
        )

    def _on_inventory(self, client: Client, inventory: ClientInventory, now_ms: int) -> None:
        assert client.link is not None
        for task_id, _calls, collected in inventory.rows:
            task = client.tasks.get(task_id)
            if task is not None:
                self._ledger.collect(task, collected, now_ms, kills=True)
                if task_id in self._ledger.tasks:
                    self._collected_elsewhere(client, task, collected)
            elif task_id in self._ledger.released:
                self._ledger.tell_released(client, task_id)
            else:
                client.link.send(
                    SubmissionRefused(
                        task=task_id,
                        reason="data-lost",
                        text="The controller knows nothing of this task: its store was lost or "
                        "replaced, or it took over before it was told of it; submit it again.",
                    )
                )
        for task_id, ranges in inventory.acknowledged:
            task = client.tasks.get(task_id)
            if task is not None and not _has_pages(task, ranges):
                text = (
                    f"The controller does not have all calls of task {task_id}: it took over "
                    "before it was told of them, and the client has them no more; submit it again."
                )
                self._refuse(client, task_id, PageRefused("data-lost", text), now_ms)
        self._end_what_is_not_named(client, inventory, now_ms)

    def _end_what_is_not_named(
        self, client: Client, inventory: ClientInventory, now_ms: int
    ) -> None:
        """What the client had collected before we took over with an older copy is nobody's."""
        client.named.update(inventory.others)
        client.named.update([row[0] for row in inventory.rows])
        client.named.update([row[0] for row in inventory.acknowledged])
        if not inventory.whole:
            return
        for task in [task for name, task in client.tasks.items() if name not in client.named]:
            self._settlement.abandon(task, now_ms)
        client.named.clear()

    def _collected_elsewhere(self, client: Client, task: Task, collected: Ranges) -> None:
        """What was collected for an owner who was thought gone: it is offered that again."""
        rows = [
            row
            for low, high in RangeSet(collected).missing(0, task.end)
            for row in task.collected.common(low, high)
        ]
        assert client.link is not None
        for at in range(0, len(rows), _RANGES_AT_ONCE):
            part = tuple(rows[at : at + _RANGES_AT_ONCE])
            client.link.send(Settled(rows=((task.id, part),)))

    # -- outcomes from the archive ----------------------------------------------------------

    def _on_attach(self, client: Client, attach: Attach) -> None:
        assert client.link is not None
        task = self._ledger.tasks.get(attach.task)
        if task is None or task.client.user != client.user:
            ended = task is None and attach.task in self._ledger.released
            text = (
                "the task has ended and its outcomes were collected: they are kept no longer"
                if ended
                else "the controller knows no such task of this user: look at `forage task ls`"
            )
            client.link.send(
                SubmissionRefused(
                    task=attach.task, reason="data-lost" if ended else "unknown", text=text
                )
            )
            return
        if task.client is not client:
            task.attached[client.name] = client
            client.attached[task.id] = task
        self._archive.want(client, task, ((0, task.end),))

    # -- what clients are told --------------------------------------------------------------

    def tell(self, now_ms: int) -> None:
        """Send what this batch has for clients: commits, outcomes, releases."""
        self._take_collected(_COLLECTED_AT_ONCE, now_ms)
        if self._ledger.news_ms is not None and now_ms >= self._ledger.news_ms:
            news, self._ledger.news = self._ledger.news, {}
            self._ledger.news_ms = None
            for client in news:
                self._tell_one(client)
        self._send_outcomes()
        self._tell_settled(now_ms)

    def _send_outcomes(self) -> None:
        merged: dict[Client, list[OutcomeSet]] = {}
        for client, outcomes in self._ledger.to_clients:
            merged.setdefault(client, []).append(outcomes)
        self._ledger.to_clients = []
        for client, sets in merged.items():
            for message in in_messages(sets):
                # A client that is slow to take them is told what is settled, and fetches it.
                if client.link is None or client.link.waiting >= self._limits.client_messages:
                    break
                client.link.send(message)

    def _tell_one(self, client: Client) -> None:
        if client.acknowledged:
            rows, client.acknowledged = list(client.acknowledged), {}
            if client.link is not None:
                for at in range(0, len(rows), LIST_ITEMS_MAX):
                    client.link.send(Acknowledged(rows=tuple(rows[at : at + LIST_ITEMS_MAX])))
        if client.released:
            tasks, client.released = list(client.released), {}
            if client.link is not None:
                for at in range(0, len(tasks), LIST_ITEMS_MAX):
                    client.link.send(Released(tasks=tuple(tasks[at : at + LIST_ITEMS_MAX])))

    def _tell_settled(self, now_ms: int) -> None:
        due = self._ledger.due
        rows: dict[Client, list[tuple[str, Ranges]]] = {}
        while due and due[0][0] <= now_ms:
            task = due.popleft()[1]
            task.settled_due_ms = None
            if task.id not in self._ledger.tasks or task.client.link is None:
                continue
            untold = RangeSet()
            told = task.told = task.told or RangeSet()
            for low, high in task.committed:
                for gap_low, gap_high in task.collected.missing(low, high):
                    untold.update(told.missing(gap_low, gap_high))
            if untold:
                told.update(untold)
                frozen = untold.freeze()
                for at in range(0, len(frozen), _RANGES_AT_ONCE):
                    row = (task.id, frozen[at : at + _RANGES_AT_ONCE])
                    rows.setdefault(task.client, []).append(row)
        for client, found in rows.items():
            assert client.link is not None
            for part in _portions(found):
                client.link.send(Settled(rows=part))

    def next_wakeup_ms(self) -> int | None:
        """When clients are to be told something."""
        if self._collected_ms is not None:
            return self._collected_ms
        settled_ms, news_ms = (
            self._ledger.due[0][0] if self._ledger.due else None,
            self._ledger.news_ms,
        )
        if settled_ms is None or news_ms is None:
            return news_ms if settled_ms is None else settled_ms
        return min(settled_ms, news_ms)


def _task_of(header: bytes) -> str:
    """The task that a page's header names, read as far as it can be; "" where it names none."""
    try:
        raw = load_plain(header)
    except DecodeError:
        return ""
    task = raw.get("t") if type(raw) is dict else None
    return task if type(task) is str and is_task(task) else ""


def _portions(rows: list[tuple[str, Ranges]]) -> Iterable[tuple[tuple[str, Ranges], ...]]:
    """Rows in portions of about the size of a packet."""
    portion: list[tuple[str, Ranges]] = []
    size = 0
    for row in rows:
        if portion and size + 1 + len(row[1]) > _RANGES_AT_ONCE:
            yield tuple(portion)
            portion, size = [], 0
        portion.append(row)
        size += 1 + len(row[1])
    if portion:
        yield tuple(portion)


def _has_pages(task: Task, ranges: Ranges) -> bool:
    """Whether all these calls are in pages that are here."""
    here = RangeSet([(page.first, page.end) for page in task.pages.values()])
    return all(here.covers(low, high) for low, high in ranges)

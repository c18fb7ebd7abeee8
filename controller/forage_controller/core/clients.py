"""The clients: their links, what they submit and collect, what they are told."""

from collections.abc import Callable

import cbor2

from forage_controller.core.codes import CodeShelf
from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.ledger import Ledger, PageRefused
from forage_controller.core.links import Links
from forage_controller.core.operations import LoadOutcomes, OutcomesLoaded
from forage_controller.core.reconcile import Reconciler
from forage_controller.core.sessions import is_newer
from forage_controller.core.state import Client, Task
from forage_wire.limits import (
    LIST_ITEMS_MAX,
    PACKET_BYTES_MAX,
    PROTOCOL_MINOR,
    RANGES_MAX,
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
    Outcomes,
    OutcomeSet,
    Query,
    Released,
    Settled,
    SubmissionRefused,
    Submit,
    Welcome,
)
from forage_wire.ranges import Ranges, RangeSet
from forage_wire.system_errors import DATA_LOST, system_error
from forage_wire.topics import Topics

__all__ = ["Clients"]


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
        codes: CodeShelf,
        reconciler: Reconciler,
        on_query: Callable[[Client, Query, int], None],
    ) -> None:
        self._config = config
        self._effects = effects
        self._links = links
        self._topics = topics
        self._ledger = ledger
        self._codes = codes
        self._reconciler = reconciler
        self._on_query = on_query
        self.clients: dict[tuple[str, str], Client] = {}
        self.session = ""
        self.epoch = 0
        self.devices_alive: Callable[[], int] = lambda: 0
        self.stranger = False
        """Whether somebody spoke to a controller session that is not ours (any more)."""
        self._requests: dict[int, tuple[Client, Ranges]] = {}
        self._request = 0

    def client(self, user: str, name: str) -> Client:
        """The client of a name, made when it is first heard of."""
        client = self.clients.get((user, name))
        if client is None:
            client = self.clients[(user, name)] = Client(user=user, name=name)
        return client

    def connected(self, session: str, epoch: int) -> None:
        """We are active under a new session: every link starts anew."""
        self.session, self.epoch = session, epoch
        self.disconnected()
        self.session = session

    def new_epoch(self, epoch: int) -> None:
        """We go on under a higher epoch; links stay."""
        self.epoch = epoch
        for client in self.clients.values():
            if client.link is not None:
                client.link.epoch = epoch

    def disconnected(self) -> None:
        """Links end with our connection."""
        self.session = ""
        for client in self.clients.values():
            _drop_link(client)

    # -- coming and going -------------------------------------------------------------------

    def on_presence(self, user: str, name: str, here: bool, now_ms: int) -> None:
        """A client's retained word, or its end."""
        client = self.clients.get((user, name))
        if client is None or here:
            return
        client.here = False
        client.gone_ms = now_ms
        _drop_link(client)
        for task in client.attached.values():
            task.attached.pop(name, None)
        client.attached = {}
        self._reconciler.client_gone(name)
        self._drop_if_idle(client)

    def _drop_if_idle(self, client: Client) -> None:
        if not client.here and not client.tasks and not client.attached:
            self.clients.pop((client.user, client.name), None)

    def expire(self) -> None:
        """Drop clients that are gone and have nothing here any more."""
        for client in list(self.clients.values()):
            self._drop_if_idle(client)

    # -- messages ---------------------------------------------------------------------------

    def on_message(self, user: str, name: str, message: Linked, now_ms: int) -> None:
        """A message of a client's `from` topic."""
        if not self.session:
            return
        client = self.client(user, name)
        link = self._link_for(client, message, now_ms)
        if link is None:
            self.stranger = self.stranger or message.controller not in ("", self.session)
            self._effects.drop(f"{user}/{name}", "a message for another session")
            return
        client.here = True
        client.gone_ms = None
        dropped = link.dropped
        for ready in link.receive(message, now_ms):
            self._on_ready(client, ready, now_ms)
        if link.dropped > dropped:
            self._effects.drop(f"{user}/{name}", "parts that make no message")

    def _link_for(self, client: Client, message: Linked, now_ms: int) -> Link | None:
        """The link of a message, a new one where it opens one; None for another session's."""
        session = message.session
        if message.controller not in ("", self.session) or not session:
            return None
        if client.session and session != client.session:
            if not is_newer(session, client.session):
                return None
            _drop_link(client)
        number = link_number(message)
        if client.link is not None:
            if number == client.link.number:
                return client.link
            if number < client.link.number:
                return None
            _drop_link(client)
        client.session = session
        client.link = self._links.make(
            session=session,
            controller=self.session,
            number=number,
            epoch=self.epoch,
            topic=self._topics.to_client(client.user, client.name),
            packet_bytes_max=min(
                client.packet_bytes_max or PACKET_BYTES_MAX, self._config.packet_bytes_max
            ),
        )
        for task in client.tasks.values():
            task.told = RangeSet()
            self._ledger.tell_settled(task, now_ms)
        return client.link

    def _on_ready(self, client: Client, message: Linked, now_ms: int) -> None:
        match message:
            case Submit():
                self._on_submit(client, message, now_ms)
            case Collected():
                for task, ranges in self._known(client, message.rows):
                    self._on_collected(client, task, ranges, now_ms)
            case Hello():
                self._on_hello(client, message)
            case Code():
                self._codes.put(message)
            case Cancel():
                self._on_cancel(client, message, now_ms)
            case Fetch():
                for task, ranges in self._known(client, message.rows):
                    self._load(client, task, ranges)
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
        for page in submit.pages:
            try:
                if abs(client.minor - PROTOCOL_MINOR) > 1:
                    raise PageRefused(
                        "version",
                        f"the client speaks protocol 1.{client.minor} and this controller "
                        f"1.{PROTOCOL_MINOR}: bring both to versions at most one minor apart",
                    )
                task = self._ledger.on_page(client, page, now_ms)
            except PageRefused as refused:
                self._refuse(client, page.header, refused)
                continue
            if task is None:
                self._ledger.tell_released(client, cbor2.loads(page.header)["t"])
                continue
            self._acknowledge_again(client, task, page.header)
            self._reconciler.page_came(task, now_ms)

    def _acknowledge_again(self, client: Client, task: Task, header: bytes) -> None:
        for page in task.pages.values():
            row = (task.id, page.first)
            if page.header_bytes == header and page.committed and row not in client.acknowledged:
                self._ledger.tell_acknowledged(client, row)

    def _refuse(self, client: Client, header: bytes, refused: PageRefused) -> None:
        assert client.link is not None
        try:
            task_id = cbor2.loads(header)["t"]
            message = SubmissionRefused(task=task_id, reason=refused.reason, text=refused.text)
            client.link.send(message)
        except Exception:
            # A header that names no task: there is nobody to tell.
            self._effects.drop(f"{client.user}/{client.name}", refused.text)

    def _on_collected(self, client: Client, task: Task, ranges: Ranges, now_ms: int) -> None:
        # What somebody attached to the task has collected counts only if its owner is gone.
        if task.client is client or not task.client.here:
            self._ledger.collect(task, ranges, now_ms)

    def _on_cancel(self, client: Client, cancel: Cancel, now_ms: int) -> None:
        task = self._ledger.tasks.get(cancel.task)
        if task is None or task.client.user != client.user:
            return
        self._ledger.cancel(
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
                self._ledger.collect(task, collected, now_ms)
            elif task_id in self._ledger.released:
                self._ledger.tell_released(client, task_id)
            else:
                client.link.send(
                    SubmissionRefused(
                        task=task_id,
                        reason="unknown",
                        text="the controller knows nothing of this task: its store was lost or "
                        "replaced; submit it again",
                    )
                )

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
        if task.committed:
            self._load(client, task, task.committed.freeze())

    def _load(self, client: Client, task: Task, ranges: Ranges) -> None:
        wanted: list[tuple[int, int]] = []
        for low, high in ranges:
            wanted.extend(task.committed.common(low, high))
        if not wanted:
            return
        self._request += 1
        self._requests[self._request] = (client, tuple(wanted))
        self._effects.command(
            LoadOutcomes(request=self._request, task=task.id, ranges=tuple(wanted))
        )

    def on_loaded(self, event: OutcomesLoaded) -> None:
        """Outcomes from the archive, for whoever asked."""
        request = self._requests.get(event.request)
        if request is None:
            return
        client, wanted = request
        missing = RangeSet(wanted)
        for row in event.rows:
            for low, high in row.settled:
                missing.remove(low, high)
        if event.more:
            self._requests[event.request] = (client, missing.freeze())
        else:
            del self._requests[event.request]
        if client.link is None:
            return
        sets = [
            OutcomeSet(
                task=event.task,
                assignment=row.assignment,
                low=row.low,
                high=row.high,
                tag=row.tag,
                device=row.device,
                ranges=row.ranges,
                errors=row.errors,
                run_us=row.run_us,
                data=row.data,
            )
            for row in event.rows
        ]
        if missing and not event.more:
            sets.extend(_lost(event.task, missing))
        for at in range(0, len(sets), 256):
            client.link.send(Outcomes(sets=tuple(sets[at : at + 256])))

    # -- what clients are told --------------------------------------------------------------

    def tell(self, now_ms: int) -> None:
        """Send what this batch has for clients: commits, outcomes, releases."""
        news, self._ledger.news = self._ledger.news, {}
        for client in news:
            self._tell_one(client)
        for client, outcomes in self._ledger.take_outcomes().items():
            if client.link is not None:
                client.link.send(outcomes)
        self._tell_settled(now_ms)

    def _tell_one(self, client: Client) -> None:
        if client.acknowledged:
            rows, client.acknowledged = client.acknowledged, []
            if client.link is not None:
                for at in range(0, len(rows), LIST_ITEMS_MAX):
                    client.link.send(Acknowledged(rows=tuple(rows[at : at + LIST_ITEMS_MAX])))
        if client.released:
            tasks, client.released = client.released, []
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
            for low, high in task.committed:
                for gap_low, gap_high in task.collected.missing(low, high):
                    untold.update(task.told.missing(gap_low, gap_high))
            if untold:
                task.told.update(untold)
                frozen = untold.freeze()
                for at in range(0, len(frozen), RANGES_MAX):
                    rows.setdefault(task.client, []).append((task.id, frozen[at : at + RANGES_MAX]))
        for client, found in rows.items():
            assert client.link is not None
            client.link.send(Settled(rows=tuple(found)))

    def next_wakeup_ms(self) -> int | None:
        """When clients are to be told of what they have not collected."""
        return self._ledger.due[0][0] if self._ledger.due else None


def _drop_link(client: Client) -> None:
    if client.link is not None:
        client.link.closed = True
        client.link = None


def _lost(task: str, missing: RangeSet) -> list[OutcomeSet]:
    """Outcomes that say that the archive holds these calls' outcomes no longer."""
    item = cbor2.loads(
        system_error(
            DATA_LOST,
            "the outcome was collected by another client and is no longer in the archive: "
            "submit the call again",
        )
    )
    made: list[OutcomeSet] = []
    for low, high in missing:
        for first in range(low, high, 1_024):
            end = min(first + 1_024, high)
            made.append(
                OutcomeSet(
                    task=task,
                    ranges=((first, end),),
                    errors=tuple([(index, "lost", True) for index in range(first, end)]),
                    data=cbor2.dumps([item] * (end - first)),
                )
            )
    return made

"""What a client sends on its link, in which order, and what it keeps until it is acknowledged.

Order on a link: hello, inventory, what was asked, then pages, each after its function's code.
Pages go out while the link's window has room, as many to a message as fit one packet. The window
opens by what the controller has seen; an outcome of a page's call says so too, and sooner.
"""

from collections import deque
from collections.abc import Iterable

from forage.core.tasks import PageRecord, TaskRecord
from forage_wire.io import Publish
from forage_wire.limits import (
    CLIENT_WINDOW,
    ENVELOPE_BYTES,
    PROTOCOL_MINOR,
    RANGES_MAX,
)
from forage_wire.link import Link
from forage_wire.messages import (
    Attach,
    Cancel,
    ClientInventory,
    Code,
    Collected,
    Hello,
    Linked,
    Page,
    Submit,
)
from forage_wire.ranges import Ranges
from forage_wire.records import replace

__all__ = ["Sending", "chunked"]

_PAGES_PER_SUBMIT_MAX = 1_024
_UNITS_PER_MESSAGE = 3_000
"""Rows and ranges of one message together: some 20 bytes each, so that they fit a packet."""
_CODES_KNOWN_MAX = 16_384
"""Hashes remembered as sent on this link; the oldest are sent again beyond."""


class Sending:
    """The client's end of its link with whoever is the controller."""

    def __init__(self, *, topic: str, packet_bytes_max: int, python: str, software: str) -> None:
        self._topic = topic
        self._packet_bytes_limit = packet_bytes_max
        self._python = python
        self._software = software
        self.link: Link | None = None
        """None without a connection."""
        self.packet_bytes_max = packet_bytes_max
        """The lower of our limit and the controller's, as far as we know it."""
        self.is_welcome = False
        self.controller_epoch = 0
        self.unacknowledged_bytes = 0
        self.unacknowledged_pages = 0
        self._held: list[tuple[PageRecord, Cancel]] = []
        """Cancellations of calls in pages whose last part still waits for room in the window."""
        self._waiting: deque[PageRecord] = deque()
        self._unopened_count = 0
        self._codes_sent: dict[bytes, int] = {}
        self._next_token = 1
        self._has_submitted = False
        """Whether a controller may know of a task of ours."""

    # -- the link ---------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether a page added now would go out now with nothing before it unanswered."""
        return (
            self.link is not None
            and not self._unopened_count
            and not self._waiting
            and self.link.has_room
        )

    @property
    def waiting_messages(self) -> int:
        """Messages that wait for room in the window; a page counts as one."""
        return 0 if self.link is None else self.link.waiting + len(self._waiting)

    def disconnect(self) -> None:
        """The connection is gone, and the link with it."""
        self.link = None
        self.is_welcome = False

    def start_link(self, session: str, controller: str, tasks: dict[str, TaskRecord]) -> None:
        """A new link: hello goes first, and every unacknowledged page waits to be sent again.

        Links of one session are counted, so that no message of one is taken for another's.
        """
        number = 0
        if self.link is not None and self.link.session == session:
            number = self.link.number + 1
        self.packet_bytes_max = self._packet_bytes_limit
        self.is_welcome = False
        self.controller_epoch = 0
        self.link = Link(
            session=session,
            controller=controller,
            number=number,
            topic=self._topic,
            window=CLIENT_WINDOW,
            packet_bytes_max=self._packet_bytes_limit,
        )
        self.link.send(
            Hello(
                minor=PROTOCOL_MINOR,
                python=self._python,
                packet_bytes_max=self._packet_bytes_limit,
                software=self._software,
            )
        )
        self._codes_sent.clear()
        self._held.clear()
        self._waiting.clear()
        self._unopened_count = 0
        for task in tasks.values():
            task.unopened.clear()
            for page in task.pages.values():
                page.is_repeated = page.is_repeated or page.is_sent
                page.is_sent = False
                page.is_open = False
                self._waiting.append(page)

    def name_controller(self, controller: str, epoch: int) -> None:
        """The first answer on a link to whoever it is: numbering goes on under its name."""
        if self.link is not None:
            self.link.controller = controller
            self.controller_epoch = epoch

    def welcome(self, packet_bytes_max: int) -> None:
        """The controller knows us, and says how large its messages may be."""
        self.is_welcome = True
        self.packet_bytes_max = min(self._packet_bytes_limit, packet_bytes_max)
        if self.link is not None:
            self.link.packet_bytes_max = self.packet_bytes_max

    # -- messages ---------------------------------------------------------------------------

    def send(self, message: Linked) -> None:
        """Queue a message; without a connection it is dropped, whoever needs it sends it again."""
        if self.link is not None:
            self.link.send(message)

    def attach(self, task: str) -> None:
        """Ask for another client's outcomes."""
        self.send(Attach(task=task))

    def send_inventory(self, tasks: dict[str, TaskRecord]) -> None:
        """What a controller that may not know us needs to know: tasks, and what has ended."""
        rows: list[tuple[str, int, Ranges]] = []
        own = [task for task in tasks.values() if not task.attached and task.submitted]
        # A task of which no page is acknowledged is not the controller's yet: its pages follow,
        # with what has ended. Naming it here would only have it refused as unknown.
        known = [task for task in own if task.is_known]
        messages = self._name_others(tasks) if self._has_submitted else []
        for name, ranges in chunked((task.task, task.resolved.freeze()) for task in known):
            rows.append((name, tasks[name].submitted, ranges))
        found = chunked((task.task, task.acknowledged_open()) for task in known)
        kept = [row for row in found if row[1]]
        for part in _messages_of(rows):
            # Most clients' fit in one message.
            fits = _units(part) + _units(kept) <= _UNITS_PER_MESSAGE
            messages.append(ClientInventory(rows=part, acknowledged=tuple(kept) if fits else ()))
            kept = [] if fits else kept
        messages += [ClientInventory(rows=(), acknowledged=part) for part in _messages_of(kept)]
        if self._has_submitted:
            # Also where nothing is open: an old copy may have brought back what has ended.
            last = messages.pop() if messages else ClientInventory(rows=())
            messages.append(replace(last, whole=True))
        for message in messages:
            self.send(message)
        for task in own:
            if task.forced is not None:
                self.cancel(task, task.forced.freeze(), True)

    def _name_others(self, tasks: dict[str, TaskRecord]) -> list[ClientInventory]:
        """All tasks that inventories tell nothing of but that they are open."""
        names = [task.task for task in tasks.values() if task.attached or not task.is_known]
        return [
            ClientInventory(rows=(), others=tuple(names[at : at + _UNITS_PER_MESSAGE]))
            for at in range(0, len(names), _UNITS_PER_MESSAGE)
        ]

    def say_collected(self, rows: Iterable[tuple[str, Ranges]]) -> None:
        """These calls have ended."""
        for part in _messages_of(list(chunked(rows))):
            self.send(Collected(rows=part))

    def cancel(self, task: TaskRecord, ranges: Ranges, force: bool) -> None:
        """Nobody wants these calls: what is sent of them is taken back, the rest says so itself."""
        sent: list[tuple[int, int]] = []
        for low, high in ranges:
            sent += _without_unsent(task, low, min(high, task.submitted))
        for start in range(0, len(sent), RANGES_MAX):
            part = tuple(sent[start : start + RANGES_MAX])
            message = Cancel(task=task.task, ranges=part, force=force)
            page = self._page_under_way(task)
            if page is None:
                self.send(message)
            else:
                self._held.append((page, message))

    def _page_under_way(self, task: TaskRecord) -> PageRecord | None:
        """The task's last page that is handed to the link and not yet sent to its end.

        Small messages overtake those in parts, and who hears of a cancellation before the page can
        make nothing of it.
        """
        if self.link is None:
            return None
        for page in reversed(task.pages.values()):
            if page.is_sent and page.token not in self.link.numbers:
                return page
        return None

    def _send_held(self, link: Link) -> None:
        """Send what waited for pages that have been sent (or are not needed any more)."""
        held, self._held = self._held, []
        for page, message in held:
            is_known = page.task.pages.get(page.first) is page
            if is_known and page.token not in link.numbers:
                self._held.append((page, message))
            else:
                link.send(message)

    def send_code(self, hashes: tuple[bytes, ...], tasks: dict[str, TaskRecord]) -> None:
        """The controller lacks functions: those of open tasks are sent again."""
        wanted = dict.fromkeys(hashes)
        for task in tasks.values():
            if task.code and task.function in wanted:
                del wanted[task.function]
                self._send_code(task)
                if not wanted:
                    return

    def _send_code(self, task: TaskRecord) -> None:
        if self.link is None or type(task.function) is not bytes:
            return
        if len(self._codes_sent) >= _CODES_KNOWN_MAX:
            del self._codes_sent[next(iter(self._codes_sent))]
        token = self._draw_token()
        self._codes_sent[task.function] = token
        code = Code(hash=task.function, form=task.form, data=task.code)
        self.link.send(code, tokens=(token,))

    def _draw_token(self) -> int:
        token = self._next_token
        self._next_token += 1
        return token

    # -- pages ------------------------------------------------------------------------------

    def add_pages(self, pages: list[PageRecord]) -> None:
        """New pages, to be sent when there is room and kept until they are acknowledged."""
        for page in pages:
            self.unacknowledged_bytes += page.payload_bytes
            self.unacknowledged_pages += 1
        if self.link is not None:
            self._waiting.extend(pages)

    def acknowledged(self, task: TaskRecord | None, first: int) -> None:
        """A page is committed (or of no use any more)."""
        page = None if task is None else task.pages.pop(first, None)
        if task is None or page is None:
            return
        self.unacknowledged_bytes -= page.payload_bytes
        self.unacknowledged_pages -= 1
        if page.is_sent:
            if not page.is_open:
                task.unopened.remove(page)
                self._unopened_count -= 1
            if self.link is not None:
                self.link.numbers.pop(page.token, None)
        elif page in self._waiting:
            self._waiting.remove(page)

    def opened(self, page: PageRecord, now_ms: int) -> None:
        """A page's call has an outcome: whatever was sent up to it has been seen.

        Not so where an earlier link may have brought the page: on this one everything may still
        be missing, and must be repeated.
        """
        page.is_open = True
        self._unopened_count -= 1
        if page.is_repeated:
            return
        link = self.link
        number = None if link is None else link.numbers.get(page.token)
        if link is not None and number is not None:
            link.note_seen(number, now_ms)

    def poll(self, now_ms: int) -> list[Publish]:
        """What is to be published now."""
        link = self.link
        if link is None:
            return []
        out: list[Publish] = []
        # Once at least: also where no page can go there are repeats, and what others have queued.
        has_polled = False
        while (self._waiting and link.has_room and self._send_pages(link)) or not has_polled:
            out += link.poll(now_ms)
            has_polled = True
        if self._held:
            self._send_held(link)
            out += link.poll(now_ms)
        return out

    def _send_pages(self, link: Link) -> bool:
        """Queue one message: code, or pages whose code is on its way; False: neither can go."""
        room = self.packet_bytes_max - ENVELOPE_BYTES
        pages: list[Page] = []
        tokens: list[int] = []
        while self._waiting and len(pages) < _PAGES_PER_SUBMIT_MAX:
            page = self._waiting[0]
            task = page.task
            if task.code and type(task.function) is bytes:
                token = self._codes_sent.get(task.function)
                if token is None:
                    if pages:
                        break
                    self._send_code(task)
                    return True
                if token not in link.numbers:
                    # Its last part waits for room; a page must not overtake it.
                    break
            message = page.message()
            room -= page.payload_bytes + 16 * len(message.collected)
            if pages and room < 0:
                break
            self._waiting.popleft()
            page.token = self._draw_token()
            page.is_sent = True
            task.unopened.append(page)
            self._unopened_count += 1
            pages.append(message)
            tokens.append(page.token)
        if not pages:
            return False
        self._has_submitted = True
        link.send(Submit(pages=tuple(pages)), tokens=tuple(tokens))
        return True


def _without_unsent(task: TaskRecord, low: int, high: int) -> list[tuple[int, int]]:
    """[low, high) without what lies in pages that are not sent yet."""
    kept: list[tuple[int, int]] = []
    for page in task.pages.values():
        if page.is_sent or page.first >= high or page.first + page.n <= low:
            continue
        if low < page.first:
            kept.append((low, page.first))
        low = page.first + page.n
    if low < high:
        kept.append((low, high))
    return kept


def chunked(rows: Iterable[tuple[str, Ranges]]) -> Iterable[tuple[str, Ranges]]:
    """The rows, with long lists of ranges cut over several rows of the same task."""
    for task, ranges in rows:
        for start in range(0, max(1, len(ranges)), _UNITS_PER_MESSAGE):
            yield task, ranges[start : start + _UNITS_PER_MESSAGE]


def _messages_of(rows: list[tuple]) -> Iterable[tuple]:  # type: ignore[type-arg]
    """The rows in portions that fit a message each; the last column holds ranges."""
    portion: list[tuple] = []  # type: ignore[type-arg]
    units = 0
    for row in rows:
        cost = _units((row,))
        if portion and units + cost > _UNITS_PER_MESSAGE:
            yield tuple(portion)
            portion, units = [], 0
        portion.append(row)
        units += cost
    if portion:
        yield tuple(portion)


def _units(rows: Iterable[tuple]) -> int:  # type: ignore[type-arg]
    """What rows take of a message; the last column holds ranges."""
    return sum([1 + len(row[-1]) for row in rows])

"""The tasks: pages taken in, calls collected, tasks released.

A call is *settled* when its outcome is here, *committed* when that is saved, *collected* when
its client says it has it; collected ends a call, whatever else is known of it. How calls are
settled is `settlement`'s.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog, by_counters, queue_key
from forage_controller.core.checkpoints import Checkpoints
from forage_controller.core.codes import CodeShelf
from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.ended import Ended
from forage_controller.core.operations import SaveCollected, SavePage, SaveReleased
from forage_controller.core.pages import PageCache
from forage_controller.core.running import RunningTime
from forage_controller.core.state import Client, Page, Task
from forage_wire.codec import decode_header
from forage_wire.errors import DecodeError
from forage_wire.limits import TASK_CALLS_MAX
from forage_wire.messages import Header, OutcomeSet
from forage_wire.messages import Page as PageMessage
from forage_wire.ranges import ranges_count
from forage_wire.replicas import replica_flaw

__all__ = ["Ledger", "PageRefused"]


_REFUSED_MAX = 4_096
"""Refused tasks that are remembered; the oldest go first."""


class PageRefused(Exception):
    """A page is not taken: (reason, sentence)."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text


class Ledger:
    """Every task that is not released, and what of it is kept."""

    def __init__(
        self,
        config: CoreConfig,
        effects: Effects,
        backlog: Backlog,
        assignments: Assignments,
        pages: PageCache,
        codes: CodeShelf,
        running: RunningTime,
    ) -> None:
        self._limits = config.limits
        self.checkpoints = Checkpoints(effects, config.limits)
        self._effects = effects
        self._backlog = backlog
        self._assignments = assignments
        self._pages = pages
        self._codes = codes
        self._running = running
        self.keep_ms = config.limits.keep_ms
        self.tasks: dict[str, Task] = {}
        self.ended = Ended(config.limits.ended_tasks, config.limits.ended_pages)
        self.released: dict[str, int] = {}
        """Ids of tasks that ended -> when they are forgotten."""
        self._refused: dict[str, PageRefused] = {}
        """Tasks that were refused, and why: whatever of them still comes is refused as well."""
        self.archived = 0
        """Outcomes that nobody has collected ..."""
        self.archive_bytes = 0
        """... and what they take."""
        self.pages_bytes = 0
        """Of all pages' calls and headers, in memory or not."""
        self.no_room = ""
        """Why the store can take nothing now; empty where it can."""
        self.settled = 0
        """Calls settled since start."""
        self.due: deque[tuple[int, Task]] = deque()
        """Tasks with committed outcomes: when to look whether they are collected."""
        self.to_clients: list[tuple[Client, OutcomeSet]] = []
        """Outcomes that clients are to be sent with this batch."""
        self.news: dict[Client, None] = {}
        """Clients with pages acknowledged or tasks released that they have not been told of."""
        self.news_ms: int | None = None
        """When they are told."""
        self.with_deadline: list[tuple[Task, Page]] = []
        """Pages whose time runs from now on."""
        self.dirty: dict[str, Task] = {}
        """Tasks whose status changed."""

    # -- pages ------------------------------------------------------------------------------

    def on_page(
        self, client: Client, message: PageMessage, now_ms: int
    ) -> tuple[Task, Page] | None:
        """Take a page in (again); None where its task is released.

        Raises:
            PageRefused: It contradicts itself, its task or its client, or there is no room.
        """
        try:
            header = decode_header(message.header)
        except DecodeError as error:
            raise PageRefused("invalid", f"a page's header cannot be read: {error}") from None
        if (
            header.user != client.user
            or header.client != client.name
            or not header.task.startswith(client.name + "-")
        ):
            raise PageRefused("invalid", "a page names another client than the one that sent it")
        if header.options.exclusive and header.settle != "controller":
            raise PageRefused("invalid", "exclusive calls must be settled by the controller")
        if header.task in self.released:
            return None
        if header.task in self._refused:
            raise self._refused[header.task]
        task = self.tasks.get(header.task)
        if task is not None and task.client is not client:
            raise PageRefused("invalid", "a page of a task that is another client's")
        page = None if task is None else task.pages.get(header.first)
        if page is not None and page.header_bytes != message.header:
            raise PageRefused("invalid", "a page came a second time with another header")
        if page is None:
            self._check_page(task, header, message)
            self._check_room(client, task, header)
            if task is None:
                task = self._new_task(client, header, message, now_ms)
            page = self._new_page(task, header, message, now_ms)
        assert task is not None
        if message.collected:
            self.collect(task, message.collected, now_ms, kills=True)
        return task, page

    def _check_page(self, task: Task | None, header: Header, message: PageMessage) -> None:
        """A page's calls are nobody else's, and like those of its task's other pages."""
        end = header.first + header.n
        if end > TASK_CALLS_MAX + 1:
            raise PageRefused("size", f"a task has {TASK_CALLS_MAX:,} calls at most")
        if header.options.replicas > 1 and (flaw := replica_flaw(header)):
            raise PageRefused("invalid", flaw)
        if task is None or not task.pages:
            return
        others = next(iter(task.pages.values()))
        same = header
        if header.options.replicas > 1:
            same = replace(header, replica=others.header.replica)
        if message.key != task.key or queue_key(same) != others.queue_key:
            raise PageRefused("invalid", "pages of one task differ in function, options or key")
        last = task.pages[task.firsts[-1]]
        if any(True for _ in task.pages_of(header.first, end)) or (
            (last.last and end > last.first) or (header.last and header.first < last.end)
        ):
            raise PageRefused("invalid", "pages of one task contradict each other")

    def _check_room(self, client: Client, task: Task | None, header: Header) -> None:
        pages_max = self._limits.pages_bytes
        if self.pages_bytes >= (pages_max if task is None else 2 * pages_max):
            raise PageRefused(
                "full",
                f"the controller holds {self.pages_bytes} bytes of calls that have not ended: "
                "wait for some, then submit again",
            )
        if task is not None:
            return
        if self.no_room:
            raise PageRefused("full", f"the controller takes no new tasks: {self.no_room}")
        limits = self._limits
        if self.archive_bytes >= limits.archive_bytes or self.archived >= limits.archive_calls:
            raise PageRefused(
                "full",
                f"the controller's archive is full ({self.archived} outcomes of "
                f"{self.archive_bytes} bytes that nobody has collected): collect or cancel "
                "earlier tasks, then submit again",
            )
        if not self._codes.has_room_for(header.function):
            raise PageRefused(
                "full",
                "the controller keeps as many functions as it can for tasks that have not ended: "
                "wait for some, then submit again",
            )
        if len(client.tasks) >= self._limits.client_tasks or len(self.tasks) >= self._limits.tasks:
            raise PageRefused(
                "full",
                f"this client has {len(client.tasks)} tasks that have not ended, and the "
                f"controller {len(self.tasks)}: wait for some, or use submit_all, which makes "
                "one task of many calls",
            )

    def _new_task(self, client: Client, header: Header, message: PageMessage, now_ms: int) -> Task:
        task = Task(
            id=header.task,
            client=client,
            key=message.key,
            label=header.label,
            made_ms=now_ms,
            settled_ms=now_ms,
        )
        self.add_task(task, header)
        return task

    def add_task(self, task: Task, header: Header) -> None:
        """Put a task (new or recovered) on the books."""
        self.tasks[task.id] = task.client.tasks[task.id] = task
        task.function, task.settle = header.function, header.settle
        task.replicas = header.options.replicas
        self._codes.used(task.function, 1)

    def _new_page(self, task: Task, header: Header, message: PageMessage, now_ms: int) -> Page:
        page = Page(
            first=header.first,
            n=header.n,
            last=header.last,
            header_bytes=message.header,
            header=header,
            queue_key=queue_key(header),
            calls=message.calls,
            calls_bytes=len(message.calls),
        )
        self._pages.put(page)
        self._effects.save(
            SavePage(
                user=task.client.user,
                client=task.client.name,
                task=task.id,
                key=task.key,
                label=task.label,
                first=page.first,
                n=page.n,
                last=page.last,
                header=page.header_bytes,
                calls=message.calls,
            )
        )
        if header.options.deadline_ms:
            self._running.begin_deadline(task, page, now_ms)
        self.add_page(task, page)
        for low, high in message.collected:
            # Before they are queued: nobody is to run them.
            task.done.add(max(low, page.first), min(high, page.end))
        waits = page.runs_once
        if not waits:
            self.queue(task, page, now_ms)
        self._effects.after_commit(
            lambda at_ms: self._page_committed(task, page, waits, at_ms), urgent=waits
        )
        self.dirty[task.id] = task
        return page

    def refuse(self, task: str, why: PageRefused) -> None:
        """A client is told that a task is not taken: none of its pages is, from now on."""
        self._refused.setdefault(task, PageRefused(why.reason, why.text))
        if len(self._refused) > _REFUSED_MAX:
            del self._refused[next(iter(self._refused))]

    def add_page(self, task: Task, page: Page) -> None:
        """Put a page (new or recovered) into its task."""
        task.add_page(page)
        self.pages_bytes += page.calls_bytes + len(page.header_bytes)
        if page.header.options.deadline_ms:
            self.with_deadline.append((task, page))

    def queue(self, task: Task, page: Page, now_ms: int) -> None:
        """Let wait what of a page is neither done nor with a device."""
        for low, high in page.free(task.done, page.first, page.end):
            for pending in by_counters(task, page, low, high):
                self._backlog.add(pending, now_ms)

    def _page_committed(self, task: Task, page: Page, waits: bool, now_ms: int) -> None:
        page.committed = True
        self._pages.committed(page)
        if task.id not in self.tasks:
            return
        self.tell_acknowledged(task.client, (task.id, page.first), now_ms)
        if waits:
            self.queue(task, page, now_ms)
        self.release_if_over(task, now_ms)

    # -- what clients are told --------------------------------------------------------------

    def tell_settled(self, task: Task, now_ms: int) -> None:
        """A second from now, tell the client what it has not collected by then."""
        if task.settled_due_ms is None and task.id in self.tasks:
            task.settled_due_ms = now_ms + self._limits.settled_after_ms
            self.due.append((task.settled_due_ms, task))

    def tell_acknowledged(self, client: Client, row: tuple[str, int], now_ms: int) -> None:
        """A page is committed: its client is told soon."""
        client.acknowledged[row] = None
        self._has_news(client, now_ms)

    def _has_news(self, client: Client, now_ms: int) -> None:
        self.news[client] = None
        if self.news_ms is None:
            self.news_ms = now_ms + self._limits.acknowledge_after_ms

    def tell_released(self, client: Client, task: str) -> None:
        """A task is released: a client is told when that is saved.

        It forgets the task then, and could not tell a controller that comes back with it that
        everything is collected.
        """

        def tell(at_ms: int) -> None:
            client.released[task] = None
            self._has_news(client, at_ms)

        self._effects.after_commit(tell)

    # -- ends -------------------------------------------------------------------------------

    def collect(
        self,
        task: Task,
        ranges: Iterable[tuple[int, int]],
        now_ms: int,
        *,
        kills: bool = False,
    ) -> None:
        """The client has these: they have ended, and nobody is to run them any more.

        Args:
            task: Whose calls.
            ranges: Which.
            now_ms: The time.
            kills: Whether one that runs nevertheless is killed. Where the client says that it has
                them that is what is left of a cancellation with force whose message was lost.
        """
        added: list[tuple[int, int]] = []
        freed = 0
        for low, high in ranges:
            # What is not known of a task yet comes with its page.
            for gap_low, gap_high in task.collected.missing(low, min(high, task.end)):
                added.append((gap_low, gap_high))
                freed += ranges_count(task.settled.common(gap_low, gap_high))
        if not added:
            return
        task.collected.update(added)
        task.done.update(added)
        if task.replicas > 1:
            task.forget_replicas(added)
        if freed:
            share = task.archive_bytes * freed // max(freed, task.archived)
            task.archived -= freed
            self.archived -= freed
            task.archive_bytes -= share
            self.archive_bytes -= share
        if task.checkpoints:
            self.checkpoints.ended(task, added)
        self._effects.save(SaveCollected(task=task.id, ranges=tuple(added)))
        self._assignments.call_off(task, added, force=kills)
        self.dirty[task.id] = task
        self.release_if_over(task, now_ms)

    def release_if_over(self, task: Task, now_ms: int) -> None:
        """Let a task go when its client has everything and no device holds any of it."""
        if not task.complete or task.open or task.id not in self.tasks:
            return
        if all(page.committed for page in task.pages.values()):
            self.release(task, now_ms)

    def release(self, task: Task, now_ms: int) -> None:
        """Keep nothing of a task but its id, and for a while what became of it."""
        if task.checkpoints:
            self.checkpoints.released(task)
        self._effects.save(SaveReleased(task=task.id))
        del self.tasks[task.id]
        self._codes.used(task.function, -1)
        task.client.tasks.pop(task.id, None)
        for client in task.attached.values():
            client.attached.pop(task.id, None)
            self.tell_released(client, task.id)
        for opened in list(task.open.values()):
            self._assignments.close(opened, "released", now_ms)
        for page in task.pages.values():
            if page.pending:
                self._backlog.discard(page, page.first, page.end)
            self._pages.drop(page)
            self.pages_bytes -= page.calls_bytes + len(page.header_bytes)
        if task.aside:
            task.aside.clear()
        self.archived -= task.archived
        self.archive_bytes -= task.archive_bytes
        self.tell_released(task.client, task.id)
        self.released[task.id] = now_ms + self._limits.keep_ms
        while len(self.released) > self._limits.released_ids:
            self._forget(next(iter(self.released)))
        self.dirty[task.id] = task
        for forgotten in self.ended.add(task):
            if forgotten.log:
                self.dirty[forgotten.id] = forgotten

    def _forget(self, task: str) -> None:
        del self.released[task]
        self._effects.save(SaveReleased(task=task, forget=True))

    def expire(self, now_ms: int) -> None:
        """Forget ids, and release tasks nobody collected, when their time is up."""
        while self.released:
            oldest = next(iter(self.released))
            if self.released[oldest] > now_ms:
                break
            self._forget(oldest)
        for task in list(self.tasks.values()):
            if task.made_ms + self.keep_ms > now_ms:
                break
            if task.settled_ms + self.keep_ms <= now_ms and self._has_stopped(task, now_ms):
                self.release(task, now_ms)

    def _has_stopped(self, task: Task, now_ms: int) -> bool:
        """Whether nothing will ever happen to a task but that somebody collects it.

        So it is where all has ended, or where its client, which alone has the rest of its pages
        or its function's code, has been away for as long.
        """
        if task.open:
            return False
        if task.total is not None and task.done.covers(0, task.total):
            return True
        if task.client.heard_ms + self.keep_ms > now_ms:
            return False
        return task.total is None or any(
            self._backlog.is_parked(page) for page in task.pages.values() if page.pending
        )

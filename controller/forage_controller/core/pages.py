"""Pages' calls in memory, within a budget; what leaves is read back from the store."""

from itertools import islice

from forage_controller.core.effects import Effects
from forage_controller.core.operations import LoadPage, PageLoaded
from forage_controller.core.state import Page, Task
from forage_wire.errors import DecodeError

__all__ = ["PageCache"]

_CUT_BYTES = 48
"""What one call of a cut page costs beside its bytes."""


class PageCache:
    """Keeps calls of pages, the latest used longest."""

    __slots__ = ("_bytes", "_bytes_max", "_cut", "_effects", "_kept", "_whole")

    def __init__(self, effects: Effects, bytes_max: int) -> None:
        self._effects = effects
        self._bytes_max = bytes_max
        self._kept: dict[Page, int] = {}
        self._whole: dict[Page, None] = {}
        """Of those, what is saved and has not been cut: may go, the latest first ..."""
        self._cut: dict[Page, None] = {}
        """... and what is being assigned: may go if need be, the oldest first."""
        self._bytes = 0

    def put(self, page: Page) -> None:
        """Note that a page's calls are in memory."""
        self._account(page)
        self._evict(page)

    def loaded(self, task: Task | None, event: PageLoaded) -> None:
        """Take calls that the store read."""
        page = task.pages.get(event.first) if task else None
        if page is None:
            return
        page.loading = False
        page.lost = event.calls is None
        if event.calls is not None and page.calls is None:
            page.calls = event.calls
            self.put(page)

    def items(self, task: Task, page: Page) -> list[object] | None:
        """A page's calls one by one, or None: then they are being read from the store.

        Raises DecodeError where what the client sent are no calls.
        """
        known = page.cut
        if page.lost:
            raise DecodeError("the store has lost them")
        if known is None:
            known = page.items()
            if known is not None and page.n > 1:
                # (One call is nothing to account for anew.)
                self.put(page)
        if known is not None and len(known) != page.n:
            raise DecodeError(f"a page says {page.n} calls and holds {len(known)}")
        if known is None and not page.loading:
            page.loading = True
            self._effects.command(LoadPage(task=task.id, first=page.first))
        return known

    def committed(self, page: Page) -> None:
        """A page is saved: its calls may leave the memory."""
        if page in self._kept:
            self._sort(page)
            self._evict(page)

    def drop(self, page: Page) -> None:
        """Forget a page whose task is released."""
        self._bytes -= self._kept.pop(page, 0)
        self._whole.pop(page, None)
        self._cut.pop(page, None)
        page.calls = None
        page.cut = None

    def _account(self, page: Page) -> None:
        size = page.calls_bytes + (_CUT_BYTES * page.n if page.cut is not None else 0)
        self._bytes += size - self._kept.get(page, 0)
        self._kept[page] = size
        if page.committed:
            self._sort(page)

    def _sort(self, page: Page) -> None:
        if page.cut is None:
            self._whole.pop(page, None)
            self._whole[page] = None
        else:
            self._whole.pop(page, None)
            self._cut.pop(page, None)
            self._cut[page] = None

    def _evict(self, newest: Page) -> None:
        """Keep to the budget. The latest pages go first: they are needed last."""
        while self._bytes > self._bytes_max:
            page = next(
                (each for each in islice(reversed(self._whole), 2) if each is not newest), None
            )
            if page is None:
                page = next((each for each in islice(self._cut, 2) if each is not newest), None)
            if page is None:
                return
            self.drop(page)

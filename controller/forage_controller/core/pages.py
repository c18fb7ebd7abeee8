"""Pages' calls in memory, within a budget; what leaves is read back from the store."""

from forage_controller.core.effects import Effects
from forage_controller.core.operations import LoadPage, PageLoaded
from forage_controller.core.state import Page, Task
from forage_wire.errors import DecodeError

__all__ = ["PageCache"]

_CUT_BYTES = 48
"""What one call of a cut page costs beside its bytes."""


class PageCache:
    """Keeps calls of pages, the latest used longest."""

    __slots__ = ("_bytes", "_bytes_max", "_effects", "_kept")

    def __init__(self, effects: Effects, bytes_max: int) -> None:
        self._effects = effects
        self._bytes_max = bytes_max
        self._kept: dict[int, tuple[Page, int]] = {}
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
        if event.calls is not None and page.calls is None:
            page.calls = event.calls
            self.put(page)

    def items(self, task: Task, page: Page) -> list[object] | None:
        """A page's calls one by one, or None: then they are being read from the store.

        Raises DecodeError where what the client sent are no calls.
        """
        known = page.cut
        if known is None:
            known = page.items()
            if known is not None and len(known) != page.n:
                raise DecodeError(f"a page says {page.n} calls and holds {len(known)}")
            if known is not None:
                self.put(page)
        if known is None and not page.loading:
            page.loading = True
            self._effects.command(LoadPage(task=task.id, first=page.first))
        return known

    def drop(self, page: Page) -> None:
        """Forget a page whose task is released."""
        kept = self._kept.pop(id(page), None)
        if kept is not None:
            self._bytes -= kept[1]
        page.calls = None
        page.cut = None

    def _account(self, page: Page) -> None:
        old = self._kept.pop(id(page), None)
        if old is not None:
            self._bytes -= old[1]
        size = page.calls_bytes + (_CUT_BYTES * page.n if page.cut is not None else 0)
        self._kept[id(page)] = (page, size)
        self._bytes += size

    def _evict(self, newest: Page) -> None:
        if self._bytes <= self._bytes_max:
            return
        # The latest pages go first: they are needed last. One that is not saved must stay.
        for key in list(reversed(self._kept)):
            page, size = self._kept[key]
            if self._bytes <= self._bytes_max:
                return
            if page.committed and page is not newest and page.cut is None:
                del self._kept[key]
                self._bytes -= size
                page.calls = None
        for key in list(self._kept):
            page, size = self._kept[key]
            if self._bytes <= self._bytes_max:
                return
            if page.committed and page is not newest:
                del self._kept[key]
                self._bytes -= size
                page.calls = None
                page.cut = None

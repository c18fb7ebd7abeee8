"""When our word of being active is said again, as somebody may not know it."""

from collections.abc import Iterable

from forage_controller.core.state import Client

__all__ = ["Shown"]

_SHOW_EVERY_MS = 1_000
_RIVAL_EVERY_MS = 5_000
_AWAITED_MS_MAX = 8_000
"""Between two words to clients that have not come: so long may one wait after the last fault."""
_AWAITED_FOR_MS = 120_000
"""After this they are told no more: one that is gone does not come."""


class Shown:
    """A broker drops what does not fit its queues, and our word may be among that."""

    __slots__ = ("_again", "_awaited_ms", "_awaits_ms", "_awaits_until_ms", "_rivals", "_shown_ms")

    def __init__(self) -> None:
        self._shown_ms = 0
        self._again = False
        self._rivals: dict[str, None] = {}
        """Other controllers whose last word is that they are active: they are told again."""
        self._awaits_ms: int | None = None
        """Clients with tasks that have not come to us: they are told again then ..."""
        self._awaited_ms = 0
        """... so long after the last time, and twice as long after each, up to a limit."""
        self._awaits_until_ms = 0

    def rules_from(self, now_ms: int) -> None:
        """We have just said it."""
        self._shown_ms = now_ms
        self._awaited_ms = _SHOW_EVERY_MS
        self._awaits_ms = now_ms + self._awaited_ms
        self._awaits_until_ms = now_ms + _AWAITED_FOR_MS

    def again(self) -> None:
        """Somebody does not know."""
        self._again = True

    def heard(self, name: str, state: str) -> None:
        """Another controller's word."""
        self._rivals.pop(name, None)
        if state == "active":
            self._rivals[name] = None

    def next_wakeup_ms(self) -> int | None:
        """When `is_due` is to be asked."""
        due = self._awaits_ms
        for applies, every_ms in ((self._again, _SHOW_EVERY_MS), (self._rivals, _RIVAL_EVERY_MS)):
            if applies:
                at_ms = self._shown_ms + every_ms
                due = at_ms if due is None else min(due, at_ms)
        return due

    def is_due(self, clients: Iterable[Client], now_ms: int) -> bool:
        """Whether it is to be said now; once a second at most.

        Args:
            clients: All that are known.
            now_ms: The time.
        """
        if self._awaits_ms is not None and now_ms >= self._awaits_ms:
            self._await(clients, now_ms)
        self._again |= bool(self._rivals) and now_ms >= self._shown_ms + _RIVAL_EVERY_MS
        if not self._again or now_ms < self._shown_ms + _SHOW_EVERY_MS:
            return False
        self._again = False
        self._shown_ms = now_ms
        return True

    def _await(self, clients: Iterable[Client], now_ms: int) -> None:
        """One that waits for outcomes says nothing by itself, so we would never hear of it."""
        self._awaits_ms = None
        if any(one.tasks and one.link is None and one.gone_ms is None for one in clients):
            self._again = True
            self._awaited_ms = min(2 * self._awaited_ms, _AWAITED_MS_MAX)
            if now_ms + self._awaited_ms <= self._awaits_until_ms:
                self._awaits_ms = now_ms + self._awaited_ms

"""What is dropped is counted; the log hears of it once a second for each kind."""

from forage_agent.core.settings import NOTE_EVERY_MS
from forage_wire.io import Note

__all__ = ["Notes"]


class Notes:
    """Counts of dropped input by kind."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        """How often each kind has happened since the start."""
        self.texts: dict[str, str] = {}
        """What is to be told of each kind, now or when its time has come."""
        self._said: dict[str, tuple[int, int]] = {}

    def count(self, kind: str, text: str) -> None:
        """Something of this kind was dropped; the first `text` since the last note is told."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if text:
            self.texts.setdefault(kind, text)

    def due(self, now_ms: int) -> list[Note]:
        """Notes to write now."""
        if not self.texts:
            return []
        found: list[Note] = []
        for kind in list(self.texts):
            said_ms, before = self._said.get(kind, (now_ms - NOTE_EVERY_MS, 0))
            if now_ms < said_ms + NOTE_EVERY_MS:
                continue
            count = self.counts[kind]
            text = f"dropped input kind={kind} count={count - before}: {self.texts.pop(kind)}"
            self._said[kind] = (now_ms, count)
            found.append(Note(level="warning", text=text))
        return found

    def next_wakeup_ms(self) -> int | None:
        """When a note that waits will be due."""
        due = [
            self._said[kind][0] + NOTE_EVERY_MS if kind in self._said else 0 for kind in self.texts
        ]
        return min(due) if due else None

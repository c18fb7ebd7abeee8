"""Keys that a decoder does not know: ignored, as a newer version's must be, and counted.

The decoders note them in `KEYS_IGNORED`, which is empty nearly always; whoever decodes looks at it
when a message is done with, and hands what is there to the `IgnoredKeys` of its own, which says what
is news. (A decoder's result has no place for them: messages hold what is known.)
"""

__all__ = ["KEYS_IGNORED", "IgnoredKeys", "note_ignored"]

_KINDS_MAX = 256
KEYS_IGNORED: dict[str, int] = {}
"""How often each `Message.key` was met since somebody last took them; one message's, as a rule."""


def note_ignored(message: str, key: str) -> None:
    """A decoder met a key that it does not know."""
    name = f"{message}.{key[:32]}"
    if name in KEYS_IGNORED or len(KEYS_IGNORED) < _KINDS_MAX:
        KEYS_IGNORED[name] = KEYS_IGNORED.get(name, 0) + 1


class IgnoredKeys:
    """What one receiver was sent and did not know.

    Attributes:
        count: Keys ignored so far.
    """

    __slots__ = ("_told", "count")

    def __init__(self) -> None:
        self.count = 0
        self._told: dict[tuple[str, str], None] = {}

    def take(self, sender: str) -> str:
        """Count what the decoders have met in a message of `sender`.

        Returns:
            A line for the log; empty where all of it was told of that sender before (or so much
            was that nothing more is).
        """
        met = dict(KEYS_IGNORED)
        KEYS_IGNORED.clear()
        self.count += sum(met.values())
        room = _KINDS_MAX - len(self._told)
        news = [name for name in met if (sender, name) not in self._told][: max(0, room)]
        if not news:
            return ""
        self._told.update(dict.fromkeys([(sender, name) for name in news]))
        return f"unknown keys ignored from={sender} keys={', '.join(map(ascii, news))}"

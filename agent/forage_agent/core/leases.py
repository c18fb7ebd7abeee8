"""The leases of exclusive calls: when a device asked whether it may run them, and was answered.

A lease counts from when the question was *sent*, so it is over here before it is at the controller.
"""

from collections.abc import Iterator

from forage_agent.core.slices import Slice
from forage_wire.limits import LIST_ITEMS_MAX
from forage_wire.messages import Lease, Renew

__all__ = ["Leases"]

_ASK_AGAIN_MS = 1_000
"""While something waits for its first lease."""
_QUESTIONS_MAX = 64
"""Whose sending is remembered; an answer to an older one is worth nothing."""


class Leases:
    """The exclusive slices that are not through, and how long each may be run."""

    def __init__(self) -> None:
        self.parts: dict[int, Slice] = {}
        """By assignment. Mostly there is none, and then nothing here need be asked."""
        self._serial = 0
        self._sent_ms: dict[int, int] = {}
        self._ask_ms = 0
        """When the next question is due."""

    def hold(self, part: Slice) -> None:
        """A slice is here that must not run without a lease."""
        self.parts[part.assignment] = part
        self._ask_ms = 0

    def drop(self, part: Slice) -> None:
        """Nothing of a slice is to be run any more."""
        self.parts.pop(part.assignment, None)

    def ask_again(self) -> None:
        """The last question, or its answer, is lost with its link."""
        self._ask_ms = 0

    def next_question_ms(self) -> int | None:
        """When `question` has one."""
        return self._ask_ms if self.parts else None

    def next_end_ms(self) -> int | None:
        """When `expired` will name something."""
        ends = [part.leased_until_ms for part in self.parts.values() if part.has_lease]
        return min(ends) if ends else None

    def question(self, now_ms: int) -> Renew | None:
        """What to ask now; it must be sent at once."""
        if not self.parts or now_ms < self._ask_ms:
            return None
        self._serial += 1
        self._sent_ms[self._serial] = now_ms
        if len(self._sent_ms) > _QUESTIONS_MAX:
            del self._sent_ms[next(iter(self._sent_ms))]
        wait_ms = min(part.header.options.lease_ms for part in self.parts.values()) // 4
        if not all(part.has_lease for part in self.parts.values()):
            wait_ms = min(wait_ms, _ASK_AGAIN_MS)
        self._ask_ms = now_ms + max(1, wait_ms)
        return Renew(serial=self._serial, assignments=tuple(self.parts)[:LIST_ITEMS_MAX])

    def granted(self, answer: Lease, now_ms: int) -> Iterator[Slice]:
        """The slices that may now be run, or run for longer."""
        sent_ms = self._sent_ms.get(answer.serial)
        if sent_ms is None:
            return
        for number in answer.assignments:
            part = self.parts.get(number)
            if part is None:
                continue
            until_ms = sent_ms + part.header.options.lease_ms
            if until_ms > max(now_ms, part.leased_until_ms):
                part.leased_until_ms = until_ms
                part.has_lease = True
                yield part

    def expired(self, now_ms: int) -> list[Slice]:
        """The slices whose lease is over. They are not asked about any more."""
        over = [
            part
            for part in self.parts.values()
            if part.has_lease and part.leased_until_ms <= now_ms
        ]
        for part in over:
            part.has_lease = False
            del self.parts[part.assignment]
        return over

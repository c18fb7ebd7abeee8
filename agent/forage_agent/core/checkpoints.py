"""States of running calls on their way to the controller, from which other attempts can go on.

A call has one state on its way at a time, and the newest of those that came meanwhile waits: for
that alone, unless the call has made more in the last second than may leave in one. What
a call was given or has made stands in its slice, so that it is here too if this device itself
runs the call again, and on a new link all of it is sent again: nobody says what is committed.

A state goes before the outcome of its attempt or not at all. An attempt that is the last one takes
its states with it. An error after which the call is tried again waits until the last state has
been seen: large ones go in parts, which small messages overtake, and what comes for an attempt
that has been reported is void.

    made ──► waiting ──► on its way ──► seen
"""

from forage_agent.core.outbox import Outbox
from forage_agent.core.settings import CHECKPOINT_EVERY_MS, CHECKPOINTS_AT_ONCE
from forage_agent.core.slices import Piece, Slice
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.link import Link
from forage_wire.messages import Checkpoint

__all__ = ["Checkpoints"]

_TRIED_AGAIN = ("error", "timeout", "died")

_Call = tuple[int, int]
"""(assignment, index)."""


class Checkpoints:
    """What calls of this device have made, and what of it the controller has.

    Args:
        outbox: Where outcomes wait that a state is to go before.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._made: dict[_Call, Slice] = {}
        """Calls that have made a state here and have not ended."""
        self.waiting: dict[_Call, Slice] = {}
        """Of those, the ones whose last state has not been sent."""
        self._on_their_way: dict[_Call, tuple[int, int]] = {}
        """(token of the link, bytes) of what has not been seen."""
        self._paid_ms: dict[_Call, int] = {}
        """Until when what was sent would take at the rate that is allowed."""
        self._held: list[tuple[Slice, Piece, list[_Call]]] = []
        """Outcomes that wait for states of these calls."""
        self._token = 0

    @property
    def is_busy(self) -> bool:
        """Whether `send` has anything to look at."""
        return bool(self._made or self._on_their_way)

    def note(self, part: Slice | None, index: int, data: bytes) -> None:
        """A running call has made a state (None: one that has ended); it replaces the former."""
        if part is None:
            return
        if part.header.options.at_most_once or part.is_forgotten or len(data) > CALL_BYTES_MAX:
            return
        if part.checkpoints is None:
            part.checkpoints = {}
        number = part.checkpoints[index][0] if index in part.checkpoints else 0
        part.checkpoints[index] = (number + 1, data)
        call = (part.assignment, index)
        self._made[call] = self.waiting[call] = part

    def ended(self, part: Slice, piece: Piece) -> None:
        """Outcomes of a slice are about to be kept; `piece.is_held` where they have to wait."""
        again = [index for index, reason, final in piece.errors if _is_tried_again(reason, final)]
        states = part.checkpoints or {}
        calls: list[_Call] = []
        for index in [at for at in states if piece.first <= at < piece.first + piece.count]:
            call = (part.assignment, index)
            if index in again and (call in self.waiting or call in self._on_their_way):
                calls.append(call)
            else:
                self._forget(part, index)
        if calls:
            piece.is_held = True
            self._held.append((part, piece, calls))

    def _release(self, now_ms: int) -> None:
        """Let the outcomes go that need not wait any more."""
        waiting: list[tuple[Slice, Piece, list[_Call]]] = []
        for held in self._held:
            part, piece, calls = held
            if any(map(self._is_unseen, calls)):
                waiting.append(held)
                continue
            for _assignment, index in calls:
                self._forget(part, index)
            self._outbox.release(part, piece, now_ms)
        self._held = waiting

    def _is_unseen(self, call: _Call) -> bool:
        return call in self.waiting or call in self._on_their_way

    def drop(self, part: Slice) -> None:
        """Nothing of a slice is wanted any more."""
        self._held = [held for held in self._held if held[0] is not part]
        for index in list(part.checkpoints or ()):
            self._forget(part, index)

    def _forget(self, part: Slice, index: int) -> None:
        """A call has ended; what is on its way arrives or not, and is void."""
        call = (part.assignment, index)
        self._made.pop(call, None)
        self.waiting.pop(call, None)
        self._paid_ms.pop(call, None)
        if part.checkpoints is not None:
            part.checkpoints.pop(index, None)

    def send_again(self) -> None:
        """A new link, whose other end may know of nothing."""
        self._on_their_way.clear()
        self._paid_ms.clear()
        self.waiting = dict(self._made)

    def due_ms(self) -> int | None:
        """When `send` has something to send that no event brings about."""
        return min(
            [
                self._call_due_ms(call)
                for call in self.waiting
                if call not in self._on_their_way and self._has_room_for(call)
            ],
            default=None,
        )

    def _call_due_ms(self, call: _Call) -> int:
        """When a call may send again: 0 where it may by now."""
        return self._paid_ms.get(call, 0) - (CHECKPOINTS_AT_ONCE - 1) * CHECKPOINT_EVERY_MS

    @property
    def _bytes_on_their_way(self) -> int:
        return sum([size for _token, size in self._on_their_way.values()])

    def _has_room_for(self, call: _Call) -> bool:
        """Whether so much may be on its way: as much as the largest state, of all calls."""
        size = len(self._state(call)[1])
        return self._bytes_on_their_way + size <= CALL_BYTES_MAX

    def _state(self, call: _Call) -> tuple[int, bytes]:
        states = self.waiting[call].checkpoints
        assert states is not None
        return states[call[1]]

    def send(self, link: Link, now_ms: int, *, at_once: bool = False) -> None:
        """Give the link what is to go now, and the outbox what waited for it.

        Args:
            link: To the controller.
            now_ms: Now.
            at_once: Everything goes, for there is no later.
        """
        self._look_what_is_seen(link)
        held = {call: None for _part, _piece, calls in self._held for call in calls}
        for call in list(self.waiting):
            is_due = call in held or self._call_due_ms(call) <= now_ms
            free = call not in self._on_their_way and link.has_room and self._has_room_for(call)
            if (is_due and free) or at_once:
                self._send_one(link, call, now_ms)
        self._release(now_ms)

    def _look_what_is_seen(self, link: Link) -> None:
        for call, (token, _size) in list(self._on_their_way.items()):
            number = link.numbers.get(token)
            if number is not None and number <= link.reported:
                del link.numbers[token]
                del self._on_their_way[call]

    def _send_one(self, link: Link, call: _Call, now_ms: int) -> None:
        number, data = self._state(call)
        header = self.waiting.pop(call).header
        self._token += 1
        self._on_their_way[call] = (self._token, len(data))
        self._paid_ms[call] = max(self._paid_ms.get(call, 0), now_ms) + CHECKPOINT_EVERY_MS
        message = Checkpoint(
            task=header.task, assignment=call[0], index=call[1], number=number, data=data
        )
        link.send(message, tokens=(self._token,))


def _is_tried_again(reason: str, final: bool) -> bool:
    return not final and reason in _TRIED_AGAIN

"""Which subscriptions are asked for, answered, and asked for again. Pure bookkeeping.

A broker's 0x80 in a SUBACK is not always a verdict (a cluster that elects a leader says it), and
QoS 0 is enough for correctness: a refused filter is asked for twice more as wanted, then at QoS 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["Subscribing"]

ATTEMPTS_AS_WANTED = 3
GRANTED_MAX = 2


class Subscribing:
    """The subscriptions of one connection, from its first request to the last answer."""

    def __init__(self, wanted: Mapping[str, int]) -> None:
        """`wanted` maps topic filters to QoS."""
        self.granted: dict[str, int] = {}
        self.refused: list[str] = []
        self._wanted = wanted
        self._attempts = dict.fromkeys(wanted, 0)
        self._open: dict[int, Sequence[str]] = {}
        self.is_done = not wanted
        """Nothing is asked for any more. (Looked at with every turn of a loop.)"""

    def next_request(self) -> list[tuple[str, int]]:
        """What one SUBSCRIBE is to ask for now; each filter that no request is open for."""
        waiting = {name for names in self._open.values() for name in names}
        request: list[tuple[str, int]] = []
        for name, attempts in self._attempts.items():
            if name not in waiting:
                request.append((name, self._wanted[name] if attempts < ATTEMPTS_AS_WANTED else 0))
                self._attempts[name] = attempts + 1
        return request

    def sent(self, message_id: int, request: Sequence[tuple[str, int]]) -> None:
        """`request` went out under this id."""
        self._open[message_id] = [name for name, _ in request]

    def answered(self, message_id: int, codes: Sequence[int]) -> None:
        """A SUBACK came: one granted QoS or 0x80 for each filter of the request, in order."""
        for name, code in zip(self._open.pop(message_id, ()), codes, strict=False):
            if code <= GRANTED_MAX:
                self.granted[name] = code
            elif self._attempts[name] > ATTEMPTS_AS_WANTED:
                self.refused.append(name)
            else:
                continue
            del self._attempts[name]
        self.is_done = not self._attempts

"""Bugs of the links between them."""

from forage_sim.planted.mutant import WIRE, Mutant

__all__ = ["WIRE_MUTANTS"]

WIRE_MUTANTS = (
    Mutant(
        name="a repeated message is taken for a new one",
        file=WIRE + "link.py",
        old="        if message.n <= self._received:\n            return []",
        new="        if message.n < self._received:\n            return []",
        oracles=("EveryCallEnds", "NothingLeft", "StartedOnce", "AcknowledgedSettled", "core"),
    ),
    Mutant(
        name="a gap in the numbers is not noticed",
        file=WIRE + "link.py",
        old="        if message.n > self._received + 1:\n",
        new="        if message.n > self._received + 2:\n",
        oracles=("EveryCallEnds", "NothingLeft", "StartedOnce", "AcknowledgedSettled", "core"),
        quick=True,
    ),
    Mutant(
        name="a window has no end",
        file=WIRE + "link.py",
        old="        while self._queue and len(self._unseen) < self.window:",
        new="        while self._queue:",
        oracles=("BoundedQueues",),
        quick=True,
    ),
    Mutant(
        name="a message that is not seen is not repeated",
        file=WIRE + "link.py",
        old="        out.append(Outgoing(topic=topic, payload=payload))\n        self._repeat_after_ms",
        new="        self._repeat_after_ms",
        oracles=("EveryCallEnds", "NothingLeft", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="that the other end has lost a link is not noticed",
        file=WIRE + "link.py",
        old="            self.is_forgotten = True",
        new="            pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled", "NothingLeft", "DevicesVoteOnce"),
    ),
    Mutant(
        name="what was seen is taken for what was sent last",
        file=WIRE + "link.py",
        old="            if oldest > seen:\n                break",
        new="            if oldest > seen + 1:\n                break",
        oracles=("EveryCallEnds", "NothingLeft", "AcknowledgedSettled"),
        quick=True,
    ),
)

"""Bugs of the agent's core."""

from forage_sim.planted.mutant import AGENT, Mutant

__all__ = ["AGENT_MUTANTS"]

AGENT_MUTANTS = (
    Mutant(
        name="an exclusive call begins before it has a lease",
        file=AGENT + "slices.py",
        old="has_lease=not header.options.exclusive",
        new="has_lease=True",
        oracles=("ExclusiveAlone",),
    ),
    Mutant(
        name="a lease counts from its answer",
        file=AGENT + "leases.py",
        old="until_ms = sent_ms + part.header.options.lease_ms",
        new="until_ms = now_ms + part.header.options.lease_ms",
        oracles=("ExclusiveAlone",),
    ),
    Mutant(
        name="a worker is not given the state that came with its call",
        file=AGENT + "slices.py",
        old="checkpoints=None if checkpoint is None else {assignment.low: checkpoint},",
        new="checkpoints=None,",
        oracles=("OwnCheckpoint",),
        quick=True,
    ),
    Mutant(
        name="a device does not notice that its controller has begun another link",
        file=AGENT + "controllers.py",
        old="            if number == self.link.number:\n",
        new="            if number >= self.link.number:\n",
        oracles=("EveryCallEnds", "NothingLeft", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="a device obeys what was said to its earlier session",
        file=AGENT + "controllers.py",
        old="if not self.session or message.session != self.session or not message.controller:",
        new="if not self.session or not message.controller:",
        oracles=("StaleSessions", "StartedOnce"),
        quick=True,
    ),
    Mutant(
        name="a trim gives back calls that have begun",
        file=AGENT + "slices.py",
        old="real = min(self.high, max(wished, begun[-1][1] if begun else self.low))",
        new="real = min(self.high, max(wished, self.low))",
        oracles=("StartedOnce", "AtMostOnce", "ClosedNeverSettles", "core"),
        quick=True,
    ),
    Mutant(
        name="an outcome is forgotten before it is acknowledged",
        file=AGENT + "outbox.py",
        old="            for piece in part.pieces.values():\n                self._wait(part, piece, now_ms)\n\n    def say_again",
        new="            for piece in ():\n                self._wait(part, piece, now_ms)\n\n    def say_again",
        oracles=("EveryCallEnds", "AcknowledgedSettled", "NothingLeft"),
        quick=True,
    ),
    Mutant(
        name="an inventory leaves out what runs",
        file=AGENT + "agent.py",
        old="rows=self._holdings.rows()",
        new="rows=self._holdings.rows()[1:]",
        oracles=(
            "ExclusiveAlone",
            "AtMostOnce",
            "StartedOnce",
            "ClosedNeverSettles",
            "EveryCallEnds",
            "AcknowledgedSettled",
        ),
        quick=True,
    ),
    Mutant(
        name="one try less than the task allows",
        file=AGENT + "slices.py",
        old="self.tries + 1 > self.header.options.retries",
        new="self.tries + 1 >= self.header.options.retries",
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="one death less than is allowed",
        file=AGENT + "slices.py",
        old="self.deaths + 1 >= DEATHS_MAX",
        new="self.deaths + 2 >= DEATHS_MAX",
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="an attempt that was called off ends its call",
        file=AGENT + "slices.py",
        old='if reason in ("cancelled", "lost"):',
        new='if reason in ("called off", "lost"):',
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="calls before a worker that died are not given to the next one",
        file=AGENT + "pool.py",
        old="        self._give_back(worker.given)\n        self._let_newcomers_in(event.slot)\n        return",
        new="        self._let_newcomers_in(event.slot)\n        return",
        oracles=("EveryCallEnds", "AcknowledgedSettled", "NothingLeft"),
        quick=True,
    ),
)

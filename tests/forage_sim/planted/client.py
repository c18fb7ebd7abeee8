"""Bugs of the client's core."""

from forage_sim.planted.mutant import CLIENT, Mutant

__all__ = ["CLIENT_MUTANTS"]

CLIENT_MUTANTS = (
    Mutant(
        name="an outcome that comes again is given to the caller again",
        file=CLIENT + "receiving.py",
        old="task.resolved.count and any(task.resolved.common(*each) for each in ranges)",
        new="False",
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="an attempt that is to be followed by another ends its call",
        file=CLIENT + "receiving.py",
        old="            if not final and index not in task.resolved\n        ]\n        if retried:",
        new="            if False\n        ]\n        if retried:",
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="a page is forgotten at its first outcome",
        file=CLIENT + "receiving.py",
        old="            self._sending.opened(page, now_ms)",
        new="            self._sending.opened(page, now_ms)\n            task.pages.pop(page.first, None)",
        oracles=("EveryCallEnds", "AcknowledgedSettled", "OneRightOutcome", "core"),
        quick=True,
    ),
    Mutant(
        name="pages that are not acknowledged are not sent on a new link",
        file=CLIENT + "sending.py",
        old="                page.is_open = False\n                self._waiting.append(page)",
        new="                page.is_open = False",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="a question is not asked again on a new link",
        file=CLIENT + "client.py",
        old="        for query in self._queries.values():\n            self._sending.send(query)",
        new="        pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="a client does not attach again on a new link",
        file=CLIENT + "client.py",
        old="                self._sending.attach(name)",
        new="                pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="what a client is offered, it does not fetch",
        file=CLIENT + "receiving.py",
        old="            self._sending.send(Fetch(rows=tuple(lacking)))",
        new="            pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="a client stays with a controller that is there no more",
        file=CLIENT + "client.py",
        old="            self._start_link(current, now_ms, self._controllers.epoch)",
        new="            pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled", "NothingLeft"),
        quick=True,
    ),
)

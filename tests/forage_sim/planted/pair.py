"""Bugs that show where one controller follows another."""

from forage_sim.planted.mutant import AGENT, CONTROLLER, Mutant

__all__ = ["PAIR_MUTANTS"]

PAIR_MUTANTS = (
    Mutant(
        name="a device obeys a controller that was fenced",
        file=AGENT + "controllers.py",
        old="if message.epoch < max(1, self.epoch):",
        new="if message.epoch < 1:",
        oracles=("OneObeyed",),
        world="pair",
    ),
    Mutant(
        name="a device forgets what may run once before the standby has it",
        file=CONTROLLER + "settlement.py",
        old="everywhere=page is not None and page.runs_once",
        new="everywhere=False",
        oracles=("AtMostOnce",),
        world="pair",
    ),
    Mutant(
        name="what a client does not name is kept for it",
        file=CONTROLLER + "clients.py",
        old="        if not inventory.whole:\n",
        new="        if True:\n",
        oracles=("NothingLeft",),
        world="pair",
    ),
    Mutant(
        name="what a standby that is gone lacks goes on at once",
        file=CONTROLLER + "replicas.py",
        old="            self._hold(one, one.position, why)",
        new="            pass",
        oracles=("AtMostOnce", "OneRightOutcome"),
        world="pair",
    ),
    Mutant(
        name="a take-over goes on under the epoch of before",
        file=CONTROLLER + "controller.py",
        old="self.epoch = max(self.epoch, self._epoch_seen) + 1",
        new="self.epoch = max(1, self.epoch, self._epoch_seen)",
        oracles=("OneObeyed", "EveryCallEnds", "NothingLeft", "core"),
        world="pair",
        quick=True,
    ),
    Mutant(
        name="groups that were committed while the copy was made are left out",
        file=CONTROLLER + "replicas.py",
        old="while one.groups and one.groups[0].position <= event.position:",
        new="while one.groups:",
        oracles=("CopyIsTrue",),
        world="pair",
    ),
    Mutant(
        name="a standby says that it has what it has not committed",
        file=CONTROLLER + "following.py",
        old="while self._saving and self._saving[0][0] <= number:",
        new="while self._saving:",
        oracles=("CopyIsTrue",),
        world="pair",
        quick=True,
    ),
    Mutant(
        name="groups are sent before they are committed",
        file=CONTROLLER + "replicas.py",
        old="while self._uncommitted and self._uncommitted[0].position <= number:",
        new="while self._uncommitted:",
        oracles=("CopyIsTrue",),
        world="pair",
        quick=True,
    ),
)

"""What is not promised: where a round has met one of the documented limits, and what they excuse.

See "What is not promised" in docs/guarantees.md. A round must know that it is in such a case, by
what the controllers did and said; nothing is excused by its outcome alone.
"""

from collections.abc import Iterable, Sequence

from chaos.ground import Ground
from chaos.pair import CONTROLLERS, OWN_DISK, SAME_DISK, TakeOver
from chaos.work import Problem

__all__ = ["OLD_STORE", "UNCOPIED", "excuse", "excuses_of"]

UNCOPIED = "uncopied"
"""A standby with a disk of its own took over, and acknowledgements had not waited for it: they do not, or
the one that ruled had let it go and said so, as they did not hear each other."""
OLD_STORE = "old store"
"""One took over whose store might be old: it had not followed whoever ruled before, to the end."""

_RUN_AGAIN = ("ran twice", "left running", "redone")


def excuses_of(ground: Ground, take_overs: Sequence[TakeOver]) -> frozenset[str]:
    """The limits that a round has met."""
    if ground.standby in ("", SAME_DISK) or not take_overs:
        return frozenset()
    losers = [role for role in CONTROLLERS if any(each.role != role for each in take_overs)]
    had_let_go = any(ground.logs[role].let_its_standby_go() for role in losers)
    met = {UNCOPIED} if ground.standby == OWN_DISK or had_let_go else set()
    if not all(each.follows for each in take_overs) or any(
        log.has_old_copy() for log in ground.logs.values()
    ):
        met.add(OLD_STORE)
    return frozenset(met)


def excuse(
    problems: Iterable[Problem], limits: frozenset[str]
) -> tuple[list[Problem], list[Problem]]:
    """(what no limit excuses, what one does)."""
    judged: list[Problem] = []
    excused: list[Problem] = []
    for problem in problems:
        is_excused = (problem.is_data_loss and bool(limits)) or (
            problem.kind in _RUN_AGAIN and OLD_STORE in limits
        )
        (excused if is_excused else judged).append(problem)
    return judged, excused

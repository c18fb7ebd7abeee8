"""The statements that every run is held to, one file each."""

from typing import TYPE_CHECKING

from forage_sim.oracles.acknowledged_settled import AcknowledgedSettled
from forage_sim.oracles.at_most_once import AtMostOnce
from forage_sim.oracles.base import Oracle, OracleViolated
from forage_sim.oracles.bounded_queues import BoundedQueues
from forage_sim.oracles.closed_never_settles import ClosedNeverSettles
from forage_sim.oracles.commit_first import CommitFirst
from forage_sim.oracles.deadlines_hold import DeadlinesHold
from forage_sim.oracles.devices_vote_once import DevicesVoteOnce
from forage_sim.oracles.every_call_ends import EveryCallEnds
from forage_sim.oracles.exclusive_alone import ExclusiveAlone
from forage_sim.oracles.fair_verdicts import FairVerdicts
from forage_sim.oracles.nothing_left import NothingLeft
from forage_sim.oracles.one_right_outcome import OneRightOutcome
from forage_sim.oracles.own_checkpoint import OwnCheckpoint
from forage_sim.oracles.stale_sessions import StaleSessions
from forage_sim.oracles.started_once import StartedOnce

if TYPE_CHECKING:
    from forage_sim.world import World

__all__ = ["Oracle", "OracleViolated", "all_oracles"]


def all_oracles(world: "World") -> list[Oracle]:
    """One of each."""
    return [
        AcknowledgedSettled(world),
        EveryCallEnds(world),
        OneRightOutcome(world),
        StartedOnce(world),
        AtMostOnce(world),
        ExclusiveAlone(world),
        CommitFirst(world),
        ClosedNeverSettles(world),
        DeadlinesHold(world),
        DevicesVoteOnce(world),
        FairVerdicts(world),
        StaleSessions(world),
        OwnCheckpoint(world),
        NothingLeft(world),
        BoundedQueues(world),
    ]

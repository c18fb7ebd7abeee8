"""What must not leave the controller before its save has committed, has not left it."""

from typing import TYPE_CHECKING

from forage_sim.disk import StoredState
from forage_sim.headers import decode_header
from forage_sim.nodes import ControllerProcess
from forage_sim.oracles.base import Oracle
from forage_wire.codec import decode_json
from forage_wire.documents import ControllerPresence
from forage_wire.io import Publish
from forage_wire.messages import (
    Acknowledge,
    Acknowledged,
    Assign,
    Linked,
    Outcomes,
    OutcomeSet,
    Released,
    Settled,
)
from forage_wire.ranges import Ranges, RangeSet
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.process import Process
    from forage_sim.world import World

__all__ = ["CommitFirst"]


class CommitFirst(Oracle):
    """Compares what the controller says with what its disk holds at that moment."""

    statement = (
        "no acknowledgement, no release, no outcome made or archived by the controller, no epoch and no "
        "assignment of an at_most_once or settle=controller task leaves the controller before "
        "it is committed"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._not_final: set[tuple[int, int]] = set()

    def published(self, process: "Process", publish: Publish, topic: ParsedTopic) -> None:
        if topic.branch != "controller-presence" or not publish.payload:
            return
        presence = decode_json(publish.payload, ControllerPresence)
        if presence.state == "active" and presence.epoch > self._state(process).epoch:
            raise self.broken(f"epoch {presence.epoch} is shown, and is not committed")

    def sent(self, process: "Process", topic: ParsedTopic, message: Linked) -> None:
        if topic.branch in ("task", "outbox") and isinstance(message, Outcomes):
            self._learn(message)
            return
        if topic.branch not in ("inbox", "to"):
            return
        state = self._state(process)
        if message.epoch > state.epoch:
            raise self.broken(f"epoch {message.epoch} is used, {state.epoch} is committed")
        match message:
            case Acknowledged():
                for task, first in message.rows:
                    stored = state.tasks.get(task)
                    if (stored is None or first not in stored.pages) and not _over(state, task):
                        raise self.broken(f"page {first} of {task} is acknowledged")
            case Released():
                for task in message.tasks:
                    if not _over(state, task):
                        raise self.broken(f"{task} is said to be released")
            case Acknowledge():
                self._check_acknowledge(process, state, message)
            case Outcomes():
                for outcomes in message.sets:
                    self._check_settled(state, outcomes, "its outcome is sent")
            case Settled():
                for task, ranges in message.rows:
                    self._check_committed(state, task, ranges, "it is said to be settled")
            case Assign():
                self._check_assign(state, message)

    def _state(self, process: "Process") -> StoredState:
        node = next(
            (node for node in self.world.controllers if node.process is process),
            self.world.controller,
        )
        return node.disk.state

    def _learn(self, message: Outcomes) -> None:
        for outcomes in message.sets:
            for index, _reason, final in outcomes.errors:
                if not final:
                    self._not_final.add((outcomes.assignment, index))

    def _check_acknowledge(
        self, process: "Process", state: StoredState, message: Acknowledge
    ) -> None:
        for number, ranges in message.rows:
            given = self.world.watch.given_out.get(number)
            if given is None:
                raise self.broken(f"assignment {number} is acknowledged and was never made")
            left = RangeSet(ranges)
            if given.header.settle == "controller":
                # Of a call that it had given back, or all of a closed one: acknowledged, and void.
                opened = state.assignments.get(number)
                left = RangeSet() if opened is None else RangeSet(left.common(0, opened.high))
                if opened is not None and _is_given_up(process, number):
                    # So is that of one which the store keeps for its lease alone.
                    left = _settled_here(process, given.task, left)
            for low, high in ranges:
                for index in range(low, high):
                    if (number, index) in self._not_final:
                        left.remove(index, index + 1)
            self._check_committed(
                state, given.task, left.freeze(), f"its outcome of {number} is acknowledged"
            )

    def _check_settled(self, state: StoredState, outcomes: OutcomeSet, what: str) -> None:
        if b"data-lost" in outcomes.data[:32]:
            # Whoever is attached is told that another client has it: that settles nothing.
            return
        said = RangeSet(outcomes.ranges)
        for index, _reason, final in outcomes.errors:
            if not final:
                said.remove(index, index + 1)
        self._check_committed(state, outcomes.task, said.freeze(), what)

    def _check_committed(self, state: StoredState, task: str, ranges: Ranges, what: str) -> None:
        if _over(state, task):
            return
        stored = state.tasks.get(task)
        for low, high in ranges:
            missing = [(low, high)] if stored is None else stored.settled.missing(low, high)
            for gap_low, gap_high in missing:
                # What its client has collected has ended, settled or not.
                if stored is not None and stored.collected.covers(gap_low, gap_high):
                    continue
                raise self.broken(
                    f"{task} [{gap_low}, {gap_high}): {what} and nothing of it is committed"
                )

    def _check_assign(self, state: StoredState, message: Assign) -> None:
        for assignment in message.assignments:
            header = decode_header(assignment.header)
            if not header.options.at_most_once and header.settle != "controller":
                continue
            if assignment.assignment not in state.assigned:
                raise self.broken(
                    f"assignment {assignment.assignment} of {header.task}, which must be saved first"
                )


def _over(state: StoredState, task: str) -> bool:
    return task in state.ever_released


def _is_given_up(process: "Process", number: int) -> bool:
    """Whether a controller has closed an assignment, whatever its store says."""
    return isinstance(process, ControllerProcess) and number not in process.core().assignments.open


def _settled_here(process: "Process", task: str, calls: RangeSet) -> RangeSet:
    """Those of the calls that a controller takes for settled, committed or not."""
    assert isinstance(process, ControllerProcess)
    known = process.core().ledger.tasks.get(task)
    if known is None:
        return calls
    return RangeSet(part for low, high in calls for part in known.settled.common(low, high))

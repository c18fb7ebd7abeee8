"""Votes on calls with replicas, in a thread of their own: users' comparisons may take their time.

One thread for the process, started with the first such outcome. It alone reads outcomes of
replicas and compares them, so nothing here needs a lock; the network thread and callbacks never
wait for it.
"""

import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from forage.agreement import Agree, Decision, Replicas, Vote, majority
from forage.calls import TaskCalls, outcome_of
from forage.core.commands import ReplicasEnded
from forage.errors import ForageError
from forage.shell import callbacks
from forage_wire.ranges import Ranges, RangeSet
from forage_wire.topics import call_name

if TYPE_CHECKING:
    from forage.shell.network import Network

__all__ = ["Votes", "is_voting"]

logger = logging.getLogger(__name__)


class Votes:
    """The votes on one task's calls.

    Args:
        calls: The task's calls, as its user counts them.
        replicas: Runs of each.
        quorum: How many of them must agree; 0: the majority.
        agree: Whether two results do; None: they are the same.
    """

    __slots__ = ("_agree", "_calls", "_counted", "_known", "_open", "_quorum", "_replicas")

    def __init__(self, calls: TaskCalls, replicas: int, quorum: int, agree: Agree | None) -> None:
        self._calls = calls
        self._replicas = replicas
        self._quorum = quorum or majority(replicas)
        self._agree = agree
        self._open: dict[int, Vote] = {}
        self._counted: dict[int, Replicas] = {}
        self._known: dict[Replicas, Replicas] = {}
        """Most calls' counts are equal: one object for all of them."""

    def take(self, network: "Network", command: ReplicasEnded) -> None:
        """Outcomes of replicas came: they are counted soon. Any thread."""
        _voters.put(lambda: self._try_to_count(network, command))

    def forget(self, ranges: Ranges) -> None:
        """These calls have ended otherwise. Any thread."""
        _voters.put(lambda: self._drop(ranges))

    def counted(self, index: int) -> Replicas | None:
        """What became of a call's replicas; None while it is not decided."""
        return self._counted.get(index)

    def total(self, low: int, high: int) -> Replicas:
        """The same of all calls [low, high) that are decided; devices as often as they did."""
        found = [counted for index, counted in list(self._counted.items()) if low <= index < high]
        return Replicas(
            count=sum(each.count for each in found),
            agreed=tuple([device for each in found for device in each.agreed]),
            disagreed=tuple([device for each in found for device in each.disagreed]),
            failed=sum(each.failed for each in found),
            cancelled=sum(each.cancelled for each in found),
        )

    # -- in the thread that votes -------------------------------------------------------------

    def _drop(self, ranges: Ranges) -> None:
        for low, high in ranges:
            for index in [index for index in self._open if low <= index < high]:
                del self._open[index]

    def _try_to_count(self, network: "Network", command: ReplicasEnded) -> None:
        try:
            self._count(network, command)
        except BaseException as error:
            # A fault of ours: nobody is left waiting for it.
            logger.exception("counting votes fails")
            ranges = RangeSet([(index, index + 1) for index, _item in sorted(command.rows)])
            failure = ForageError(f"Counting the votes on this call failed: {error!r}")
            callbacks.callback_thread.run(self._calls.fail(ranges.freeze(), failure))
            network.decided(self._calls, ranges.freeze())

    def _count(self, network: "Network", command: ReplicasEnded) -> None:
        decided: dict[int, Decision] = {}
        calls = self._calls
        for index, item in command.rows:
            if index in decided or index in self._counted or not calls.is_open(index):
                continue
            attempt = calls.failed_attempts(index) + 1
            value, error = outcome_of(item, command.device, attempt)
            vote = self._open.get(index)
            if vote is None:
                name = call_name(calls.id, index)
                vote = Vote(name, self._replicas, self._quorum, self._agree)
                self._open[index] = vote
            decision = vote.add(command.device, value, error)
            if decision is not None:
                decided[index] = decision
                del self._open[index]
        if decided:
            self._end(network, decided)

    def _end(self, network: "Network", decided: dict[int, Decision]) -> None:
        for index, decision in decided.items():
            counted = decision.replicas
            self._counted[index] = self._known.setdefault(counted, counted)
        ended = RangeSet()
        for index, decision in decided.items():
            finished = self._calls.end(index, decision.value, decision.error, decision.device)
            callbacks.callback_thread.run(finished)
            ended.add(index, index + 1)
        network.decided(self._calls, ended.freeze())


class _Voters:
    """The thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.thread: threading.Thread | None = None

    def put(self, action: Callable[[], None]) -> None:
        self._queue.put(action)
        if self.thread is not None:
            return
        with self._lock:
            if self.thread is None:
                thread = threading.Thread(target=self._serve, name="forage-votes", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    # The interpreter is ending and starts no threads.
                    return
                self.thread = thread

    def _serve(self) -> None:
        while True:
            action = self._queue.get()
            action()
            # Waiting for the next one must not keep the last one.
            del action


_voters = _Voters()


def is_voting() -> bool:
    """Whether this is the thread that votes: it cannot wait for a vote."""
    return threading.current_thread() is _voters.thread


def _after_fork() -> None:
    """The thread did not come along."""
    global _voters
    _voters = _Voters()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

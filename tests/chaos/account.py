"""Many rounds: who plays them, one after the other or side by side, and what they came to."""

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

from chaos.ground import Ground
from chaos.plan import Plan
from chaos.rounds import Round, play

__all__ = ["Account", "end_by_signals", "Runner", "Turn", "play_turns", "turns"]

ROUNDS_ON_ONE_GROUND = 25
LOOK_S = 1.0


@dataclass
class Account:
    """What many rounds came to."""

    rounds: int = 0
    accepted_tasks: int = 0
    accepted_calls: int = 0
    slowest_settle_s: float = 0.0
    slowest: str = ""
    """What repeats the slowest."""
    standbys: Counter[str] = field(default_factory=Counter)
    """Rounds by the second controller that they had."""
    take_overs: int = 0
    limits: Counter[str] = field(default_factory=Counter)
    """Rounds that met a documented limit."""
    faults: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    failed: list[Round] = field(default_factory=list)
    elapsed_s: float = 0.0

    def add(self, result: Round) -> None:
        """One more round."""
        self.rounds += 1
        self.accepted_tasks += result.accepted_tasks
        self.accepted_calls += result.accepted_calls
        if result.settle_s >= self.slowest_settle_s:
            self.slowest_settle_s, self.slowest = result.settle_s, result.command
        self.standbys[result.standby] += 1
        self.take_overs += len(result.take_overs)
        self.limits += Counter(result.limits)
        self.faults += result.faults
        self.problems += Counter(problem.kind for problem in result.problems)
        self.excused += Counter(problem.kind for problem in result.excused)
        if result.problems:
            self.failed.append(result)


class Runner:
    """Plays rounds of one engine, on one ground for as long as it is whole and of the right kind."""

    def __init__(self, engine: str, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.failures = 0
        self._ground: Ground | None = None
        self._grounds = 0

    def play(self, seed: int) -> Round:
        """One round."""
        standby = Plan.draw(seed).standby
        if self._ground is not None and self._ground.standby != standby:
            self.close()
        if self._ground is None:
            self._grounds += 1
            folder = self.folder / f"ground-{self._grounds}"
            self._ground = Ground(self.engine, folder, seed=seed, standby=standby).__enter__()
        result = play(self._ground, seed)
        if result.problems:
            self.failures += 1
            self.close()
        return result

    def close(self) -> None:
        """The end of the ground, if there is one."""
        ground, self._ground = self._ground, None
        if ground is not None:
            ground.close()


@dataclass(frozen=True)
class Turn:
    """Rounds that one process plays over one engine, one after the other."""

    engine: str
    seeds: range


def turns(first: int, rounds: int, engines: Sequence[str], jobs: int) -> list[Turn]:
    """All rounds, in turns of the engines; at least one turn for each job."""
    size = min(ROUNDS_ON_ONE_GROUND, max(1, -(-rounds // jobs)))
    end = first + rounds
    starts = range(first, end, size)
    return [
        Turn(engines[number % len(engines)], range(start, min(end, start + size)))
        for number, start in enumerate(starts)
    ]


def play_turns(found: Sequence[Turn], folder: Path, jobs: int) -> Iterator[Round]:
    """Each round when it is over; with several jobs in so many processes side by side."""
    if jobs == 1:
        for turn in found:
            yield from _play_turn(turn, folder)
        return
    # Not forks: this process may have threads by then, and theirs have clusters of their own.
    context = multiprocessing.get_context("spawn")
    orders: Queue[Turn | None] = context.Queue()
    results: Queue[Round | None] = context.Queue()
    for turn in found:
        orders.put(turn)
    for _ in range(jobs):
        orders.put(None)
    players = [
        context.Process(target=_play_orders, args=(orders, results, folder)) for _ in range(jobs)
    ]
    for player in players:
        player.start()
    try:
        yield from _gather(results, players)
    except BaseException:
        for player in players:
            if player.pid is not None and player.is_alive():
                # So that it ends its cluster, and nobody waits for the rest of its rounds.
                os.kill(player.pid, signal.SIGINT)
        raise
    finally:
        for player in players:
            player.join()


def _gather(results: "Queue[Round | None]", players: Sequence[Any]) -> Iterator[Round]:
    ended = 0
    while ended < len(players):
        try:
            result = results.get(timeout=LOOK_S)
        except Empty:
            dead = [player for player in players if player.exitcode not in (None, 0)]
            if dead:
                raise RuntimeError(
                    f"a process that plays rounds has ended with exit code {dead[0].exitcode}"
                ) from None
            continue
        if result is None:
            ended += 1
        else:
            yield result


def _play_orders(
    orders: "Queue[Turn | None]", results: "Queue[Round | None]", folder: Path
) -> None:
    """A process of its own: turns until there is none."""
    end_by_signals()
    logging.getLogger("forage").setLevel(logging.ERROR)
    with contextlib.suppress(KeyboardInterrupt):
        while (turn := orders.get()) is not None:
            for result in _play_turn(turn, folder):
                results.put(result)
        results.put(None)


def end_by_signals() -> None:
    """End the rounds, and their clusters, by SIGTERM too, and by SIGINT in the background, where
    shells have it ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def _play_turn(turn: Turn, above: Path) -> Iterator[Round]:
    folder = above / f"{turn.engine}-{turn.seeds.start}"
    shutil.rmtree(folder, ignore_errors=True)
    runner = Runner(turn.engine, folder)
    try:
        for seed in turn.seeds:
            yield runner.play(seed)
    finally:
        runner.close()
    if not runner.failures:
        shutil.rmtree(folder, ignore_errors=True)

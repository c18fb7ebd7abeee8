"""Rounds: work, blows, healing, and the account of what was promised.

python -m chaos --rounds 1 --seed SEED --engine ENGINE      repeats one round
"""

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chaos.ground import Ground
from chaos.plan import BY_PROXY, Plan
from chaos.work import Exclusive, Problem, Work, draw_work

__all__ = ["Account", "Round", "Runner", "play"]

LEAVER_CALLS = 3
SETTLE_S = 75.0
"""After healing, all must be settled within this time; keepalives find a dead connection in 15."""
RELEASE_S = 30.0


@dataclass
class Round:
    """What came of one round."""

    seed: int
    engine: str
    accepted_tasks: int = 0
    accepted_calls: int = 0
    settle_s: float = 0.0
    """From healing to the last outcome."""
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    logs: str = ""

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"make chaos ROUNDS=1 SEED={self.seed} ENGINE={self.engine}"

    def __str__(self) -> str:
        lines = [f"round {self.seed} over {self.engine}; repeat it with: {self.command}"]
        lines += [f"  {problem.kind}: {problem.text}" for problem in self.problems]
        lines += ["what was done:", *(f"  {text}" for text in self.done), self.logs]
        return "\n".join(lines)


def play(ground: Ground, seed: int) -> Round:
    """One round on this ground. What is wrong is in its `problems`; the ground is then spent."""
    plan = Plan.draw(seed)
    result = Round(seed, ground.engine)
    source = random.Random(f"work {seed}")
    token = f"{seed}.{random.SystemRandom().randrange(1 << 32)}"
    folder = ground.folder / f"round-{seed}"
    folder.mkdir(parents=True)
    ground.done.clear()
    counted = Counter(ground.proxies.counts)
    gate = folder / "gate"
    leaver = (
        ground.launch_leaver(gate, f"{token} leaver", LEAVER_CALLS) if plan.has_leaver else None
    )
    works: list[Work] = []
    try:
        for number, step in enumerate(plan.steps):
            for _ in range(step.works + (number == 0)):
                name = f"{token}.{len(works)}"
                works.append(draw_work(source, name, ground.clients, folder))
            for work in works:
                work.go_on()
            if step.revives:
                for role in ground.dead():
                    ground.revive(role)
            ground.note(f"{step.text}; {step.pause_s:g} s")
            step.strike(ground)
            if step.kind not in BY_PROXY:
                result.faults[step.kind] += 1
            # Not a wait for something: how far all get between two blows is what varies.
            time.sleep(step.pause_s)
        for work in works:
            work.finish()
            if isinstance(work, Exclusive):
                work.was_frozen = any("SIGSTOP" in text for text in ground.done)
        ground.heal(spares_silent=plan.spares_silent)
        healed_s = time.monotonic()
        deadline_s = healed_s + SETTLE_S
        ground.wait_until_whole(SETTLE_S)
        result.problems += _judge(ground, works, deadline_s)
        result.settle_s = time.monotonic() - healed_s
        if leaver is not None:
            result.problems += _attach(ground, gate, deadline_s)
        if not result.problems:
            result.problems += _await_release(ground)
            result.problems += _look_again(ground)
    except Exception as error:
        result.problems.append(Problem("trouble", f"{type(error).__name__}: {error}"))
    result.faults += ground.proxies.counts - counted
    result.accepted_tasks = len(
        {future.id.rpartition(".")[0] for w in works for future in w.futures}
    )
    result.accepted_calls = sum(len(work.futures) for work in works)
    if leaver is not None and leaver.acknowledged:
        result.accepted_tasks += len(leaver.acknowledged)
        result.accepted_calls += LEAVER_CALLS * len(leaver.acknowledged)
    result.done = list(ground.done)
    if result.problems:
        result.logs = ground.log_tails()
    ground.earlier = (folder, works)
    return result


def _look_again(ground: Ground) -> Iterator[Problem]:
    """What the round before this one left must still stand: told once, never run again."""
    if ground.earlier is None:
        return
    folder, works = ground.earlier
    ground.earlier = None
    for work in works:
        yield from work.told_problems()
        yield from work.judgements()
    shutil.rmtree(folder)


def _judge(ground: Ground, works: list[Work], deadline_s: float) -> Iterator[Problem]:
    for work in works:
        yield from work.problems(deadline_s)
    # Callbacks come a moment after the outcomes; a second one would come later still, and is seen
    # when the next round is over.
    limit_s = time.monotonic() + 5.0
    while True:
        found = [problem for work in works for problem in work.told_problems()]
        if not found or time.monotonic() > limit_s:
            yield from found
            return
        time.sleep(0.02)


def _attach(ground: Ground, gate: Path, deadline_s: float) -> Iterator[Problem]:
    """The leaver is dead by now, and somebody else wants what was acknowledged to it."""
    leaver = ground.leaver
    assert leaver is not None
    ground.leaver = None
    leaver.end()
    gate.touch()
    for task in sorted(leaver.acknowledged):
        expected = [f"{leaver.token} {index}" for index in range(leaver.calls)]
        try:
            batch = ground.clients[1].attach(task)
            found = batch.results(timeout=max(1.0, deadline_s - time.monotonic()))
        except Exception as error:
            text = f"{task}, acknowledged to a client that died: {type(error).__name__}: {error}"
            yield Problem("lost", text)
        else:
            if found != expected:
                yield Problem("stale", f"{task}: {found}")


def _await_release(ground: Ground) -> Iterator[Problem]:
    """Nothing is kept of tasks that are over."""
    limit_s = time.monotonic() + RELEASE_S
    own = {client.id for client in ground.clients}
    while True:
        kept = [row.task for row in ground.clients[0].tasks() if row.client in own]
        if not kept:
            return
        if time.monotonic() > limit_s:
            yield Problem("kept", f"the controller still keeps {kept[:5]}, which are over")
            return
        time.sleep(0.02)


@dataclass
class Account:
    """What many rounds came to."""

    rounds: int = 0
    accepted_tasks: int = 0
    accepted_calls: int = 0
    slowest_settle_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    failed: list[Round] = field(default_factory=list)
    elapsed_s: float = 0.0

    def add(self, result: Round) -> None:
        """One more round."""
        self.rounds += 1
        self.accepted_tasks += result.accepted_tasks
        self.accepted_calls += result.accepted_calls
        self.slowest_settle_s = max(self.slowest_settle_s, result.settle_s)
        self.faults += result.faults
        self.problems += Counter(problem.kind for problem in result.problems)
        if result.problems:
            self.failed.append(result)


class Runner:
    """Plays rounds of one engine, on one ground for as long as it is whole."""

    def __init__(self, engine: str, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.failures = 0
        self._ground: Ground | None = None
        self._grounds = 0

    def play(self, seed: int) -> Round:
        """One round."""
        if self._ground is None:
            self._grounds += 1
            folder = self.folder / f"ground-{self._grounds}"
            self._ground = Ground(self.engine, folder, seed=seed).__enter__()
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

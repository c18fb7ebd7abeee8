"""Rounds: work, blows, healing, and the account of what was promised.

python -m chaos --rounds 1 --seed SEED --engine ENGINE      repeats one round
"""

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path

from chaos.ground import Earlier, Ground, Leaver
from chaos.limits import excuse, excuses_of
from chaos.pair import TakeOver
from chaos.plan import BY_PROXY, Plan
from chaos.policies import Exclusive, draw_work
from chaos.work import Problem, Work
from forage import Batch, Client, NotConnected

__all__ = ["Round", "play"]

LEAVER_CALLS = 3
SETTLE_S = 75.0
"""After healing, all must be settled within this time; keepalives find a dead connection in 15."""
SLOW_S = 8.0
"""After this, a round notes what its last calls wait for."""
SLOW_NOTED = 5
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
    total_s: float = 0.0
    standby: str = ""
    """Which second controller there was."""
    take_overs: list[TakeOver] = field(default_factory=list)
    limits: frozenset[str] = frozenset()
    """Which documented limits it has met."""
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    excused: list[Problem] = field(default_factory=list)
    """What is not promised beyond those limits."""
    done: list[str] = field(default_factory=list)
    logs: str = ""

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"make chaos ROUNDS=1 SEED={self.seed} ENGINE={self.engine}"

    @property
    def is_slow(self) -> bool:
        """Whether it noted what it waited for."""
        return self.settle_s > SLOW_S

    def line(self) -> str:
        """How it went, in short."""
        return (
            f"{self.seed} {self.engine} {self.standby or 'alone'}: {self.total_s:.1f} s, of which "
            f"{self.settle_s:.1f} to the last outcome after healing; {len(self.take_overs)} "
            f"take-overs; {sorted(self.limits) or 'no limit'}; "
            f"{len(self.excused)} excused"
        )

    def __str__(self) -> str:
        lines = [f"round {self.seed} over {self.engine}; repeat it with: {self.command}"]
        lines += [f"  {problem.kind}: {problem.text}" for problem in self.problems]
        lines += [f"  take-over: {each}" for each in self.take_overs]
        lines += ["what was done:", *(f"  {text}" for text in self.done), self.logs]
        return "\n".join(lines)


def play(ground: Ground, seed: int) -> Round:
    """One round on this ground. What is wrong is in its `problems`; the ground is then spent."""
    began_s = time.monotonic()
    plan = Plan.draw(seed)
    result = Round(seed, ground.engine, standby=ground.standby)
    token = f"{seed}.{random.SystemRandom().randrange(1 << 32)}"
    folder = ground.folder / f"round-{seed}"
    folder.mkdir(parents=True)
    ground.begin_round()
    counted = Counter(ground.proxies.counts)
    past = len(ground.pair.take_overs) if ground.pair is not None else 0
    gate = folder / "gate"
    leaver = (
        ground.launch_leaver(gate, f"{token} leaver", LEAVER_CALLS) if plan.has_leaver else None
    )
    works: list[Work] = []
    found: list[Problem] = []
    try:
        _strike(ground, plan, result, works, token, folder)
        healed_s = time.monotonic()
        deadline_s = healed_s + SETTLE_S
        ground.wait_until_whole(SETTLE_S)
        ground.note(f"all devices are alive {time.monotonic() - healed_s:.1f} s later")
        left = _Left(ground, leaver, gate)
        _note_the_slow(ground, works)
        found += _judge(works, deadline_s)
        found += left.problems(deadline_s)
        result.settle_s = time.monotonic() - healed_s
        if ground.pair is not None:
            ground.wait_until_paired(SETTLE_S)
            result.take_overs = ground.pair.take_overs[past:]
            found += _judge_pair(ground, result.take_overs)
        result.limits = excuses_of(ground, result.take_overs)
        if not found:
            found += _await_release(ground)
            found += _look_again(ground, result.limits)
    except Exception as error:
        found.append(Problem("trouble", f"{type(error).__name__}: {error}"))
    result.problems, result.excused = excuse(found, result.limits)
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
    ground.earlier = Earlier(folder, works, result.limits)
    result.total_s = time.monotonic() - began_s
    return result


def _strike(
    ground: Ground, plan: Plan, result: Round, works: list[Work], token: str, folder: Path
) -> None:
    """Submit, strike, and heal in the end."""
    source = random.Random(f"work {plan.seed}")
    for number, step in enumerate(plan.steps):
        for _ in range(step.works + (number == 0)):
            works.append(draw_work(source, f"{token}.{len(works)}", ground.clients, folder))
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
    ground.heal(spares_silent=plan.spares_silent)
    for work in works:
        if isinstance(work, Exclusive):
            work.thawed_ns = ground.thawed_ns


def _judge_pair(ground: Ground, take_overs: list[TakeOver]) -> Iterator[Problem]:
    """One rules, the other has been fenced and has said so, and devices obeyed one at a time."""
    pair = ground.pair
    assert pair is not None
    for role in pair.alive_and_beaten(take_overs):
        if not ground.logs[role].says_that_it_gave_way():
            yield Problem("two rule", f"{role} ruled, was taken over from, and has not said so")
    for text in pair.disobedience():
        yield Problem("two rule", text)


def _look_again(ground: Ground, limits: frozenset[str]) -> Iterator[Problem]:
    """What the round before this one left must still stand: told once, never run again."""
    earlier, ground.earlier = ground.earlier, None
    if earlier is None:
        return
    for work in earlier.works:
        yield from work.told_problems()
        judged, _ = excuse(work.judgements(), earlier.limits | limits)
        yield from judged
    shutil.rmtree(earlier.folder)


def _note_the_slow(ground: Ground, works: list[Work]) -> None:
    """Where the end is slow: what it waits for, as far as anybody knows."""
    futures = [(work, future) for work in works for future in work.futures]
    _, still_open = wait([future for _, future in futures], SLOW_S)
    for work, future in [(work, each) for work, each in futures if each in still_open][:SLOW_NOTED]:
        ground.note(f"{SLOW_S:g} s after that, {work.kind} {work.why(future)}")


def _judge(works: list[Work], deadline_s: float) -> Iterator[Problem]:
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


class _Left:
    """What was acknowledged to a client that is dead by now, and that somebody else wants."""

    def __init__(self, ground: Ground, leaver: Leaver | None, gate: Path) -> None:
        """End the client, attach to its tasks, and let them end: they hold slots."""
        self._leaver = leaver
        self._batches: list[Batch[str]] = []
        self._problems: list[Problem] = []
        if leaver is None:
            return
        ground.leaver = None
        leaver.end()
        for task in sorted(leaver.acknowledged):
            try:
                self._batches.append(_attach(ground.clients[1], task))
            except Exception as error:
                self._problems.append(_loss(task, error))
        gate.touch()

    def problems(self, deadline_s: float) -> Iterator[Problem]:
        """What is wrong with the outcomes."""
        yield from self._problems
        for batch in self._batches:
            assert self._leaver is not None
            expected = [f"{self._leaver.token} {index}" for index in range(self._leaver.calls)]
            try:
                found = batch.results(timeout=max(1.0, deadline_s - time.monotonic()))
            except Exception as error:
                yield _loss(batch.id, error)
            else:
                if found != expected:
                    yield Problem("stale", f"{batch.id}: {found}")


def _attach(client: Client, task: str) -> Batch[str]:
    """A client with a connection that is dead, and does not know it, gives up before it finds out."""
    limit_s = time.monotonic() + SETTLE_S
    while True:
        try:
            return client.attach(task)
        except NotConnected:
            if time.monotonic() > limit_s:
                raise


def _loss(task: str, error: Exception) -> Problem:
    text = f"{task}, acknowledged to a client that died: {type(error).__name__}: {error}"
    # With nobody there to be told of a loss, the task is unknown, and that is said.
    is_silent = isinstance(error, TimeoutError | NotConnected)
    return Problem("lost", text, is_data_loss=not is_silent)


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

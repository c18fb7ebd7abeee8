"""A world with a second controller, that stands by: on another machine, with a disk of its own.

The first one rules, is killed, frozen, cut off; the other takes over; the first comes back, is fenced,
and stands by in its turn. Both start as `forage controller --standby` does, so the roles change
hands for ever. Their copying is asynchronous: what was acknowledged and not copied may be lost with a
machine, and must then end in words. So the oracles are those that hold all the same, and two more.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from forage_controller.core.config import CoreConfig
from forage_controller.core.controller import ControllerCore
from forage_controller.core.feed import (
    CloseSnapshot,
    InstallSnapshot,
    OpenSnapshot,
    ReadSnapshot,
    SnapshotInstalled,
    WriteSnapshot,
)
from forage_controller.core.operations import RecoveredState, Save
from forage_controller.core.orders import EndHolder, TakeOver
from forage_controller.core.standby import StandbyCore
from forage_sim.disk import Disk
from forage_sim.faults import Fault, Plan, draw_plan
from forage_sim.nodes import RESTART_MS, ControllerNode, ControllerProcess, machine_time
from forage_sim.oracles.at_most_once import AtMostOnce
from forage_sim.oracles.bounded_queues import BoundedQueues
from forage_sim.oracles.copy_is_true import CopyIsTrue
from forage_sim.oracles.every_call_ends import EveryCallEnds
from forage_sim.oracles.nothing_left import NothingLeft
from forage_sim.oracles.one_obeyed import OneObeyed
from forage_sim.oracles.one_right_outcome import OneRightOutcome
from forage_sim.oracles.stale_sessions import StaleSessions
from forage_sim.oracles.started_once import StartedOnce
from forage_sim.process import Process
from forage_sim.workload import CallSpec, TaskSpec
from forage_sim.world import CONTROLLER, Report, World, run_world
from forage_wire.io import Publish
from forage_wire.messages import Options

if TYPE_CHECKING:
    from forage_controller.core.commands import Command

__all__ = ["ATTIC", "PairWorld", "draw_pair_plan", "run_pair"]

ATTIC = "attic"
ROLE_CHANGE_MS = 5
BEHIND_MS = 5_000
"""When the second machine is cut off, in some worlds, and for how long: its copy stays behind."""
BEHIND_FOR_MS = 6_000
HANGING_NONCE = 999_999_000
HANGS_MS = 100_000_000

KINDS = ("kill", "kill-between", "power", "freeze", "cut", "reset", "half-open", "clock-jump")


class RulingProcess(ControllerProcess):
    """A controller that rules, on a machine where it may also stand by."""

    def __init__(self, node: "PairNode", epoch: int, took_over_ms: int | None) -> None:
        Process.__init__(self, node.machine, node.name)
        self._node = node
        recovered = node.disk.open(self.put)
        recovered = replace(recovered, epoch=max(recovered.epoch, epoch))
        self._core = ControllerCore(
            node.config,
            recovered,
            self.start_part,
            machine=machine_time(node.machine),
            took_over_ms=took_over_ms,
        )

    def carry_out(self, command: "Command") -> None:
        if isinstance(command, OpenSnapshot | ReadSnapshot | CloseSnapshot):
            self._node.disk.request(command)
        else:
            super().carry_out(command)


class StandbyProcess(Process):
    """A standby's core between connection and disk."""

    def __init__(self, node: "PairNode") -> None:
        super().__init__(node.machine, node.name)
        self._node = node
        recovered: RecoveredState = node.disk.open(self.put)
        self._core = StandbyCore(
            node.config,
            self.start_part,
            detect_ms=node.config.detect_ms or 15_000,
            epoch=recovered.epoch,
            is_copy=node.is_copy or node.gave_way,
        )
        self._incoming = bytearray()

    def core(self) -> StandbyCore:
        return self._core

    def hand(self, event: Any, now_ms: int) -> list[Any]:
        return list(self._core.handle(event, now_ms))

    def subscriptions(self) -> Sequence[tuple[str, int]]:
        return self.world.topics.standby_subscriptions(self._node.config.name)

    def will(self, session: str) -> Publish | None:
        return self._core.will(session)

    def carry_out(self, command: Any) -> None:
        if isinstance(command, Save):
            self._node.disk.request(command)
        elif isinstance(command, WriteSnapshot):
            del self._incoming[command.offset :]
            self._incoming += command.data
        elif isinstance(command, InstallSnapshot):
            self._node.disk.install(bytes(self._incoming))
            self._node.is_copy = True
            self.put(SnapshotInstalled(epoch=self._node.disk.state.epoch))
        elif isinstance(command, TakeOver):
            self.leave()
            self._node.take_over(command)
        else:
            assert not isinstance(command, EndHolder), "it has a disk of its own"
            self.leave()
            self._node.exited(command.code, command.reason)

    def died(self) -> None:
        self._node.disk.crash()


class PairNode(ControllerNode):
    """A machine with `forage controller --standby` on it."""

    def __init__(self, world: "World", name: str, config: CoreConfig, disk: Disk) -> None:
        super().__init__(world, name, config, disk)
        self.is_copy = False
        """Whether its disk holds what the other one gave."""
        self.gave_way = False
        """Whether it ended as another one rules, so that its disk may be old."""
        self.rules_with: int | None = None
        """The epoch to rule above, where the next process is to rule."""
        self.took_over_ms: int | None = None
        """When that was decided with a copy that lacked nothing."""

    def make(self) -> Any:
        epoch, self.rules_with = self.rules_with, None
        if epoch is not None:
            took_over_ms, self.took_over_ms = self.took_over_ms, None
            return RulingProcess(self, epoch, took_over_ms)
        standby = StandbyProcess(self)
        self.gave_way = False
        return standby

    def take_over(self, command: TakeOver) -> None:
        """Nobody rules: it is to."""
        self.world.trace.add("take over", self.name, command.reason)
        self.rules_with = command.epoch
        self.took_over_ms = self.machine.now_ms() if command.is_current else None
        self.is_copy = False
        self.world.clock.after(ROLE_CHANGE_MS, self.start)

    def exited(self, code: int, reason: str) -> None:
        self.world.trace.add(f"exit {code}", self.name, reason)
        if reason.startswith("fenced"):
            self.world.trace.counters["fenced"] += 1
        self.gave_way = code == 2
        self.world.clock.after(ROLE_CHANGE_MS if code == 2 else RESTART_MS, self.start)


class PairWorld(World):
    """The world of two controllers."""

    def __init__(self, seed: int, plan: Plan) -> None:
        super().__init__(seed, plan)
        self.may_lose = True
        self.pair: list[PairNode] = []
        config = self.controller.config
        for name in (CONTROLLER, ATTIC):
            disk = Disk(self.clock, plan.commit_ms_max, name=name)
            self.pair.append(PairNode(self, name, replace(config, name=name), disk))
        # The first one rules from the start; the other has nothing to rule with.
        self.pair[0].rules_with = 0
        self._use(self.pair[0])
        self.controllers = list(self.pair)
        self.nodes = {node.name: node for node in (*self.pair, *self.devices, *self.clients)}
        self.oracles = [
            EveryCallEnds(self),
            OneRightOutcome(self),
            StartedOnce(self),
            AtMostOnce(self),
            StaleSessions(self),
            BoundedQueues(self),
            OneObeyed(self),
            CopyIsTrue(self),
            NothingLeft(self),
        ]
        self.watch = type(self.watch)(self.topics)
        self.parse = self.watch.parse
        self.watch.join(self.oracles)

    def _use(self, node: ControllerNode) -> None:
        """What looks at the controller looks at this one."""
        self.controller = node
        self.disk = node.disk

    def ruling(self) -> list[ControllerNode]:
        """The machines whose controller rules."""
        return [
            node
            for node in self.pair
            if isinstance(node.process, RulingProcess)
            and node.process.alive
            and node.process.core().active
        ]

    def unfinished(self) -> Any:
        found = self.ruling()
        if len(found) == 1:
            self._use(found[0])
        return super().unfinished()


def draw_pair_plan(seed: int) -> Plan:
    """The plan of a seed: that of the ordinary world, and blows to both controllers on top."""
    plan = draw_plan(seed)
    random = Random(f"{seed}/pair")
    safety_ms = max(plan.safety_ms, 30_000)
    faults = [fault for fault in plan.faults if fault.kind not in ("disk-fails", "forged-stale")]
    for _ in range(random.randint(1, 4)):
        at_ms = random.randrange(3_000, safety_ms)
        faults.append(
            Fault(
                at_ms=at_ms,
                kind=random.choice(KINDS),
                target=random.choice((CONTROLLER, CONTROLLER, ATTIC)),
                duration_ms=min(random.choice((500, 3_000, 12_000)), safety_ms - at_ms),
                amount=random.choice((0.02, 0.1, 0.3)),
            )
        )
    if random.random() < 0.4:
        faults += _deaf_awakening(random, safety_ms)
    clients, detect_ms = plan.clients, random.choice((500, 2_000))
    # Drawn apart, so that worlds without it stay what they were.
    story = Random(f"{seed}/pair story")
    # A machine whose clock leaps has no patience, and a client that is gone cancels nothing.
    is_spoilt = any(one.target.startswith("client") or one.kind == "clock-jump" for one in faults)
    if story.random() < 0.15 and not is_spoilt:
        more = _hanging_call(story) if story.random() < 0.5 else _calls_that_run_once()
        clients = (replace(clients[0], tasks=(*clients[0].tasks, more)), *clients[1:])
        faults += [
            Fault(at_ms=BEHIND_MS, kind="cut", target=ATTIC, duration_ms=BEHIND_FOR_MS),
            Fault(
                at_ms=BEHIND_MS + BEHIND_FOR_MS - 100,
                kind="kill",
                target=CONTROLLER,
                duration_ms=safety_ms - BEHIND_MS - BEHIND_FOR_MS,
            ),
        ]
    return replace(
        plan,
        clients=clients,
        faults=tuple(sorted(faults, key=lambda fault: fault.at_ms)),
        safety_ms=safety_ms,
        detect_ms=detect_ms,
    )


def _calls_that_run_once() -> TaskSpec:
    """Enough of them that some begin while the other machine is cut off."""
    calls = tuple([CallSpec(nonce=HANGING_NONCE + at, run_ms=500) for at in range(1, 31)])
    options = Options(at_most_once=True, wait_ms=600_000)
    return TaskSpec(at_ms=BEHIND_MS - 2_000, function="f", calls=calls, options=options)


def _hanging_call(random: Random) -> TaskSpec:
    """One call that ends by being cancelled alone, of which the older copy knows nothing."""
    at_ms = BEHIND_MS - 2_000
    cancel_ms = random.randrange(BEHIND_MS, BEHIND_MS + BEHIND_FOR_MS - 1_000) - at_ms
    return TaskSpec(
        at_ms=at_ms,
        function="f",
        calls=(CallSpec(nonce=HANGING_NONCE, run_ms=HANGS_MS),),
        options=Options(wait_ms=600_000),
        cancels=((cancel_ms, 0, True),),
    )


def _deaf_awakening(random: Random, safety_ms: int) -> list[Fault]:
    """The first one is frozen while it rules, and hears little of what was said when it wakes."""
    at_ms = random.randrange(1_200, 4_000)
    duration_ms = random.randrange(3_000, 9_000)
    deaf_ms = min(3_000, safety_ms - at_ms - duration_ms)
    return [
        Fault(at_ms=at_ms, kind="freeze", target=CONTROLLER, duration_ms=duration_ms),
        Fault(
            at_ms=at_ms + duration_ms - 20,
            kind="drop-qos-1",
            duration_ms=deaf_ms,
            amount=random.choice((0.5, 0.8)),
        ),
    ]


def run_pair(seed: int, plan: Plan | None = None, *, lines: int = 60) -> Report:
    """One run from a seed; raises `SimulationFailed` as `forage_sim.world.run` does."""
    world = PairWorld(seed, draw_pair_plan(seed) if plan is None else plan)
    return run_world(world, lines=lines)

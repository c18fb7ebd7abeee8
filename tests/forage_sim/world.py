"""Wires a world together and runs it: faults first, then healing, then everything must be done.

`run(seed)` raises `SimulationFailed` with the seed, what happened last, and how to run it again.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from forage_controller.core.config import CoreConfig, Limits
from forage_sim.broker import Broker, Conditions
from forage_sim.clock import Clock
from forage_sim.disk import Disk
from forage_sim.faults import Fault, Plan, apply_fault, draw_plan
from forage_sim.inspection import left_over
from forage_sim.nodes import ClientNode, ControllerNode, DeviceNode, DeviceProcess, Node
from forage_sim.oracles import Oracle, all_oracles
from forage_sim.process import Process
from forage_sim.trace import Trace
from forage_sim.watch import Watch
from forage_sim.workers import Workers
from forage_sim.workload import TaskSpec
from forage_wire.io import Publish
from forage_wire.topics import ParsedTopic, Topics

__all__ = [
    "Report",
    "SimulationFailed",
    "World",
    "fails_with",
    "run",
    "run_world",
    "shortest",
]

CONVERGENCE_MS = 400_000
"""Wills may come 30 s late, silence may take 30 s, reports come every 60 s."""
LOOK_EVERY_MS = 500
STEPS_MAX = 3_000_000
SAID_KEPT = 200
CONTROLLER = "controller"


class SimulationFailed(AssertionError):
    """A run broke an oracle, a core's assertion, or never came to rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run came to."""

    seed: int
    digest: str
    counters: Counter[str]
    steps: int
    simulated_ms: int
    healing_ms: int
    """From the end of the faults until everything was done."""


class World:
    """One run's everything."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.seed = seed
        self.plan = plan
        self.topics = Topics()
        self.clock = Clock(seed)
        self.trace = Trace(self.clock)
        self.conditions = self._calm_conditions()
        self.broker = Broker(self.clock, self.conditions, self._trace_broker)
        self.watch = Watch(self.topics)
        self.parse = self.watch.parse
        self.disk = Disk(self.clock, plan.commit_ms_max, self.watch.saved)
        self.worker_death = 0.0
        self.is_healing = False
        self.may_lose = False
        """Whether a machine may take with it what was acknowledged, to be told so in words."""
        self.tasks: dict[str, TaskSpec] = {}
        """Every task that was submitted ..."""
        self.submitted_ms: dict[str, int] = {}
        """... and when."""
        self.blocks: dict[str, tuple[int, ...]] = {}
        """Of those with replicas, once all is submitted: the first call of each block."""
        limits = (
            Limits(page_cache_bytes=200, code_cache_bytes=10) if plan.small_caches else Limits()
        )
        if plan.keep_ms:
            limits = replace(limits, keep_ms=plan.keep_ms)
        config = CoreConfig(name="main", detect_ms=plan.detect_ms, limits=limits)
        self.controller = ControllerNode(self, CONTROLLER, config, self.disk)
        self.controllers = [self.controller]
        """And rivals, each with a disk of its own."""
        self.devices = [
            DeviceNode(self, f"device-{at}", spec) for at, spec in enumerate(plan.devices)
        ]
        self.clients = [
            ClientNode(self, f"client-{at}", specs) for at, specs in enumerate(plan.clients)
        ]
        self.nodes: dict[str, Node] = {
            node.name: node for node in (self.controller, *self.devices, *self.clients)
        }
        self.twins: list[DeviceNode] = []
        self._said: dict[str, deque[Publish]] = {}
        self.oracles: list[Oracle] = [*all_oracles(self), _Memory(self)]
        self.watch.join(self.oracles)

    def make_workers(self, process: DeviceProcess) -> Workers:
        """The worker processes of a device that starts."""
        return Workers(process)

    def _trace_broker(self, what: str, who: str, about: str, payload: bytes) -> None:
        self.trace.add(f"broker {what}", who, about, payload)

    # -- for faults -------------------------------------------------------------------------

    def _calm_conditions(self) -> Conditions:
        return Conditions(delay_ms_max=self.plan.delay_ms_max)

    def calm(self, fault: Fault) -> None:
        """A condition is over (and so is any other of its kind)."""
        calm = self._calm_conditions()
        match fault.kind:
            case "slow-network":
                self.conditions.delay_ms_max = calm.delay_ms_max
            case "segment-loss":
                self.conditions.segment_loss = calm.segment_loss
            case "drop-qos-0":
                self.conditions.drop_qos_0 = calm.drop_qos_0
            case "drop-qos-1":
                self.conditions.drop_qos_1 = calm.drop_qos_1
            case "duplicate":
                self.conditions.duplicate = calm.duplicate
            case "overtake":
                self.conditions.overtake = calm.overtake
            case "wills-late" | "wills-never" | "wills-mixed":
                self.conditions.wills = calm.wills
            case "small-queues":
                self.conditions.queue_messages_max = calm.queue_messages_max
            case "full-disk":
                self.disk.is_full = False
            case "slow-disk":
                self.disk.commit_ms_max = self.plan.commit_ms_max
            case "slow-process":
                self.nodes[fault.target].machine.turn_ms_max = 1
            case "worker-death":
                self.worker_death = 0.0

    def start_rival(self, name: str) -> ControllerNode:
        """Somebody starts a second controller, on another machine with an empty disk."""
        node = ControllerNode(
            self,
            f"rival-{len(self.controllers)}",
            CoreConfig(name=name, detect_ms=self.plan.detect_ms),
            Disk(self.clock, self.plan.commit_ms_max),
        )
        self.controllers.append(node)
        node.start()
        return node

    def start_twin(self, name: str, duration_ms: int) -> None:
        """Another machine starts a device under the same name."""
        original = self.nodes[name]
        assert isinstance(original, DeviceNode)
        twin = DeviceNode(self, name, original.spec, machine=f"twin-{len(self.twins)}")
        self.twins.append(twin)
        twin.start()
        self.clock.after(duration_ms, twin.stop)

    def remember(self, process: Process, publish: Publish) -> None:
        """Keep what a device said, to be said again out of time."""
        said = self._said.setdefault(process.name, deque(maxlen=SAID_KEPT))
        said.append(publish)

    def said_by(self, name: str) -> list[Publish]:
        """What a device said lately, in any session."""
        return list(self._said.get(name, ()))

    def heal(self) -> None:
        """Nothing goes wrong any more, and everything that had died is started."""
        self.trace.add("healing")
        self.is_healing = True
        for fault in self.plan.faults:
            self.calm(fault)
        for twin in self.twins:
            twin.stop()
        for node in self.nodes.values():
            if node.process is not None:
                node.process.doomed_after = None
                node.process.thaw()
            if not isinstance(node, ClientNode):
                node.start()

    # -- running ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Start everything, in an order that the seed says."""
        random = self.clock.stream("begin")
        for node in self.nodes.values():
            delay_ms = random.choice((0, 0, self.plan.start_ms_max // 20, self.plan.start_ms_max))
            self.clock.after(delay_ms, node.start)
        for fault in self.plan.faults:
            self.clock.at(fault.at_ms, lambda fault=fault: apply_fault(self, fault))  # type: ignore[misc]
        self._look()

    def _look(self) -> None:
        for oracle in self.oracles:
            oracle.looked()
        self.clock.after(LOOK_EVERY_MS, self._look)

    def run_until(self, time_ms: int) -> None:
        """Let time pass."""
        self.clock.run_until(time_ms)
        if self.clock.steps > STEPS_MAX:
            raise AssertionError(f"more than {STEPS_MAX} steps: something never comes to rest")

    def ruling(self) -> list[ControllerNode]:
        """The machines whose controller rules."""
        return [node for node in self.controllers if node.running]

    def unfinished(self) -> tuple[Oracle, list[str]] | None:
        """The first statement about the end that is not true yet, and what of it; None: all are."""
        for oracle in self.oracles:
            found = oracle.unfinished()
            if found:
                return oracle, found
        return None

    def lacking(self) -> list[str]:
        """What users wait for."""
        return [what for client in self.clients for what in client.lacking()]

    def converge(self) -> int:
        """Wait until all is done; how long that took.

        Raises AssertionError where it never is.
        """
        began_ms = self.clock.now_ms
        while (unfinished := self.unfinished()) is not None:
            if self.clock.now_ms - began_ms > CONVERGENCE_MS:
                oracle, found = unfinished
                what = "; ".join([*found[:5], *left_over(self)])
                raise oracle.broken(f"not done {CONVERGENCE_MS} ms after the last fault: {what}")
            self.run_until(self.clock.now_ms + LOOK_EVERY_MS)
        return self.clock.now_ms - began_ms

    def run(self) -> Report:
        """Faults, healing, convergence, last judgement."""
        self.begin()
        self.run_until(self.plan.safety_ms)
        self.heal()
        healing_ms = self.converge()
        return Report(
            seed=self.seed,
            digest=self.trace.digest(),
            counters=self.trace.counters,
            steps=self.clock.steps,
            simulated_ms=self.clock.now_ms,
            healing_ms=healing_ms,
        )


class _Memory(Oracle):
    """Remembers what devices say, for faults that say it again (not an oracle of anything)."""

    def published(self, process: Process, publish: Publish, topic: ParsedTopic) -> None:
        if topic.branch in ("outbox", "task", "device-presence"):
            self.world.remember(process, publish)


def run(seed: int, plan: Plan | None = None, *, lines: int = 60) -> Report:
    """One run from a seed.

    Args:
        seed: Of everything random.
        plan: What is done and what goes wrong; None draws it from the seed.
        lines: How much of the trace a failure shows.

    Raises:
        SimulationFailed: Something that must never be seen was seen.
    """
    return run_world(World(seed, draw_plan(seed) if plan is None else plan), lines=lines)


def run_world(world: World, *, lines: int = 60) -> Report:
    """The same for a world that a test wants to look into afterwards."""
    try:
        return world.run()
    except Exception as error:
        plan = world.plan
        faults = "\n".join(f"  {fault}" for fault in plan.faults) or "  none"
        trace = "\n".join(world.trace.last(lines))
        raise SimulationFailed(
            f"seed {world.seed} at {world.clock.now_ms} ms: {type(error).__name__}: {error}\n"
            f"devices: {plan.devices}\nfaults:\n{faults}\nlast:\n{trace}\n"
            f"again: FORAGE_SEED={world.seed} pytest tests/simulation -k one_seed"
        ) from error


def shortest(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """A plan that fails as well, from which no single fault can be left out."""
    smaller = True
    while smaller:
        smaller = False
        for at in reversed(range(len(plan.faults))):
            candidate = plan.without(at)
            if fails(candidate):
                plan = candidate
                smaller = True
    return plan


def fails_with(seed: int) -> Callable[[Plan], bool]:
    """Whether a plan fails with this seed."""

    def fails(plan: Plan) -> bool:
        try:
            run(seed, plan)
        except SimulationFailed:
            return True
        return False

    return fails

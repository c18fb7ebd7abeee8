"""What goes wrong, and when: a schedule drawn from the seed, a list that can be cut shorter.

Swarm testing: each seed takes a random few of the kinds, so that rare combinations meet without
the common ones on top. All faults end before the healing phase begins.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from forage_sim.workload import LONG_MS, ClientSpec, TaskSpec, draw_client

if TYPE_CHECKING:
    from forage_sim.nodes import Node
    from forage_sim.world import World

__all__ = [
    "CONDITION_KINDS",
    "KINDS",
    "DeviceSpec",
    "Fault",
    "Plan",
    "apply_fault",
    "draw_plan",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong."""

    at_ms: int
    kind: str
    target: str = ""
    """A node's name, where the fault is one node's."""
    duration_ms: int = 0
    amount: float = 0.0
    """A probability, a length of time or a count, as the kind says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device of the fleet."""

    slots: int = 1
    packet_bytes_max: int = 128 * 1024
    queue_bytes_max: int = 1 << 20
    unacknowledged_bytes_max: int = 64 << 20
    code_bytes_max: int = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything about a run that is not its random streams."""

    devices: tuple[DeviceSpec, ...] = (DeviceSpec(), DeviceSpec())
    clients: tuple[ClientSpec, ...] = ()
    faults: tuple[Fault, ...] = ()
    safety_ms: int = 10_000
    """When the faults are over."""
    detect_ms: int | None = 2_000
    delay_ms_max: int = 3
    commit_ms_max: int = 5
    start_ms_max: int = 1_000
    """Nodes start within this time, in any order."""
    keep_ms: int = 0
    """Not 0: how long the controller keeps what nobody collects; the world waits for that too."""
    small_caches: bool = False
    """The controller keeps next to no pages and code in memory: it reads them back."""

    def without(self, at: int) -> "Plan":
        """The same plan with one fault less."""
        return replace(self, faults=self.faults[:at] + self.faults[at + 1 :])


PROCESS_KINDS = (
    "kill",
    "kill-between",
    "power",
    "freeze",
    "cut",
    "reset",
    "half-open",
    "takeover",
    "twin",
    "clock-jump",
)
CLOCK_JUMP_MS_MAX = 200_000
ROLLBACK_MS = 50
CONDITION_KINDS = (
    "slow-network",
    "segment-loss",
    "drop-qos-0",
    "drop-qos-1",
    "duplicate",
    "overtake",
    "wills-late",
    "wills-never",
    "wills-mixed",
    "small-queues",
    "slow-disk",
    "full-disk",
    "slow-process",
    "worker-death",
)
EVENT_KINDS = ("broker-restart", "broker-rollback", "disk-fails", "forged-stale", "stale-will")
KINDS = PROCESS_KINDS + CONDITION_KINDS + EVENT_KINDS
STORY_KINDS = ("deaf",)
"""Those that no seed draws by itself."""
DEAF_MS = 2_000
SHORT_LEASE_MS = 5_000
STORY_MS = 10_000
"""A controller that was started anew needs half of it to give up a device that is silent."""


def draw_plan(seed: int) -> Plan:
    """The plan of a seed."""
    random = Random(f"{seed}/plan")
    safety_ms = random.choice((1_500, 3_000, 3_000, 3_000, 10_000, 30_000))
    devices = tuple(
        DeviceSpec(
            slots=random.choice((1, 1, 2, 4)),
            packet_bytes_max=random.choice((128 * 1024, 128 * 1024, 4_096)),
            queue_bytes_max=random.choice((1 << 20, 1 << 20, 32_000)),
            unacknowledged_bytes_max=random.choice((64 << 20, 64 << 20, 2_000)),
            code_bytes_max=random.choice((32 << 20, 10)),
        )
        for _ in range(random.choice((1, 1, 2, 2, 3)))
    )
    count = random.choice((1, 1, 1, 1, 2))
    clients = [draw_client(random, at, count, safety_ms * 3 // 4) for at in range(count)]
    plan = Plan(
        devices=devices,
        clients=tuple(clients),
        faults=_draw_faults(random, safety_ms, len(devices), len(clients)),
        safety_ms=safety_ms,
        detect_ms=random.choice((500, 2_000, 2_000, 15_000)),
        delay_ms_max=random.choice((0, 3, 3, 20)),
        commit_ms_max=random.choice((1, 5, 50)),
        small_caches=random.random() < 0.25,
    )
    return _with_story(seed, plan)


def _draw_faults(random: Random, safety_ms: int, devices: int, clients: int) -> tuple[Fault, ...]:
    share = random.choice((0.08, 0.15, 0.3))
    faults: list[Fault] = []
    nodes = [f"device-{at}" for at in range(devices)]
    nodes += ["controller", "controller"]
    nodes += [f"client-{at}" for at in range(clients)]
    for kind in KINDS:
        if random.random() >= share:
            continue
        for _ in range(random.randint(1, 3)):
            at_ms = random.randrange(safety_ms)
            target = random.choice(nodes)
            if kind in ("twin", "forged-stale"):
                target = random.choice(nodes[:devices])
            longest_ms = safety_ms - at_ms
            faults.append(
                Fault(
                    at_ms=at_ms,
                    kind=kind,
                    target="" if kind in CONDITION_KINDS and kind != "slow-process" else target,
                    duration_ms=min(random.choice((50, 500, 3_000, 20_000)), longest_ms),
                    amount=random.choice((0.02, 0.1, 0.3)),
                )
            )
    return tuple(sorted(faults, key=lambda fault: fault.at_ms))


def _with_story(seed: int, plan: Plan) -> Plan:
    """In some long worlds, faults that meet too seldom by themselves.

    Drawn apart from all else, so that worlds without a story stay what they were.
    """
    random = Random(f"{seed}/story")
    drawn = random.random()
    safety_ms = plan.safety_ms
    name = f"device-{random.randrange(len(plan.devices))}"
    if safety_ms >= STORY_MS and drawn < 0.2:
        # A device is cut off while the controller is started anew.
        at_ms = random.randint(1_000, safety_ms - STORY_MS + 2_000)
        cut = Fault(at_ms=at_ms, kind="cut", target=name, duration_ms=safety_ms - at_ms)
        killed = Fault(at_ms=at_ms + 100, kind="kill", target="controller", duration_ms=200)
        return replace(plan, faults=(*plan.faults, cut, killed))
    if safety_ms >= 3 * STORY_MS and drawn < 0.4:
        # The broker loses patience with a device sooner than the controller.
        at_ms = random.randint(1_000, 4_000)
        cut = Fault(at_ms=at_ms, kind="cut", target=name, duration_ms=safety_ms - at_ms)
        return replace(plan, faults=(*plan.faults, cut), detect_ms=60_000)
    long = [task for client in plan.clients for task in client.tasks if _is_long(task)]
    if long and len(plan.devices) > 1 and drawn > 0.8:
        # A device hears late that it may go on, and is cut off then until that is over.
        at_ms = long[0].at_ms + random.randint(1_500, 6_000)
        deaf = Fault(at_ms=at_ms, kind="deaf", target=name, duration_ms=DEAF_MS)
        cut_ms = at_ms + DEAF_MS + 5
        until_ms = max(safety_ms, cut_ms + 2 * LONG_MS)
        cut = Fault(at_ms=cut_ms, kind="cut", target=name, duration_ms=until_ms - cut_ms)
        return replace(
            plan,
            clients=tuple(_with_short_leases(client) for client in plan.clients),
            faults=(*plan.faults, deaf, cut),
            safety_ms=until_ms,
            detect_ms=2_000,
        )
    return plan


def _with_short_leases(client: ClientSpec) -> ClientSpec:
    """Long calls outlast their leases, instead of these outlasting them."""
    tasks = tuple(
        replace(task, options=replace(task.options, lease_ms=SHORT_LEASE_MS))
        if _is_long(task)
        else task
        for task in client.tasks
    )
    return replace(client, tasks=tasks)


def _is_long(task: TaskSpec) -> bool:
    """Whether a task may run one at a time only, and is still running when a device is given up."""
    return task.options.exclusive and task.calls[0].run_ms >= LONG_MS


# -- doing it -------------------------------------------------------------------------------------


def apply_fault(world: "World", fault: Fault) -> None:
    """Make it go wrong now."""
    if fault.kind in CONDITION_KINDS:
        _apply_condition(world, fault)
    elif fault.kind == "broker-restart":
        if world.broker.up:
            world.trace.add(f"fault {fault.kind}")
            world.broker.restart_empty(max(50, fault.duration_ms // 4))
    elif fault.kind == "broker-rollback":
        world.trace.add(f"fault {fault.kind}")
        saved = world.broker.retained()
        world.clock.after(fault.duration_ms, lambda: _roll_back(world, saved))
    elif fault.kind == "disk-fails":
        world.trace.add(f"fault {fault.kind}")
        world.disk.fail()
    elif fault.kind == "stale-will":
        _publish_stale_will(world, fault)
    elif fault.kind == "forged-stale":
        _replay_stale(world, fault)
    else:
        _apply_to_process(world, fault)


def _publish_stale_will(world: "World", fault: Fault) -> None:
    """A connection ends, and its will comes when the next one is long there."""
    process = world.nodes[fault.target].process
    connection = None if process is None else process.connection
    if connection is None or connection.will is None:
        return
    will = connection.will
    world.trace.add(f"fault {fault.kind}", fault.target)
    world.broker.end(connection, "reset", will=False)
    world.clock.after(fault.duration_ms, lambda: world.broker.publish(will))


def _roll_back(world: "World", saved: dict[str, bytes]) -> None:
    if world.broker.up:
        world.broker.restart_with(saved, ROLLBACK_MS)


def _apply_to_process(world: "World", fault: Fault) -> None:
    node = world.nodes[fault.target]
    process = node.process
    if fault.kind == "twin":
        world.trace.add(f"fault {fault.kind}", fault.target)
        world.start_twin(fault.target, fault.duration_ms)
        return
    if process is None or not process.alive:
        return
    world.trace.add(f"fault {fault.kind}", fault.target, str(fault.duration_ms))
    clock = world.clock
    match fault.kind:
        case "kill":
            process.kill()
            _start_again(world, node, fault)
        case "kill-between":
            # Dies in the middle of carrying out a batch's commands.
            process.doomed_after = int(fault.amount * 20)
            clock.after(fault.duration_ms, process.kill)
            clock.after(fault.duration_ms, lambda: _start_again(world, node, fault))
        case "power":
            process.kill(power=True)
            _start_again(world, node, fault)
        case "freeze":
            process.freeze()
            clock.after(fault.duration_ms, process.thaw)
        case "cut":
            node.machine.cut_until_ms = max(
                node.machine.cut_until_ms, clock.now_ms + fault.duration_ms
            )
            process.cut_off(fault.duration_ms)
        case "takeover":
            if process.connection is not None:
                process.connection.lose_at_peer()
        case "clock-jump":
            node.machine.jump(int(CLOCK_JUMP_MS_MAX * fault.amount))
            process.clock_jumped()
        case "reset":
            if process.connection is not None:
                world.broker.end(process.connection, "reset")
        case "deaf":
            # It is heard, and hears nothing for a while.
            if process.connection is not None:
                process.connection.downlink.block(clock.now_ms + fault.duration_ms)
        case "half-open":
            if process.connection is not None and process.connection.broker_open:
                world.broker.half_open(process.connection, fault.duration_ms)
        case _:
            raise ValueError(f"no such fault: {fault.kind}")


def _start_again(world: "World", node: "Node", fault: Fault) -> None:
    # A client is its process: nobody comes back for it.
    if not fault.target.startswith("client"):
        world.clock.after(fault.duration_ms, node.start)


def _apply_condition(world: "World", fault: Fault) -> None:
    conditions, amount = world.conditions, fault.amount
    world.trace.add(f"fault {fault.kind}", fault.target)
    match fault.kind:
        case "slow-network":
            conditions.delay_ms_max = int(1_000 * amount)
        case "segment-loss":
            conditions.segment_loss = amount
        case "drop-qos-0":
            conditions.drop_qos_0 = min(1.0, 3 * amount)
        case "drop-qos-1":
            conditions.drop_qos_1 = amount
        case "duplicate":
            conditions.duplicate = amount
        case "overtake":
            conditions.overtake = amount
        case "wills-late" | "wills-never" | "wills-mixed":
            conditions.wills = fault.kind.removeprefix("wills-")
        case "small-queues":
            conditions.queue_messages_max = max(2, int(100 * amount))
        case "slow-disk":
            world.disk.commit_ms_max = int(10_000 * amount)
        case "full-disk":
            world.disk.is_full = True
        case "slow-process":
            world.nodes[fault.target].machine.turn_ms_max = int(2_000 * amount)
        case "worker-death":
            world.worker_death = amount
        case _:
            raise ValueError(f"no such fault: {fault.kind}")
    world.clock.after(fault.duration_ms, lambda: world.calm(fault))


def _replay_stale(world: "World", fault: Fault) -> None:
    """A broker says again what a device said before, in whatever session that was."""
    said = world.said_by(fault.target)
    if not said:
        return
    process = world.nodes[fault.target].process
    now = b"" if process is None else process.session.encode()
    # What an earlier session said is the worst to hear again; a repeat is the next best.
    stale = [message for message in said if now not in message.payload] or said
    world.trace.add(f"fault {fault.kind}", fault.target)
    random = world.clock.stream(f"stale/{fault.at_ms}")
    for message in random.sample(stale, min(len(stale), 1 + int(20 * fault.amount))):
        delay_ms = random.randint(0, max(1, fault.duration_ms))
        world.clock.after(delay_ms, lambda message=message: world.broker.publish(message))  # type: ignore[misc]

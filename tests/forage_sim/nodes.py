"""The three kinds of processes with their cores, and the nodes that start them again.

A node is a machine that runs one program: it keeps what outlives the process (the machine's
clock and cable, the controller's disk, what a client's user wanted).
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from forage.agreement import Vote
from forage.core.client import ClientCore
from forage.core.commands import AnswerReceived, RefuseTask, ReplicasEnded, ResolveCalls
from forage.core.events import (
    AttachAsked,
    CallsCancelled,
    CallsDecided,
    CallsSubmitted,
    QueryAsked,
    TaskOpened,
)
from forage_agent.core.agent import AgentCore
from forage_agent.core.events import (
    ExitProcess,
    KillWorker,
    LeaseWorker,
    LoadMeasured,
    RunCalls,
    StartWorker,
    TakeBack,
)
from forage_agent.core.settings import Settings
from forage_controller.core.commands import Exit
from forage_controller.core.config import CoreConfig
from forage_controller.core.controller import ControllerCore
from forage_controller.core.operations import LoadCode, LoadOutcomes, LoadPage, MachineTime, Save
from forage_sim.disk import Disk
from forage_sim.faults import DeviceSpec
from forage_sim.process import Machine, Process
from forage_sim.workload import AttachSpec, ClientSpec, QuerySpec, TaskSpec
from forage_wire.io import Publish
from forage_wire.messages import DeviceCapabilities
from forage_wire.ranges import Ranges, RangeSet

if TYPE_CHECKING:
    from forage_sim.world import World

__all__ = [
    "ClientNode",
    "ClientProcess",
    "ControllerNode",
    "ControllerProcess",
    "DeviceNode",
    "DeviceProcess",
    "Node",
    "machine_time",
]

PYTHON = "3.11"
USER = "user"
LOAD_EVERY_MS = 10_000
RESTART_MS = 1_000
BASE_32 = "0123456789abcdefghijklmnopqrstuv"


class Node:
    """A machine with one program on it, running or not."""

    def __init__(self, world: "World", name: str, machine: str = "") -> None:
        self.world = world
        self.name = name
        self.machine = Machine(world, machine or name)
        self.process: Process | None = None

    def make(self) -> Process:
        """A new process of its program."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the program, unless it runs."""
        if self.process is not None and self.process.alive:
            return
        self.process = self.make()
        self.process.begin()

    def stop(self) -> None:
        """End the program at once."""
        if self.process is not None:
            self.process.kill()

    def exited(self, code: int, reason: str) -> None:
        """The program ended by itself: its supervisor starts it again, but not after a 2."""
        self.world.trace.add(f"exit {code}", self.name, reason)
        # Once nothing goes wrong any more, somebody reads why, and starts it again.
        if code != 2 or (self.world.is_healing and self.world.nodes.get(self.name) is self):
            self.world.clock.after(RESTART_MS, self.start)

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.alive


def machine_time(machine: Machine) -> MachineTime:
    """What a controller's shell reads of its machine's clock at its start."""
    now_ms = machine.now_ms()
    return MachineTime(boot=machine.boot, boot_ms=now_ms, now_ms=now_ms)


# -- controller -----------------------------------------------------------------------------------


class ControllerProcess(Process):
    """The controller's core between connection and disk."""

    def __init__(self, node: "ControllerNode") -> None:
        super().__init__(node.machine, node.name)
        self._node = node
        recovered = node.disk.open(self.put)
        self._core = ControllerCore(
            node.config, recovered, self.start_part, machine=machine_time(node.machine)
        )

    def core(self) -> ControllerCore:
        return self._core

    def hand(self, event: Any, now_ms: int) -> list[Any]:
        return list(self._core.handle(event, now_ms))

    def subscriptions(self) -> Sequence[tuple[str, int]]:
        return self.world.topics.controller_subscriptions()

    def will(self, session: str) -> Publish | None:
        return self._core.will(session)

    def carry_out(self, command: Any) -> None:
        if isinstance(command, Save | LoadPage | LoadCode | LoadOutcomes):
            self._node.disk.request(command)
        elif isinstance(command, Exit):
            self.leave()
            self._node.exited(command.code, command.reason)
        else:
            raise AssertionError(f"an unknown command: {command!r}")

    def died(self) -> None:
        self._node.disk.crash()


class ControllerNode(Node):
    """The controller's host with its disk."""

    def __init__(self, world: "World", name: str, config: CoreConfig, disk: Disk) -> None:
        super().__init__(world, name)
        self.config = config
        self.disk = disk

    def make(self) -> ControllerProcess:
        return ControllerProcess(self)


# -- devices --------------------------------------------------------------------------------------


class DeviceProcess(Process):
    """An agent's core between connection and workers."""

    def __init__(self, node: "DeviceNode") -> None:
        super().__init__(node.machine, node.name)
        capabilities = DeviceCapabilities(
            session="",
            slots=node.spec.slots,
            cores=node.spec.slots,
            queue_bytes_max=node.spec.queue_bytes_max,
            packet_bytes_max=node.spec.packet_bytes_max,
            python=PYTHON,
        )
        self._core = AgentCore(
            Settings(
                device=node.name,
                capabilities=capabilities,
                packet_bytes_max=node.spec.packet_bytes_max,
                unacknowledged_bytes_max=node.spec.unacknowledged_bytes_max,
                code_bytes_max=node.spec.code_bytes_max,
            )
        )
        self._node = node
        self.spec = node.spec
        self.workers = self.world.make_workers(self)

    def begin(self) -> None:
        super().begin()
        self._measure()

    def _measure(self) -> None:
        if self.alive:
            percent = self.machine.random.randint(0, 100)
            self.put(LoadMeasured(cpu_percent=percent, memory_percent=40))
            self.world.clock.after(LOAD_EVERY_MS, self._measure)

    def core(self) -> AgentCore:
        return self._core

    def hand(self, event: Any, now_ms: int) -> list[Any]:
        return list(self._core.handle(event, now_ms))

    def subscriptions(self) -> Sequence[tuple[str, int]]:
        return self.world.topics.device_subscriptions(self.name)

    def will(self, session: str) -> Publish | None:
        return self._core.will(session)

    def carry_out(self, command: Any) -> None:
        if isinstance(command, StartWorker | RunCalls | TakeBack | KillWorker | LeaseWorker):
            self.workers.order(command)
        elif isinstance(command, ExitProcess):
            self.leave()
            self._node.exited(command.code, command.reason)
        else:
            raise AssertionError(f"an unknown command: {command!r}")


class DeviceNode(Node):
    """A device."""

    def __init__(self, world: "World", name: str, spec: DeviceSpec, *, machine: str = "") -> None:
        super().__init__(world, name, machine)
        self.spec = spec

    def make(self) -> DeviceProcess:
        return DeviceProcess(self)


# -- clients --------------------------------------------------------------------------------------


class ClientProcess(Process):
    """A client's core, and a user who wants certain tasks done."""

    def __init__(self, node: "ClientNode") -> None:
        super().__init__(node.machine, node.name)
        self._node = node
        self.client = "".join(self.machine.random.choices(BASE_32, k=13))
        self._core = ClientCore(
            user=USER,
            client=self.client,
            topics=self.world.topics,
            python=PYTHON,
            packet_bytes_max=node.spec.packet_bytes_max,
        )
        self.client_id = f"{self.client}-{self.machine.random.getrandbits(64):016x}"
        self._tasks = 0

    def begin(self) -> None:
        super().begin()
        after = self.world.clock.after
        for task in self._node.spec.tasks:
            after(task.at_ms, lambda task=task: self.submit(task))  # type: ignore[misc]
        for attach in self._node.spec.attaches:
            after(attach.at_ms, lambda attach=attach: self.attach(attach))  # type: ignore[misc]
        for number, query in enumerate(self._node.spec.queries, 1):
            after(query.at_ms, lambda number=number, query=query: self.ask(number, query))  # type: ignore[misc]

    def submit(self, spec: TaskSpec) -> None:
        """The user submits a task."""
        if not self.alive:
            return
        self._tasks += 1
        task = f"{self.client}-{_base_32(self._tasks)}"
        self.world.tasks[task] = spec
        self.world.submitted_ms[task] = self.world.clock.now_ms
        self._node.submitted.append(task)
        self._node.wanted[task] = None
        code = b"code of " + spec.function.encode()
        self.put(
            TaskOpened(
                task=task,
                key=self.machine.random.randbytes(16),
                function=sha256(code).digest(),
                form="pickle",
                label=spec.function,
                code=code,
                options=spec.options,
                settle=spec.settle,
            )
        )
        calls = tuple([call.body() for call in spec.calls])
        cut = spec.first_calls or len(calls)
        self.put(CallsSubmitted(task=task, first=0, calls=calls[:cut], last=cut >= len(calls)))
        if cut < len(calls):
            self.put(CallsSubmitted(task=task, first=cut, calls=calls[cut:], last=True))
        for delay_ms, index, force in spec.cancels:
            self.world.clock.after(
                delay_ms,
                lambda index=index, force=force: self.cancel(task, index, force=force),  # type: ignore[misc]
            )

    def attach(self, spec: AttachSpec) -> None:
        """The user wants another client's outcomes."""
        submitted = self.world.clients[spec.owner].submitted
        if self.alive and spec.task < len(submitted):
            task = submitted[spec.task]
            self._node.wanted[task] = None
            calls = len(self.world.tasks[task].calls)
            replicas = self.world.tasks[task].options.replicas
            # As the controller would say it, or not at all before it knows.
            blocks = self.world.blocks.get(task, ())
            if replicas > 1 and not blocks:
                del self._node.wanted[task]
                return
            self.put(AttachAsked(task=task, calls=calls, replicas=replicas, blocks=blocks))

    def ask(self, number: int, spec: QuerySpec) -> None:
        """The user has a question."""
        if self.alive:
            self._node.unanswered[number] = None
            self.put(QueryAsked(id=number, what=spec.what))

    def cancel(self, task: str, index: int, *, force: bool) -> None:
        """The user cancels a call."""
        if self.alive:
            self.put(CallsCancelled(task=task, ranges=((index, index + 1),), force=force))

    def core(self) -> ClientCore:
        return self._core

    def hand(self, event: Any, now_ms: int) -> list[Any]:
        if isinstance(event, CallsCancelled):
            self._node.note_cancelled(event.task, event.ranges)
        commands: list[Any] = list(self._core.handle(event, now_ms))
        if isinstance(event, CallsSubmitted) and event.last:
            record = self._core.tasks.get(event.task)
            if record is not None and record.layout is not None:
                self.world.blocks[event.task] = record.layout.firsts
        for command in commands:
            if isinstance(command, ResolveCalls):
                self._node.resolve(self, command)
            elif isinstance(command, ReplicasEnded):
                decided = self._node.vote(self, command)
                if decided:
                    self.put(CallsDecided(task=command.task, ranges=decided))
            elif isinstance(command, RefuseTask):
                self._node.refuse(self, command)
            elif isinstance(command, AnswerReceived):
                self._node.unanswered.pop(command.id, None)
                self.world.trace.add("answer" if command.ok else "no answer", self.name)
        return commands

    def subscriptions(self) -> Sequence[tuple[str, int]]:
        return self._core.subscriptions()

    def will(self, session: str) -> Publish | None:
        return self._core.will(session)

    def carry_out(self, command: Any) -> None:
        """What a client's core orders besides messages is for its user: seen in `hand`."""


class ClientNode(Node):
    """A user's machine: what is wanted, and what has come of it."""

    def __init__(self, world: "World", name: str, spec: ClientSpec) -> None:
        super().__init__(world, name)
        self.spec = spec
        self.submitted: list[str] = []
        """Its tasks, in order."""
        self.wanted: dict[str, None] = {}
        """Tasks whose outcomes it wants: its own, and what it is attached to."""
        self.ended: dict[tuple[str, int], None] = {}
        """(task, index) of calls that have ended for it."""
        self.cancelled: dict[tuple[str, int], None] = {}
        """Of those, the ones that its user cancelled."""
        self.unanswered: dict[int, None] = {}
        self.votes: dict[tuple[str, int], Vote] = {}
        """On calls with replicas that are not decided."""

    def make(self) -> ClientProcess:
        return ClientProcess(self)

    def lacking(self) -> list[str]:
        """What its user waits for, in words; nothing once it is dead."""
        if not self.running:
            return []
        found = [f"{self.name} has not asked for everything"] if not self.has_asked else []
        found += [f"question {number} of {self.name}" for number in self.unanswered]
        for task in self.wanted:
            found += [
                f"{task}.{index} of {self.name}"
                for index in range(len(self.world.tasks[task].calls))
                if (task, index) not in self.ended
            ]
        return found

    @property
    def has_asked(self) -> bool:
        """Whether all of its tasks are submitted."""
        return len(self.submitted) == len(self.spec.tasks)

    def resolve(self, process: ClientProcess, command: ResolveCalls) -> None:
        """Calls have their outcomes."""
        indices = [index for low, high in command.ranges for index in range(low, high)]
        if len(indices) != len(command.items):
            raise AssertionError(f"{len(command.items)} items for {command.ranges}")
        for index, item in zip(indices, command.items, strict=True):
            self.ended[command.task, index] = None
            self.world.watch.resolved(process, command.task, index, item)

    def vote(self, process: ClientProcess, command: ReplicasEnded) -> Ranges:
        """Replicas have outcomes: which calls are decided by them."""
        decided = RangeSet()
        spec = self.world.tasks[command.task].options
        for call, item in command.rows:
            name = (command.task, call)
            if name in self.ended:
                continue
            quorum = spec.quorum or spec.replicas // 2 + 1
            vote = self.votes.setdefault(name, Vote("", spec.replicas, quorum, None))
            made = None if command.device else _NoVote(item)
            decision = vote.add(command.device, None if made else item, made)
            if decision is None:
                continue
            outcome: Any = decision.value
            if isinstance(decision.error, _NoVote):
                outcome = decision.error.args[0]
            elif decision.error is not None:
                outcome = {"reason": "no-quorum", "message": str(decision.error)}
            else:
                self.world.watch.decided(process, *name, decision.replicas.agreed)
            del self.votes[name]
            self.ended[name] = None
            decided.add(call, call + 1)
            self.world.watch.resolved(process, *name, outcome)
        return decided.freeze()

    def refuse(self, process: ClientProcess, command: RefuseTask) -> None:
        """The controller does not take a task, or has it no longer."""
        for low, high in command.ranges:
            for index in range(low, high):
                self.ended[command.task, index] = None
                item = {"reason": f"refused {command.reason}", "message": command.text}
                self.world.watch.resolved(process, command.task, index, item)

    def note_cancelled(self, task: str, ranges: Ranges) -> None:
        """Its user no longer wants these: those that have no outcome end here."""
        for low, high in ranges:
            for index in range(low, high):
                if (task, index) not in self.ended:
                    self.ended[task, index] = None
                    self.cancelled[task, index] = None


class _NoVote(Exception):
    """An outcome that the controller made."""


def _base_32(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 32)
        digits = BASE_32[digit] + digits
    return digits or "0"

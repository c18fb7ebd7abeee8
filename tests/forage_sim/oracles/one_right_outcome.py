"""A call of a client that lives ends once at most, with an outcome that is right."""

from typing import TYPE_CHECKING, Any

from forage_sim.oracles.base import Oracle
from forage_sim.workload import CallSpec, TaskSpec, value_item
from forage_wire.io import Publish
from forage_wire.limits import DEATHS_MAX, LOSSES_MAX
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.nodes import ClientNode
    from forage_sim.process import Process
    from forage_sim.world import World

__all__ = ["OneRightOutcome"]

DEADLY = (
    *("kill", "kill-between", "power", "freeze", "cut", "reset", "half-open", "takeover", "twin"),
    *("clock-jump", "broker-restart", "broker-rollback", "disk-fails", "drop-qos-0", "drop-qos-1"),
    *("small-queues", "forged-stale", "slow-network", "segment-loss", "slow-process"),
)
"""What may have an attempt's exception come when another attempt runs already."""


class OneRightOutcome(Oracle):
    """Judges each outcome by the call's bytes and by what is known to have happened to it."""

    statement = "each call has one outcome at its client, and that is the right one"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._outcomes: dict[tuple[str, str, int], object] = {}
        self._deaths = 0
        """Devices declared dead so far."""

    def published(self, process: "Process", publish: Publish, topic: ParsedTopic) -> None:
        if topic.branch == "verdict":
            self._deaths += b'"dead"' in publish.payload

    def resolved(self, process: "Process", task: str, index: int, item: object) -> None:
        client = self._client(process)
        name = (process.name, task, index)
        if name in self._outcomes:
            raise self.broken(
                f"{process.name} resolves {task}.{index} again: {self._outcomes[name]!r}, {item!r}"
            )
        if (task, index) in client.cancelled:
            raise self.broken(f"{process.name} resolves {task}.{index}, which it had cancelled")
        self._outcomes[name] = item
        spec = self.world.tasks[task]
        if isinstance(item, list):
            self._judge_value(task, index, spec.calls[index], item)
        else:
            assert isinstance(item, dict), item
            is_owner = task in client.submitted
            self._judge_error(task, index, spec, item, is_owner=is_owner)

    def _is_quiet(self) -> bool:
        """Whether every exception was heard: nobody has died, and nothing was said twice."""
        # A worker that dies takes with it what it had not told.
        dead = self.world.watch.killed or self.world.trace.counters["fault worker-death"]
        return not dead and not any(fault.kind in DEADLY for fault in self.world.plan.faults)

    def _is_late(self, task: str, deadline_ms: int) -> bool:
        """Whether a task's calls may have ended because they had not in time."""
        elapsed_ms = self.world.clock.now_ms - self.world.submitted_ms[task]
        return deadline_ms > 0 and (elapsed_ms >= deadline_ms or self._clocks_jump())

    def _clocks_jump(self) -> bool:
        return any(fault.kind == "clock-jump" for fault in self.world.plan.faults)

    def _client(self, process: "Process") -> "ClientNode":
        return next(client for client in self.world.clients if client.name == process.name)

    def _judge_value(self, task: str, index: int, call: CallSpec, item: list[object]) -> None:
        if item != value_item(call.body()):
            raise self.broken(f"{task}.{index} has the value of another call: {item!r}")
        watch, name = self.world.watch, (task, index)
        if name not in watch.runs:
            raise self.broken(f"{task}.{index} has a value and was never run")
        retries = self.world.tasks[task].options.retries
        if watch.raised[name] > retries and self._is_quiet():
            raise self.broken(
                f"{task}.{index} has a value after {watch.raised[name]} exceptions, and may be "
                f"tried again {retries} times"
            )
        if watch.raised[name] < call.fails or watch.killed[name] < call.kills:
            raise self.broken(
                f"{task}.{index} has a value though it raised {watch.raised[name]} times and "
                f"killed {watch.killed[name]} workers: {call}"
            )

    def _judge_error(
        self, task: str, index: int, spec: TaskSpec, item: dict[str, Any], *, is_owner: bool
    ) -> None:
        watch = self.world.watch
        name = (task, index)
        call, options = spec.calls[index], spec.options
        runs = watch.runs.get(name, [])
        reason = item.get("reason", "error")
        match reason:
            case "error":
                # A try may have ended by its time limit as well.
                tried = options.at_most_once or len(runs) > options.retries
                legal = bool(call.fails) and tried
            case "timeout":
                slow = call.run_ms >= options.timeout_ms > 0 or self._clocks_jump()
                # Where the clock leapt, one may have timed out before its worker began it.
                tried = len(runs) + self._clocks_jump() > options.retries
                legal = slow and (options.at_most_once or tried)
                legal = legal or self._is_late(task, options.deadline_ms)
            case "worker-died" | "out-of-memory":
                deaths = watch.killed[name]
                legal = deaths >= DEATHS_MAX or (deaths >= 1 and options.at_most_once)
            case "device-lost":
                # One run may be lost twice: with a device that is given up and comes back.
                legal = options.at_most_once or self._deaths >= LOSSES_MAX
            case "refused full":
                # In words, for as long as nothing can be kept.
                legal = self.world.trace.counters["fault full-disk"] > 0
            case "data-lost" | "refused data-lost" | "refused unknown":
                # What its owner has collected, or cancelled, may be gone for whoever attaches.
                legal = not is_owner or self.world.may_lose
            case "no-device" | "no-quorum":
                # A fleet with fewer devices than that, or a run of it that ended without a value.
                legal = options.replicas > 1
            case _:
                legal = False
        if not legal:
            raise self.broken(
                f"{task}.{index} ends with {item!r} after {len(runs)} runs, "
                f"{watch.raised[name]} of them raised, {watch.killed[name]} killed the worker; "
                f"{call}, {options}"
            )
        self.world.trace.counters[f"outcome {reason}"] += 1

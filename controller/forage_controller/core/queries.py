"""Answers to what people ask: the fleet, the tasks, why something does not run. JSON, for them."""

import json
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog
from forage_controller.core.feasible import why_not
from forage_controller.core.fleet import Fleet
from forage_controller.core.ledger import Ledger
from forage_controller.core.state import Attempt, Client, Device, Task
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.messages import Answer, Drain, Query
from forage_wire.topics import split_call

__all__ = ["Queries"]

_TASKS_LISTED = 10_000
"""Tasks of one user in one answer: the latest."""
_TASKS_LOOKED_AT = 100_000
_FURTHEST = ("running", "assigned", "queued", "settled", "collected")
"""Which replica's state stands for its call's."""


def _as_json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


class Queries:
    """Answers queries of clients; a client sees the tasks of its own user."""

    def __init__(
        self, fleet: Fleet, ledger: Ledger, backlog: Backlog, assignments: Assignments
    ) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._backlog = backlog
        self._assignments = assignments

    def on_query(self, client: Client, query: Query, now_ms: int) -> None:
        """Answer a query on the asking client's link."""
        if client.link is None:
            return
        try:
            body: Any = self._answer(client, query, now_ms)
            ok = True
        except LookupError as error:
            body, ok = {"error": str(error.args[0])}, False
        data = _as_json(body)
        if len(data) > CALL_BYTES_MAX:
            too_long = {"error": f"the answer has {len(data)} bytes, more than a message may hold"}
            data, ok = _as_json(too_long), False
        client.link.send(Answer(id=query.id, ok=ok, body=data))

    def _answer(self, client: Client, query: Query, now_ms: int) -> Any:
        match query.what:
            case "devices":
                return [_device_row(device, now_ms) for device in self._fleet.devices.values()]
            case "tasks":
                latest: Iterable[Task] = reversed(self._ledger.tasks.values())
                if query.arguments.get("ended") == "true":
                    latest = chain(latest, self._ledger.ended.latest())
                looked_at = islice(latest, _TASKS_LOOKED_AT)
                own = [task for task in looked_at if task.client.user == client.user]
                return [_task_row(task, now_ms) for task in reversed(own[:_TASKS_LISTED])]
            case "drain":
                return self._drain(query)
            case _:
                return self._about_task(client, query, now_ms)

    def _drain(self, query: Query) -> Any:
        device = self._fleet.devices.get(query.name)
        if device is None:
            raise LookupError(f"no device is named {query.name}: look at `forage device ls`")
        if device.link is None or device.verdict == "dead":
            raise LookupError(f"device {device.name} is {device.verdict} ({device.why})")
        on = query.arguments.get("on", "true") == "true"
        device.link.send(Drain(on=on))
        return {"device": device.name, "draining": on}

    def _about_task(self, client: Client, query: Query, now_ms: int) -> Any:
        named = split_call(query.name)
        task = None
        if named:
            task = self._ledger.tasks.get(named[0]) or self._ledger.ended.get(named[0])
        if task is None or task.client.user != client.user:
            if named and named[0] in self._ledger.released:
                raise LookupError(
                    f"task {named[0]} ended and was collected too long ago: nothing more is kept "
                    "of it"
                )
            raise LookupError(
                f"no task or call of this user is named {query.name}: look at `forage task ls`"
            )
        index = named[1] if named else None
        if index is not None and index * task.replicas >= max(task.calls, task.total or 0):
            calls = task.calls // task.replicas
            raise LookupError(f"task {task.id} has {calls} calls; there is none {index}")
        match query.what:
            case "logs":
                return _logs(task, index)
            case "task":
                if index is None:
                    return {
                        **_task_row(task, now_ms),
                        "devices": task.devices,
                        "attempts": task.assigned,
                        "progress": {
                            str(task.call_of(at)): _progress(said)
                            for at, said in task.progress.items()
                        },
                        **_blocks(task),
                    }
                return self._call_row(task, index, now_ms)
            case _:
                return self._explain(task, index, now_ms)

    def _call_row(self, task: Task, index: int, now_ms: int) -> dict[str, Any]:
        state, reason, device = self._state_of_call(task, index)
        attempts = [row for row in _attempts(task, now_ms) if row["low"] <= index < row["high"]]
        said = [task.progress[run] for run in task.runs_of(index) if run in task.progress]
        return {
            "task": task.id,
            "index": index,
            "label": task.label,
            "state": state,
            "reason": reason,
            "device": device or None,
            "attempts": len(attempts),
            "progress": _progress(said[-1]) if said else None,
            "checkpoint": _checkpoint(task, index, now_ms),
        }

    def _state_of_call(self, task: Task, index: int) -> tuple[str, str, str]:
        """(state, why, device) of one call; of its replicas, the one that is furthest on its way.

        Which of their outcomes agree is known to its client alone.
        """
        if task.replicas == 1:
            return self._state_of(task, index)
        states = [self._state_of(task, run) for run in task.runs_of(index)]
        if not states:
            return "queued", "its page has not arrived", ""
        have = sum(state in ("settled", "collected") for state, _why, _device in states)
        states.sort(key=lambda each: _FURTHEST.index(each[0]))
        state, _why, device = states[0]
        open_ones = [
            f"one is {state}: {why}" for state, why, _device in states[: len(states) - have]
        ]
        return (
            state,
            "; ".join([f"{have} of {task.replicas} replicas have ended", *open_ones]),
            device,
        )

    def _state_of(self, task: Task, index: int) -> tuple[str, str, str]:
        """(state, why, device) of one run."""
        if index in task.collected:
            return "collected", "its client has the outcome", ""
        if index in task.settled:
            return "settled", "the outcome is here and not collected yet", ""
        page = task.page_of(index)
        for opened in page.holding(index, index + 1) if page is not None else ():
            if index not in opened.reported:
                device = opened.device.name
                if index in task.started:
                    return "running", f"running on {device}", device
                return "assigned", f"with {device}, which has not reported its start", device
        return "queued", self._why_queued(task, index), ""

    def _why_queued(self, task: Task, index: int) -> str:
        page = task.page_of(index)
        if page is None:
            return "its page has not arrived"
        aside = task.aside.get(index)
        if aside is not None:
            which = "eligible device with room" if aside.is_busy else "eligible device"
            return f"each {which} has another replica of this call"
        reasons = [why_not(device, page.header) for device in self._fleet.devices.values()]
        if not reasons:
            return "there is no device"
        if all(reasons):
            return "no device is eligible"
        if self._backlog.is_parked(page):
            return "its function's code or its page is being fetched"
        return "all eligible devices are busy"

    def _explain(self, task: Task, index: int | None, now_ms: int) -> dict[str, Any]:
        attempts = _attempts(task, now_ms)
        page = task.pages.get(min(task.pages)) if task.pages else None
        if index is not None:
            attempts = [row for row in attempts if row["low"] <= index < row["high"]]
            page = next(task.pages_of(index * task.replicas, (index + 1) * task.replicas), None)
            state, reason, _device = self._state_of_call(task, index)
        else:
            state = _task_state(task)
            waiting = next((low for low, _high in task.done.missing(0, task.calls)), None)
            reason = self._state_of(task, waiting)[1] if waiting is not None else "all is done"
        eligible = {}
        if page is not None and task.id in self._ledger.tasks:
            eligible = {
                device.name: why_not(device, page.header) or "yes"
                for device in self._fleet.devices.values()
            }
        return {
            "task": task.id,
            "index": index,
            "label": task.label,
            "state": state,
            "reason": reason,
            "attempts": attempts,
            "checkpoint": None if index is None else _checkpoint(task, index, now_ms),
            "eligible": eligible,
        }


def _blocks(task: Task) -> dict[str, Any]:
    """How the replicas of its calls are numbered, and how many are to agree; else nothing."""
    if task.replicas == 1:
        return {}
    pages = [page for page in task.pages.values() if not page.header.replica]
    return {
        "quorum": pages[0].header.options.quorum if pages else 0,
        "blocks": sorted(page.first // task.replicas for page in pages),
    }


def _progress(said: tuple[int, str]) -> dict[str, Any]:
    permille, text = said
    return {"permille": permille, "text": text}


def _checkpoint(task: Task, index: int, now_ms: int) -> dict[str, Any] | None:
    """What a call's next attempt would go on from; of its replicas, the one furthest on."""
    if not task.checkpoints:
        return None
    runs = task.runs_of(index) if task.replicas > 1 else (index,)
    found = [task.checkpoints[run] for run in runs if run in task.checkpoints]
    if not found:
        return None
    kept = max(found, key=lambda each: each.number)
    return {
        "number": kept.number,
        "bytes": len(kept.data),
        "device": kept.device,
        "saved": kept.committed,
        "age_s": None if kept.made_ms is None else (now_ms - kept.made_ms) / 1_000,
    }


def _resumed(attempt: Attempt) -> dict[str, Any]:
    """What an attempt went on from, and how old that was by then."""
    kept = attempt.resumed
    if kept is None:
        return {}
    age_ms = None if kept.made_ms is None else attempt.began_ms - kept.made_ms
    return {
        "resumed_number": kept.number,
        "resumed_bytes": len(kept.data),
        "resumed_age_s": None if age_ms is None else age_ms / 1_000,
    }


def _device_row(device: Device, now_ms: int) -> dict[str, Any]:
    calls = sum(opened.left for opened in device.assignments.values())
    running = min(calls, device.slots)
    row: dict[str, Any] = {
        "name": device.name,
        "state": "lost" if device.verdict == "dead" and device.state != "offline" else device.state,
        "verdict": device.verdict,
        "why": device.why,
        "session": device.session,
        "active_tasks": running,
        "queued": calls - running,
        "last_seen_s": max(0, now_ms - device.heard_ms) / 1_000 if device.heard_ms else None,
    }
    capabilities, load = device.capabilities, device.load
    if capabilities is not None:
        row |= {
            "address": capabilities.address,
            "slots": capabilities.slots,
            "cpu_cores": capabilities.cores,
            "cpu_strength": capabilities.strength,
            "memory_bytes": capabilities.memory_bytes,
            "network": capabilities.network,
            "network_bytes_s": capabilities.network_bytes_s,
            "labels": capabilities.labels,
            "resources": capabilities.resources,
            "functions": capabilities.functions,
            "python": capabilities.python,
            "arch": capabilities.arch,
            "os": capabilities.os,
            "profile": capabilities.profile,
        }
    if load is not None:
        row |= {
            "cpu_percent": load.cpu_percent,
            "memory_percent": load.memory_percent,
            "temperature_c": load.temperature_c,
            "throttled": load.throttled,
            "battery_percent": load.battery_percent,
        }
    return row


def _task_state(task: Task) -> str:
    if task.complete:
        return "collected"
    if task.total is not None and task.done.count >= task.total:
        return "settled"
    if task.open:
        return "running"
    return "queued"


def _task_row(task: Task, now_ms: int) -> dict[str, Any]:
    running = sum(opened.left for opened in task.open.values())
    return {
        "replicas": task.replicas,
        "task": task.id,
        "label": task.label,
        "user": task.client.user,
        "client": task.client.name,
        "client_here": task.client.here,
        "calls": task.calls // task.replicas,
        "complete": task.total is not None,
        "queued": max(0, task.calls - task.done.count - running),
        "running": running,
        "settled": task.settled.count,
        "failed": task.failed,
        "collected": task.collected.count,
        "state": _task_state(task),
        "age_s": (now_ms - task.made_ms) / 1_000,
    }


def _attempts(task: Task, now_ms: int) -> list[dict[str, Any]]:
    return [
        {
            "assignment": attempt.assignment,
            "device": attempt.device,
            "low": task.call_of(attempt.low),
            "high": task.call_of(attempt.low) + attempt.high - attempt.low,
            "state": "open" if attempt.ended_ms is None else "ended",
            "how": "" if attempt.ended_ms is None else attempt.how,
            "age_s": (now_ms - attempt.began_ms) / 1_000,
            "ended_s": None if attempt.ended_ms is None else (now_ms - attempt.ended_ms) / 1_000,
            **_resumed(attempt),
        }
        for attempt in task.attempts
    ]


def _logs(task: Task, index: int | None) -> dict[str, Any]:
    lines = list(task.log)
    if task.replicas > 1:
        # Users know their calls, and not which run is whose.
        split = [line.partition(" ") for line in lines]
        lines = [f"{task.call_of(int(run))} {rest}" for run, _, rest in split if run.isdigit()]
    if index is not None:
        lines = [line for line in lines if line.startswith(f"{index} ")]
    return {"task": task.id, "lines": lines, "dropped": task.log_dropped}

"""Real workers of a real zygote, driven as the core drives them."""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import cbor2

from forage_agent.core.events import (
    Chunk,
    Event,
    FunctionCode,
    KillWorker,
    LogLines,
    RunCalls,
    StartWorker,
    WorkerExited,
    WorkerOutcomes,
    WorkerReady,
)
from forage_agent.shell.workers import Workers
from forage_agent.shell.zygote_process import ZygoteProcess
from forage_wire.codec import join_calls
from forage_wire.shell.loop import Loop
from forage_wire.values import Outcome, decode_outcome_item, encode_call, ship

__all__ = ["WorkerHarness"]

LIMIT_S = 30.0

_Event = TypeVar("_Event")


class WorkerHarness:
    """Workers, their events in order, and the outcomes in them."""

    def __init__(
        self, environment: dict[str, str] | None = None, zygote: ZygoteProcess | None = None
    ) -> None:
        self.loop = Loop()
        self.events: list[Event] = []
        self.workers = Workers(
            self.loop,
            self.events.append,
            lambda: time.monotonic_ns() // 1_000_000,
            zygote,
            environment,
        )

    def close(self) -> None:
        self.workers.close()
        self.loop.close()

    def of(self, kind: type[_Event]) -> list[_Event]:
        """All events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def until(self, condition: Callable[[], Any]) -> None:
        """Serve the loop until something is true; a test that waits 30 s has failed."""
        deadline_s = time.monotonic() + LIMIT_S
        while not condition():
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"waited {LIMIT_S} s in vain; events: {self.events[-5:]}"
            self.loop.poll(min(left_s, 0.05))

    def start(self, slot: int = 0) -> int:
        """A worker; its pid."""
        before = len(self.of(WorkerReady))
        self.workers.carry_out(StartWorker(slot=slot))
        self.until(lambda: len(self.of(WorkerReady)) > before)
        return self.of(WorkerReady)[-1].pid

    def code(self, function: Callable[..., Any]) -> FunctionCode:
        """A function as the core hands it to a worker."""
        shipped = ship(function)
        return FunctionCode(
            key=shipped.hash, form=shipped.form, python=shipped.python, data=shipped.blob
        )

    def give(
        self,
        function: Callable[..., Any] | FunctionCode,
        arguments: Sequence[tuple[Any, ...]],
        *,
        slot: int = 0,
        assignment: int = 1,
        low: int = 0,
        may_follow: bool = False,
        client_python: str = "3.11",
        checkpoints: tuple[tuple[int, bytes], ...] = (),
    ) -> None:
        """Give a worker calls of a function."""
        code = function if isinstance(function, FunctionCode) else self.code(function)
        chunk = Chunk(
            assignment=assignment,
            low=low,
            high=low + len(arguments),
            function=code.key,
            client_python=client_python,
            calls=join_calls([encode_call(args, {}) for args in arguments]),
            checkpoints=checkpoints,
        )
        self.workers.carry_out(
            RunCalls(slot=slot, may_follow=may_follow, code=(code,), chunks=(chunk,))
        )

    def run(
        self, function: Callable[..., Any] | FunctionCode, *args: Any, slot: int = 0
    ) -> Outcome:
        """The outcome of one call."""
        before = len(self.outcomes())
        self.give(function, [args], slot=slot, assignment=before + 1)
        self.until(lambda: len(self.outcomes()) > before)
        return self.outcomes()[-1]

    def outcomes(self) -> list[Outcome]:
        """All outcomes so far, in the order in which they came."""
        found: list[Outcome] = []
        for event in self.of(WorkerOutcomes):
            head = bytes((0x9F,))
            items = cbor2.loads(head + event.items + b"\xff")
            assert len(items) == event.count
            found.extend([decode_outcome_item(item) for item in items])
        return found

    def reasons(self) -> list[tuple[int, str]]:
        """All errors so far: (index, reason)."""
        return [error for event in self.of(WorkerOutcomes) for error in event.errors]

    def lines(self) -> list[tuple[int, int, str, str]]:
        """All log lines so far."""
        return [row for event in self.of(LogLines) for row in event.rows]

    def next_exit(self) -> WorkerExited:
        """Wait for the end of a worker; that event is then forgotten."""
        self.until(lambda: self.of(WorkerExited))
        found = self.of(WorkerExited)[0]
        self.events.remove(found)
        return found

    def kill(self, slot: int = 0) -> WorkerExited:
        """End a worker."""
        self.workers.carry_out(KillWorker(slot=slot, why="timeout"))
        return self.next_exit()

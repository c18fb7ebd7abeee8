"""A device never obeys two controllers, and in the end one rules."""

from typing import TYPE_CHECKING, Any

from forage_sim.oracles.base import Oracle
from forage_wire.codec import decode
from forage_wire.io import MessageReceived

if TYPE_CHECKING:
    from forage_sim.process import Process
    from forage_sim.watch import Run
    from forage_sim.world import World

__all__ = ["OneObeyed"]


class OneObeyed(Oracle):
    """Reads every inbox beside its device, and remembers whose word counts there."""

    statement = (
        "once a device has heard an epoch, it runs nothing that a controller gives it under a lower "
        "one, or another start under the same; when nothing goes wrong any more, one rules"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._bound: dict[str, tuple[int, str]] = {}
        """Start of a device -> the highest epoch that came for it, and the start that used it."""
        self._right: dict[tuple[str, int], None] = {}
        self._wrong: dict[tuple[str, int], str] = {}
        """(start of a device, assignment) -> who gave it without a right."""

    def event(self, process: "Process", event: Any) -> None:
        if type(event) is not MessageReceived:
            return
        topic = self.world.parse(event.topic)
        if topic is None or topic.branch != "inbox":
            return
        message = decode(event.payload, 1 << 22)
        if message.session != process.session or not message.epoch or not message.controller:
            return
        start = message.controller.partition("-")[0]
        epoch, holder = self._bound.get(process.start_part, (0, ""))
        if message.epoch > epoch:
            self._bound[process.start_part] = epoch, holder = message.epoch, start
        is_right = (message.epoch, start) == (epoch, holder)
        for number in self.world.watch.assigned_in.get(event.payload, ()):
            if is_right:
                self._right[process.start_part, number] = None
            else:
                self._wrong[process.start_part, number] = (
                    f"{message.controller} with epoch {message.epoch}, bound to {epoch} of {holder}"
                )

    def started(self, run: "Run", body: bytes) -> None:
        key = (run.process.start_part, run.assignment)
        if key in self._wrong and key not in self._right:
            raise self.broken(
                f"{run.process.name} runs {run.task}.{run.index} of assignment {run.assignment} of "
                f"{self._wrong[key]}"
            )

    def unfinished(self) -> list[str]:
        rules = [node.name for node in self.world.ruling()]
        return [] if len(rules) == 1 else [f"{len(rules)} controllers rule: {rules}"]

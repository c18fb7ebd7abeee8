"""Nothing waits without a limit."""

from forage_controller.core.config import Limits
from forage_sim.nodes import ClientProcess, ControllerProcess, DeviceProcess
from forage_sim.oracles.base import Oracle
from forage_sim.process import Process
from forage_wire.limits import CLIENT_WINDOW, DEVICE_WINDOW, LIST_ITEMS_MAX
from forage_wire.link import Link

__all__ = ["BoundedQueues"]

ONE_OUTCOME_BYTES = 64 * 1024
"""Above any outcome of the workloads."""


class BoundedQueues(Oracle):
    """Looks into the processes again and again while faults go on."""

    statement = (
        "windows, a device's slices, argument bytes and outcomes, and a subscriber's queue stay "
        "within their limits"
    )

    def looked(self) -> None:
        for node in (*self.world.controllers, *self.world.devices, *self.world.clients):
            process = node.process
            if process is None or not process.alive:
                continue
            if isinstance(process, DeviceProcess):
                self._look_at_device(process)
            elif isinstance(process, ControllerProcess):
                self._look_at_controller(process)
            elif isinstance(process, ClientProcess):
                link = process.core()._sending.link
                self._limit(process, "messages sent and not seen", _unseen(link), CLIENT_WINDOW)

    def _look_at_device(self, process: DeviceProcess) -> None:
        core, spec = process.core(), process.spec
        kept_max = spec.unacknowledged_bytes_max + ONE_OUTCOME_BYTES * (spec.slots + 1)
        link = core._controllers.link
        self._limit(process, "messages sent and not seen", _unseen(link), DEVICE_WINDOW)
        self._limit(process, "assignments", len(core._holdings), LIST_ITEMS_MAX)
        self._limit(process, "argument bytes", core._holdings.call_bytes, spec.queue_bytes_max)
        self._limit(process, "bytes of outcomes", core._outbox.bytes, kept_max)

    def _look_at_controller(self, process: ControllerProcess) -> None:
        core = process.core()
        limits = Limits()
        for device in core.fleet.devices.values():
            what = f"for {device.name}"
            self._limit(process, f"messages sent {what}", _unseen(device.link), DEVICE_WINDOW)
            if device.capabilities is None:
                continue
            # An inventory may bring more than it was given by this start, once.
            slices_max = 2 * limits.slot_slices * max(1, device.slots)
            self._limit(process, f"slices {what}", len(device.assignments), slices_max)
            bytes_max = device.capabilities.queue_bytes_max
            self._limit(process, f"argument bytes {what}", device.work_bytes, bytes_max)

    def _limit(self, process: Process, what: str, found: int, limit: int) -> None:
        if found > limit:
            raise self.broken(f"{process.name} has {found} {what}, and may have {limit}")


def _unseen(link: Link | None) -> int:
    return 0 if link is None else link.unseen

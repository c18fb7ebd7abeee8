"""The controller's core: what a call costs does not depend on how much else there is.

Cost is counted in function calls of the core, so the same work always costs the same.
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from core.desk import CODE, TOPICS, Desk
from forage_wire.codec import encode_json
from forage_wire.messages import (
    Cancel,
    Code,
    DeviceLoad,
    NeedCode,
)


class Meter:
    """Counts the function calls within `handle` and `next_wakeup_ms` of a desk's core."""

    def __init__(self, desk: Desk) -> None:
        self.calls = 0
        core: Any = desk.core
        for name in ("handle", "next_wakeup_ms"):
            setattr(core, name, self._counted(getattr(core, name)))

    def _count(self, _frame: FrameType, event: str, _argument: object) -> None:
        self.calls += event in ("call", "c_call")

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            sys.setprofile(self._count)
            try:
                return function(*arguments)
            finally:
                sys.setprofile(None)

        return counted


def cost_of(desk: Desk, action: Callable[[], object]) -> int:
    """Function calls of the core for an action and what follows from it at once."""
    meter = Meter(desk)
    action()
    desk.run()
    desk.core.next_wakeup_ms()
    return meter.calls


def a_call_with_other_devices(others: int) -> int:
    """One outcome, and the next slice, in a fleet that is at work."""
    desk = Desk().begin()
    pi = desk.device("pi")
    for number in range(others):
        desk.device(f"other{number}")
    desk.client().submit_pages(others // 5, 200)
    for device in desk.devices.values():
        device.finish(device.assignments[0], run_us=20_000)
    assert desk.core.backlog.waiting
    for device in [*desk.devices.values()][1:]:
        del desk.devices[device.name]
    return cost_of(desk, lambda: pi.finish(pi.assignments[1], run_us=20_000))


def a_call_with_idle_devices(others: int) -> int:
    """The same, where the others may not run it and have nothing to do."""
    desk = Desk().begin()
    pi = desk.device("pi", labels={"camera": "yes"})
    for number in range(others):
        desk.device(f"other{number}")
    client = desk.client()
    client.submit(400, requires=("camera",))
    pi.finish(pi.assignments[0], run_us=20_000)
    desk.advance(500)
    for name in [name for name in desk.devices if name != "pi"]:
        del desk.devices[name]
    return cost_of(desk, lambda: pi.finish(pi.assignments[1], run_us=20_000))


def a_call_with_other_queues(others: int) -> int:
    """One outcome where other functions wait for the same device."""
    desk = Desk().begin()
    pi = desk.device("pi")
    client = desk.client()
    # More than the device takes at a time.
    for number in range(others + 100):
        client.submit(1, retries=number % 1_000, priority=number // 1_000)
    desk.run()
    return cost_of(desk, lambda: pi.finish(pi.assignments[0], run_us=20_000))


def a_call_with_other_pinned_queues(others: int) -> int:
    """One outcome where others wait for another device, which is full."""
    desk = Desk().begin()
    pi = desk.device("pi")
    desk.device("pinned")
    client = desk.client()
    for number in range(others + 200):
        client.submit(1, retries=number % 1_000, devices=("pinned",))
    client.submit(100, devices=("pi",))
    desk.run()
    return cost_of(desk, lambda: pi.finish(pi.assignments[0], run_us=20_000))


def a_task_with_other_tasks(others: int) -> int:
    """The end of one of many tasks of one function: settled, collected, released."""
    desk = Desk().begin()
    pi = desk.device("pi")
    client = desk.client()
    tasks = [client.submit(1) for _ in range(others + 200)]
    desk.run()

    def end() -> None:
        pi.finish(pi.assignments[0], run_us=20_000)
        client.collect(tasks[0], (0, 1))

    return cost_of(desk, end)


def a_cancel_with_other_tasks(others: int) -> int:
    """A task that waits behind others of its function is cancelled."""
    desk = Desk().begin()
    desk.device("pi")
    client = desk.client()
    tasks = [client.submit(1) for _ in range(others + 200)]
    return cost_of(desk, lambda: client.send(Cancel(task=tasks[150], ranges=((0, 1),))))


def a_call_of_a_task_with_many_pages(others: int) -> int:
    """One outcome of a task of many pages, and its collection."""
    desk = Desk().begin()
    pi = desk.device("pi")
    client = desk.client()
    task = client.submit_pages(others + 100, 1)

    def end() -> None:
        pi.finish(pi.assignments[0], run_us=20_000)
        client.collect(task, (0, 1))

    return cost_of(desk, end)


def a_load_with_calls_that_starve(others: int) -> int:
    """An idle device says how it is while many functions wait for one that is not there."""
    desk = Desk().begin()
    pi = desk.device("pi")
    client = desk.client()
    for number in range(others):
        client.submit(1, retries=number % 1_000, requires=("camera",), wait_ms=10_000_000)

    def say() -> None:
        load = DeviceLoad(session=pi.session, seq=1)
        desk.publish(TOPICS.device_load("pi"), encode_json(load))

    return cost_of(desk, say)


def a_loss_with_other_devices(others: int) -> int:
    """A device with two slices of a task is lost, and another takes them."""
    desk = Desk().begin()
    lost = desk.device("lost")
    for number in range(others):
        desk.device(f"other{number}")
    client = desk.client()
    client.submit(2, devices=("lost",))
    client.submit_pages(others // 5, 200)
    desk.clients.clear()
    for name in [name for name in desk.devices if name != "lost"]:
        del desk.devices[name]
    return cost_of(desk, lambda: lost.say("lost"))


def code_for_one_with_other_devices(others: int) -> int:
    """A function comes that one device of many waits for."""
    desk = Desk().begin()
    pi = desk.device("pi")
    for number in range(others):
        desk.device(f"other{number}")
    client = desk.client()
    client.hello()
    client.flush()
    desk.run()
    pi.send(NeedCode(hashes=(CODE,)))
    desk.run()
    for name in [name for name in desk.devices if name != "pi"]:
        del desk.devices[name]
    return cost_of(desk, lambda: client.send(Code(hash=CODE, form="source", data=b"code")))


def a_call_of_a_page_with_other_slices(others: int) -> int:
    """One outcome where the other calls of its page are with devices too, one by one."""
    desk = Desk().begin()
    pi = desk.device("pi")
    desk.device("other", slots=others)
    client = desk.client()
    client.submit(4_000)
    desk.advance(50)
    assert len(desk.core.assignments.open) >= 6 * others
    del desk.devices["other"]
    return cost_of(desk, lambda: pi.finish(pi.assignments[0], run_us=20_000))


@pytest.mark.parametrize(
    "scene",
    [
        a_call_of_a_page_with_other_slices,
        a_call_with_other_devices,
        a_call_with_idle_devices,
        a_call_with_other_queues,
        a_call_with_other_pinned_queues,
        a_task_with_other_tasks,
        a_cancel_with_other_tasks,
        a_call_of_a_task_with_many_pages,
        a_load_with_calls_that_starve,
        a_loss_with_other_devices,
        code_for_one_with_other_devices,
    ],
    ids=lambda scene: scene.__name__,
)
def test_the_cost_is_the_same_with_ten_times_as_much_else(scene: Callable[[int], int]) -> None:
    few, many = scene(30), scene(300)
    assert many <= 1.2 * few + 20

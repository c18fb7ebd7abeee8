"""What is left in memories, on disks and at the broker when all is said to be done."""

from typing import TYPE_CHECKING

from forage_sim.nodes import ClientProcess, ControllerProcess, DeviceProcess

if TYPE_CHECKING:
    from forage_sim.world import World

__all__ = ["left_over"]


def left_over(world: "World") -> list[str]:
    """Sentences about what is held without need; none when everything is at rest."""
    mine = _tasks_of_the_living(world)
    return [
        *_left_at_clients(world),
        *_left_at_controller(world, mine),
        *_left_on_disk(world, mine),
        *_left_at_devices(world),
    ]


def _tasks_of_the_living(world: "World") -> dict[str, None]:
    # What nobody living collects is kept for a while; where that is short, it is waited for.
    return {
        task: None
        for client in world.clients
        if client.running or world.plan.keep_ms
        for task in client.submitted
    }


def _left_at_clients(world: "World") -> list[str]:
    found = []
    for node in world.clients:
        process = node.process
        if not isinstance(process, ClientProcess) or not process.alive:
            continue
        # What it is attached to is kept as long as the owner's, dead or alive, for a day.
        kept = [task for task in process.core().tasks if task in node.submitted]
        if kept:
            found.append(f"{node.name} keeps tasks {kept}")
    return found


def _left_on_disk(world: "World", mine: dict[str, None]) -> list[str]:
    state = world.disk.state
    tasks = [task for task in state.tasks if task in mine]
    found = [f"the disk keeps tasks {tasks}"] if tasks else []
    rows = [number for number, row in state.assignments.items() if row.task in mine]
    if rows:
        found.append(f"the disk keeps assignments {rows}")
    return found


def _left_at_controller(world: "World", mine: dict[str, None]) -> list[str]:
    process = world.controller.process
    if not isinstance(process, ControllerProcess) or not process.alive:
        return ["no controller runs"]
    core = process.core()
    found = []
    tasks = [task for task in core.ledger.tasks if task in mine]
    if tasks:
        found.append(f"the controller keeps tasks {tasks}")
    held = [number for number, opened in core.assignments.open.items() if opened.task.id in mine]
    if held:
        found.append(f"the controller keeps assignments {held}")
    for node in world.devices:
        device = core.fleet.devices.get(node.name)
        verdict = "unknown" if device is None else device.verdict
        if node.running and verdict != "alive":
            found.append(f"{node.name} runs and the controller says it is {verdict}")
        told = None if device is None else device.capabilities
        if node.running and (told is None or told.slots != node.spec.slots):
            found.append(f"{node.name} has capabilities that the controller does not know")
        session = "" if device is None else device.session
        if node.running and node.process is not None and session != node.process.session:
            found.append(f"{node.name} has session {node.process.session}, not {session}")
    return found


def _left_at_devices(world: "World") -> list[str]:
    found = []
    for node in world.devices:
        process = node.process
        if isinstance(process, DeviceProcess) and process.alive and process.core().is_busy:
            found.append(f"{node.name} holds assignments")
    return found

"""What is left in memories, on disks and at the broker when all is said to be done."""

from typing import TYPE_CHECKING

from forage_sim.nodes import ClientProcess

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
        *_left_at_devices(world, mine),
    ]


def _tasks_of_the_living(world: "World") -> dict[str, None]:
    return {task: None for client in world.clients if client.running for task in client.submitted}


def _left_at_clients(world: "World") -> list[str]:
    found = []
    for node in world.clients:
        process = node.process
        if isinstance(process, ClientProcess) and process.alive and process.core().tasks:
            found.append(f"{node.name} keeps tasks {list(process.core().tasks)}")
    return found


def _left_on_disk(world: "World", mine: dict[str, None]) -> list[str]:
    state = world.disk.state
    tasks = [task for task in state.tasks if task in mine]
    found = [f"the disk keeps tasks {tasks}"] if tasks else []
    rows = [number for number, row in state.assignments.items() if row.task in mine]
    if rows:
        found.append(f"the disk keeps assignments {rows}")
    return found

"""Clients as processes: one that is killed and attached to, and one of another Python."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import forage
from forage import LocalCluster
from values.interpreters import python

LIMIT_S = 30.0
OTHER_PYTHON = "3.13" if sys.version_info[:2] != (3, 13) else "3.11"

# Hands a task over and says which; what it waits for never comes.
LEAVING = """
import json, sys, time
from pathlib import Path
import forage


def wait_and_double(gate, number):
    while not Path(gate).exists():
        time.sleep(0.01)
    return 2 * number


client = forage.connect(sys.argv[1])
batch = client.submit_all(wait_and_double, [sys.argv[2]] * 100, range(100))
while client.task(batch.id).calls < 100:
    pass
print(json.dumps({"task": batch.id}), flush=True)
batch.results()
"""

# Everything that a newer Python may have in its bytecode must stay out of what travels.
ELSEWHERE = """
import sys
from dataclasses import dataclass
import forage
from shapes import Rectangle, area

SCALE = 3


def scaled(number: int) -> int:
    match number:
        case 0:
            return -1
        case _:
            return SCALE * helper(number)


def helper(number):
    return number + 1


def where():
    import sys

    return "%d.%d" % sys.version_info[:2]


def failing(text):
    raise KeyError(text)


def bound(limit):
    def above(number):
        return number > limit

    return above


with forage.connect(sys.argv[1]) as client:
    print(client.submit(where).result())
    print(list(client.map(scaled, range(4))))
    print(client.submit(area, Rectangle(2, 3)).result())
    try:
        client.submit(failing, "lost").result()
    except KeyError as error:
        print("KeyError", error)
    try:
        client.options(wait_s=0.2).submit(bound(2), 3).result()
    except forage.ForageError as error:
        print(type(error).__name__, error)
"""
SHAPES = """
class Rectangle:
    def __init__(self, width, height):
        self.width = width
        self.height = height


def area(rectangle):
    return rectangle.width * rectangle.height
"""


def test_a_killed_clients_task_is_attached_to_from_elsewhere(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    command = [sys.executable, "-c", LEAVING, cluster.broker_url, str(gate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as leaving:
        assert leaving.stdout is not None
        task = json.loads(leaving.stdout.readline())["task"]
        leaving.kill()
    with cluster.client() as client:
        batch = client.attach(task)
        assert len(batch) == 100
        gate.touch()
        assert batch.results(timeout=LIMIT_S) == [2 * number for number in range(100)]
        one = client.attach(f"{task}.17")
        assert [future.result(LIMIT_S) for future in one] == [34]


def test_a_task_that_nobody_knows_cannot_be_attached_to(cluster: LocalCluster) -> None:
    with cluster.client() as client, pytest.raises(forage.Refused, match="task ls"):
        client.attach("0123456789abc-1")


def test_a_client_of_another_python_uses_these_devices(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    other_python = python(OTHER_PYTHON, "paho-mqtt>=2.1,<3")
    (tmp_path / "job.py").write_text(ELSEWHERE)
    (tmp_path / "shapes.py").write_text(SHAPES)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, forage_folders()))}
    done = subprocess.run(
        [other_python, str(tmp_path / "job.py"), cluster.broker_url],
        capture_output=True,
        text=True,
        timeout=90,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = done.stdout.splitlines()
    assert lines[:4] == [here, "[-1, 6, 9, 12]", "6", "KeyError 'lost'"]
    # A function with free variables is tied to the Python that made it, and the error says so.
    assert OTHER_PYTHON in lines[4]
    assert here in lines[4]


def forage_folders() -> list[Path]:
    """Where the SDK and the wire are imported from here."""
    return [Path(forage.__file__).parents[1], Path(forage.__file__).parents[2] / "schemas"]

"""One warm worker, functions of several versions of one module."""

from pathlib import Path
from typing import Any

from forage_wire.values import decode_outcome_item
from values.project import Project, run_worker

SCRIPT = """
    import helpers
    from helpers import Thing
    def mine(x):
        return helpers.VERSION, helpers.late(x)
    CALLS = [
        (helpers.late, (1,)),
        (mine, (2,)),
        (lambda x: helpers.late(x), (3,)),
        (helpers.is_thing, (Thing(),)),
        (helpers.count, ()),
        (helpers.fail, ()),
    ]
"""


def version(folder: Path, number: int) -> Project:
    project = Project(folder)
    project.write(
        helpers=f"""
        VERSION = {number}
        COUNT = 0
        class Thing:
            pass
        def is_thing(x):
            import sys
            return isinstance(x, Thing) and sys.modules["helpers"].Thing is Thing
        def late(x):
            import deeper
            return deeper.add(x)
        def count():
            global COUNT
            COUNT += 1
            return COUNT
        def fail():
            raise LookupError  # the line of version {number}
        """,
        deeper=f"def add(x):\n    return x + {number}00\n",
    )
    return project


def values(items: list[Any]) -> list[Any]:
    return [outcome.value for outcome in map(decode_outcome_item, items)]


def test_two_versions_of_a_module_do_not_see_each_other(tmp_path: Path) -> None:
    one = version(tmp_path / "one", 1).frames(SCRIPT)
    two = version(tmp_path / "two", 2).frames(SCRIPT)
    mixed = [frame for pair in zip(one, two, strict=True) for frame in pair]

    found = values(run_worker(mixed + mixed))

    # Both versions, call by call; then all again in the same worker.
    assert found[:8] == [101, 201, (1, 102), (2, 202), 103, 203, True, True]
    assert found[12:20] == found[:8]
    # A module is made once and kept: its own state lives on from call to call.
    assert found[8:10] == [1, 1]
    assert found[20:22] == [2, 2]
    for failure, number in ((found[10], 1), (found[23], 2)):
        assert f"the line of version {number}" in failure["traceback"]


def test_loading_everything_first_changes_nothing(tmp_path: Path) -> None:
    one = version(tmp_path / "one", 1).frames(SCRIPT)
    two = version(tmp_path / "two", 2).frames(SCRIPT)
    loads = [[*frame[:3], None] for frame in one + two]

    found = values(run_worker(loads + two + one))

    assert found[:4] == [201, (2, 202), 203, True]
    assert found[6:10] == [101, (1, 102), 103, True]


def test_the_devices_own_module_of_that_name_comes_back(tmp_path: Path) -> None:
    project = Project(tmp_path)
    # A user's module that shadows one of the standard library's.
    project.write(colorsys="def rgb_to_hsv(r, g, b):\n    return 'mine'\n")
    script = """
        import sys
        sys.path.remove(sys.path[0])
        import importlib.util
        spec = importlib.util.spec_from_file_location("colorsys", __file__[:-7] + "colorsys.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["colorsys"] = module
        spec.loader.exec_module(module)
        mine = module.rgb_to_hsv
        def theirs(*rgb):
            import colorsys
            return colorsys.rgb_to_hsv(*rgb)
        CALLS = [(mine, (1, 0, 0)), (theirs, (1, 0, 0))]
    """
    frames = project.frames(script)
    plain = Project(tmp_path / "plain")
    plain.folder.mkdir()
    own = plain.frames("import colorsys\nCALLS = [(colorsys.rgb_to_hsv, (1, 0, 0))]\n")

    found = values(run_worker([*own, *frames, *own]))

    assert found == [(0.0, 1.0, 1), "mine", "mine", (0.0, 1.0, 1)]

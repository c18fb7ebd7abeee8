"""Functions as source: between different Pythons, with the user's own modules."""

from pathlib import Path

import pytest

from values.interpreters import python
from values.project import Project

HELPERS = {
    "helpers": """
        from dataclasses import dataclass
        from shapes.solid import volume

        FACTOR = 3

        @dataclass
        class Box:
            side: int

        def grow(box):
            assert isinstance(box, Box)
            return Box(box.side * FACTOR)

        def measure(side):
            return volume(side)

        def late(number):
            from shapes import extra
            import shapes.solid
            return extra.add(number) + shapes.solid.volume(1)

        def fail(number):
            raise ValueError("not so", number)
    """,
    "shapes__solid": """
        from . import base

        def volume(side):
            return side ** base.DIMENSIONS
    """,
    "shapes__base": "DIMENSIONS = 3\n",
    "shapes__extra": """
        from .base import DIMENSIONS

        def add(number):
            return number + DIMENSIONS
    """,
}

SCRIPT = """
    import math
    import re
    import xml.etree.ElementTree
    import helpers
    from helpers import Box, grow as bigger, late

    LIMIT = (7, "x", 2.5)
    PATTERN = re.compile("a(b)", re.IGNORECASE)

    def helper(x):
        return x * LIMIT[0]

    def uses_constants(x, add=5):
        return helper(x) + add + math.floor(LIMIT[2]) + len(PATTERN.findall("abAB"))

    def makes_box(side):
        return helpers.grow(Box(side)).side

    def reads_xml(text):
        return xml.etree.ElementTree.fromstring(text).tag

    def imports_late(number):
        import helpers as mine
        return mine.late(number)

    def fails(number):
        return helpers.fail(number)

    def recursive(n: int) -> int:
        return 1 if n < 2 else n * recursive(n - 1)

    CALLS = [
        (uses_constants, (1,)),
        (makes_box, (2,)),
        (reads_xml, ("<a/>",)),
        (imports_late, (1,)),
        (recursive, (5,)),
        (bigger, (Box(2),)),
        (late, (3,)),
        (helpers.measure, (2,)),
        (Box, (4,)),
        (math.sqrt, (4.0,)),
        (len, ([1, 2],)),
        ("abc".upper, ()),
        (fails, (4,)),
    ]
"""

EXPECTED = ["16", "6", "'a'", "5", "120", "Box(side=6)", "7", "8", "Box(side=4)", "2.0", "2"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    found = Project(tmp_path)
    found.write(**HELPERS)
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("client", "device"),
    [("3.11", "3.11"), ("3.13", "3.11"), ("3.11", "3.13"), ("3.12", "3.11"), ("3.12", "3.12")],
)
def test_source_and_users_modules_run_on_another_python(
    project: Project, client: str, device: str
) -> None:
    reports = project.run(SCRIPT, client=python(client), device=python(device))

    assert [(report["form"], report["why"]) for report in reports] == [("source", "")] * 13
    assert [report["value"] for report in reports[:11]] == EXPECTED
    assert reports[11]["value"] == "'ABC'"
    assert all(report["python_min"] == 11 for report in reports)
    failed = reports[12]
    assert (failed["error"], failed["text"]) == ("ValueError", "('not so', 4)")
    # The traceback shows the user's own lines, in the script and in the module.
    assert "return helpers.fail(number)" in failed["traceback"]
    assert 'raise ValueError("not so", number)' in failed["traceback"]
    assert str(project.folder / "helpers.py") in failed["traceback"]


def test_a_result_of_a_users_class_is_the_clients_own_class(project: Project) -> None:
    reports = project.run(SCRIPT)

    grown = reports[5]
    assert grown["value"] == "Box(side=6)"
    assert grown["type_of_argument"]
    # The class travels by name with its module's text: no code, so no tie to a Python minor.
    assert grown["kind"] == 2


def test_traceback_lines_are_those_of_the_script(project: Project) -> None:
    text = (
        "import math\n\n\ndef first():\n    return 1\n\n\n\ndef second(x):\n"
        "    first()\n    raise KeyError(x)\n\nCALLS = [(second, (1,))]\n"
    )

    (report,) = project.run(text)

    assert report["form"] == "source"
    assert report["error"] == "KeyError"
    assert 'main.py", line 11, in second\n    raise KeyError(x)' in report["traceback"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("definition", "why"),
    [
        ("f = lambda x: x", "it is a lambda"),
        ("TABLE = {1: 2}\ndef f(x):\n    return TABLE[x]", "its global TABLE is a dict"),
        ("class C: pass\ndef f(x):\n    return C", "its global C is a class of __main__"),
        ("def g():\n    def f(x): return x\n    return f\nf = g()", "defined inside a function"),
        ("def g():\n    global N\n    N = 1\ndef f(x):\n    return g()", "it assigns the global N"),
        ("def f(x, y=[]):\n    return x", "the default `[]` of f is no constant"),
        ("def f(x):\n    return x\nf.note = 1", "f has attributes of its own"),
        (
            "import functools\ndef g(x, y): return x\nf = functools.partial(g, 1)",
            "it is a functools",
        ),
    ],
)
def test_what_is_no_source_says_why_and_is_refused_by_another_python(
    tmp_path: Path, definition: str, why: str
) -> None:
    script = f"{definition}\nCALLS = [(f, (1,))]\n"

    (report,) = Project(tmp_path).run(script, device=python("3.13"), client=python("3.11"))

    assert report["form"] == "pickle"
    assert why in report["why"]
    assert report["error"] == "VersionMismatch"
    assert why in report["text"]
    assert "3.11" in report["text"]
    assert "3.13" in report["text"]


def test_what_is_no_source_runs_on_the_same_python(tmp_path: Path) -> None:
    script = """
        import functools
        TABLE = {1: 2}
        class Counter:
            def __init__(self, start):
                self.start = start
            def __call__(self, x):
                return self.start + x
            def more(self, x):
                return self.start + x + 1
        def closure(a):
            def inner(x):
                return x + a + TABLE[1]
            return inner
        CALLS = [
            (lambda x: x + 1, (1,)),
            (closure(10), (1,)),
            (Counter(5), (1,)),
            (Counter(5).more, (1,)),
            (functools.partial(closure(1), 4), ()),
        ]
    """
    reports = Project(tmp_path).run(script)

    assert [report["value"] for report in reports] == ["2", "13", "6", "7", "7"]
    assert {report["form"] for report in reports} == {"pickle"}


def test_a_pickle_without_code_is_tied_to_no_python(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write(counters="class Counter:\n    n = 3\n    def more(self, x): return self.n + x\n")
    script = """
        import functools, math, counters
        CALLS = [(counters.Counter().more, (1,)), (functools.partial(math.pow, 2), (3,))]
    """
    reports = project.run(script, device=python("3.13"))

    assert [report["value"] for report in reports] == ["4", "8.0"]
    assert {report["form"] for report in reports} == {"source"}


def test_a_lambda_finds_the_users_modules_that_it_imports_late(project: Project) -> None:
    script = """
        import helpers
        def outer(y):
            def inner(x):
                from shapes import extra
                return extra.add(x) + y + helpers.FACTOR
            return inner
        CALLS = [(outer(1), (1,)), (lambda x: helpers.measure(x), (2,))]
    """
    reports = project.run(script)

    assert [report["value"] for report in reports] == ["8", "8"]


def test_newer_grammar_raises_the_lowest_python(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write(
        generic="def f[T](x: T) -> T:\n    return x\n",
        nested="def f(x):\n    return f'{x[\"a\"]} {f\"{x['a']}\"}'.strip() or f'{\"\"}'\n",
        quotes="def f(x):\n    return f'{x['a']}'\n",
        plain="def f(x):\n    return f'{x[\"a\"]!r:>{10}}'\n",
    )
    script = """
        import generic, nested, quotes, plain
        CALLS = [(m.f, ({"a": 1},)) for m in (generic, nested, quotes, plain)]
    """
    newer = python("3.13")

    reports = project.run(script, client=newer, device=newer)

    assert [report["python_min"] for report in reports] == [12, 12, 12, 11]
    assert all(report["ok"] for report in reports)
    refused = project.run(script, client=newer, device=python("3.11"))
    assert [report["ok"] for report in refused] == [False, False, False, True]
    assert {report["error"] for report in refused[:3]} == {"VersionMismatch"}


def test_a_module_that_the_device_lacks_is_named(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write(lonely="def f(x):\n    import no_such_module_at_all\n")
    script = "import lonely\nCALLS = [(lonely.f, (1,))]\n"

    (report,) = project.run(script)

    assert report["error"] == "ModuleNotFoundError"
    assert "no_such_module_at_all" in report["text"]


def test_equal_functions_have_equal_hashes_in_every_process(project: Project) -> None:
    script = """
        import helpers
        from helpers import measure
        LIMITS = frozenset({"a", "b", "c", 1, (2, 3)})
        def f(x):
            return len(LIMITS) + measure(x)
        CALLS = [(f, (1,)), (measure, (1,))]
    """
    one, two = project.run(script), project.run(script)

    assert [report["form"] for report in one] == ["source", "source"]
    assert [report["hash"] for report in one] == [report["hash"] for report in two]


def test_a_future_import_of_annotations_is_kept(tmp_path: Path) -> None:
    script = (
        "from __future__ import annotations\n"
        "def f(x: Nowhere) -> Neither:\n    return f.__annotations__['x']\n"
        "CALLS = [(f, (1,))]\n"
    )
    (report,) = Project(tmp_path).run(script)

    assert (report["form"], report["value"]) == ("source", "'Nowhere'")


def test_a_package_that_runs_as_main_keeps_its_relative_imports(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write(app__library="ONE = 1\ndef times(x):\n    return 10 * x\n")
    text = """
        from . import library
        from .library import times
        def early(x):
            return times(x) + library.ONE
        def late(x):
            from .library import times as late_times
            return late_times(x)
        CALLS = [(early, (2,)), (late, (3,)), (lambda x: early(x), (4,))]
    """
    reports = project.run(text, package="app")

    assert [report["form"] for report in reports] == ["source", "source", "pickle"]
    assert [report["value"] for report in reports] == ["21", "30", "41"]


CELLS = """
    import linecache

    def run_cell(name, text):
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), globals())

    run_cell("<cell 1>", "import math\\nSCALE = 3\\n\\ndef first(x):\\n    return x * SCALE\\n")
    run_cell("<cell 2>", "def second(x):\\n    return first(x) + math.floor(1.5)\\n")
    exec("def typed(x):\\n    return first(x)\\n")
    CALLS = [(first, (1,)), (second, (1,)), (typed, (1,))]
"""


def test_cells_of_a_notebook_are_source_and_what_has_no_text_is_not(tmp_path: Path) -> None:
    reports = Project(tmp_path).run(CELLS)

    assert [report["value"] for report in reports] == ["3", "4", "3"]
    assert [report["form"] for report in reports] == ["source", "source", "pickle"]
    assert "its text is not at hand" in reports[2]["why"]


def test_a_class_of_main_is_one_class_in_function_argument_and_result(tmp_path: Path) -> None:
    script = """
        class Point:
            def __init__(self, x):
                self.x = x
            def __repr__(self):
                return f"Point({self.x})"
            def moved(self):
                return Point(self.x + 1)

        def move(point):
            assert isinstance(point, Point)
            return point.moved()

        CALLS = [(move, (Point(1),)), (lambda p: move(p), (Point(2),)), (Point.moved, (Point(3),))]
        before = Point.moved
        import atexit
        atexit.register(lambda: Point.moved is before or print("the class was changed"))
    """
    reports = Project(tmp_path).run(script)

    assert [report["value"] for report in reports] == ["Point(2)", "Point(3)", "Point(4)"]
    assert all(report["type_of_argument"] for report in reports)
    assert {report["kind"] for report in reports} == {3}


def test_decorated_functions_are_source_with_their_decorators(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write(
        decorated="""
        import functools
        def twice(function):
            @functools.wraps(function)
            def inner(x):
                return function(function(x))
            return inner
        @twice
        def add(x):
            return x + 1
        @functools.cache
        def cached(x):
            return x + 2
        """
    )
    script = """
        import functools
        import decorated
        STEP = 10
        def thrice(function):
            @functools.wraps(function)
            def inner(*args):
                return 3 * function(*args)
            return inner
        @thrice
        @functools.lru_cache(maxsize=5)
        def both(x):
            return x + STEP
        @functools.cache
        def cached(x):
            return x + STEP
        CALLS = [
            (both, (1,)),
            (cached, (1,)),
            (cached.__wrapped__, (1,)),
            (decorated.add, (1,)),
            (decorated.add.__wrapped__, (1,)),
            (decorated.cached, (1,)),
        ]
    """
    reports = project.run(script, device=python("3.13"))

    assert [report["value"] for report in reports] == ["33", "11", "11", "3", "2", "3"]
    assert {report["form"] for report in reports} == {"source"}


def test_the_cache_keeps_functions_of_a_script(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write(helpers="CONFIG = {}\ndef f(x):\n    return CONFIG, x\n")
    script = """
        import functools
        import helpers
        from helpers import CONFIG
        from forage_wire.values import FunctionCache
        STEP = 10
        def wrap(function):
            @functools.wraps(function)
            def inner(*args):
                return function(*args)
            return inner
        def plain(x):
            return x + STEP + len(CONFIG)
        @wrap
        def wrapped(x):
            return x + STEP
        @functools.cache
        def cached(x):
            return x + STEP
        cache = FunctionCache()
        functions = (plain, wrapped, cached, helpers.f)
        first = [cache.get(function) for function in functions]
        again = [cache.get(function) for function in functions]
        STEP = 11
        changed = [cache.get(function) for function in functions]
        CALLS = [
            (str, ([one is two for one, two in zip(first, again)],)),
            (str, ([one.hash == two.hash for one, two in zip(again, changed)],)),
            (cached, (1,)),
        ]
    """
    kept, same, called = project.run(script)

    assert kept["value"] == "'[True, True, True, True]'"
    assert same["value"] == "'[False, False, False, True]'"
    assert called["value"] == "12"


KINDS = """
    import collections
    import enum

    Pair = collections.namedtuple("Pair", "one two")

    class Colour(enum.Enum):
        RED = "r"

    class Base:
        def __init__(self, n):
            self.n = n
        def __eq__(self, other):
            return type(self) is type(other) and self.n == other.n
        def __repr__(self):
            return f"{type(self).__name__}({self.n})"
        class Inner(Exception):
            pass
        def more(self):
            return Base(self.n + STEP)

    STEP = 2

    def adder(n):
        def add(x):
            return more(x) + n
        return add

    def more(x):
        return x + STEP

    def apply(function, *args):
        return function(*args)

    def same(value):
        return value

    def is_red(value):
        return value is Colour.RED

    def fail():
        raise Base.Inner("why")
"""


@pytest.mark.parametrize("device", ["3.11", "3.13"])
def test_values_of_users_modules_keep_their_class_both_ways(tmp_path: Path, device: str) -> None:
    project = Project(tmp_path)
    project.write(kinds=KINDS)
    script = """
        import copy
        import kinds
        from kinds import Base, Colour, Pair
        CALLS = [
            (kinds.same, (Pair(1, 2),)),
            (kinds.same, (Colour.RED,)),
            (kinds.is_red, (Colour.RED,)),
            (copy.copy, (Base(1),)),
            (str, (Base(2),)),
            (Base.more, (Base(3),)),
            (Base(4).more, ()),
            (kinds.apply, (kinds.more, 5)),
            (copy.copy, (kinds.more,)),
            (list, ([Base(6), Base(7), Colour.RED],)),
            (kinds.fail, ()),
        ]
    """
    reports = project.run(script, device=python(device), client=python("3.11"))

    values = [report.get("value") for report in reports]
    assert values[:3] == ["Pair(one=1, two=2)", "<Colour.RED: 'r'>", "True"]
    assert values[3:8] == ["Base(1)", "'Base(2)'", "Base(5)", "Base(6)", "7"]
    assert values[9] == "[Base(6), Base(7), <Colour.RED: 'r'>]"
    for index in (0, 1, 3, 5):
        assert reports[index]["type_of_argument"]
    assert reports[8]["ok"]
    assert (reports[10]["error"], reports[10]["text"]) == ("Inner", "why")


def test_closures_of_a_users_module_travel_by_value(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write(kinds=KINDS)
    script = """
        import kinds
        CALLS = [
            (kinds.adder(10), (1,)),
            (kinds.apply, (kinds.adder(20), 1)),
            (map, (kinds.adder(0), [1])),
            (kinds.apply, (lambda x: kinds.Base(x).more(), 5)),
        ]
    """
    reports = project.run(script)

    assert [report.get("value") for report in reports[:2]] == ["13", "23"]
    assert reports[0]["form"] == "pickle"
    assert reports[1]["kind"] == 3
    assert reports[2]["ok"]
    assert reports[3]["value"] == "Base(7)"

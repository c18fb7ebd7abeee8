"""Records: what the standard library promises of its dataclasses, at less cost."""

import copy
import dataclasses
import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest

from forage_wire.records import dataclass, field, guarded_dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    x: int
    y: int = 0
    marks: list[str] = field(default_factory=list)
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deep(Point):
    y: int = 7
    z: int = 0


@dataclass(slots=True, kw_only=True)
class Changing:
    x: int


@dataclass(frozen=True, slots=True)
class Pair:
    left: int
    right: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Empty:
    """Nothing."""


@guarded_dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    name: str
    labels: dict[str, str] = field(default_factory=dict)

    def shout(self) -> str:
        return self.name.upper()


def test_fields_are_given_by_name_or_have_their_default() -> None:
    point = Point(x=1)
    assert (point.x, point.y, point.marks, point.secret) == (1, 0, [], "")
    assert Point(x=1, marks=["a"]).marks == ["a"]
    assert Pair(1) == Pair(1, 2) == Pair(left=1, right=2)


def test_a_default_factory_makes_one_for_each_object() -> None:
    first, second = Point(x=1), Point(x=1)
    first.marks.append("a")
    assert second.marks == []


@pytest.mark.parametrize("given", [{}, {"x": 1, "q": 2}])
def test_missing_and_unknown_fields_are_type_errors_from_the_first_object_on(
    given: dict[str, int],
) -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Fresh:
        x: int

    for _ in range(2):
        with pytest.raises(TypeError, match=r"Fresh\.__init__\(\)"):
            Fresh(**given)
    assert Fresh(x=1).x == 1
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[misc]


def test_a_class_inherits_fields_and_may_give_them_another_default() -> None:
    assert [each.name for each in dataclasses.fields(Deep)] == ["x", "y", "marks", "secret", "z"]
    assert (Deep(x=1).y, Deep(x=1, z=3).z, Point(x=1).y) == (7, 3, 0)
    assert Deep(x=1, y=0) != Point(x=1)


def test_what_inherits_may_be_made_before_what_it_inherits_from() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Base:
        x: int = 1

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Derived(Base):
        y: int = 2

    class Plain(Base):
        pass

    assert (Derived().x, Derived().y) == (1, 2)
    assert (Plain(x=5).x, Base().x) == (5, 1)


def test_equal_records_are_of_one_class_and_hash_alike() -> None:
    assert Pair(1, 2) == Pair(1, 2) != Pair(1, 3)
    assert hash(Pair(1, 2)) == hash(Pair(1, 2))
    assert Empty() == Empty()
    assert hash(Empty()) == hash(Empty())
    assert Empty() != object()
    assert Changing(x=1) == Changing(x=1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Changing(x=1))


def test_a_record_holds_its_fields_and_nothing_else() -> None:
    changing = Changing(x=1)
    changing.x = 2
    assert changing.x == 2
    with pytest.raises(AttributeError):
        changing.other = 1  # type: ignore[attr-defined]


def test_its_text_shows_the_fields_that_may_be_seen() -> None:
    assert repr(Point(x=1, secret="no")) == "Point(x=1, y=0, marks=[])"
    assert repr(Empty()) == "Empty()"


def test_the_standard_librarys_functions_take_records() -> None:
    point = Point(x=1, marks=["a"])
    assert dataclasses.is_dataclass(point)
    assert dataclasses.asdict(point) == {"x": 1, "y": 0, "marks": ["a"], "secret": ""}
    assert dataclasses.astuple(Pair(1)) == (1, 2)
    assert dataclasses.replace(point, y=5) == replace(point, y=5) == Point(x=1, y=5, marks=["a"])
    with pytest.raises(TypeError):
        replace(point, q=1)


def test_patterns_take_fields_by_name_and_by_place() -> None:
    match Pair(1, 2):
        case Pair(left, right=2):
            assert left == 1
        case _:
            pytest.fail("no match")


@pytest.mark.parametrize(
    "record", [Point(x=1, marks=["a"]), Pair(1), Shown(name="a", labels={"b": "c"}), Empty()]
)
def test_records_are_copied_and_pickled(record: Any) -> None:
    assert pickle.loads(pickle.dumps(record)) == record
    assert copy.deepcopy(record) == record


def test_a_guarded_record_is_frozen_for_everybody() -> None:
    shown = Shown(name="a")
    with pytest.raises(dataclasses.FrozenInstanceError, match="name"):
        shown.name = "b"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del shown.name
    assert shown.shout() == "A"


def test_a_class_that_is_first_used_by_many_threads_at_once_is_whole() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Fresh:
        x: int
        y: int = 2

    barrier = threading.Barrier(8)
    found: list[Fresh] = []

    def make() -> None:
        barrier.wait()
        found.append(Fresh(x=1))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Fresh(x=1, y=2)] * 8


def test_a_record_without_slots_is_refused() -> None:
    with pytest.raises(TypeError, match="slots"):
        dataclass(frozen=True)(type("Loose", (), {"__annotations__": {"x": int}}))


def test_messages_are_declared_without_the_standard_librarys_dataclasses() -> None:
    """It takes the time of dozens of messages to import, and of one to make one."""
    script = "import sys, forage_wire.messages; print('dataclasses' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "False"

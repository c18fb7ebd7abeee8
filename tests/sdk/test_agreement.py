"""Votes: what agrees, who is believed, and what is said where nobody can be."""

import math
from typing import Any

import pytest

import forage
from forage.agreement import Decision, Vote, alike

numpy = pytest.importorskip("numpy")


class Plain:
    """Says nothing of ==."""

    def __init__(self, value: int) -> None:
        self.value = value


class Odd:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("cannot compare")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("cannot be shown")


ALIKE = [
    (1, 1),
    ("a", "a"),
    ([1, (2, "x")], [1, (2, "x")]),
    ({"a": [1]}, {"a": [1]}),
    (math.nan, math.nan),
    (Plain(1), Plain(1)),
    (numpy.array([1.0, math.nan]), numpy.array([1.0, math.nan])),
    ([numpy.arange(3)], [numpy.arange(3)]),
    (numpy.float32(2), numpy.float32(2)),
    (numpy.array([{"a": 1}, None]), numpy.array([{"a": 1}, None])),
]
UNLIKE = [
    (1, 1.0),
    (1, True),
    ([1], (1,)),
    ([1, 2], [1]),
    ({"a": 1}, {"b": 1}),
    ({"a": 1}, {"a": 2}),
    (0.1 + 0.2, 0.3),
    (Plain(1), Plain(2)),
    (numpy.arange(3), numpy.arange(4)),
    (numpy.zeros(3), numpy.zeros((3, 1))),
    (numpy.zeros(3, "f4"), numpy.zeros(3, "f8")),
    (numpy.array([1, 2]), [1, 2]),
    (numpy.float32(2), numpy.float64(2)),
    (None, 0),
]


@pytest.mark.parametrize(("one", "another"), ALIKE, ids=lambda value: type(value).__name__)
def test_results_that_are_the_same_agree(one: Any, another: Any) -> None:
    assert alike(one, another)
    assert alike(another, one)


@pytest.mark.parametrize(("one", "another"), UNLIKE, ids=lambda value: type(value).__name__)
def test_results_that_differ_do_not(one: Any, another: Any) -> None:
    assert not alike(one, another)
    assert not alike(another, one)


def vote(replicas: int = 3, quorum: int = 2, agree: Any = None) -> Vote:
    return Vote("task.7", replicas, quorum, agree)


def cast(voting: Vote, **results: Any) -> Decision:
    """Results by device; exceptions as errors. The last one decides, and no earlier one."""
    decision = None
    for device, result in results.items():
        assert decision is None, f"decided before {device}"
        is_error = isinstance(result, BaseException)
        decision = voting.add(device, None if is_error else result, result if is_error else None)
    assert decision is not None
    return decision


def test_two_that_agree_decide_and_the_third_is_not_needed() -> None:
    decision = cast(vote(), a=4, b=4)
    assert (decision.value, decision.device) == (4, "a")
    assert decision.replicas == forage.Replicas(count=3, agreed=("a", "b"), cancelled=1)


def test_a_liar_is_outvoted_and_named() -> None:
    decision = cast(vote(), a=5, b=4, c=4)
    assert (decision.value, decision.device) == (4, "b")
    assert decision.replicas.disagreed == ("a",)
    assert decision.replicas.cancelled == 0


def test_the_first_outcome_decides_where_one_is_enough() -> None:
    assert cast(vote(quorum=1), a=4).replicas.cancelled == 2


def test_exceptions_agree_by_type_and_message() -> None:
    decision = cast(vote(), a=ValueError("no 3"), b=ValueError("no 3"))
    assert isinstance(decision.error, ValueError)
    assert decision.replicas.agreed == ("a", "b")
    decision = cast(vote(), a=ValueError("x"), b=ValueError("y"), c=TypeError("x"))
    assert isinstance(decision.error, forage.NoQuorum)


def test_exceptions_of_unknown_types_agree_by_the_names_of_these() -> None:
    one = forage.TaskFailed("x", type_name="m.One")
    same = forage.TaskFailed("x", type_name="m.One")
    other = forage.TaskFailed("x", type_name="m.Other")
    assert cast(vote(), a=one, b=other, c=same).replicas.agreed == ("a", "c")


def test_no_quorum_says_who_said_what() -> None:
    decision = cast(vote(), a=1, b=2, c=ValueError("three"))
    assert isinstance(decision.error, forage.NoQuorum)
    assert decision.error.outcomes == {
        "a": "returned 1",
        "b": "returned 2",
        "c": "raised ValueError: three",
    }
    assert str(decision.error) == (
        "No 2 of the 3 replicas of task.7 agree: a returned 1; b returned 2; c raised ValueError: "
        "three. Look at these devices, or say with agree= which results are alike."
    )


def test_it_ends_as_soon_as_no_quorum_can_come() -> None:
    decision = cast(vote(4, 4), a=1, b=2)
    assert isinstance(decision.error, forage.NoQuorum)
    assert decision.replicas.cancelled == 2


def test_a_comparison_with_a_tolerance_decides_for_the_first_that_enough_are_near() -> None:
    def near(one: float, another: float) -> bool:
        return abs(one - another) < 0.1

    decision = cast(vote(5, 3, near), a=9.0, b=1.0, c=1.05, d=0.95)
    assert (decision.value, decision.replicas.agreed) == (1.0, ("b", "c", "d"))


def test_an_outcome_that_cannot_be_compared_disagrees() -> None:
    def near(one: float, another: float) -> bool:
        return abs(one - another) < 0.1

    assert cast(vote(agree=near), a="nonsense", b=1.0, c=1.0).replicas.agreed == ("b", "c")


def test_a_comparison_that_always_raises_is_the_cause() -> None:
    def broken(_one: Any, _another: Any) -> bool:
        raise ZeroDivisionError("in agree")

    error = cast(vote(agree=broken), a=1, b=1, c=1).error
    assert isinstance(error, forage.NoQuorum)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert "Comparing them raised ZeroDivisionError: in agree." in str(error)


def test_a_result_whose_class_breaks_everything_breaks_its_own_vote_alone() -> None:
    assert cast(vote(), a=Odd(), b=1, c=1).value == 1
    error = cast(vote(), a=Odd(), b=Odd(), c=Odd()).error
    assert isinstance(error, forage.NoQuorum)
    assert error.outcomes["a"].startswith("returned <Odd instance at")
    assert isinstance(error.__cause__, RuntimeError)


def test_a_device_has_one_vote() -> None:
    voting = vote()
    assert voting.add("a", 5, None) is None
    assert voting.add("a", 5, None) is None
    decision = voting.add("b", 4, None)
    assert decision is not None
    assert isinstance(decision.error, forage.NoQuorum)
    assert decision.replicas.failed == 1


def test_for_want_of_devices_alone_the_call_says_so() -> None:
    voting = vote()
    assert voting.add("a", 4, None) is None
    assert voting.add("", None, forage.NoDevice("no further device", {"a": "has one"})) is None
    decision = voting.add("", None, forage.NoDevice("no further device"))
    assert decision is not None
    assert isinstance(decision.error, forage.NoDevice)
    assert decision.replicas == forage.Replicas(count=3, agreed=("a",), failed=2)


def test_a_replica_without_a_device_costs_nothing_where_the_others_agree() -> None:
    voting = vote()
    assert voting.add("", None, forage.NoDevice("no further device")) is None
    decision = cast(voting, a=4, b=4)
    assert (decision.value, decision.replicas.failed) == (4, 1)


def test_devices_that_differ_and_one_that_is_missing_are_all_named() -> None:
    voting = vote()
    assert voting.add("a", 4, None) is None
    assert voting.add("b", 5, None) is None
    missing = forage.NoDevice("no further device")
    decision = voting.add("", None, missing)
    assert decision is not None
    assert isinstance(decision.error, forage.NoQuorum)
    assert decision.error.__cause__ is missing
    assert "one had no outcome (NoDevice: no further device)" in str(decision.error)

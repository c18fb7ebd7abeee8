"""Functions of a test module travel like those of any user's module."""

import dataclasses
from typing import Any

import pytest

from forage_wire.values import decode_outcome_item, encode_call, ship
from values.project import run_worker

OFFSET = 5


@dataclasses.dataclass
class Pair:
    left: int
    right: int


def add(pair: Pair) -> Pair:
    assert isinstance(pair, Pair)
    return Pair(pair.left + OFFSET, pair.right)


@pytest.mark.parametrize("times", [1, 2])
def test_a_test_modules_function_runs_in_a_worker(times: int) -> None:
    shipped = ship(add)
    body = encode_call((Pair(1, 2),), {}, add, shipped)
    frames: list[Any] = [[shipped.blob, shipped.form, shipped.python, body]] * times

    items = run_worker(frames)

    assert shipped.form == "source"
    assert [decode_outcome_item(item).value for item in items] == [Pair(6, 2)] * times

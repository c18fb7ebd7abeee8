"""`RangeSet` against a plain set of integers."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forage_wire.ranges import RangeSet, ranges_count
from wire.strategies import range_lists

END = 40
EDGES = st.tuples(st.integers(0, END), st.integers(0, END))


class RangeSetMachine(RuleBasedStateMachine):
    """Every operation, with ranges that are empty or backwards too."""

    @initialize(ranges=range_lists(END))
    def start(self, ranges: list[list[int]]) -> None:
        self.subject = RangeSet((low, high) for low, high in ranges)
        self.model = {index for low, high in ranges for index in range(low, high)}

    @rule(edges=EDGES)
    def add(self, edges: tuple[int, int]) -> None:
        new = set(range(*edges)) - self.model
        assert self.subject.add(*edges) == len(new)
        self.model |= new

    @rule(edges=EDGES)
    def remove(self, edges: tuple[int, int]) -> None:
        gone = set(range(*edges)) & self.model
        assert self.subject.remove(*edges) == len(gone)
        self.model -= gone

    @precondition(lambda self: self.model)
    @rule(count=st.integers(1, END))
    def take_first(self, count: int) -> None:
        low, high = self.subject.take_first(count)
        taken = set(range(low, high))
        assert low == min(self.model)
        assert taken <= self.model
        assert len(taken) == count or (len(taken) < count and high not in self.model)
        self.model -= taken

    @rule(ranges=range_lists(END))
    def update(self, ranges: list[list[int]]) -> None:
        new = {index for low, high in ranges for index in range(low, high)} - self.model
        assert self.subject.update([(low, high) for low, high in ranges]) == len(new)
        self.model |= new

    @rule()
    def copy_is_independent(self) -> None:
        twin = self.subject.copy()
        assert twin == self.subject
        twin.add(0, END + 1)
        twin.remove(3, 5)
        self.the_set_is_the_model()

    @rule(edges=EDGES)
    def ask(self, edges: tuple[int, int]) -> None:
        asked = set(range(*edges))
        assert self.subject.covers(*edges) == (asked <= self.model)
        missing, common = self.subject.missing(*edges), self.subject.common(*edges)
        assert [i for low, high in missing for i in range(low, high)] == sorted(asked - self.model)
        assert [i for low, high in common for i in range(low, high)] == sorted(asked & self.model)
        assert all(low < high for low, high in [*missing, *common])

    @invariant()
    def the_set_is_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        frozen = self.subject.freeze()
        assert [i for low, high in frozen for i in range(low, high)] == sorted(self.model)
        assert all(high < low for (_, high), (low, _) in itertools.pairwise(frozen))
        assert self.subject.count == ranges_count(frozen) == len(self.model)
        assert len(self.subject) == len(frozen)
        assert bool(self.subject) == bool(self.model)
        assert [index in self.subject for index in range(-1, END + 2)] == [
            index in self.model for index in range(-1, END + 2)
        ]
        assert list(self.subject) == list(frozen)
        assert self.subject == RangeSet(frozen)


TestRangeSet = RangeSetMachine.TestCase
TestRangeSet.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


@given(st.permutations(range(30)))
@settings(max_examples=30, deadline=None)
def test_single_indices_in_any_order_become_one_range(order: list[int]) -> None:
    found = RangeSet()
    for index in order:
        found.add(index, index + 1)
    assert found.freeze() == ((0, 30),)


def test_sets_of_other_types_are_not_equal() -> None:
    assert RangeSet([(1, 2)]) != [(1, 2)]

"""The planted bugs can be planted, every oracle has one to find, and those found soon are found."""

from dataclasses import replace

import pytest

from forage_sim.faults import Plan
from forage_sim.mutants import MutantText, hunt, mutated
from forage_sim.oracles import all_oracles
from forage_sim.planted import MUTANTS, Mutant
from forage_sim.world import World

QUICK_SEEDS = 400


def name_of(mutant: Mutant) -> str:
    return mutant.name.replace(" ", "-")


@pytest.mark.parametrize("mutant", MUTANTS, ids=name_of)
def test_a_planted_bug_has_its_one_place_and_is_a_program(mutant: Mutant) -> None:
    compile(mutated(mutant), mutant.file, "exec")


def test_there_are_enough_and_their_names_differ() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 24


def test_a_bug_whose_text_is_gone_is_refused_in_words() -> None:
    gone = replace(MUTANTS[0], old="a text that no core has")
    with pytest.raises(MutantText, match="occurs 0 times there, not once"):
        mutated(gone)


def test_every_oracle_has_a_bug_to_find() -> None:
    told = {type(oracle).__name__ for oracle in all_oracles(World(0, Plan()))}
    wanted = {oracle for mutant in MUTANTS for oracle in mutant.oracles}
    assert told <= wanted


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.quick], ids=name_of)
def test_a_planted_bug_is_found_by_the_oracle_that_is_to_find_it(mutant: Mutant) -> None:
    found = hunt(mutant, seeds=QUICK_SEEDS)
    assert found.oracle in mutant.oracles, found

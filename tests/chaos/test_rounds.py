"""Everything is struck again and again while work goes on; what was promised holds.

The short lane of the chaos suite: `make chaos` plays as many rounds as one likes. A round that fails
prints the command that repeats its plan.
"""

from collections.abc import Iterator

import pytest

from chaos.account import Runner
from chaos.plan import BY_PROXY, KINDS, STANDBYS, Plan
from integration.engines import MOSQUITTO

ROUNDS = 32
"""For each engine."""
FIRST_SEEDS = {"embedded": 0, "mosquitto": ROUNDS}
ENGINES = [
    pytest.param(name, marks=[*marks, pytest.mark.xdist_group(f"rounds over {name}")])
    for name, marks in (("embedded", ()), ("mosquitto", MOSQUITTO.marks))
]
"""Rounds over one engine share a cluster, so they stay in one test process."""


def test_a_seed_draws_the_same_plan_again() -> None:
    def texts(seed: int) -> list[str]:
        return [step.text for step in Plan.draw(seed).steps]

    assert texts(5) == texts(5)
    assert texts(5) != texts(6)


def test_the_short_lane_draws_every_kind_of_fault() -> None:
    seeds = range(ROUNDS * len(FIRST_SEEDS))
    assert {step.kind for seed in seeds for step in Plan.draw(seed).steps} == set(KINDS)
    assert set(KINDS) > BY_PROXY


def test_the_short_lane_draws_every_kind_of_second_controller_and_its_blows() -> None:
    plans = [Plan.draw(seed) for seed in range(ROUNDS * len(FIRST_SEEDS))]
    assert {plan.standby for plan in plans} == set(STANDBYS)
    struck = {bool(plan.standby) for plan in plans for step in plan.steps if "standby" in step.text}
    assert struck == {True}, "nobody strikes at one that is not there"


@pytest.fixture(scope="module", params=ENGINES)
def runner(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runner]:
    runner = Runner(request.param, tmp_path_factory.mktemp("chaos"))
    yield runner
    runner.close()


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_round(runner: Runner, number: int) -> None:
    result = runner.play(FIRST_SEEDS[runner.engine] + number)
    assert not result.problems, str(result)

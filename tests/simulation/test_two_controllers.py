"""Two controllers, one of which stands by: blows to both, and the oracles that hold all the same."""

import os
from collections import Counter

import pytest

from forage_sim.faults import Fault, Plan
from forage_sim.oracles import OracleViolated
from forage_sim.standing_by import ATTIC, PairWorld, run_pair
from forage_sim.workload import CallSpec, ClientSpec, TaskSpec
from forage_sim.world import CONTROLLER, Report, run_world

SEEDS = int(os.environ.get("FORAGE_SIM_SEEDS", "2000")) // 40
STORIES = range(4)


def story(*faults: Fault, calls: int = 60, run_ms: int = 50) -> Plan:
    task = TaskSpec(
        at_ms=4_000,
        function="f",
        calls=tuple(CallSpec(nonce=nonce, run_ms=run_ms) for nonce in range(calls)),
    )
    return Plan(
        clients=(ClientSpec(tasks=(task,)),),
        faults=faults,
        safety_ms=20_000,
        start_ms_max=0,
        detect_ms=500,
    )


def told(seed: int, plan: Plan) -> tuple[PairWorld, Report]:
    world = PairWorld(seed, plan)
    return world, run_world(world)


def fault(kind: str, target: str, *, at_ms: int = 4_500, duration_ms: int = 5_000) -> Fault:
    return Fault(at_ms=at_ms, kind=kind, target=target, duration_ms=duration_ms)


def lost(report: Report) -> int:
    return sum(count for name, count in report.counters.items() if "data-lost" in name)


@pytest.mark.timeout(600)
def test_no_oracle_is_broken_by_any_seed() -> None:
    counters: Counter[str] = Counter()
    for seed in range(SEEDS):
        counters += run_pair(seed).counters
    wanted = ("take over", "fenced", "replicated", "fault freeze", "fault cut", "fault kill")
    assert [name for name in wanted if not counters[name]] == [], "never happened"


@pytest.mark.parametrize("seed", STORIES)
@pytest.mark.parametrize("kind", ["kill", "power"])
def test_a_killed_one_is_followed_by_the_other_and_nothing_is_lost(seed: int, kind: str) -> None:
    world, report = told(seed, story(fault(kind, CONTROLLER)))
    assert [node.name for node in world.ruling()] == [ATTIC]
    assert report.counters["take over"] == 1
    assert lost(report) == 0


@pytest.mark.parametrize("seed", STORIES)
def test_a_frozen_one_is_fenced_when_it_wakes_up_and_stands_by(seed: int) -> None:
    world, report = told(seed, story(fault("freeze", CONTROLLER)))
    assert [node.name for node in world.ruling()] == [ATTIC]
    assert report.counters["fenced"] == 1
    assert lost(report) == 0
    assert world.pair[0].running, "it stands by"


@pytest.mark.parametrize("seed", STORIES)
def test_one_that_was_cut_off_from_the_broker_is_fenced_when_it_is_back(seed: int) -> None:
    world, report = told(seed, story(fault("cut", CONTROLLER, duration_ms=15_000)))
    assert [node.name for node in world.ruling()] == [ATTIC]
    assert report.counters["fenced"] == 1


@pytest.mark.parametrize("seed", STORIES)
def test_a_broker_that_comes_back_empty_makes_nobody_take_over(seed: int) -> None:
    restart = Fault(at_ms=4_500, kind="broker-restart", target=CONTROLLER, duration_ms=800)
    world, report = told(seed, story(restart))
    assert [node.name for node in world.ruling()] == [CONTROLLER]
    assert report.counters["take over"] == 0


@pytest.mark.parametrize("seed", STORIES)
def test_one_that_stands_by_and_freezes_takes_nothing_over_when_it_wakes_up(seed: int) -> None:
    world, report = told(seed, story(fault("freeze", ATTIC)))
    assert [node.name for node in world.ruling()] == [CONTROLLER]
    assert report.counters["take over"] == 0
    assert lost(report) == 0


@pytest.mark.parametrize("seed", STORIES)
def test_the_roles_change_hands_twice(seed: int) -> None:
    first = fault("kill", CONTROLLER, duration_ms=200)
    second = fault("kill", ATTIC, at_ms=9_000, duration_ms=200)
    world, report = told(seed, story(first, second, calls=200))
    assert [node.name for node in world.ruling()] == [CONTROLLER]
    assert report.counters["take over"] == 2
    assert lost(report) == 0


def test_the_oracles_have_eyes() -> None:
    world = PairWorld(0, story())
    [obeyed] = [oracle for oracle in world.oracles if type(oracle).__name__ == "OneObeyed"]
    assert obeyed.unfinished() == ["0 controllers rule: []"]
    assert isinstance(obeyed.broken("how"), OracleViolated)

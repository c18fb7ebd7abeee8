"""Many seeds: random fleets, tasks and faults, all held to the oracles.

`FORAGE_SIM_SEEDS` says how many (`make simulate SEEDS=10000` runs more, on all processors);
`FORAGE_SEED` says which one `test_one_seed` runs.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from forage_sim.faults import KINDS, Fault, Plan, draw_plan
from forage_sim.workload import CallSpec, ClientSpec, TaskSpec
from forage_sim.world import SimulationFailed, fails_with, run, shortest
from forage_wire.messages import Options

SEEDS = int(os.environ.get("FORAGE_SIM_SEEDS", "2000"))
HALVES = 2
TESTS = Path(__file__).parent.parent

RECOVERIES = (
    "broker connect",
    "broker duplicate",
    "broker lost",
    "broker will",
    "death",
    "exit 1",
    "exit 2",
    "outcome error",
    "publish acknowledge",
    "publish acknowledged",
    "publish cancel",
    "publish cancel-assigned",
    "publish client-inventory",
    "publish device-inventory",
    "publish device-refused",
    "publish released",
    "publish report",
    "publish settled",
    "publish trim",
    "publish trimmed",
)
"""What the sweep must have seen, beside every kind of fault; rarer ones have their own stories."""


@pytest.mark.parametrize("half", range(HALVES))
@pytest.mark.timeout(900)
def test_no_oracle_is_broken_by_any_seed(half: int) -> None:
    counters: Counter[str] = Counter()
    for seed in range(half, SEEDS, HALVES):
        counters += run(seed).counters
    wanted = [f"fault {kind}" for kind in KINDS] + list(RECOVERIES)
    assert [name for name in wanted if not counters[name]] == [], "never happened in the sweep"


@pytest.mark.skipif("FORAGE_SEED" not in os.environ, reason="FORAGE_SEED says which seed to run")
def test_one_seed() -> None:
    seed = int(os.environ["FORAGE_SEED"])
    try:
        run(seed, lines=int(os.environ.get("FORAGE_LINES", "200")))
    except SimulationFailed:
        plan = shortest(draw_plan(seed), fails_with(seed))
        print("the shortest schedule that fails:", *plan.faults, sep="\n  ")
        run(seed, plan, lines=int(os.environ.get("FORAGE_LINES", "200")))
        raise


def test_a_seed_gives_the_same_trace_whatever_the_hash_seed() -> None:
    script = (
        "from forage_sim.world import run\n"
        "for seed in range(6):\n"
        "    report = run(seed)\n"
        "    print(seed, report.digest, report.steps)\n"
    )

    def digests(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TESTS)}
        return subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout

    assert digests("1") == digests("2") != ""


def test_seeds_differ_and_a_seed_repeats() -> None:
    assert run(1).digest == run(1).digest != run(2).digest


def test_the_shortest_schedule_keeps_only_what_the_failure_needs() -> None:
    faults = tuple(Fault(at_ms=at_ms, kind=kind) for at_ms, kind in enumerate(KINDS))

    def fails(plan: Plan) -> bool:
        kinds = [fault.kind for fault in plan.faults]
        return "freeze" in kinds and "disk-fails" in kinds

    left = shortest(Plan(faults=faults), fails)
    assert [fault.kind for fault in left.faults] == ["freeze", "disk-fails"]


def test_a_failure_says_how_to_run_it_again() -> None:
    # A call that no device may run within the world's time never ends.
    nobody = Options(requires=("a-label-nobody-has",), wait_ms=10**9)
    spec = TaskSpec(at_ms=10, function="f", calls=(CallSpec(nonce=1),), options=nobody)
    with pytest.raises(SimulationFailed, match=r"not done(?s:.)*FORAGE_SEED=7 pytest"):
        run(7, Plan(clients=(ClientSpec(tasks=(spec,)),), safety_ms=1_000))

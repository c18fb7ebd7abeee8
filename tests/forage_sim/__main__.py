"""Runs many seeds: `python -m forage_sim --seeds 10000` (with `tests` on the path)."""

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from forage_sim.faults import draw_plan
from forage_sim.world import Report, SimulationFailed, fails_with, run, shortest

__all__ = ["main"]


def _one(seed: int) -> Report | str:
    try:
        return run(seed)
    except SimulationFailed as failure:
        return str(failure)


def main() -> int:
    """Run seeds on all processors; 1 if any failed."""
    parser = argparse.ArgumentParser(prog="forage_sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="how many (default: 2000)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--failures", type=int, default=5, help="stop after so many (default: 5)")
    parser.add_argument("--shorten", action="store_true", help="look for the shortest schedule")
    parser.add_argument("--counters", action="store_true", help="print how often what happened")
    options = parser.parse_args()

    began = time.monotonic()
    counters: Counter[str] = Counter()
    done = steps = simulated_ms = failed = longest_ms = 0
    seeds = range(options.first, options.first + options.seeds)
    with ProcessPoolExecutor(options.jobs) as pool:
        for seed, answer in zip(seeds, pool.map(_one, seeds, chunksize=20), strict=True):
            done += 1
            if done % 500 == 0:
                print(f"{done} seeds, {failed} failed", file=sys.stderr)
            if isinstance(answer, Report):
                counters += answer.counters
                steps += answer.steps
                simulated_ms += answer.simulated_ms
                longest_ms = max(longest_ms, answer.healing_ms)
                continue
            failed += 1
            print(answer, file=sys.stderr)
            if options.shorten:
                plan = shortest(draw_plan(seed), fails_with(seed))
                print("shortest schedule:", *plan.faults, sep="\n  ", file=sys.stderr)
            if failed >= options.failures:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    seconds = time.monotonic() - began
    if options.counters:
        for name, count in sorted(counters.items()):
            print(f"{count:>10}  {name}")
    print(
        f"{done} seeds, {failed} failed; {done / seconds:.0f} seeds/s, {steps / seconds:.0f} events/s, "
        f"{simulated_ms / 1_000 / seconds:.0f} simulated s/s; longest healing {longest_ms} ms"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

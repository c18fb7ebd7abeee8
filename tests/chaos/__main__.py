"""`make chaos`: as many rounds as asked for, and a report.

Both engines take turns. A failed round is told at once, with the command that repeats its plan; its
services' state and logs stay below build/chaos.
"""

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from chaos.report import render
from chaos.rounds import Account, Runner
from forage_broker.mosquitto import find_mosquitto

BUILD = Path(__file__).parents[2] / "build" / "chaos"
ROUNDS_ON_ONE_GROUND = 25


def main(argv: list[str] | None = None) -> int:
    """1 where a promise was not kept."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--engine", choices=["embedded", "mosquitto", "both"], default="both")
    parser.add_argument("--report", type=Path, help="write what came of it here, as Markdown")
    arguments = parser.parse_args(argv)
    # That the broker is away and back again is what rounds are about.
    logging.getLogger("forage").setLevel(logging.ERROR)
    engines = ["mosquitto", "embedded"] if arguments.engine == "both" else [arguments.engine]
    if "mosquitto" in engines and find_mosquitto() is None:
        engines.remove("mosquitto")
        print("mosquitto is not installed: over the embedded broker alone")
    account = Account()
    began_s = time.monotonic()
    for number, (seed, runner) in enumerate(_schedule(arguments, engines), 1):
        result = runner.play(seed)
        account.add(result)
        account.elapsed_s = time.monotonic() - began_s
        if result.problems:
            print(result, flush=True)
        if number % 20 == 0 or number == arguments.rounds:
            print(_line(account), flush=True)
        if arguments.report is not None:
            arguments.report.write_text(render(account, arguments.seed, engines))
    return 1 if account.failed else 0


def _schedule(arguments: argparse.Namespace, engines: list[str]) -> Iterator[tuple[int, Runner]]:
    """(seed, who plays it): the engines take turns of many rounds on one cluster."""
    end = arguments.seed + arguments.rounds
    for turn, first in enumerate(range(arguments.seed, end, ROUNDS_ON_ONE_GROUND)):
        engine = engines[turn % len(engines)]
        folder = BUILD / f"{engine}-{first}"
        shutil.rmtree(folder, ignore_errors=True)
        runner = Runner(engine, folder)
        try:
            for seed in range(first, min(end, first + ROUNDS_ON_ONE_GROUND)):
                yield seed, runner
        finally:
            runner.close()
        if not runner.failures:
            shutil.rmtree(folder, ignore_errors=True)


def _line(account: Account) -> str:
    return (
        f"{account.rounds} rounds, {account.accepted_tasks} tasks of {account.accepted_calls} "
        f"calls, {sum(account.faults.values())} faults, {dict(account.problems) or 'no problem'}, "
        f"{account.elapsed_s / account.rounds:.1f} s a round"
    )


if __name__ == "__main__":
    sys.exit(main())

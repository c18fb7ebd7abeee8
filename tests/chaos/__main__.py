"""`make chaos`: as many rounds as asked for, and a report.

Both engines take turns. A failed round is told at once, with the command that repeats its plan; its
services' state and logs stay below build/chaos.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

from chaos.account import Account, end_by_signals, play_turns, turns
from chaos.report import render
from forage_broker.mosquitto import find_mosquitto

BUILD = Path(__file__).parents[2] / "build" / "chaos"


def main(argv: list[str] | None = None) -> int:
    """1 where a promise was not kept."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--engine", choices=["embedded", "mosquitto", "both"], default="both")
    parser.add_argument("--jobs", type=int, default=1, help="so many processes side by side")
    parser.add_argument("--report", type=Path, help="write what came of it here, as Markdown")
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="a line for each round, and what the slow ones waited for",
    )
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        parser.error(f"--jobs is a number of processes from 1, not {arguments.jobs}")
    end_by_signals()
    # That the broker is away and back again is what rounds are about.
    logging.getLogger("forage").setLevel(logging.ERROR)
    engines = ["mosquitto", "embedded"] if arguments.engine == "both" else [arguments.engine]
    if "mosquitto" in engines and find_mosquitto() is None:
        engines.remove("mosquitto")
        print("mosquitto is not installed: over the embedded broker alone")
    account = Account()
    began_s = time.monotonic()
    found = turns(arguments.seed, arguments.rounds, engines, arguments.jobs)
    for result in play_turns(found, BUILD, arguments.jobs):
        account.add(result)
        account.elapsed_s = time.monotonic() - began_s
        if arguments.verbose:
            print(result.line(), flush=True)
        if result.problems or (arguments.verbose and result.is_slow):
            print(result, flush=True)
        if account.rounds % 20 == 0 or account.rounds == arguments.rounds:
            print(_line(account), flush=True)
        if arguments.report is not None:
            arguments.report.write_text(
                render(account, arguments.seed, arguments.rounds, engines, arguments.jobs)
            )
    return 1 if account.failed else 0


def _line(account: Account) -> str:
    return (
        f"{account.rounds} rounds, {account.accepted_tasks} tasks of {account.accepted_calls} "
        f"calls, {sum(account.faults.values())} faults, {dict(account.problems) or 'no problem'}, "
        f"{account.elapsed_s / account.rounds:.1f} s a round"
    )


if __name__ == "__main__":
    sys.exit(main())

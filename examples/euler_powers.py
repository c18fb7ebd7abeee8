"""Search for a counterexample, and stop everybody when one has found it.

    python examples/euler_powers.py
    python examples/euler_powers.py --power 4 --terms 3 --to 300     # there is none so small

Euler believed that at least n powers of n are needed to make another one. In 1966 a CDC 6600 found
that four fifth powers can (L. Lander, T. Parkin, Counterexample to Euler's conjecture on sums of
like powers, Bulletin of the AMS 72, 1079). Here each candidate for the largest base is one call;
results are taken as they come, and at the first hit all calls that have not begun are cancelled.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations_with_replacement

import forage


def search(total: int, power: int, terms: int) -> list[int] | None:
    """Bases whose powers add up to `total ** power`, ascending, or None. Runs on a device.

    Two halves of the sum are met in the middle: all sums of `terms // 2` powers are put in a table,
    in which each sum of the others is completed.
    """
    goal = total**power
    powers = [base**power for base in range(total)]
    half = terms // 2
    table = {
        sum(powers[base] for base in bases): bases
        for bases in combinations_with_replacement(range(1, total), half)
    }
    for bases in combinations_with_replacement(range(1, total), terms - half):
        rest = table.get(goal - sum(powers[base] for base in bases))
        if rest is not None:
            return sorted((*bases, *rest))
    return None


@contextmanager
def connected(broker: str | None, devices: int) -> Iterator[forage.Client]:
    """A client of a fleet that is there, or of one on this machine for the while."""
    if broker is not None:
        with forage.connect(broker) as client:
            yield client
    else:
        with forage.LocalCluster(devices=devices) as cluster, cluster.client() as client:
            yield client


def first_hit(
    client: forage.Client, totals: range, power: int, terms: int
) -> tuple[list[int] | None, str]:
    """The first sum that is found, and how much of the search that took."""
    count = len(totals)
    batch = client.submit_all(search, totals, [power] * count, [terms] * count)
    for future in batch.as_completed():
        bases = future.result()
        if bases is not None:
            looked = batch.progress().done
            cancelled = batch.cancel()
            return bases, f"{looked} of {count} candidates looked at, {cancelled} cancelled"
    return None, f"all {count} candidates looked at"


def main(argv: list[str] | None = None) -> int:
    """Read the command line, search, print what was found; 1 where there is nothing."""
    parser = argparse.ArgumentParser(description="Look for n - 1 n-th powers that make another.")
    parser.add_argument("--power", type=int, default=5)
    parser.add_argument("--terms", type=int, default=4)
    parser.add_argument("--from", type=int, default=100, dest="first", help="largest base, from")
    parser.add_argument("--to", type=int, default=200, dest="last", help="and up to")
    parser.add_argument("--broker", help="use this fleet in place of one on this machine")
    parser.add_argument("--devices", type=int, default=3, help="how many to start here")
    arguments = parser.parse_args(argv)
    power = arguments.power
    with connected(arguments.broker, arguments.devices) as client:
        bases, effort = first_hit(
            client, range(arguments.first, arguments.last + 1), power, arguments.terms
        )
    if bases is None:
        print(f"nothing up to {arguments.last}^{power} ({effort})")
        return 1
    total = round(sum(base**power for base in bases) ** (1 / power))
    print(" + ".join(f"{base}^{power}" for base in bases) + f" = {total}^{power}")
    print(f"({effort})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

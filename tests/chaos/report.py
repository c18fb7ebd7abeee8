"""The report of many rounds, for people."""

import os
import platform
import sys

from chaos.rounds import Account

__all__ = ["render"]

PROMISES = {
    "lost": "calls lost, or ended with an error that is not theirs",
    "duplicated": "outcomes told to a client more than once",
    "stale": "outcomes accepted that belong to another call, round or run",
    "ran twice": "`at_most_once` calls that ran twice, `exclusive` ones that ran beside themselves",
    "left running": "cancelled calls that ran on",
    "kept": "tasks that the controller kept after their end",
    "trouble": "rounds that ended in trouble of another kind",
}


def render(account: Account, seed: int, engines: list[str]) -> str:
    """Markdown."""
    last = seed + account.rounds - 1
    lines = [
        "# Chaos report",
        "",
        f"`make chaos ROUNDS={account.rounds} SEED={seed}` over {' and '.join(engines)}, on "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{sys.platform}: {account.elapsed_s / 60:.0f} minutes.",
        "",
        "Each round submits work of every kind, strikes at processes and connections, heals, and "
        "holds the outcome against what was promised. A line of zeros is what is promised.",
        "",
        "| | |",
        "|---|---:|",
        f"| rounds (seeds {seed} to {last}) | {account.rounds:,} |",
        f"| tasks accepted | {account.accepted_tasks:,} |",
        f"| calls in them | {account.accepted_calls:,} |",
        f"| faults that happened | {sum(account.faults.values()):,} |",
        *(f"| {text} | {account.problems[kind]:,} |" for kind, text in PROMISES.items()),
        f"| slowest end of all work after healing | {account.slowest_settle_s:.1f} s |",
        "",
        "| fault | happened |",
        "|---|---:|",
        *(f"| {name} | {count:,} |" for name, count in sorted(account.faults.items())),
        "",
    ]
    if account.failed:
        lines += ["Rounds that failed:", ""]
        lines += [
            f"- `{each.command}`: {'; '.join(f'{p.kind}: {p.text}' for p in each.problems[:3])}"
            for each in account.failed
        ]
        lines.append("")
    return "\n".join(lines)

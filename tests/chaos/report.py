"""The report of many rounds, for people."""

import os
import platform
import sys

from chaos.account import Account
from chaos.limits import OLD_STORE, UNCOPIED

__all__ = ["render"]

PROMISES = {
    "lost": "calls lost, or ended with an error that is not theirs",
    "duplicated": "outcomes told to a client more than once",
    "stale": "outcomes accepted that belong to another call, round or run",
    "ran twice": "`at_most_once` calls that ran twice, `exclusive` ones that ran beside themselves",
    "left running": "cancelled calls that ran on",
    "redone": "attempts that did not go on from the last checkpoint that was known to be saved",
    "two rule": "devices that obeyed two controllers, and fenced ones that did not say so",
    "kept": "tasks that the controller kept after their end",
    "trouble": "rounds that ended in trouble of another kind",
}


LIMITS = {
    UNCOPIED: "rounds in which a standby took over that acknowledgements do not wait for",
    OLD_STORE: "rounds in which one took over that had not followed to the end",
}


def render(account: Account, seed: int, rounds: int, engines: list[str], jobs: int) -> str:
    """Markdown."""
    side_by_side = "" if jobs == 1 else f" JOBS={jobs}"
    lines = [
        "# Chaos report",
        "",
        f"`make chaos ROUNDS={rounds} SEED={seed}{side_by_side}` over {' and '.join(engines)}, on "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{sys.platform}: {account.elapsed_s / 60:.0f} minutes.",
        "",
        "Each round submits work of every kind, strikes at processes and connections, heals, and "
        "holds the outcome against what was promised. A line of zeros is what is promised.",
        "",
        "| | |",
        "|---|---:|",
        f"| rounds (seeds {seed} to {seed + rounds - 1}) | {account.rounds:,} |",
        f"| tasks accepted | {account.accepted_tasks:,} |",
        f"| calls in them | {account.accepted_calls:,} |",
        f"| faults that happened | {sum(account.faults.values()):,} |",
        *(f"| {text} | {account.problems[kind]:,} |" for kind, text in PROMISES.items()),
        f"| slowest end of all work after healing (`{account.slowest}`) "
        f"| {account.slowest_settle_s:.1f} s |",
        "",
        "| second controllers, and what is not promised of them | |",
        "|---|---:|",
        *(
            f"| rounds with {f'a standby ({kind})' if kind else 'one controller alone'} "
            f"| {count:,} |"
            for kind, count in sorted(account.standbys.items())
        ),
        f"| take-overs | {account.take_overs:,} |",
        *(f"| {text} | {account.limits[limit]:,} |" for limit, text in LIMITS.items()),
        f"| what was lost in such rounds, and said | {account.excused['lost']:,} |",
        "| what ran again, or ran on, in the latter "
        f"| {sum(account.excused.values()) - account.excused['lost']:,} |",
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

"""Tables for people: a row for each run of a peer, and each peer's figures in units of forage's.

python bench/peers/table.py FILE prints those of an earlier run.
"""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["tables"]

Record = dict[str, Any]
BASE = "forage-mosquitto"
OTHER_BASE = "forage-embedded"
MIB = 1024 * 1024

# Heading, measure, the number in its record, and how it is written.
COLUMNS: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("1 by 1 /s", "one_by_one", "best_per_s", lambda x: f"{x:,.0f}"),
    ("median", "one_by_one", "median_per_s", lambda x: f"{x:,.0f}"),
    ("batch /s", "batch", "best_per_s", lambda x: f"{x:,.0f}"),
    ("p50 ms", "latency", "p50_ms", lambda x: f"{x:.2f}"),
    ("p95 ms", "latency", "p95_ms", lambda x: f"{x:.2f}"),
    ("p99 ms", "latency", "p99_ms", lambda x: f"{x:.2f}"),
    ("1 ms eff.", "efficiency", "efficiency", lambda x: f"{x:.3f}"),
    ("kill s", "kill", "median_s", lambda x: f"{x:.2f}"),
    ("B/queued", "queued_memory", "bytes_per_call", lambda x: f"{x:,.0f}"),
    ("workers MiB", "idle_memory", "workers_rss_bytes", lambda x: f"{x / MIB:.0f}"),
    ("PSS", "idle_memory", "workers_pss_bytes", lambda x: f"{x / MIB:.0f}"),
    ("others MiB", "idle_memory", "services_rss_bytes", lambda x: f"{x / MIB:.0f}"),
)


def _grid(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _runs(records: Sequence[Record]) -> dict[tuple[str, str], dict[str, Record]]:
    runs: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        if record["peer"]:
            of_run = runs.setdefault((record["peer"], record["run"]), {})
            of_run[record["measure"]] = record
    return runs


def _number(run: dict[str, Record], measure: str, key: str) -> float | None:
    value = run.get(measure, {}).get(key)
    return None if value is None else float(value)


def _label(peer: str, run: str) -> str:
    return peer if run == "only" else f"{peer} ({run})"


def _figures(runs: dict[tuple[str, str], dict[str, Record]]) -> str:
    rows = [["", *(heading for heading, *_ in COLUMNS), "kill: outcome"]]
    for (peer, which), run in runs.items():
        if "skipped" in run.get("start", {}):
            continue
        row = [_label(peer, which)]
        for _, measure, key, written in COLUMNS:
            number = _number(run, measure, key)
            row.append("-" if number is None else written(number))
        row.append(run.get("kill", {}).get("outcome", "-"))
        rows.append(row)
    return _grid(rows)


def _ratios(runs: dict[tuple[str, str], dict[str, Record]]) -> str:
    """Each peer's figure over forage's: the mean of forage's runs over its quicker broker."""
    measured = {peer for peer, _ in runs if "skipped" not in runs[peer, _].get("start", {})}
    base = BASE if BASE in measured else OTHER_BASE
    if base not in measured or len(measured) < 2:
        return ""
    rows = [[f"over {base}", *(heading for heading, *_ in COLUMNS)]]
    for peer in dict.fromkeys(peer for peer, _ in runs):
        if peer not in measured:
            continue
        row = [peer]
        for _, measure, key, _ in COLUMNS:
            means = []
            for name in (peer, base):
                numbers = [
                    _number(run, measure, key) for (of, _), run in runs.items() if of == name
                ]
                known = [number for number in numbers if number is not None]
                means.append(statistics.mean(known) if known else None)
            mine, forages = means
            row.append("-" if mine is None or not forages else f"{mine / forages:.3g}")
        rows.append(row)
    return _grid(rows)


def _remarks(runs: dict[tuple[str, str], dict[str, Record]]) -> str:
    lines = []
    for (peer, which), run in runs.items():
        label = _label(peer, which)
        for measure, record in run.items():
            if "skipped" in record:
                lines.append(f"{label}: skipped, {record['skipped']}")
            if "failed" in record:
                lines.append(f"{label}: {measure} failed, {record['failed']}")
        if "versions" in run.get("start", {}):
            ways = f"batch by {run['batch']['way']}" if "way" in run.get("batch", {}) else ""
            way = run.get("efficiency", {}).get("way")
            ways += f", 1 ms calls by {way}" if way else ""
            lines.append(f"{label}: {run['start']['versions']}; {ways}")
        if run.get("kill", {}).get("answers_afterwards") is False:
            lines.append(f"{label}: answers no further call after the kill")
    return "\n".join(lines)


def tables(records: Sequence[Record]) -> str:
    """All of it: figures, ratios, and what must be known about them."""
    runs = _runs(records)
    parts = [_figures(runs), _ratios(runs), _remarks(runs)]
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: table.py FILE (a file of JSON lines below bench/results)")
    print(tables([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))

"""The calls that every peer runs: one argument each, and values that JSON carries too."""

import os
import time
from pathlib import Path

__all__ = ["HALF_S", "HOLD_LIMIT_S", "add_one", "compute_1_ms", "hold", "run_half_a_second"]

HALF_S = 0.5
HOLD_LIMIT_S = 120.0


def add_one(value: int) -> int:
    return value + 1


def compute_1_ms(index: int) -> list[float]:
    """Compute until a millisecond has passed; the index, and the seconds it took."""
    start_s = time.perf_counter()
    while (took_s := time.perf_counter() - start_s) < 0.001:
        pass
    return [index, took_s]


def hold(marker: str) -> str:
    """Say by the file `marker` that it runs; return once there is a file `release` beside it."""
    path = Path(marker)
    path.touch()
    deadline_s = time.monotonic() + HOLD_LIMIT_S
    while not (path.parent / "release").exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"nobody released {marker}")
        time.sleep(0.01)
    return marker


def run_half_a_second(file: str) -> int:
    """Append the own process id to `file` as a line, run for half a second, return the id."""
    process = os.getpid()
    with Path(file).open("a") as lines:
        lines.write(f"{process}\n")
    time.sleep(HALF_S)
    return process

"""A client that hands over tasks and waits until it is killed. A program."""

import sys
import time
from pathlib import Path

import forage


def wait_and_name(gate: str, token: str, index: int) -> str:
    """Ends when the gate opens."""
    while not Path(gate).exists():
        time.sleep(0.02)
    return f"{token} {index}"


if __name__ == "__main__":
    url, gate, token, calls, tasks = sys.argv[1:]
    client = forage.connect(url, user="tester", timeout_s=60)
    count = int(calls)
    rows = [[gate] * count, [token] * count, range(count)]
    batches = [client.submit_all(wait_and_name, *rows) for _ in range(int(tasks))]
    time.sleep(3600)

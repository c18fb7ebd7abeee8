"""One peer, all measures; run by `run.py` with the Python of the peer's own environment."""

import argparse
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from drivers import DRIVERS, load
from measures import MEASURES, Sizes, StepTimeout, warm_up, within

__all__ = ["main"]

START_S = 60.0
CLOSE_S = 30.0
QUICK = Sizes(one_by_one=200, batch=200, latency=200, of_1_ms=200, queued=200, kills=1)


def _said(error: BaseException) -> str:
    """In one line; a peer's error may hold a whole traceback, which ends with what matters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip() if lines else 'no reason given'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=list(DRIVERS))
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are appended here")
    parser.add_argument("--folder", type=Path, required=True, help="empty, for the run's files")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    peer = load(arguments.peer)(arguments.folder)

    def tell(measure: str, figures: dict[str, Any]) -> None:
        with arguments.out.open("a") as lines:
            lines.write(json.dumps({"measure": measure, **figures}) + "\n")

    try:
        with within(START_S, "the start"):
            versions = peer.start()
            warm_up(peer)
    except (Exception, StepTimeout) as error:
        traceback.print_exc()
        tell("start", {"failed": _said(error)})
        return 1
    tell("start", {"versions": versions})
    for name, (measure, limit_s) in MEASURES.items():
        try:
            with within(limit_s, name):
                tell(name, measure(peer, sizes))
        except StepTimeout as error:
            # Its calls are still queued, and would be part of every figure that follows.
            traceback.print_exc()
            tell(name, {"failed": f"{error}; no figures after it"})
            return 1
        except Exception as error:
            traceback.print_exc()
            tell(name, {"failed": _said(error)})
    try:
        with within(CLOSE_S, "the end"):
            peer.close()
    except (Exception, StepTimeout) as error:
        # The figures stand; what it has left is ended by the runner.
        traceback.print_exc()
        tell("end", {"failed": _said(error)})
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of threads that a peer has left running; the runner ends its processes.
    os._exit(code)

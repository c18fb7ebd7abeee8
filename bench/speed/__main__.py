"""`python -m speed`: measure, print a table, write JSON lines and a plot."""

import argparse
import json
import logging
import shutil
import sys
import time
from pathlib import Path

from speed import recovery
from speed.floors import FLOORS
from speed.machine import describe
from speed.measures import MEASURES as SPEED
from speed.measures import Settings
from speed.plot import write_plot

MEASURES = {**SPEED, **recovery.MEASURES}
RESULTS = Path(__file__).parent.parent / "results"


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; 1 where a measurement failed."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--engine", choices=["mosquitto", "embedded", "both"], default="both")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--idle-s", type=float, default=60.0, help="how long idle is watched")
    arguments = parser.parse_args(argv)
    # That the broker is away and back again is what some measures are about.
    logging.getLogger("forage").setLevel(logging.ERROR)
    engines = ["mosquitto", "embedded"] if arguments.engine == "both" else [arguments.engine]
    if "mosquitto" in engines and shutil.which("mosquitto") is None:
        print("mosquitto is not installed: measured over the embedded broker alone")
        engines.remove("mosquitto")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / time.strftime("speed-%Y%m%d-%H%M%S.jsonl")
    rows: list[dict[str, object]] = []
    failed = False
    with path.open("w") as stream:
        for name in arguments.only or MEASURES:
            # The engines take turns, so that their rows can be compared.
            for engine in engines:
                settings = Settings(engine, quick=arguments.quick, idle_s=arguments.idle_s)
                try:
                    for figure, value in MEASURES[name](settings):
                        row = {"engine": engine, "figure": figure, "value": value, **describe()}
                        rows.append(row)
                        stream.write(json.dumps(row) + "\n")
                        stream.flush()
                        print(_line(engine, figure, value), flush=True)
                except Exception as error:
                    failed = True
                    print(f"{engine:<10} {name}: {type(error).__name__}: {error}", flush=True)
    write_plot(rows, path.with_suffix(".svg"))
    print(f"written to {path} and {path.with_suffix('.svg').name}")
    return 1 if failed else 0


def _line(engine: str, figure: str, value: float) -> str:
    bounds = FLOORS.get(figure)
    verdict = ""
    if bounds is not None:
        word = "reached" if bounds.reached(value) else "MISSED"
        verdict = f"floor {bounds.floor:>12,.10g}  {word}"
    return f"{engine:<10} {figure:<50} {_number(value):>14}  {verdict}".rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:,.3g}"


if __name__ == "__main__":
    sys.exit(main())

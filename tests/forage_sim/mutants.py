"""The planted bugs: lines of the cores, each made wrong, that the simulator must find.

A mutant is a text that occurs exactly once in a file, and another in its place. It is put in while
the module is loaded, in a process of its own; nothing is written anywhere.
`python -m forage_sim.mutants` tries all (`make mutants`).
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from forage_sim.planted import MUTANTS, Mutant

__all__ = ["Found", "MutantText", "hunt", "main", "mutated"]

ROOT = Path(__file__).resolve().parent.parent.parent
HUNT_S_MAX = 3_600
ORACLE = re.compile(r"OracleViolated: (\w+):")


class MutantText(Exception):
    """A mutant's text is not, or not once, in its file: the code has changed, so must the mutant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of a hunt."""

    seed: int | None
    """The first that found it; None: none did."""
    oracle: str
    """Which statement was broken; where it was a core's own assertion, `core`."""
    sentence: str
    seeds: int
    """Tried."""
    seconds: float


def mutated(mutant: Mutant) -> str:
    """The file's text with the bug in it.

    Raises MutantText where it cannot be planted in this one place.
    """
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    times = text.count(mutant.old)
    if times != 1:
        raise MutantText(
            f"the mutant {mutant.name!r} is to replace a text in {mutant.file} that occurs "
            f"{times} times there, not once:\n{mutant.old}"
        )
    if mutant.old == mutant.new:
        raise MutantText(f"the mutant {mutant.name!r} changes nothing")
    return text.replace(mutant.old, mutant.new)


def module_of(file: str) -> str:
    """The name under which a file of a package is imported: its folder is not part of it."""
    return ".".join(Path(file).with_suffix("").parts[1:])


class _Planting(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a text of our own."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = module_of(mutant.file)
        self._file = str(ROOT / mutant.file)
        self._text = mutated(mutant)
        self.is_loaded = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._file, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        self.is_loaded = True
        exec(compile(self._text, self._file, "exec"), module.__dict__)


def _hunt_here(mutant: Mutant, first: int, seeds: int) -> Found:
    """Plant the bug in this process, which is good for nothing else afterwards, and look for it."""
    planting = _Planting(mutant)
    sys.meta_path.insert(0, planting)
    # Only now: what is loaded before is loaded as it is.
    from forage_sim.standing_by import run_pair
    from forage_sim.world import SimulationFailed, run

    run_one = run_pair if mutant.world == "pair" else run
    if not planting.is_loaded:
        raise MutantText(f"the mutant {mutant.name!r} is in a module that no core loads")
    began = time.monotonic()
    found = Found(seed=None, oracle="", sentence="", seeds=seeds, seconds=0.0)
    for seed in range(first, first + seeds):
        try:
            run_one(seed, lines=0)
        except SimulationFailed as failure:
            sentence = str(failure).split("\n", 1)[0]
            broken = ORACLE.search(sentence)
            oracle = broken[1] if broken else "core"
            is_meant = oracle in mutant.oracles
            # What another oracle saw first hides nothing: the one that is to find it is waited for.
            if is_meant or found.seed is None:
                found = Found(
                    seed=seed,
                    oracle=oracle,
                    sentence=sentence,
                    seeds=seed - first + 1,
                    seconds=0.0,
                )
            if is_meant:
                break
    return replace(found, seconds=time.monotonic() - began)


def hunt(mutant: Mutant, *, seeds: int, first: int = 0) -> Found:
    """Look for a planted bug with so many seeds, in a process of its own."""
    command = [
        *(sys.executable, "-m", "forage_sim.mutants", "--here", mutant.name),
        *("--seeds", str(seeds), "--first", str(first)),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HUNT_S_MAX, check=False, env=_environment()
    )
    if done.returncode:
        raise MutantText(done.stderr.strip().rsplit("\n", 1)[-1])
    fields: dict[str, Any] = json.loads(done.stdout)
    return Found(**fields)


def _environment() -> dict[str, str]:
    import os

    # First what is beside this file: the same sources that `mutated` reads.
    folders = [str(ROOT / name) for name in ("tests", *sorted({_folder(each) for each in MUTANTS}))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def _folder(mutant: Mutant) -> str:
    return mutant.file.split("/", 1)[0]


def main() -> int:
    """Hunt all mutants, or some; 1 if any was missed or found by the wrong oracle."""
    parser = argparse.ArgumentParser(prog="forage_sim.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20_000, help="tried for each (default: 20000)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--only", default="", help="those with this text in their names")
    parser.add_argument("--here", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        mutant = next(each for each in MUTANTS if each.name == options.here)
        found = _hunt_here(mutant, options.first, options.seeds)
        print(json.dumps({name: getattr(found, name) for name in Found.__slots__}))
        return 0
    missed = 0
    for mutant in MUTANTS:
        if options.only not in mutant.name:
            continue
        found = hunt(mutant, seeds=options.seeds, first=options.first)
        print(f"{mutant.name}: {_say(mutant, found)}", flush=True)
        missed += found.oracle not in mutant.oracles
    if missed:
        print(f"{missed} missed", file=sys.stderr)
    return 1 if missed else 0


def _say(mutant: Mutant, found: Found) -> str:
    if found.seed is None:
        return f"MISSED by {found.seeds} seeds in {found.seconds:.1f} s"
    said = f"found at seed {found.seed} by {found.oracle} in {found.seconds:.1f} s"
    if found.oracle in mutant.oracles:
        return said
    return f"{said}, BUT {' or '.join(mutant.oracles)} was to find it: {found.sentence}"


if __name__ == "__main__":
    sys.exit(main())

"""forage beside its peers, one after another in one run, forage first and last.

    python bench/peers/run.py [--quick] [--only NAME ...]

Makes the environments that are missing below `.venvs`, appends JSON lines to a file below
`bench/results` and prints a table. Run it with the Python that has forage.
"""

import argparse
import ctypes
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from drivers import DRIVERS
from processes import descendants
from table import tables

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
ENVIRONMENTS = HERE / ".venvs"
INSTALL_S = 600
PEER_S = 900
_PR_SET_CHILD_SUBREAPER = 36

REQUIREMENTS = {
    "dask": ["distributed>=2024.1"],
    "celery": ["celery[redis]>=5.4"],
    "ray": ["ray>=2.40"],
    "dispy": ["dispy>=4.15", "psutil"],
}
PROGRAMS = {"forage-mosquitto": "mosquitto", "celery": "redis-server"}
TWICE = ("forage-mosquitto", "forage-embedded")


class Skipped(Exception):
    """Why a peer is not measured, in one sentence."""


def _environment(name: str) -> str:
    """The Python that has the peer; its environment is made where it is missing."""
    program = PROGRAMS.get(name)
    if program is not None and shutil.which(program) is None:
        raise Skipped(f"{program} is not installed on this system")
    wanted = REQUIREMENTS.get(name)
    if wanted is None:
        return sys.executable
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text().split() == wanted:
        return str(python)
    print(f"installing {' '.join(wanted)} …", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run(
            [*command, *wanted], check=True, timeout=INSTALL_S, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        raise Skipped(f"it could not be installed within {INSTALL_S} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise Skipped(f"it could not be installed: {last}") from None
    stamp.write_text("\n".join(wanted))
    return str(python)


def _end_all_below() -> None:
    """Whatever a peer has left; orphans come to us, who are their reaper."""
    for _ in range(100):
        left = descendants(os.getpid())
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.05)


def _measure(name: str, python: str, quick: bool, log: Path) -> list[dict[str, Any]]:
    """All records of one peer, from a process of its own that is bounded in time."""
    # Short: some peers put sockets there, whose paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder:
        out = Path(folder) / "records"
        out.touch()
        files = Path(folder) / "run"
        files.mkdir()
        command = [python, str(HERE / "drive.py"), name, "--out", str(out), "--folder", str(files)]
        command += ["--quick"] * quick
        env = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as log_file:
            driver = subprocess.Popen(
                command,
                env=env,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
            )
            try:
                code = driver.wait(PEER_S)
                reason = f"the driver ended with exit code {code}"
            except subprocess.TimeoutExpired:
                code = -1
                reason = f"the driver did not end within {PEER_S} s"
            finally:
                _end_all_below()
        records = [json.loads(line) for line in out.read_text().splitlines()]
    if code != 0:
        records.append({"measure": "end", "failed": reason})
    return records


def _plan(only: list[str] | None) -> list[tuple[str, str]]:
    """(peer, run): forage before and after all others, so that the machine's drift shows."""
    names = [name for name in DRIVERS if only is None or name in only]
    if all(name in TWICE for name in names):
        return [(name, "only") for name in names]
    again = [name for name in names if name in TWICE]
    plan = [(name, "first" if name in TWICE else "only") for name in names]
    return plan + [(name, "last") for name in again]


def main() -> int:
    parser = argparse.ArgumentParser(description="forage beside its peers on this machine")
    parser.add_argument("--quick", action="store_true", help="200 calls each: does it work?")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(DRIVERS),
        metavar="NAME",
        help=f"only this one; may be repeated ({', '.join(DRIVERS)})",
    )
    arguments = parser.parse_args()
    if not sys.platform.startswith("linux"):
        parser.error("this reads /proc, so it needs Linux")
    # Ended from outside: the peer that runs is ended all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    RESULTS.mkdir(exist_ok=True)
    began = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    results, log = RESULTS / f"peers-{began}.jsonl", RESULTS / f"peers-{began}.log"
    everything: list[dict[str, Any]] = []

    def note(records: list[dict[str, Any]], name: str, run: str) -> None:
        rows = [{"peer": name, "run": run, **record} for record in records]
        everything.extend(rows)
        with results.open("a") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)

    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "quick": arguments.quick}
    note([{"measure": "machine", **machine, "python": platform.python_version()}], "", "")
    pythons: dict[str, str | Skipped] = {}
    plan = _plan(arguments.only)
    for name in dict.fromkeys(name for name, _ in plan):
        try:
            pythons[name] = _environment(name)
        except Skipped as reason:
            pythons[name] = reason
    for name, run in plan:
        python = pythons[name]
        if isinstance(python, Skipped):
            note([{"measure": "start", "skipped": str(python)}], name, run)
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        load_before = os.getloadavg()[0]
        start_s = time.monotonic()
        records = _measure(name, python, arguments.quick, log)
        note(records, name, run)
        took = {"measure": "run", "seconds": time.monotonic() - start_s, "load_before": load_before}
        note([took], name, run)
    print(tables(everything))
    print(f"\nrecords: {results}\nlog: {log}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

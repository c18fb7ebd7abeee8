"""Other Pythons of this machine, each with what a worker needs.

An interpreter is searched in FORAGE_TEST_PYTHONS (paths, separated as PATH is), on PATH and
among pyenv's versions. cbor2 is compiled for each version, so each gets a virtual environment
of its own, made once under the project's `.venvs/`. What is missing skips the test that needs
it, and says why.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

__all__ = ["PROJECT", "python"]

PROJECT = Path(__file__).resolve().parents[2]
_CLOUDPICKLE = "cloudpickle>=3.1,<4"
# Both majors of cbor2 that forage works with; 3.12 stands for a board that has the older one.
_CBOR2 = {"3.12": "cbor2>=5.9,<6"}
_CBOR2_ELSEWHERE = "cbor2>=6,<7"


def python(minor: str, *more: str) -> str:
    """The path of a Python of this minor ("3.13") that has cbor2 and cloudpickle; or skip.

    Args:
        minor: As in 3.13.
        more: Other requirements, such as "paho-mqtt>=2.1,<3".
    """
    found, reason = _prepared(minor, *more)
    if found is None:
        pytest.skip(reason)
    return found


def _is_minor(path: str, minor: str) -> bool:
    command = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.stdout.strip() == minor


def _interpreter(minor: str) -> str | None:
    candidates = os.environ.get("FORAGE_TEST_PYTHONS", "").split(os.pathsep)
    candidates.append(shutil.which(f"python{minor}") or "")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates += sorted(map(str, pyenv.glob(f"versions/{minor}*/bin/python{minor}")))
    return next((path for path in candidates if path and _is_minor(path, minor)), None)


@lru_cache
def _prepared(minor: str, *more: str) -> tuple[str | None, str]:
    if minor == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable, ""
    base = _interpreter(minor)
    if base is None:
        return None, f"no Python {minor} on this machine (FORAGE_TEST_PYTHONS may name one)"
    cbor2 = _CBOR2.get(minor, _CBOR2_ELSEWHERE)
    # Pip's requirements as a name: "paho-mqtt>=2.1,<3" → "paho-mqtt".
    names = [f"cbor2-{cbor2.rpartition('<')[2]}", *(re.split("[<>=]", one)[0] for one in more)]
    folder = PROJECT / ".venvs" / "-".join(["python", minor, *names])
    made = folder / "bin" / "python"
    folder.parent.mkdir(exist_ok=True)
    with open(folder.parent / f"python-{minor}.lock", "w") as lock:
        # Tests run in several processes; one of them makes the environment.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            install = [str(made), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            for command in (
                [base, "-m", "venv", str(folder)],
                [*install, cbor2, _CLOUDPICKLE, *more],
            ):
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
                except subprocess.TimeoutExpired:
                    return None, f"no environment for Python {minor}: {command[1:3]} took 90 s"
                if done.returncode:
                    return None, f"no environment for Python {minor}: {done.stderr[-300:]}"
            (folder / "ready").touch()
    return str(made), ""

"""The wire with cbor2 5.9, the last that 32-bit ARM boards get without a compiler."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / ".venvs" / f"wire-{sys.version_info[0]}.{sys.version_info[1]}-cbor2-5"
PACKAGES = ("cbor2>=5.9,<6", "pytest>=8.3,<10")


@pytest.fixture(scope="module")
def older_python() -> str:
    """A Python like this one with cbor2 5.9; skips with the reason where it cannot be had."""
    made = FOLDER / "bin" / "python"
    FOLDER.parent.mkdir(exist_ok=True)
    with open(FOLDER.parent / f"{FOLDER.name}.lock", "w") as lock:
        # Tests run in several processes; one of them makes the environment.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (FOLDER / "ready").exists():
            install = [str(made), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            make = [sys.executable, "-m", "venv", "--clear", str(FOLDER)]
            for command in (make, [*install, *PACKAGES]):
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
                except subprocess.TimeoutExpired:
                    pytest.skip(f"no environment with cbor2 5.9: {command[1:3]} took 90 s")
                if done.returncode:
                    pytest.skip(f"no environment with cbor2 5.9: {done.stderr[-300:]}")
            (FOLDER / "ready").touch()
    return str(made)


def test_golden_vectors_hold_with_cbor2_5(older_python: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PROJECT / "schemas"), str(PROJECT / "tests")]),
    }
    version = subprocess.run(
        [older_python, "-c", "import importlib.metadata as m; print(m.version('cbor2'))"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert version.stdout.startswith("5.")
    module = Path(__file__).with_name("test_vectors.py")
    command = [older_python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Not the project's configuration: it names plugins that this environment has not.
    command += ["-c", os.devnull, "--rootdir", str(PROJECT), "--import-mode=importlib", str(module)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=environment, cwd=PROJECT
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout

"""The house as it should stand: who imports what, how long files are, what is never written."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("sdk", "schemas", "agent", "controller", "broker")
CORES = ("forage_agent.core.agent", "forage_controller.core.controller", "forage.core.client")
SHELL_MODULES = (
    "paho",
    "sqlite3",
    "socket",
    "ssl",
    "asyncio",
    "subprocess",
    "cloudpickle",
    "click",
)


def _loaded_by(module: str) -> set[str]:
    """The modules that importing one loads beyond what a bare interpreter has."""
    script = (
        "import sys; before = set(sys.modules); "
        f"import {module}; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("core", CORES)
def test_a_core_loads_no_shell(core: str) -> None:
    loaded = {module.partition(".")[0] for module in _loaded_by(core)}
    assert not loaded & set(SHELL_MODULES)


def test_importing_forage_is_cheap() -> None:
    loaded = _loaded_by("forage")
    assert not {"paho", "cloudpickle", "numpy", "click", "rich", "psutil"} & {
        module.partition(".")[0] for module in loaded
    }
    assert len(loaded) < 30


def test_no_file_does_too_much() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 620
    }
    assert not long


def test_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    if not lint_imports.exists():
        pytest.skip("import-linter is not installed beside this interpreter")
    done = subprocess.run(
        [str(lint_imports)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout

"""The pytest plugin in a project of its own: light at collection, one cluster for a session."""

import os
import subprocess
import sys
from pathlib import Path

HEAVY = ("paho", "cbor2", "cloudpickle", "psutil", "forage.cluster", "forage.client", "asyncio")

CONFTEST = f"""
import sys


def pytest_collection_finish(session):
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    print("LOADED", loaded, "forage.pytest" in sys.modules)
"""
TESTS = """
import os

clusters = []


def where():
    import os

    return os.getpid()


def test_squares(forage_cluster):
    clusters.append(forage_cluster)
    with forage_cluster.client() as client:
        assert list(client.map(pow, [1, 2, 3], [2, 2, 2])) == [1, 4, 9]


def test_elsewhere(forage_cluster):
    assert clusters == [forage_cluster]
    assert len(forage_cluster.devices) == 1
    with forage_cluster.client() as client:
        assert client.submit(where).result() != os.getpid()
        assert [device.slots for device in client.devices()] == [2]
    print("CLUSTER", forage_cluster.controller.pid)
"""


def run_pytest(folder: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", *flags]
    if not plugin_is_installed():
        command += ["-p", "forage.pytest"]
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, env=environment
    )


def plugin_is_installed() -> bool:
    """Whether this environment's metadata has the entry point (an older install has not)."""
    from importlib.metadata import entry_points

    return any(point.value == "forage.pytest" for point in entry_points(group="pytest11"))


def test_it_loads_nothing_heavy_at_collection_and_serves_a_session(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nforage_devices = 1\nforage_slots = 2\n")
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LOADED [] True" in done.stdout
    controller = int(done.stdout.partition("CLUSTER ")[2].split()[0])
    assert not Path(f"/proc/{controller}").exists()


def test_without_a_test_that_asks_for_it_nothing_is_started(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "--collect-only")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LOADED [] True" in done.stdout


def test_a_setting_that_is_no_number_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nforage_devices = many\n")
    done = run_pytest(tmp_path)
    assert done.returncode != 0
    assert "forage_devices is 'many', but must be a number from 1." in done.stdout

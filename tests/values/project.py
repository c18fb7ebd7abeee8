"""A user's project in a folder, run by one Python as client and by another as device."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import cbor2

from values.interpreters import PROJECT

__all__ = ["Project", "run_worker"]

_FOOTER = """

if __name__ == "__main__":
    import harness
    harness.main(CALLS)
"""


class Project:
    """Files as a user writes them.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, **files: str) -> None:
        """Write modules; `package__module` stands for package/module.py."""
        for name, text in files.items():
            path = self.folder.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent != self.folder and not (path.parent / "__init__.py").exists():
                (path.parent / "__init__.py").touch()
            path.write_text(textwrap.dedent(text))

    def run(
        self,
        script: str,
        *,
        client: str = sys.executable,
        device: str = sys.executable,
        package: str = "",
    ) -> list[dict[str, Any]]:
        """Run a script that defines CALLS, [(function, args), ...]; the harness's reports.

        With `package` the script is that package's `__main__`, run with `python -m`.
        """
        output = self._client(script, client, {"FORAGE_TEST_WORKER": device}, package)
        reports: list[dict[str, Any]] = json.loads(output)
        return reports

    def frames(self, script: str) -> list[Any]:
        """The script's CALLS as a worker's input."""
        file = self.folder / "frames"
        self._client(script, sys.executable, {"FORAGE_TEST_FRAMES": str(file)})
        frames: list[Any] = cbor2.loads(file.read_bytes())
        return frames

    def _client(self, script: str, client: str, more: dict[str, str], package: str = "") -> str:
        path = self.folder / package / ("__main__.py" if package else "main.py")
        path.write_text(textwrap.dedent(script) + _FOOTER)
        here = PROJECT / "tests" / "values"
        environment = {
            **os.environ,
            "PYTHONPATH": f"{PROJECT / 'schemas'}{os.pathsep}{here}",
            "FORAGE_TEST_WORKER_SCRIPT": str(here / "worker.py"),
            **more,
        }
        done = subprocess.run(
            [client, *(["-m", package] if package else [str(path)])],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def run_worker(frames: list[Any]) -> list[Any]:
    """Put frames through one warm worker; the outcome items that it answers."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "values" / "worker.py")],
        input=cbor2.dumps(frames),
        stdout=subprocess.PIPE,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(PROJECT / "schemas")},
        timeout=60,
        check=True,
    )
    items: list[Any] = cbor2.loads(done.stdout)
    return items

"""The SDK needs nothing that only Linux has."""

import os
import subprocess
import sys
from pathlib import Path

from forage import LocalCluster


def test_a_client_works_where_what_linux_alone_has_is_hidden() -> None:
    with LocalCluster(devices=1) as cluster:
        script = Path(__file__).with_name("other_system.py")
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("FORAGE_")
        }
        done = subprocess.run(
            [sys.executable, str(script), cluster.broker_url],
            capture_output=True,
            text=True,
            timeout=100,
            env=environment,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{cluster.devices[0].name}\n"
    assert "The agent runs on Linux alone (this is plan9)" in done.stderr

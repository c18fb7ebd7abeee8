"""A slow disk for a benchmark: every commit of a SQLite database takes longer.

Python imports this by itself where this folder is on PYTHONPATH; `FORAGE_BENCH_COMMIT_MS` says how
many milliseconds each COMMIT takes more. Nothing but the controller opens a database.
"""

import os
import sys

if "forage_controller" in sys.orig_argv:
    import sqlite3
    import time

    _PAUSE_S = float(os.environ.get("FORAGE_BENCH_COMMIT_MS", "0")) / 1_000
    _connect = sqlite3.connect

    class SlowConnection(sqlite3.Connection):
        """As the library's, on a slower disk."""

        def execute(self, sql: str, *arguments: object) -> sqlite3.Cursor:
            """One statement; a COMMIT waits as a slow disk would make it."""
            if sql == "COMMIT":
                time.sleep(_PAUSE_S)
            return super().execute(sql, *arguments)

    def connect(*arguments: object, **options: object) -> sqlite3.Connection:
        """As the library's, with slow commits."""
        options.setdefault("factory", SlowConnection)
        return _connect(*arguments, **options)

    sqlite3.connect = connect

"""Celery: a Redis of its own as broker and result store, one worker with a pool of two processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from peer import Function, Peer
from processes import descendants, end, free_port

__all__ = ["Celery"]


class Celery(Peer):
    name = "celery"
    batch_ways = ("chunks of 100", "chunks of 500")

    def start(self) -> str:
        server = shutil.which("redis-server")
        assert server is not None, "the runner asks for redis-server first"
        port = free_port()
        command = [server, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(self.folder)]
        command += [
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
            "--loglevel",
            "warning",
        ]
        self.redis = subprocess.Popen(command, stdout=sys.stderr)
        os.environ["PEERS_REDIS"] = f"redis://127.0.0.1:{port}/0"

        import celery
        import redis

        from drivers.celery_tasks import TASKS, app

        self.tasks = TASKS
        command = [sys.executable, "-m", "celery", "-A", "drivers.celery_tasks", "worker"]
        command += ["--pool", "prefork", "--concurrency", "2", "--loglevel", "ERROR"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        self.worker = subprocess.Popen(command, stdout=sys.stderr)
        # The first call waits in Redis until the worker is there.
        assert TASKS["add_one"].delay(1).get(timeout=60) == 2
        with app.connection_for_read() as connection:
            info = connection.default_channel.client.info("server")
        return f"celery {celery.__version__}, redis {info['redis_version']} ({redis.__version__})"

    def close(self) -> None:
        end(self.worker)
        end(self.redis)

    def submit(self, function: Function, value: Any) -> Any:
        return self.tasks[function.__name__].delay(value)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return [future.get() for future in futures]

    def batch(self, function: Function, values: Sequence[Any], way: str) -> list[Any]:
        task = self.tasks[function.__name__]
        group = task.chunks(((value,) for value in values), int(way.split()[-1])).apply_async()
        # Part by part: quicker here than the group's own get, by a half and more.
        return [value for part in group.results for value in part.get()]

    def outcome(self, future: Any, limit_s: float) -> Any:
        from celery.exceptions import TimeoutError as CeleryTimeout

        try:
            return future.get(timeout=limit_s)
        except CeleryTimeout as error:
            raise TimeoutError from error

    def worker_processes(self) -> list[int]:
        return [self.worker.pid, *descendants(self.worker.pid)]

"""The calls as Celery's tasks; imported by the client and by Celery's worker."""

import os

import calls
from celery import Celery as App

__all__ = ["TASKS", "app"]

app = App("peers", broker=os.environ["PEERS_REDIS"], backend=os.environ["PEERS_REDIS"])
app.conf.update(
    task_ignore_result=False,
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    worker_prefetch_multiplier=64,
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    result_expires=3600,
)

TASKS = {
    name: app.task(getattr(calls, name), name=name)
    for name in ("add_one", "compute_1_ms", "hold", "run_half_a_second")
}

"""forage: a LocalCluster of two devices of one slot, over either broker."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from peer import Function, Peer
from processes import descendants

import forage

__all__ = ["ForageEmbedded", "ForageOverMosquitto"]


class _Forage(Peer):
    engine: ClassVar[str]
    batch_ways = ("submit_all",)

    def start(self) -> str:
        # The devices import this folder's modules as the peers' workers do.
        env = {"PYTHONPATH": os.environ["PYTHONPATH"]}
        self.cluster = forage.LocalCluster(devices=2, slots=1, engine=self.engine, env=env)
        self.cluster.start()
        self.client = self.cluster.client()
        return f"forage {forage.__version__}"

    def close(self) -> None:
        self.client.shutdown(cancel_futures=True)
        self.cluster.close()

    def submit(self, function: Function, value: Any) -> Any:
        return self.client.submit(function, value)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return [future.result() for future in futures]

    def batch(self, function: Function, values: Sequence[Any], way: str) -> list[Any]:  # noqa: ARG002
        return list(self.client.submit_all(function, values).results())

    def outcome(self, future: Any, limit_s: float) -> Any:
        return future.result(timeout=limit_s)

    def worker_processes(self) -> list[int]:
        agents = [device.pid for device in self.cluster.devices]
        return agents + [below for agent in agents for below in descendants(agent)]


class ForageOverMosquitto(_Forage):
    name = "forage-mosquitto"
    engine = "mosquitto"


class ForageEmbedded(_Forage):
    name = "forage-embedded"
    engine = "embedded"

"""One module for each peer; each imports its own libraries, so only one of them is loaded."""

import importlib

from peer import Peer

__all__ = ["DRIVERS", "load"]

DRIVERS = {
    "forage-mosquitto": "drivers.on_forage:ForageOverMosquitto",
    "forage-embedded": "drivers.on_forage:ForageEmbedded",
    "pool": "drivers.on_pool:Pool",
    "dask": "drivers.on_dask:Dask",
    "celery": "drivers.on_celery:Celery",
    "ray": "drivers.on_ray:Ray",
    "dispy": "drivers.on_dispy:Dispy",
}


def load(name: str) -> type[Peer]:
    module, _, kind = DRIVERS[name].partition(":")
    found: type[Peer] = getattr(importlib.import_module(module), kind)
    return found

"""Both brokers that `LocalCluster` can start, and which of them this machine has."""

import pytest

from forage_broker.mosquitto import find_mosquitto

__all__ = ["ENGINES", "MOSQUITTO"]

MOSQUITTO = pytest.param(
    "mosquitto",
    marks=pytest.mark.skipif(
        find_mosquitto() is None,
        reason="mosquitto is not installed (Debian: apt install mosquitto)",
    ),
)
ENGINES = ["embedded", MOSQUITTO]

"""A pytest plugin: the fixture `forage_cluster`, a local cluster for the whole test session.

It is found by pytest wherever forage is installed. Nothing is started, and nothing of forage but
this file is loaded, before a test asks for the fixture::

    def test_squares(forage_cluster):
        with forage_cluster.client() as client:
            assert list(client.map(pow, [1, 2, 3], [2, 2, 2])) == [1, 4, 9]

How large it is stands in pytest's configuration: `forage_devices` (2), `forage_slots` (1) and
`forage_engine` (embedded: no installation, and the same on every machine).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from forage.cluster import LocalCluster

__all__ = ["forage_cluster", "pytest_addoption"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The settings of `forage_cluster`."""
    parser.addini("forage_devices", "devices of the fixture forage_cluster", default="2")
    parser.addini("forage_slots", "slots of each of these devices", default="1")
    parser.addini("forage_engine", "broker of forage_cluster", default="embedded")


@pytest.fixture(scope="session")
def forage_cluster(pytestconfig: pytest.Config) -> "Iterator[LocalCluster]":
    """A `forage.LocalCluster`, started when first asked for and ended with the session."""
    from forage.cluster import LocalCluster

    with LocalCluster(
        devices=_count(pytestconfig, "forage_devices"),
        slots=_count(pytestconfig, "forage_slots"),
        engine=pytestconfig.getini("forage_engine"),
    ) as cluster:
        yield cluster


def _count(config: pytest.Config, name: str) -> int:
    text = config.getini(name)
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise pytest.UsageError(f"{name} is {text!r}, but must be a number from 1.")
    return int(text)

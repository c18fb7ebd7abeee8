"""Brokers that announce themselves by mDNS, on loopback alone: found, chosen, or refused in words."""

import secrets
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

import forage
from forage.config import ClientConfig, read_config
from forage.connecting import connect_as
from forage.discovery import Search, find_brokers, located
from forage_broker.announcing import Announcement, announced_addresses
from forage_wire.address import BrokerAddress
from sdk.fleet import Fleet
from sdk.functions import add
from sdk.test_connecting import closed_port

LOOPBACK = ("127.0.0.1",)
SERVICE_TYPE = f"_forage-{secrets.token_hex(4)}._tcp.local."
"""This process's own: everybody who tests on this machine shares its loopback."""

pytest.importorskip("zeroconf", reason="the extra mdns is not installed")


# It is over as soon as what is there has answered, so this is for a busy machine alone.
SEARCH = Search(timeout_s=20, more_s=2, interfaces=LOOPBACK, service_type=SERVICE_TYPE)
IN_VAIN = replace(SEARCH, timeout_s=0.5)


def looked_for(config: ClientConfig) -> ClientConfig:
    return located(config, SEARCH)


@pytest.fixture
def config() -> ClientConfig:
    """Nobody has named a broker, and none listens where one would be by default."""
    config = read_config(environment={}, files=[])
    return replace(config, address=BrokerAddress(host="127.0.0.1", port=closed_port()))


def announced(port: int, address: str = "127.0.0.1") -> Iterator[Announcement]:
    announcement = Announcement(port, [address], LOOPBACK, SERVICE_TYPE)
    announcement.start()
    yield announcement
    announcement.stop()


@pytest.fixture
def here() -> Iterator[Announcement]:
    yield from announced(41_883)


@pytest.fixture
def elsewhere() -> Iterator[Announcement]:
    yield from announced(1_883, "192.0.2.7")


def test_an_announced_broker_is_found_until_it_says_goodbye(here: Announcement) -> None:
    [found] = find_brokers(SEARCH)
    assert str(found.address) == "mqtt://127.0.0.1:41883"
    assert (found.name, found.is_forage) == (here.name, True)
    here.stop()
    assert find_brokers(IN_VAIN) == []


@pytest.mark.usefixtures("here")
def test_it_is_used_where_nobody_has_named_one(config: ClientConfig) -> None:
    found = looked_for(config)
    assert str(found.address) == "mqtt://127.0.0.1:41883"
    assert "mDNS" in found.broker_origin
    named = read_config(broker="mqtt://127.0.0.1:9", environment={}, files=[])
    assert looked_for(named) is named


def test_a_client_connects_to_what_it_found(
    config: ClientConfig, broker: BrokerAddress, root: str
) -> None:
    for _announcement in announced(broker.port):
        found = looked_for(replace(config, root=root))
        with Fleet(broker, root=root), connect_as(found) as client:
            assert client.submit(add, 1, 2).result(20) == 3


@pytest.mark.usefixtures("elsewhere")
def test_an_open_broker_elsewhere_needs_insecure_however_it_was_found(config: ClientConfig) -> None:
    with pytest.raises(ValueError, match=r"192\.0\.2\.7.*no credentials.*mDNS"):
        looked_for(config)
    found = looked_for(replace(config, insecure=True))
    assert str(found.address) == "mqtt://192.0.2.7:1883"


@pytest.mark.usefixtures("elsewhere")
def test_this_machines_broker_goes_before_strangers(
    config: ClientConfig, broker: BrokerAddress
) -> None:
    config = replace(config, address=broker)
    assert looked_for(config) is config


@pytest.mark.usefixtures("here", "elsewhere")
def test_of_several_none_is_taken_by_chance(config: ClientConfig) -> None:
    with pytest.raises(forage.NotConnected, match=r"several.*192\.0\.2\.7.*41883.*FORAGE_BROKER"):
        looked_for(replace(config, insecure=True))


def test_none_at_all_is_said_in_one_sentence(config: ClientConfig) -> None:
    with pytest.raises(forage.NotConnected) as caught:
        located(config, IN_VAIN)
    assert str(caught.value) == (
        f"No broker is configured, none listens at {config.address}, and none announced itself on "
        "the network within 0.5 s; start one with `forage broker`, or name yours in FORAGE_BROKER."
    )


def test_without_zeroconf_the_sentence_says_how_to_get_it(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with pytest.raises(forage.NotConnected, match=r"zeroconf.*pip install 'forage-mqtt\[mdns\]'"):
        located(config)


def test_a_machine_without_a_network_says_so(config: ClientConfig) -> None:
    with pytest.raises(forage.NotConnected, match="the network cannot be asked for one"):
        located(config, Search(interfaces=("192.0.2.200",)))


def test_only_addresses_that_others_can_use_are_announced() -> None:
    assert announced_addresses("192.0.2.7") == ["192.0.2.7"]
    assert announced_addresses("127.0.0.1") == []
    everything = announced_addresses("0.0.0.0")
    assert not any(address.startswith("127.") or "%" in address for address in everything)

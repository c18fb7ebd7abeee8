"""Broker addresses as users type them, and the rule that an open broker is for loopback."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forage_wire.address import (
    BrokerAddress,
    check_allowed,
    is_loopback_host,
    parse_broker_address,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://bus", BrokerAddress(host="bus")),
        ("mqtt://bus/", BrokerAddress(host="bus")),
        ("bus", BrokerAddress(host="bus")),
        (" bus:2000\n", BrokerAddress(host="bus", port=2000)),
        ("MQTT://bus.local:2000", BrokerAddress(host="bus.local", port=2000)),
        ("mqtts://bus", BrokerAddress(host="bus", port=8883, tls=True)),
        ("mqtt://10.0.0.7:1", BrokerAddress(host="10.0.0.7", port=1)),
        ("mqtt://[fe80::1]:1884", BrokerAddress(host="fe80::1", port=1884)),
        ("[::1]", BrokerAddress(host="::1")),
        ("::1", BrokerAddress(host="::1")),
        ("mqtt://anna@bus", BrokerAddress(host="bus", username="anna")),
        (
            "anna:secret@bus:9",
            BrokerAddress(host="bus", port=9, username="anna", password="secret"),
        ),
        (
            "mqtts://an%40na:p%3A/%2F%25@bus",
            BrokerAddress(host="bus", port=8883, tls=True, username="an@na", password="p://%"),
        ),
        (
            "mqtt://anna:a@b:c@bus",
            BrokerAddress(host="bus", username="anna", password="a@b:c"),
        ),
    ],
)
def test_addresses_are_read_as_typed(text: str, expected: BrokerAddress) -> None:
    assert parse_broker_address(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no host"),
        ("mqtt://", "no host"),
        ("mqtt://:1883", "no host"),
        ("http://bus", "scheme 'http'"),
        ("ws://bus:9001", "scheme 'ws'"),
        ("bus:", "port ''"),
        ("bus:0", "port '0'"),
        ("bus:65536", "port '65536'"),
        ("bus:-1", "port '-1'"),
        ("bus:18٣3", "port '18٣3'"),
        ("mqtt://bus:1883/forage", "port '1883/forage'"),
        ("mqtt://bus/forage", "host 'bus/forage'"),
        ("two words", "host 'two words'"),
        ("bus\n2", "host"),
        ("[bus]", "not an IPv6 address"),
        ("1:2:3", "not an IPv6 address"),
        ("mqtt://@bus", "login without a user"),
        ("mqtt://:secret@bus", "login without a user"),
    ],
)
def test_a_wrong_address_is_refused_in_one_sentence(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_broker_address(text)
    sentence = str(caught.value)
    assert complaint in sentence
    assert sentence.startswith("The broker address ")
    assert sentence.endswith("mqtts://user:password@host:8883.")


@pytest.mark.parametrize(
    "text",
    [
        "ws://anna:hunter2@bus",
        "mqtt://anna:hunter2@bus:no",
        "anna:hunter2@two words",
        "anna:hunter2/x@two words",
        "anna:hunter2://x@two words",
        "mqtt://:hunter2@bus",
    ],
)
def test_no_complaint_shows_the_password(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_broker_address(text)
    assert "hunter2" not in str(caught.value)


def test_the_text_form_hides_the_password_and_parses_back_without_it() -> None:
    address = parse_broker_address("mqtts://an%40na:hunter2@[fe80::1]:99")
    assert str(address) == "mqtts://an%40na:***@[fe80::1]:99"
    assert "hunter2" not in repr(address)
    assert parse_broker_address(str(address)).username == "an@na"


@given(
    host=st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True),
    port=st.integers(1, 65_535),
    tls=st.booleans(),
    username=st.none() | st.text(min_size=1),
)
def test_every_address_without_a_password_survives_its_text_form(
    host: str, port: int, tls: bool, username: str | None
) -> None:
    address = BrokerAddress(host=host, port=port, tls=tls, username=username)
    assert parse_broker_address(str(address)) == address


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.8.7", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("pi.localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("bus", False),
    ],
)
def test_loopback_is_judged_by_spelling(host: str, expected: bool) -> None:
    assert is_loopback_host(host) is expected
    assert BrokerAddress(host=host).is_loopback is expected


def test_an_open_broker_elsewhere_is_refused_unless_asked_for() -> None:
    elsewhere = BrokerAddress(host="10.0.0.1")
    with pytest.raises(ValueError, match="--insecure"):
        check_allowed(elsewhere, insecure=False)
    check_allowed(elsewhere, insecure=True)
    check_allowed(BrokerAddress(host="10.0.0.1", username="anna"), insecure=False)
    check_allowed(BrokerAddress(host="localhost"), insecure=False)

"""Which broker, where nobody has named one: this machine's, or one that announces itself by mDNS.

An announcement is a stranger's word, so it opens no doors: a broker elsewhere that asks for no
credentials is used only with `insecure`, as if its address had been typed. Without that, this
machine's broker goes first, and what announces itself elsewhere is only named in the error.

The package `zeroconf` is loaded where it is needed, and only the extra `mdns` installs it.
"""

import socket
import threading
import time
from typing import Any

from forage.config import ClientConfig
from forage.errors import NotConnected
from forage_wire.address import BrokerAddress, check_allowed
from forage_wire.records import dataclass, replace

__all__ = ["SERVICE_TYPE", "Announced", "Search", "find_brokers", "located"]

SERVICE_TYPE = "_mqtt._tcp.local."
_DETAILS_MS_MIN = 500
_PROBE_S = 0.5
_ADVICE = "start one with `forage broker`, or name yours in FORAGE_BROKER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How to look for brokers."""

    timeout_s: float = 2.0
    """How long to listen for the first answer."""
    more_s: float = 0.25
    """How long to listen for others after it; those there are come within a tenth of a second."""
    interfaces: tuple[str, ...] | None = None
    """Addresses of the interfaces to ask on; None: all."""
    service_type: str = SERVICE_TYPE


_USUAL = Search()


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A broker that announces itself."""

    address: BrokerAddress
    name: str
    """As people see it in a browser of services."""
    is_forage: bool
    """It says that it is there for forage; others may serve anything."""


def find_brokers(search: Search = _USUAL) -> list[Announced]:
    """The brokers that answer on the local network, those that say they are forage's first.

    Raises:
        ImportError: zeroconf is not installed.
        OSError: There is no network to ask.
    """
    from zeroconf import InterfaceChoice, ServiceBrowser, Zeroconf

    names: dict[str, None] = {}
    has_come = threading.Event()

    def on_change(*, name: str, **_details: Any) -> None:
        names[name] = None
        has_come.set()

    interfaces, service_type = search.interfaces, search.service_type
    deadline_s = time.monotonic() + search.timeout_s
    asker = Zeroconf(interfaces=InterfaceChoice.All if interfaces is None else list(interfaces))
    try:
        browser = ServiceBrowser(asker, service_type, handlers=[on_change])
        if has_come.wait(search.timeout_s):
            browser.join(search.more_s)
        found: list[Announced] = []
        for name in list(names):
            left_ms = max(_DETAILS_MS_MIN, round(1_000 * (deadline_s - time.monotonic())))
            details = asker.get_service_info(service_type, name, left_ms)
            if details is not None and details.port:
                found += _announced(name, details)
    finally:
        asker.close()
    return sorted(found, key=lambda each: (not each.is_forage, each.name))


def _announced(name: str, details: Any) -> list[Announced]:
    """One service: its first address, IPv4 before IPv6, for each is the same broker."""
    addresses = [text for text in details.parsed_scoped_addresses() if "%" not in text]
    if not addresses:
        return []
    host = min(addresses, key=lambda text: ":" in text)
    return [
        Announced(
            address=BrokerAddress(host=host, port=details.port),
            name=name.removesuffix("." + details.type),
            is_forage=b"forage" in details.properties,
        )
    ]


def located(config: ClientConfig, search: Search = _USUAL) -> ClientConfig:
    """The settings with a broker in them, where none was named.

    Args:
        config: As read; one that names a broker comes back as it is.
        search: How to look for one.

    Raises:
        NotConnected: There is none, or more than one to choose from.
        ValueError: The only one is open and elsewhere, and `insecure` was not asked for.
    """
    if not config.is_default or (not config.insecure and _listens(config.address)):
        return config
    try:
        found = find_brokers(search)
        why_none = f"none announced itself on the network within {search.timeout_s:g} s"
    except ImportError:
        found = []
        why_none = (
            "the package zeroconf, which would look for one on the network, is not installed "
            "(pip install 'forage-mqtt[mdns]')"
        )
    except OSError as error:
        found = []
        why_none = f"the network cannot be asked for one ({error.strerror or error})"
    ours = [each for each in found if each.is_forage] or found
    usable = [each for each in ours if config.insecure or each.address.is_loopback]
    if len({each.address for each in usable}) > 1:
        all_of_them = ", ".join(f"{each.address} ({each.name})" for each in usable)
        raise NotConnected(
            f"No broker is configured, and several announce themselves: {all_of_them}; name one of "
            "them in FORAGE_BROKER."
        )
    if usable:
        origin = f"mDNS, where it calls itself {usable[0].name!r}"
        return replace(config, address=usable[0].address, broker_origin=origin, is_default=False)
    if config.insecure and _listens(config.address):
        return config
    if ours:
        try:
            check_allowed(ours[0].address, config.insecure)
        except ValueError as error:
            raise ValueError(
                f"{error} (It comes from mDNS, where it calls itself {ours[0].name!r}.)"
            ) from None
    raise NotConnected(
        f"No broker is configured, none listens at {config.address}, and {why_none}; {_ADVICE}."
    )


def _listens(address: BrokerAddress) -> bool:
    """Whether anything does, at an address of this machine."""
    try:
        socket.create_connection((address.host, address.port), timeout=_PROBE_S).close()
    except OSError:
        return False
    return True

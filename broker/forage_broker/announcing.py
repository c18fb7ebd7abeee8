"""Announces a broker on the local network by mDNS, so that clients find it without its address.

The package `zeroconf` is loaded where it is needed, and only the extra `mdns` installs it.
"""

import importlib.util
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import psutil

from forage_wire.version import __version__

__all__ = ["Announcement", "announced_addresses", "can_announce"]

SERVICE_TYPE = "_mqtt._tcp.local."
_NAME_BYTES_MAX = 63


def can_announce() -> bool:
    """Whether zeroconf is installed."""
    return importlib.util.find_spec("zeroconf") is not None


def announced_addresses(host: str) -> list[str]:
    """The addresses under which others reach a broker that listens on `host`.

    Of a wildcard, all of this machine's but loopback's and those that hold for one link alone.
    Raises OSError where `host` cannot be resolved.
    """
    found = [str(row[4][0]) for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    if any(ipaddress.ip_address(address).is_unspecified for address in found):
        found = [
            row.address
            for rows in psutil.net_if_addrs().values()
            for row in rows
            if row.family in (socket.AF_INET, socket.AF_INET6)
        ]
    # A link-local IPv6 address is psutil's with a scope: no other machine can use that.
    usable = [text for text in found if "%" not in text]
    return [text for text in dict.fromkeys(usable) if not ipaddress.ip_address(text).is_loopback]


class Announcement:
    """One broker's announcement, from `start` to `stop`.

    Args:
        port: Where it listens ...
        addresses: ... and under which addresses it is reached.
        interfaces: Addresses of the interfaces to announce on; None: all.
        service_type: As what.
    """

    def __init__(
        self,
        port: int,
        addresses: Sequence[str],
        interfaces: Sequence[str] | None = None,
        service_type: str = SERVICE_TYPE,
    ) -> None:
        host = socket.gethostname().partition(".")[0] or "host"
        self.name = f"forage on {host} port {port}".encode()[:_NAME_BYTES_MAX].decode(
            errors="ignore"
        )
        self._server = f"forage-{host[:40]}-{port}.local."
        self._port = port
        self._addresses = list(addresses)
        self._interfaces = interfaces
        self._service_type = service_type
        self._speaker: Any = None

    def start(self) -> None:
        """Announce it; takes about two seconds, for others are asked whether the name is free.

        Raises OSError where there is no network, or with the sentence of zeroconf's own errors.
        """
        from zeroconf import Error, InterfaceChoice, ServiceInfo, Zeroconf

        interfaces = InterfaceChoice.All if self._interfaces is None else list(self._interfaces)
        self._speaker = Zeroconf(interfaces=interfaces)
        service = ServiceInfo(
            self._service_type,
            f"{self.name}.{self._service_type}",
            port=self._port,
            parsed_addresses=self._addresses,
            properties={"forage": __version__},
            server=self._server,
        )
        try:
            self._speaker.register_service(service, allow_name_change=True)
        except (Error, OSError) as error:
            self.stop()
            raise OSError(str(error) or type(error).__name__) from error

    def stop(self) -> None:
        """Take it back. Idempotent."""
        speaker, self._speaker = self._speaker, None
        if speaker is not None:
            # Says goodbye, so that others forget us at once.
            speaker.close()

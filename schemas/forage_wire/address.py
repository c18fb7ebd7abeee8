"""Addresses of brokers, as users type them: `mqtt://host`, `mqtts://user:password@host:8883`.

Owns the one text form that every program, flag and environment variable shares, and the rule that
an open broker is for loopback. Resolves no names and opens nothing. What most addresses do not need
is imported where one does: every program begins with an address.
"""

import re

from forage_wire.records import field, guarded_dataclass
from forage_wire.texts import check_text

__all__ = [
    "PORT_DEFAULT",
    "PORT_TLS_DEFAULT",
    "BrokerAddress",
    "check_allowed",
    "is_loopback_host",
    "parse_broker_address",
]

PORT_DEFAULT = 1883
PORT_TLS_DEFAULT = 8883

_EXAMPLE = "write it like mqtt://host:1883 or mqtts://user:password@host:8883"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOST_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?"


def is_loopback_host(host: str) -> bool:
    """Whether `host` is this machine by its spelling alone: names are not resolved."""
    name = host.rstrip(".").lower()
    if name in ("127.0.0.1", "localhost") or name.endswith(".localhost"):
        return True
    import ipaddress

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


@guarded_dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Where a broker listens and what it asks for.

    Attributes:
        host: A name, an IPv4 address or an IPv6 address without brackets.
        port: 1 to 65535.
        tls: Whether the connection is encrypted (`mqtts`).
        username: The login; None connects without one.
        password: None sends none. Never shown by `str()` or `repr()`.
    """

    host: str
    port: int = PORT_DEFAULT
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def is_loopback(self) -> bool:
        """Whether the broker is on this machine, by the spelling of its host."""
        return is_loopback_host(self.host)

    def __str__(self) -> str:
        """The address as one types it, with `***` in place of the password."""
        login = ""
        if self.username is not None:
            from urllib.parse import quote

            hidden = ":***" if self.password is not None else ""
            login = f"{quote(self.username, safe='')}{hidden}@"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{login}{host}:{self.port}"


def parse_broker_address(text: str) -> BrokerAddress:
    """Read an address as a user typed it.

    Args:
        text: `mqtt://[user[:password]@]host[:port]`, `mqtts://...`, or a bare `host[:port]`, which
            means `mqtt`. An IPv6 address stands in brackets where a port follows. Percent-encoding
            is undone in user and password. Without a port: 1883, or 8883 for `mqtts`.

    Raises:
        ValueError: One sentence that says what is wrong; it never contains the password.
    """
    check_text(text, "The broker address")
    match = _SCHEME.match(text.strip())
    prefix = match[0] if match else ""
    scheme = match[1].lower() if match else "mqtt"
    login, at, place = text.strip().removeprefix(prefix).rpartition("@")
    shown = f"{prefix}{'***@' if at else ''}{place}"
    if scheme not in ("mqtt", "mqtts"):
        raise ValueError(
            f"The broker address {shown!r} has the scheme {scheme!r}, "
            f"but forage speaks mqtt and mqtts; {_EXAMPLE}."
        )
    host, port_text = _split_host(place.removesuffix("/"), shown)
    tls = scheme == "mqtts"
    port = PORT_TLS_DEFAULT if tls else PORT_DEFAULT
    if port_text is not None:
        if not (port_text.isascii() and port_text.isdigit() and 1 <= int(port_text) <= 65_535):
            raise ValueError(
                f"The broker address {shown!r} has the port {port_text!r}, "
                f"which is not a number from 1 to 65535; {_EXAMPLE}."
            )
        port = int(port_text)
    user_text, colon, password_text = login.partition(":")
    if at and not user_text:
        raise ValueError(f"The broker address {shown!r} has a login without a user; {_EXAMPLE}.")
    username, password = (user_text if at else None), (password_text if colon else None)
    if "%" in login:
        from urllib.parse import unquote

        username, password = unquote(user_text), unquote(password_text) if colon else None
    return BrokerAddress(host=host, port=port, tls=tls, username=username, password=password)


def _split_host(place: str, shown: str) -> tuple[str, str | None]:
    """`host[:port]` as (host, port's text or None)."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", place)
    if bracketed is not None:
        host, port_text = bracketed[1], bracketed[2]
    elif place.count(":") > 1:
        host, port_text = place, None
    else:
        host, colon, port_text = place.partition(":")
        port_text = port_text if colon else None
    if bracketed is not None or ":" in host:
        import ipaddress

        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(
                f"The broker address {shown!r} has the host {host!r}, "
                f"which is not an IPv6 address; {_EXAMPLE}."
            ) from None
    elif re.fullmatch(_HOST_NAME, host) is None:
        what = f"the host {host!r}, which is not a name or an address" if host else "no host"
        raise ValueError(f"The broker address {shown!r} has {what}; {_EXAMPLE}.")
    return host, port_text


def check_allowed(address: BrokerAddress, insecure: bool) -> None:
    """Refuse an open broker that others on the network can reach.

    Args:
        address: The broker that is to be used.
        insecure: The user asked for it in so many words (`--insecure`).

    Raises:
        ValueError: One sentence: the address is not loopback and carries no credentials.
    """
    if address.is_loopback or address.username is not None or insecure:
        return
    raise ValueError(
        f"The broker {address} is not on this machine and its address carries no credentials, so "
        "anybody on the network could run code on the devices; put user:password@ before the host, "
        "or pass --insecure if that is what you want."
    )

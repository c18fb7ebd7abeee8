"""Binding the broker's port: one address for a host name, and a clear error where it is taken."""

import errno
import socket

from forage_broker.limits import BACKLOG

__all__ = ["PortInUse", "bind_listener", "open_listener"]


class PortInUse(OSError):
    """Another process listens on this host and port."""


def bind_listener(host: str, port: int) -> socket.socket:
    """Bind a TCP socket, which keeps the port from others, without listening yet.

    Args:
        host: A name or an address; a name is resolved, to IPv4 where it has such an address,
            because clients that try both begin there too.
        port: 0 takes a free one.

    Raises:
        PortInUse: Another process listens there.
        OSError: The host is unknown or not this machine's, or the port needs more rights.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        # A restarted broker takes its port while old connections linger in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(error.errno, f"port {port} on {host} is in use") from None
        raise
    return listener


def open_listener(host: str, port: int) -> socket.socket:
    """`bind_listener`, and listen; the same errors."""
    listener = bind_listener(host, port)
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(error.errno, f"port {port} on {host} is in use") from None
        raise
    return listener

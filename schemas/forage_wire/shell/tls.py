"""TLS on a connection, loaded where an address asks for it: importing it takes milliseconds."""

from __future__ import annotations

import errno
import socket
import ssl

from forage_wire.shell.sockets import BufferedSocket

__all__ = ["TlsSocket", "begin", "failure_of"]


class TlsSocket(BufferedSocket):
    """A TLS connection behind two buffers."""

    is_tls = True
    # It wants to write while it reads only to answer a key change for which the kernel has no
    # room: it tries again with the next receive or send.
    nothing_came = (*BufferedSocket.nothing_came, ssl.SSLWantReadError, ssl.SSLWantWriteError)
    no_room = (*BufferedSocket.no_room, ssl.SSLWantWriteError)
    reads_first = (ssl.SSLWantReadError,)


def begin(connected: socket.socket, host: str, ca_file: str | None) -> socket.socket:
    """The handshake, within the socket's timeout. Raises OSError; see `failure_of`."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except FileNotFoundError:
        raise OSError(errno.ENOENT, f"no such file: {ca_file}") from None
    return context.wrap_socket(connected, server_hostname=host)


def failure_of(error: OSError) -> tuple[str, bool] | None:
    """What TLS makes of a failed handshake: (a phrase, whether it is for ever); None: not its."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not accepted: {error.verify_message}", True
    if isinstance(error, ssl.SSLError):
        return f"it does not speak TLS on this port ({error.reason or error})", False
    return None

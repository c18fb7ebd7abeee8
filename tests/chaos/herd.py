"""Very many simulated devices: bare MQTT clients that come, say that they are there, and drop."""

import collections
import json
import secrets
import selectors
import socket
import struct

from broker.raw_mqtt import packet, utf8

__all__ = ["Herd"]

HOST = "127.0.0.1"


class Herd:
    """Bare MQTT clients that say they are devices, and nothing more."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._names = [f"herd-{number}" for number in range(count)]
        self._starts = {name: secrets.token_hex(8) for name in self._names}
        self._connects = collections.Counter[str]()
        self._sockets: dict[str, socket.socket] = {}

    def arrive(self) -> None:
        """All at once: each connects with a will, and says that it is online."""
        selector = selectors.DefaultSelector()
        for name in self._names:
            self._connects[name] += 1
            session = f"{self._starts[name]}-{self._connects[name]}"
            topic = f"forage/1/device/{name}/presence"
            one = socket.create_connection((HOST, self._port), timeout=60)
            self._sockets[name] = one
            presence = {"session": session, "protocol": "1.0", "software": "herd", "uptime_s": 0}
            will = json.dumps({**presence, "state": "lost"}).encode()
            body = utf8("MQTT") + bytes([4, 0x2E | 0x20]) + struct.pack("!H", 600) + utf8(name)
            one.sendall(packet(0x10, body + utf8(topic) + struct.pack("!H", len(will)) + will))
            selector.register(one, selectors.EVENT_READ, (name, session, presence, topic))
        waiting = len(self._names)
        while waiting:
            for key, _ in selector.select(60):
                one, (name, session, presence, topic) = key.fileobj, key.data
                assert isinstance(one, socket.socket)
                selector.unregister(one)
                if one.recv(4) != b"\x20\x02\x00\x00":
                    raise AssertionError(f"{name} was not let in")
                online = json.dumps({**presence, "state": "online"}).encode()
                capabilities = json.dumps({"session": session, "slots": 1}).encode()
                above = f"forage/1/device/{name}/capabilities"
                one.sendall(
                    packet(0x33, utf8(topic) + b"\x00\x01" + online)
                    + packet(0x33, utf8(above) + b"\x00\x02" + capabilities)
                )
                waiting -= 1

    def drop(self) -> None:
        """All connections break at once."""
        for one in self._sockets.values():
            one.close()
        self._sockets.clear()

"""A small MQTT 3.1.1 client with the interface of `umqtt.simple`.

What it does better than that one for a device that must come back by itself: every read has a time
limit, and a packet above `packet_bytes_max` is read over and never held. QoS 0 and 1, no TLS of its
own (`ssl`: a context, as for umqtt).
"""

import socket
import struct

__all__ = ["MQTTClient", "MQTTException"]


class MQTTException(Exception):
    pass


class MQTTClient:
    """Use it as umqtt's: `set_callback`, `set_last_will`, `connect`, `subscribe`, `wait_msg`."""

    packet_bytes_max = 4096 + 256
    """A payload and its topic."""

    def __init__(self, client_id, server, port=0, user=None, password=None, keepalive=0, ssl=None):
        self.client_id = client_id
        self.server = server
        self.port = port or (8883 if ssl else 1883)
        self.user, self.password = user, password
        self.keepalive = keepalive
        self.ssl = ssl
        self.sock = None
        self.pid = 0
        self.callback = None
        self.will = None

    def set_callback(self, callback):
        self.callback = callback

    def set_last_will(self, topic, msg, retain=False, qos=0):
        self.will = topic, msg, retain, qos

    def connect(self, clean_session=True, timeout=None):
        self.sock = socket.socket()
        self.sock.settimeout(timeout)
        self.sock.connect(socket.getaddrinfo(self.server, self.port)[0][-1])
        try:
            # A short packet behind a short packet must not wait for the broker's kernel.
            self.sock.setsockopt(6, 1, 1)  # IPPROTO_TCP, TCP_NODELAY: not all ports name them.
        except OSError:
            pass
        if self.ssl:
            self.sock = self.ssl.wrap_socket(self.sock, server_hostname=self.server)
        flags = clean_session << 1
        body = _text(self.client_id)
        if self.will:
            topic, msg, retain, qos = self.will
            flags |= 4 | qos << 3 | retain << 5
            body += _text(topic) + _text(msg)
        if self.user is not None:
            flags |= 0x80
            body += _text(self.user)
            if self.password is not None:
                flags |= 0x40
                body += _text(self.password)
        head = _text("MQTT") + struct.pack("!BBH", 4, flags, self.keepalive)
        self._send(0x10, head + body)
        kind, answer = self._packet()
        if kind != 0x20 or len(answer) != 2:
            raise MQTTException("no CONNACK")
        if answer[1]:
            raise MQTTException(answer[1])
        return answer[0] & 1

    def disconnect(self):
        self._send(0xE0, b"")
        self.sock.close()

    def ping(self):
        self._send(0xC0, b"")

    def publish(self, topic, msg, retain=False, qos=0):
        """With QoS 1 it returns when the broker has it; what arrives meanwhile is called back."""
        number = self._next() if qos else b""
        self._send(0x30 | qos << 1 | retain, _text(topic) + number, msg)
        while qos and self.wait_msg() != (0x40, number):
            pass

    def subscribe(self, topic, qos=0):
        number = self._next()
        self._send(0x82, number + _text(topic) + bytes([qos]))
        while True:
            got = self.wait_msg()
            if got and got[0] == 0x90 and got[1][:2] == number:
                if got[1][2] == 0x80:
                    raise MQTTException("the broker refuses the subscription to " + topic)
                return

    def wait_msg(self):
        """Read one packet; a message is called back, anything else given back."""
        kind, body = self._packet()
        if kind & 0xF0 != 0x30:
            return kind, body
        if body is None:
            return None
        at = 2 + (body[0] << 8 | body[1])
        topic = body[2:at]
        if not kind & 6:
            self.callback(topic, body[at:])
            return None
        number = body[at : at + 2]
        self.callback(topic, body[at + 2 :])
        self._send(0x40, number)
        return None

    def _next(self):
        self.pid = self.pid % 65535 + 1
        return struct.pack("!H", self.pid)

    def _send(self, kind, body, more=b""):
        head = bytearray([kind])
        size = len(body) + len(more)
        while size > 127:
            head.append(size & 127 | 128)
            size >>= 7
        head.append(size)
        self._write(head + body)
        if more:
            self._write(more)  # Not joined to the rest: a long one is there once already.

    def _write(self, data):
        data = memoryview(data)
        while data:
            sent = self.sock.write(data)
            if not sent:
                raise OSError("the broker takes nothing")
            data = data[sent:]

    def _packet(self):
        kind = self._read(1)[0]
        size = shift = 0
        while True:
            byte = self._read(1)[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > 21:
                raise MQTTException("no MQTT")
        if size <= self.packet_bytes_max:
            return kind, self._read(size)
        return self._read_over(kind, size)

    def _read_over(self, kind, size):
        """A message that is too long: taken off the line and acknowledged, so that it ends."""
        if kind & 0xF0 != 0x30:
            raise MQTTException(f"a packet of {size} bytes")
        head = self._read(2)
        left = size - 2 - self._skip(head[0] << 8 | head[1])
        if kind & 6:
            number = self._read(2)
            self._skip(left - 2)
            self._send(0x40, number)
        else:
            self._skip(left)
        return kind, None

    def _skip(self, size):
        for at in range(0, size, 256):
            self._read(min(256, size - at))
        return size

    def _read(self, size):
        data = b""
        while len(data) < size:
            more = self.sock.read(size - len(data))
            if not more:
                raise OSError("the connection has ended")
            data += more
        return data


def _text(value):
    data = value.encode() if type(value) is str else value
    return struct.pack("!H", len(data)) + data

"""Runs a device for ever over MQTT: connects, serves, and comes back when the connection breaks."""

import os
import select
import time
from binascii import hexlify

__all__ = ["run"]

KEEPALIVE_S = 10
READ_TIMEOUT_S = 10
INBOX_MAX = 8
"""Messages that arrive while one is published; more are dropped, and come again."""
BACK_AFTER_MS = 500
BACK_AFTER_MS_MAX = 30000


def run(device, make_client, start="", qos=1):
    """Serve until the controller refuses this device.

    Args:
        device: A `forage_device.Device`.
        make_client: Gives an MQTT client of umqtt's manner for a client id, not connected.
        start: 16 hex digits that no two boots share; random ones where it is empty.
        qos: Of what the link repeats anyway. With `umqtt.simple` take 0: its QoS 1 waits for the
            broker, on a dead connection without end.
    """
    start = start or hexlify(os.urandom(8)).decode()
    clock = _Clock()
    connections = failures = 0
    while not device.refused:
        connections += 1
        # Nobody can guess the id, so nobody can take this connection over.
        mqtt = make_client(device.name + "-" + hexlify(os.urandom(6)).decode())
        try:
            failures += 1
            session = f"{start}-{connections}"
            _connect(device, mqtt, session, qos)
            failures = 0
            print("forage: connected as", device.name, session)
            _serve(device, mqtt, clock)
        except Exception as error:
            # umqtt has many ways to say that a connection is gone.
            print("forage: no connection:", repr(error))
        device.disconnected()
        _close(mqtt)
        # At random, so that not all come back at once; a call that runs goes on meanwhile.
        limit = min(BACK_AFTER_MS << min(failures, 6), BACK_AFTER_MS_MAX)
        back_at = clock() + limit * os.urandom(1)[0] // 255
        while not device.refused and clock() < back_at:
            time.sleep_ms(min(device.poll(clock()), 50))
    print("forage: refused:", device.refused)


def _connect(device, mqtt, session, link_qos):
    def publish(topic, payload, qos, retain):
        mqtt.publish(topic, payload, retain, qos if retain else min(qos, link_qos))

    device.inbox = inbox = []

    def on_message(_topic, payload):
        # Kept, and nothing more: this is called within a publish, too, which must not publish.
        if len(inbox) < INBOX_MAX:
            inbox.append(payload)

    mqtt.set_callback(on_message)
    topic, payload = device.will(session)
    mqtt.set_last_will(topic, payload, True, 1)
    mqtt.connect(True, READ_TIMEOUT_S)
    mqtt.subscribe(device.topics + "inbox/" + device.name, 1)
    device.publish = publish
    device.connected(session)


def _serve(device, mqtt, clock):
    inbox = device.inbox
    poller = select.poll()
    poller.register(mqtt.sock, select.POLLIN)
    heard = pinged = clock()
    while not device.refused:
        wait = device.poll(clock())
        if inbox:
            device.on_inbox(inbox.pop(0), clock())
            continue
        now = clock()
        if now - pinged >= KEEPALIVE_S * 500:
            pinged = now
            mqtt.ping()
        if now - heard > KEEPALIVE_S * 2000:
            raise OSError("nothing was heard of the broker")
        if poller.poll(wait):
            mqtt.sock.settimeout(READ_TIMEOUT_S)
            mqtt.wait_msg()
            heard = clock()


def _close(mqtt):
    try:
        mqtt.sock.close()
    except Exception:
        pass  # It never had one, or it is closed.


class _Clock:
    """Milliseconds since the start; those of the board begin anew every few days."""

    def __init__(self):
        self.total = 0
        self.last = time.ticks_ms()

    def __call__(self):
        now = time.ticks_ms()
        self.total += time.ticks_diff(now, self.last)
        self.last = now
        return self.total

"""A device of the MicroPython client without a network: orders on stdin, publishes on stdout.

    connect SESSION      a connection with this session is there
    disconnect           it is gone
    inbox HEX            this came to the inbox
    poll                 do what is due
    at MS                the time

Each order is answered by `publish TOPIC QOS RETAIN HEX` lines and then by `ok`, after `poll` with
the milliseconds that the device wants to wait.
"""

import sys
from binascii import hexlify, unhexlify

sys.path.append(sys.argv[1])

from forage_device import Device, Refused


def blink(times, colour):
    if times < 0:
        raise Refused(f"blink: {times} is no number of times.")
    return True


def wait(ms):
    yield ms
    return ms


FUNCTIONS = {
    "org.example.blink": blink,
    "lab.wait": wait,
    "lab.echo": lambda value: value,
    "lab.text": lambda characters: "x" * characters,
}


def publish(topic, payload, qos, retain):
    print("publish", topic, qos, int(retain), end=" ")
    for at in range(0, len(payload), 64):
        print(hexlify(payload[at : at + 64]).decode(), end="")
    print()


def main():
    device = Device("lamp-1", FUNCTIONS)
    device.publish = publish
    now = 0
    while True:
        words = sys.stdin.readline().split()
        if not words:
            return
        result = ""
        if words[0] == "connect":
            device.connected(words[1])
        elif words[0] == "disconnect":
            device.disconnected()
        elif words[0] == "inbox":
            device.on_inbox(unhexlify(words[1]) if len(words) > 1 else b"", now)
        elif words[0] == "at":
            now = int(words[1])
        else:
            result = device.poll(now)
        print("ok", result)


main()

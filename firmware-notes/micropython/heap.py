"""How much memory the client takes: `micropython -X heapsize=96k heap.py` (on a board: run it there).

Prints what the modules take, what a device takes, and what is in use while it serves calls whose
packets are as long as it takes them.
"""

import gc

import micropython


def used():
    gc.collect()
    return gc.mem_alloc()


before = used()
import forage_mqtt  # noqa: E402, F401
import forage_run  # noqa: E402, F401
from forage_cbor import dump  # noqa: E402
from forage_device import ARGUMENTS_BYTES_MAX, Device  # noqa: E402

modules = used()
SESSION, CONTROLLER, TASK = "0123456789abcdef-1", "fedcba9876543210-1", "0c4t2v9k1m7ab-1"
HEADER = {"u": "ann", "c": "0c4t2v9k1m7ab", "t": TASK, "f": ["lab.echo", ""], "k": "named"}
TEXT = "x" * (ARGUMENTS_BYTES_MAX - 16)
most = 0


def publish(_topic, _payload, _qos, _retain):
    global most
    most = max(most, used())


def message(n, kind, **fields):
    fields.update({"t": kind, "s": SESSION, "c": CONTROLLER, "e": 1, "n": n, "q": n})
    return dump(fields)


device = Device("lamp-1", {"lab.echo": lambda value: value})
device.publish = publish
device.connected(SESSION)
alone = used()
device.on_inbox(message(1, "report"), 0)
for number in range(1, 101):
    given = {"a": number, "h": dump(HEADER), "l": 0, "u": 1, "b": 1000, "g": bytes(16)}
    given["c"] = dump([dump([0, [TEXT]])])
    gc.collect()
    device.on_inbox(message(2 * number, "assign", w=[given]), 0)
    device.on_inbox(message(2 * number + 1, "acknowledge", r=[[number, [[0, 1]]]]), 0)
print("modules", modules - before, "bytes, a device", alone - modules)
print("in use at most while it serves a call of", ARGUMENTS_BYTES_MAX, "bytes:", most)
micropython.mem_info()

"""A device of the MCU profile as firmware would do it: bytes, a few numbers, one outcome kept.

It follows `firmware-notes/README.md` and shares no code with the agent, the links or the codec.
"""

import json
from collections.abc import Callable
from typing import Any

import cbor2

__all__ = ["Mcu"]

Publish = Callable[[str, bytes], None]


class Mcu:
    """One device: `on_inbox` for each message, `tick` when a second has passed."""

    link = None
    """It has none of ours (the desk asks)."""

    def __init__(self, name: str, boots: int, run: Callable[[list[Any]], Any]) -> None:
        self.name = name
        self.run = run
        self.boots = boots
        self.ran: list[list[Any]] = []
        self.out: list[tuple[str, bytes]] = []
        self.boot()

    def boot(self) -> None:
        """Power comes (back): nothing is known but the boot counter, which flash keeps."""
        self.boots += 1
        self.session = f"{self.boots:016x}-1"
        self.controller = ""
        self.epoch = 0
        self.sent = self.received = 0
        self.unseen: dict[int, tuple[str, bytes]] = {}
        self.kept: dict[str, Any] | None = None
        self.kept_topic = ""

    def join(self) -> None:
        presence = {"state": "online", "session": self.session}
        capabilities = {
            "session": self.session,
            "slots": 1,
            "profile": "mcu",
            "packet_bytes_max": 4_096,
            "queue_bytes_max": 2_048,
            "functions": {"org.example.blink": "1"},
        }
        for leaf, document in (("presence", presence), ("capabilities", capabilities)):
            self.out.append((f"forage/1/device/{self.name}/{leaf}", json.dumps(document).encode()))

    def will(self) -> tuple[str, bytes]:
        lost = {"state": "lost", "session": self.session}
        return f"forage/1/device/{self.name}/presence", json.dumps(lost).encode()

    # -- sending ----------------------------------------------------------------------------

    def say(self, code: str, fields: dict[str, Any], *, topic: str = "", numbered: bool) -> None:
        message: dict[str, Any] = {"t": code, "s": self.session, "c": self.controller}
        if numbered:
            self.sent += 1
            message["n"] = self.sent
        message["q"] = self.received
        payload = cbor2.dumps({**message, **fields})
        topic = topic or f"forage/1/outbox/{self.name}"
        if numbered:
            self.unseen[self.sent] = (topic, payload)
        self.out.append((topic, payload))

    def inventory(self) -> None:
        rows = []
        if self.kept is not None:
            kept = self.kept
            rows = [[kept["a"], kept["k"], kept["l"], kept["u"], "unacknowledged"]]
        self.say("device-inventory", {"rc": self.received, "r": rows}, numbered=True)

    def outcome(self) -> None:
        if self.kept is not None:
            self.say("outcomes", {"o": [self.kept]}, topic=self.kept_topic, numbered=True)

    def tick(self) -> None:
        """What was not seen for a second goes out again, the oldest first."""
        for topic, payload in list(self.unseen.values())[:1]:
            self.out.append((topic, payload))

    def flush(self, publish: Publish) -> None:
        out, self.out = self.out, []
        for topic, payload in out:
            publish(topic, payload)

    # -- receiving --------------------------------------------------------------------------

    def on_inbox(self, payload: bytes) -> None:
        message = cbor2.loads(payload)
        n, seen, epoch = message.get("n", 0), message.get("q", 0), message.get("e", 0)
        controller = message.get("c", "")
        if message.get("s") != self.session or epoch < self.epoch:
            return
        link = max(n, seen) >> 32
        is_new = controller != self.controller or link > self.received >> 32
        if not is_new and link < self.received >> 32:
            return
        if is_new:
            self.controller, self.epoch = controller, epoch
            self.sent = self.received = link << 32
            self.unseen = {}
        self.unseen = {number: item for number, item in self.unseen.items() if number > seen}
        said = len(self.out)
        if n == self.received + 1:
            self.received = n
            if is_new:
                self.inventory()
                self.outcome()
            self.handle(message, is_new)
        elif n > self.received + 1 and is_new:
            self.inventory()
        if n and len(self.out) == said:
            self.say("seen", {}, numbered=False)

    def handle(self, message: dict[str, Any], is_new: bool) -> None:
        if message["t"] == "report" and not is_new:
            self.inventory()
            self.outcome()
        elif message["t"] == "assign":
            for assignment in message["w"]:
                self.on_assignment(assignment)
        elif message["t"] == "acknowledge":
            for assignment, _indices in message["r"]:
                if self.kept is not None and self.kept["a"] == assignment:
                    self.kept = None

    def on_assignment(self, given: dict[str, Any]) -> None:
        if self.kept is not None:
            if self.kept["a"] == given["a"]:
                self.outcome()
            else:
                refusal = {"a": given["a"], "r": "full"}
                self.say("assignment-refused", refusal, numbered=True)
            return
        header = cbor2.loads(given["h"])
        if header["f"] != ["org.example.blink", "1"]:
            self.say("assignment-refused", {"a": given["a"], "r": "function"}, numbered=True)
            return
        kind, args = cbor2.loads(cbor2.loads(given["c"])[0])
        assert kind == 0
        self.ran.append(args)
        item = [self.run(args)]
        self.kept = {
            "k": header["t"],
            **{key: given[key] for key in ("a", "l", "u", "g") if key in given},
            "r": [[given["l"], given["l"] + 1]],
            "us": 100,
            "d": cbor2.dumps([item]),
        }
        self.kept_topic = f"forage/1/task/{header['u']}/{header['c']}/{header['t']}/{self.name}"
        self.outcome()

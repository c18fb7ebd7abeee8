"""A device of forage's MCU profile: bytes in, bytes out, one call at a time (for MicroPython).

`Device` decides and has no socket: it is given what came to the inbox (`on_inbox`), is polled when
it wants to be (`poll`), and publishes. `forage_run` does that for ever over MQTT. The README in
the folder above says why each step is as it is.

A function takes a call's arguments and returns plain values (None, bool, int, float, str, bytes,
list, dict). One that takes long is a generator: it yields the milliseconds that it wants to wait,
so that beats and keepalive go on, and returns its value at the end. What it raises arrives at
whoever called.
"""

import json
import time

from forage_cbor import dump, load

__all__ = ["Device", "Refused"]

PACKET_BYTES_MAX = 4096
"""The longest payload that is taken or sent."""
ARGUMENTS_BYTES_MAX = 2048
ENVELOPE_BYTES = 512
"""What a message needs around an outcome's data."""
ARGUMENTS_NESTING_MAX = 6
"""Values of four arrays and maps within each other, in the arrays and maps around them."""
UNSEEN_MAX = 4
"""Messages sent and not seen. With no room for an answer the question is dropped: it comes again."""
REPEAT_AFTER_MS = 1000
REPEAT_AFTER_MS_MAX = 8000
SESSION_CHARACTERS_MAX = 27
_NAME = "abcdefghijklmnopqrstuvwxyz0123456789_-"


class Refused(Exception):
    """For functions to raise: it arrives as `forage.Refused`. Other errors arrive as what they are."""


class Device:
    """One device. `publish(topic, payload, qos, retain)` is set by its owner; times are milliseconds.

    `functions` maps a name, such as "lab.board.adc", to what is called; all have one `version`.
    """

    def __init__(self, name, functions, labels=None, root="forage", version="1"):
        self.name = name
        self.functions = functions
        self.publish = None
        self.labels = labels or {}
        self.version = version
        self.topics = root + "/1/"
        self.session = ""
        self.epoch = 0
        self.holder = ""
        """The controller session that this device obeys: none other may use its epoch."""
        self.is_draining = False
        self.refused = ""
        """Why the controller does not want this device; it must not try again."""
        self.call = None
        """The assignment that runs or whose outcome is kept: one at a time."""
        self.job = None
        """The generator of a call that takes long."""
        self.outcome = None
        """What `call` came to, until the controller has committed it."""
        self._new_link("", 0)

    # -- the connection -----------------------------------------------------------------------

    def will(self, session):
        """(topic, payload) of the last will for this session; retained, QoS 1."""
        document = {"state": "lost", "session": session}
        return self.topics + "device/" + self.name + "/presence", json.dumps(document).encode()

    def connected(self, session):
        """A connection is there and the inbox subscribed to: say who this is."""
        self.session = session
        self._new_link("", 0)
        self.introduce()

    def disconnected(self):
        """Nobody hears us; a call goes on, and its outcome is kept for the next session."""
        self.session = ""

    def introduce(self):
        state = "draining" if self.is_draining else "online"
        self._document("presence", {"state": state, "session": self.session})
        self._document(
            "capabilities",
            {
                "session": self.session,
                "slots": 1,
                "profile": "mcu",
                "packet_bytes_max": PACKET_BYTES_MAX,
                "queue_bytes_max": ARGUMENTS_BYTES_MAX,
                "labels": self.labels,
                "functions": dict.fromkeys(self.functions, self.version),
            },
        )

    def goodbye(self):
        self._document("presence", {"state": "offline", "session": self.session})

    def _document(self, leaf, document):
        payload = json.dumps(document).encode()
        self.publish(self.topics + "device/" + self.name + "/" + leaf, payload, 1, True)

    # -- sending ------------------------------------------------------------------------------

    def _new_link(self, controller, base):
        self.controller = controller
        self.sent = self.received = base
        self.unseen = []
        """(number, topic, payload, what it says was seen) of what was not seen, the oldest first."""
        self.repeat_at = None
        self.repeat_after = REPEAT_AFTER_MS

    def _say(self, kind, fields, now=None, topic=""):
        """Send a message; with a time it is numbered, and repeated until it was seen."""
        if not self.session or not self.controller:
            return  # The next link begins with all that there is to say.
        message = {"t": kind, "s": self.session, "c": self.controller}
        if now is not None:
            message["n"] = self.sent + 1
        message["q"] = self.received
        body = dump(fields)
        # Two maps in one: the head says how many keys there are, in one byte up to 23.
        payload = bytes([0xA0 + len(message) + len(fields)]) + dump(message)[1:] + body[1:]
        topic = topic or self.topics + "outbox/" + self.name
        if now is not None:
            if not self.unseen:
                self.repeat_after = REPEAT_AFTER_MS
                self.repeat_at = now + REPEAT_AFTER_MS
            self.sent += 1
            self.unseen.append((self.sent, topic, payload, self.received))
        self.publish(topic, payload, 1, False)

    def _inventory(self, now):
        rows = []
        if self.call:
            call = self.call
            state = "running" if self.outcome is None else "unacknowledged"
            rows = [[call["a"], call["task"], call["l"], call["u"], state]]
        self._say("device-inventory", {"rc": self.received, "r": rows}, now)

    def _say_outcome(self, now):
        if self.outcome is not None:
            self._say("outcomes", {"o": [self.outcome]}, now, self.call["topic"])

    # -- receiving ----------------------------------------------------------------------------

    def on_inbox(self, payload, now):
        """Take one message of the inbox; whatever its bytes are, it raises nothing."""
        if not self.session or len(payload) > PACKET_BYTES_MAX:
            return
        try:
            message = load(payload)
            kind, controller = message["t"], message["c"]
            numbers = [message.get(key, 0) for key in ("n", "q", "e")]
            start, _, counter = controller.partition("-")
            counter = int(counter)
        except (ValueError, KeyError, TypeError, AttributeError, MemoryError):
            return
        if message.get("s") != self.session or len(controller) > SESSION_CHARACTERS_MAX:
            return
        if type(kind) is not str or not all(_is_count(item) for item in numbers):
            return
        n, seen, epoch = numbers
        if max(n, seen) >> 63 or epoch >> 23:
            return
        if self._is_stale(start, counter, epoch, controller):
            return
        if kind == "device-refused":
            # It belongs to no link: the name's is another's.
            self.refused = str(message.get("r"))
            return
        link, ours = max(n, seen) >> 32, self.received >> 32
        is_new = controller != self.controller or link > ours
        if not is_new and link < ours:
            return
        if is_new:
            self._new_link(controller, link << 32)
        self._on_seen(seen, now)
        sent = self.sent
        is_next = n == self.received + 1 and len(self.unseen) < UNSEEN_MAX
        if is_next:
            self.received = n
        if is_new:
            self._inventory(now)
            self._say_outcome(now)
        if is_next:
            try:
                self._handle(kind, message, is_new, now)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                pass  # A field is wrong. It counts as received, or it would come for ever.
        elif n == self.received + 1:
            return  # There is no room for an answer.
        elif 0 < n <= self.received and self.unseen and self.unseen[0][3] >= n:
            # A repeat, and what was said since then has not arrived: that says `seen` too.
            self.publish(self.unseen[0][1], self.unseen[0][2], 1, False)
            return
        if n and self.sent == sent:
            self._say("seen", {})

    def _is_stale(self, start, counter, epoch, controller):
        """Whether a message is of a controller that this device does not (or no longer) obey."""
        holder, _, last = self.holder.partition("-")
        if epoch < max(1, self.epoch) or (epoch == self.epoch and start != holder):
            refusal = {"t": "assignment-refused", "s": self.session, "c": controller}
            refusal.update({"r": "epoch", "eb": self.epoch, "ho": self.holder})
            self.publish(self.topics + "outbox/" + self.name, dump(refusal), 1, False)
            return True
        if epoch == self.epoch and counter < int(last):
            return True
        self.epoch, self.holder = epoch, controller
        return False

    def _on_seen(self, seen, now):
        before = len(self.unseen)
        self.unseen = [item for item in self.unseen if item[0] > seen]
        if len(self.unseen) < before:
            self.repeat_after = REPEAT_AFTER_MS
            self.repeat_at = now + REPEAT_AFTER_MS

    def _handle(self, kind, message, is_new, now):
        if kind == "report" and not is_new:
            # It may have missed who this is: nothing else would ever tell it.
            self.introduce()
            self._inventory(now)
            self._say_outcome(now)
        elif kind == "assign":
            for given in message["w"][:UNSEEN_MAX]:
                self._on_assignment(given, now)
        elif kind == "acknowledge":
            if self.outcome is not None and self.call["a"] in [row[0] for row in message["r"]]:
                self.call = self.outcome = None
        elif kind == "cancel-assigned":
            if self.job and self.call["a"] == message["a"] and message.get("f"):
                self._fail(now, "cancelled", "The call was cancelled.", "cancelled")
        elif kind == "forget":
            if self.call and self.call["a"] in message["a"]:
                if self.job:
                    self.job.close()
                self.call = self.job = self.outcome = None
        elif kind == "trim":
            if self.call and self.call["a"] in [row[0] for row in message["r"]]:
                self._say("trimmed", {"r": [[self.call["a"], self.call["u"]]]}, now)
        elif kind == "drain":
            self.is_draining = message["o"] is True
            self.introduce()

    # -- a call -------------------------------------------------------------------------------

    def _on_assignment(self, given, now):
        number = given["a"]
        if not _is_count(number):
            raise ValueError
        if self.call and self.call["a"] == number:
            if self.outcome is not None and not any(
                item[1] == self.call["topic"] for item in self.unseen
            ):
                self._say_outcome(now)
            return
        header = load(given["h"])
        options = header.get("o", {})
        if self.is_draining:
            reason = "draining"
        elif self.call:
            reason = "full"
        elif not self._has(header["f"]):
            reason = "function"
        elif given["u"] != given["l"] + 1 or len(given["c"]) > ARGUMENTS_BYTES_MAX:
            reason = "size"
        else:
            self.call = self._accepted(given, header, options, now)
            self.beat_at = now + self.call["beat"]
            self.started_us = time.ticks_us()
            self._begin(self.functions[header["f"][0]], given["c"], now)
            return
        self._say("assignment-refused", {"a": number, "r": reason}, now)

    def _has(self, function):
        """Whether a header's function, [name, version], is one of this device's."""
        if type(function) is not list or len(function) != 2 or type(function[0]) is not str:
            return False
        return function[0] in self.functions and function[1] in ("", self.version)

    def _accepted(self, given, header, options, now):
        """What is kept of an assignment. A field of another kind raises ValueError or TypeError."""
        place = [header["u"], header["c"], header["t"]]
        for name in place:
            # It goes into a topic, where others than these letters would mean something.
            if not 0 < len(name) <= 32 or any(letter not in _NAME for letter in name):
                raise ValueError
        numbers = [given["l"], given["b"], given.get("tr", 0)]
        numbers += [options.get("re", 0), options.get("to", 0), header.get("m", PACKET_BYTES_MAX)]
        if not all(_is_count(number) for number in numbers) or len(given["g"]) != 16:
            raise ValueError
        low, beat_ms, tries, retries, timeout_ms, packet_bytes_max = numbers
        return {
            "a": given["a"],
            "l": low,
            "u": low + 1,
            "g": bytes(given["g"]),
            "task": header["t"],
            "topic": self.topics + "task/" + "/".join(place) + "/" + self.name,
            "room": max(1024, min(packet_bytes_max, PACKET_BYTES_MAX)) - ENVELOPE_BYTES,
            "last_try": tries >= retries,
            "timeout": timeout_ms,
            "beat": max(10, beat_ms // 2),
            "since": now,
        }

    def _begin(self, function, calls, now):
        try:
            body = load(load(calls)[0], ARGUMENTS_NESTING_MAX, True)
            args, keywords = body[1], body[2] if len(body) > 2 else {}
            if body[0] != 0 or type(args) is not list or type(keywords) is not dict:
                raise ValueError
        except (ValueError, TypeError, IndexError, MemoryError):
            text = (
                self.name + " takes plain values only: no tuples, sets, large integers or objects."
            )
            self._fail(now, "not-serializable", text)
            return
        print("forage: runs", self.call["task"], self.call["l"])
        try:
            value = function(*args, **keywords)
        except Exception as error:
            self._raised(error, now)
            return
        if hasattr(value, "send"):
            self.job, self.job_at = value, now
            self._go_on(now)
        else:
            self._finish([value], now)

    def _go_on(self, now):
        """Run a generator up to where it waits again."""
        try:
            self.job_at = now + int(next(self.job))
        except StopIteration as end:
            self._finish([end.value], now)
        except Exception as error:
            self._raised(error, now)

    def _raised(self, error, now):
        text = str(error)[:256]
        if type(error) is Refused:
            self._fail(now, "refused", text)
            return
        kind = type(error).__name__
        item = {"type": kind, "module": "builtins", "message": text, "args": [[text]]}
        self._finish(item, now, "error")

    def _fail(self, now, reason, text, code="error"):
        self._finish({"reason": reason, "message": text}, now, code)

    def _finish(self, item, now, code=""):
        if self.job:
            self.job.close()
        self.job = None
        call = self.call
        try:
            # An array around the outcome, and one around the value.
            data = dump([item], 6)
            if len(data) > call["room"]:
                raise ValueError(f"{len(data)} bytes")
        except (ValueError, MemoryError) as error:
            text = f"{self.name} cannot send what the function gave: {error}."
            self._fail(now, "not-serializable", text)
            return
        outcome = {"k": call["task"], "a": call["a"]}
        if call["l"]:
            outcome["l"] = call["l"]
        outcome.update({"u": call["u"], "g": call["g"], "r": [[call["l"], call["u"]]]})
        if code:
            is_final = code == "cancelled" or call["last_try"]
            outcome["x"] = [[call["l"], code, is_final]]
        outcome["us"] = time.ticks_diff(time.ticks_us(), self.started_us)
        outcome["d"] = data
        self.outcome = outcome
        self._say_outcome(now)

    # -- time ---------------------------------------------------------------------------------

    def poll(self, now):
        """Do what is due; the milliseconds until there is something to do again."""
        if self.job and self.call["timeout"] and now - self.call["since"] >= self.call["timeout"]:
            text = f"The call ran longer than its limit of {self.call['timeout']} ms."
            self._fail(now, "timeout", text, "timeout")
        if self.job and now >= self.job_at:
            self._go_on(now)
        due = now + REPEAT_AFTER_MS
        if self.session and self.call:
            if now >= self.beat_at:
                beat = dump({"t": "beat", "s": self.session})
                self.publish(self.topics + "outbox/" + self.name, beat, 0, False)
                self.beat_at = now + self.call["beat"]
            due = min(due, self.beat_at)
        if self.session and self.unseen:
            if now >= self.repeat_at:
                self.publish(self.unseen[0][1], self.unseen[0][2], 1, False)
                self.repeat_after = min(2 * self.repeat_after, REPEAT_AFTER_MS_MAX)
                self.repeat_at = now + self.repeat_after
            due = min(due, self.repeat_at)
        if self.job:
            due = min(due, self.job_at)
        return max(0, due - now)


def _is_count(value):
    return type(value) is int and value >= 0

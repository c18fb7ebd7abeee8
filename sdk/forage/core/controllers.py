"""Which controller is the one to talk to, from what controllers say of themselves."""

from forage_wire.messages import ControllerPresence

__all__ = ["Controllers", "is_later_session"]


def is_later_session(session: str, than: str) -> bool:
    """Whether `session` is a later connection of the same start of a controller as `than`."""
    start, _, counter = session.partition("-")
    before, _, known = than.partition("-")
    return start == before and int(counter or 0) > int(known or 0)


class Controllers:
    """The presences of all controllers, and the session of the current one."""

    __slots__ = ("_known", "current", "epoch", "reconnect_spread_ms")

    def __init__(self) -> None:
        self._known: dict[str, ControllerPresence] = {}
        self.current = ""
        """The session of the active controller of the highest epoch; empty: none is known."""
        self.epoch = 0
        """Its epoch."""
        self.reconnect_spread_ms = 500

    def forget(self) -> None:
        """The connection is gone: on the next one the broker tells all presences anew."""
        self._known.clear()
        self.current = ""

    def heard(self, name: str, presence: ControllerPresence | None) -> None:
        """A controller's presence arrived; None: it was cleared."""
        if presence is None:
            self._known.pop(name, None)
        else:
            self._known[name] = presence
        active = [each for each in self._known.values() if each.state == "active"]
        if not active:
            self.current = ""
            return
        best = max(active, key=lambda each: (each.epoch, each.session))
        self.current = best.session
        self.epoch = best.epoch
        self.reconnect_spread_ms = best.reconnect_spread_ms

    def missing_text(self, root: str, waited_ms: int) -> str:
        """Why nobody answered, in one sentence for people."""
        seconds = f"{waited_ms / 1000:g} s"
        for name, presence in self._known.items():
            if presence.state in ("active", "starting"):
                return (
                    f"The controller {name} says it is {presence.state}, but did not answer "
                    f"within {seconds}; it may be busy or may not read this user's topics: "
                    "look at its log."
                )
        for name, presence in self._known.items():
            return (
                f"The controller {name} says it is {presence.state}, and no other answered "
                f"within {seconds}; start it again with `forage controller`."
            )
        return (
            f"No controller answered under the root topic {root!r} within {seconds}; start one "
            "with `forage controller`, or name its root with --root."
        )

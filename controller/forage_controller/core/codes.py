"""Functions' code by content: asked of clients, kept, handed to devices, never read."""

from forage_controller.core.effects import Effects
from forage_controller.core.operations import CodeLoaded, LoadCode, SaveCode
from forage_controller.core.state import Client, Device
from forage_wire.messages import Code, NeedCode

__all__ = ["CodeShelf"]


class CodeShelf:
    """Which code is here, in memory (the latest used, up to a limit) or in the store."""

    __slots__ = (
        "_asked",
        "_bytes",
        "_bytes_max",
        "_cache",
        "_effects",
        "_loading",
        "_stored",
        "arrived",
    )

    def __init__(self, effects: Effects, bytes_max: int) -> None:
        self._effects = effects
        self._bytes_max = bytes_max
        self._cache: dict[bytes, Code] = {}
        self._bytes = 0
        self._stored: dict[bytes, None] = {}
        self._loading: dict[bytes, None] = {}
        self._asked: dict[bytes, int] = {}
        self.arrived = False
        """Whether code came in since somebody looked."""

    def recovered(self, hashes: list[bytes]) -> None:
        """Note what the store holds."""
        self._stored.update(dict.fromkeys(hashes))

    def put(self, code: Code) -> None:
        """Keep code that a client sent."""
        self._asked.pop(code.hash, None)
        if code.hash not in self._stored:
            self._stored[code.hash] = None
            self._effects.save(SaveCode(hash=code.hash, form=code.form, data=code.data))
        self._remember(code)

    def loaded(self, event: CodeLoaded) -> None:
        """Take code that the store read."""
        self._loading.pop(event.hash, None)
        if event.data is None:
            self._stored.pop(event.hash, None)
        else:
            self._remember(Code(hash=event.hash, form=event.form, data=event.data))

    def _remember(self, code: Code) -> None:
        self.arrived = True
        if code.hash in self._cache:
            return
        self._cache[code.hash] = code
        self._bytes += len(code.data)
        # The newest stays whatever its size: a device is about to get it.
        while self._bytes > self._bytes_max and len(self._cache) > 1:
            oldest = next(iter(self._cache))
            self._bytes -= len(self._cache.pop(oldest).data)

    def get(self, code_hash: bytes, client: Client | None, now_ms: int) -> Code | None:
        """The code, or None: then it is being read, or its client is asked for it (once a second)."""
        code = self._cache.pop(code_hash, None)
        if code is not None:
            self._cache[code_hash] = code
            return code
        if code_hash in self._loading:
            return None
        if code_hash in self._stored:
            self._loading[code_hash] = None
            self._effects.command(LoadCode(hash=code_hash))
            return None
        asked = self._asked.get(code_hash)
        if (
            client is not None
            and client.link is not None
            and (asked is None or now_ms - asked >= 1_000)
        ):
            self._asked[code_hash] = now_ms
            client.link.send(NeedCode(hashes=(code_hash,)))
        return None

    def hand_to(self, device: Device, code: Code) -> None:
        """Send code to a device's session, once."""
        if device.link is None or code.hash in device.codes:
            return
        device.codes[code.hash] = None
        device.link.send(code)

"""Functions' code by content: asked of clients, kept, handed to devices, never read."""

import hashlib

from forage_controller.core.config import Limits
from forage_controller.core.effects import Effects
from forage_controller.core.operations import CodeLoaded, ForgetCode, LoadCode, SaveCode
from forage_controller.core.state import Client, Device
from forage_wire.limits import UNFINISHED_PART_BYTES_MAX
from forage_wire.link import Link
from forage_wire.messages import Code, NeedCode

__all__ = ["CodeShelf"]

_CODE_BYTES_MAX = UNFINISHED_PART_BYTES_MAX - 128 * 1024
"""Of one function: with all around it, it must fit a message again."""
_ASKED_MAX = 4_096
_WANTED_MAX = 65_536
"""Functions that devices wait for; of those beyond, a device asks again on its next link."""
_SENT_MAX = 4_096
"""Functions remembered as sent to a device's session; the oldest are sent again beyond."""


class CodeShelf:
    """Which code is here, in memory (the latest used, up to a limit) or in the store.

    Code that no task uses any more stays until its place is needed.
    """

    __slots__ = (
        "_asked",
        "_bytes",
        "_cache",
        "_effects",
        "_limits",
        "_loading",
        "_news",
        "_stored",
        "_stored_bytes",
        "_unsaved",
        "_unused",
        "_users",
        "_wanted_by",
    )

    def __init__(self, effects: Effects, limits: Limits) -> None:
        self._effects = effects
        self._limits = limits
        self._cache: dict[bytes, Code] = {}
        self._bytes = 0
        self._stored: dict[bytes, int] = {}
        self._stored_bytes = 0
        self._users: dict[bytes, int] = {}
        self._unused: dict[bytes, None] = {}
        self._unsaved: dict[bytes, None] = {}
        """On its way to the disk: until it is there, the store cannot give it back."""
        self._loading: dict[bytes, None] = {}
        self._asked: dict[bytes, Link] = {}
        self._news: dict[bytes, None] = {}
        self._wanted_by: dict[bytes, dict[str, Device]] = {}

    # -- what is kept -----------------------------------------------------------------------

    def recovered(self, codes: dict[bytes, tuple[str, int]]) -> None:
        """Note what the store holds: hash -> (form, bytes)."""
        for code_hash, (_form, size) in codes.items():
            self._store(code_hash, size)

    def used(self, function: bytes | tuple[str, str], tasks: int) -> None:
        """Tasks that call a function came, or (below 0) were released."""
        if not isinstance(function, bytes):
            return
        users = self._users.get(function, 0) + tasks
        if users > 0:
            self._users[function] = users
            self._unused.pop(function, None)
            return
        self._users.pop(function, None)
        if function in self._stored:
            self._unused[function] = None

    def has_room_for(self, function: bytes | tuple[str, str]) -> bool:
        """Whether a function not known yet could be kept."""
        if not isinstance(function, bytes) or function in self._stored or self._unused:
            return True
        limits = self._limits
        return len(self._stored) < limits.codes and self._stored_bytes < limits.codes_bytes

    def _store(self, code_hash: bytes, size: int) -> None:
        self._stored[code_hash] = size
        self._stored_bytes += size
        if code_hash not in self._users:
            self._unused[code_hash] = None

    def _make_room(self) -> None:
        limits = self._limits
        while self._unused and (
            len(self._stored) >= limits.codes or self._stored_bytes >= limits.codes_bytes
        ):
            oldest = next(iter(self._unused))
            del self._unused[oldest]
            self._drop_stored(oldest)
            known = self._cache.pop(oldest, None)
            if known is not None:
                self._bytes -= len(known.data)
            self._effects.save(ForgetCode(hash=oldest))

    def _drop_stored(self, code_hash: bytes) -> None:
        self._stored_bytes -= self._stored.pop(code_hash, 0)
        self._unused.pop(code_hash, None)

    def put(self, code: Code) -> bool:
        """Keep code that a client sent; False where it is not what its hash says, or too much."""
        if (
            len(code.data) > _CODE_BYTES_MAX
            or hashlib.sha256(code.data).digest() != code.hash
            or not self.has_room_for(code.hash)
        ):
            return False
        self._asked.pop(code.hash, None)
        if code.hash not in self._stored:
            self._make_room()
            self._store(code.hash, len(code.data))
            self._effects.save(SaveCode(hash=code.hash, form=code.form, data=code.data))
            self._unsaved[code.hash] = None
            self._effects.after_commit(lambda _at_ms: self._unsaved.pop(code.hash, None))
        self._remember(code)
        return True

    def loaded(self, event: CodeLoaded) -> None:
        """Take code that the store read."""
        self._loading.pop(event.hash, None)
        if event.data is None:
            self._drop_stored(event.hash)
            # Whoever waits for it asks a client now.
            self._news[event.hash] = None
        else:
            self._remember(Code(hash=event.hash, form=event.form, data=event.data))

    def _remember(self, code: Code) -> None:
        self._news[code.hash] = None
        if code.hash in self._cache:
            return
        self._cache[code.hash] = code
        self._bytes += len(code.data)
        # The newest stays whatever its size: a device is about to get it.
        while self._bytes > self._limits.code_cache_bytes:
            kept = (code.hash, *self._unsaved)
            oldest = next((known for known in self._cache if known not in kept), None)
            if oldest is None:
                return
            self._bytes -= len(self._cache.pop(oldest).data)

    # -- who needs it -----------------------------------------------------------------------

    def take_news(self) -> list[bytes]:
        """Hashes of which something is new since somebody looked."""
        if not self._news:
            return []
        news, self._news = self._news, {}
        return list(news)

    def get(self, code_hash: bytes, client: Client | None) -> Code | None:
        """The code, or None: then it is being read, or its client is asked for it (once a link)."""
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
        link = None if client is None else client.link
        if link is not None and self._asked.get(code_hash) is not link:
            self._asked.pop(code_hash, None)
            self._asked[code_hash] = link
            if len(self._asked) > _ASKED_MAX:
                del self._asked[next(iter(self._asked))]
            link.send(NeedCode(hashes=(code_hash,)))
        return None

    def hand_to(self, device: Device, code: Code) -> None:
        """Send code to a device's session, once."""
        if device.link is None or code.hash in device.codes:
            return
        device.codes[code.hash] = None
        if len(device.codes) > _SENT_MAX:
            del device.codes[next(iter(device.codes))]
        device.link.send(code)

    def owe(self, device: Device, code_hash: bytes, client: Client | None) -> None:
        """A device asks for code: it gets it now, or when it is here."""
        code = self.get(code_hash, client)
        if code is not None:
            self.hand_to(device, code)
            return
        device.code_wanted[code_hash] = client
        self._wanted_by.setdefault(code_hash, {})[device.name] = device
        if len(self._wanted_by) > _WANTED_MAX:
            del self._wanted_by[next(iter(self._wanted_by))]

    def pay(self, code_hash: bytes) -> None:
        """Something is new of code: hand it to the devices that wait for it."""
        for device in self._wanted_by.pop(code_hash, {}).values():
            if code_hash in device.code_wanted:
                self.owe(device, code_hash, device.code_wanted.pop(code_hash))

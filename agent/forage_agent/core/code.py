"""Functions' code by content, and which of it is missing."""

import hashlib

from forage_wire.messages import Code

__all__ = ["CodeStore"]


class CodeStore:
    """Code that the controller has sent, up to `bytes_max`; what was used longest ago goes first.

    Code that is larger than the limit, or that held assignments need, is kept all the same: the
    limit is for what might be useful later.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._code: dict[bytes, Code] = {}
        self._users: dict[bytes, int] = {}
        self.wanted: dict[bytes, None] = {}
        """What `missing` will name."""
        self._asked: dict[bytes, None] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._code

    def get(self, key: bytes) -> Code:
        """The code, which now was used last."""
        code = self._code.pop(key)
        self._code[key] = code
        return code

    def add(self, code: Code) -> bool:
        """Keep code; False where it is not what its hash says."""
        if hashlib.sha256(code.data).digest() != code.hash:
            return False
        self._asked.pop(code.hash, None)
        self.wanted.pop(code.hash, None)
        if code.hash not in self._code:
            self._code[code.hash] = code
            self._bytes += len(code.data)
            self._evict()
        return True

    def hold(self, key: bytes) -> None:
        """A held assignment needs this code."""
        self._users[key] = self._users.get(key, 0) + 1
        if key not in self._code and key not in self._asked:
            self.wanted[key] = None

    def release(self, key: bytes) -> None:
        """An assignment that needed it has ended."""
        left = self._users[key] - 1
        if left:
            self._users[key] = left
            return
        del self._users[key]
        if key not in self._code:
            self.wanted.pop(key, None)
            self._asked.pop(key, None)
        elif self._bytes > self._bytes_max:
            self._evict()

    def missing(self) -> tuple[bytes, ...]:
        """What is needed, is not here and has not been asked for; counts as asked for now."""
        found = tuple(self.wanted)
        self._asked.update(self.wanted)
        self.wanted.clear()
        return found

    def ask_again(self) -> None:
        """Whoever was asked is gone."""
        self.wanted.update(self._asked)
        self._asked.clear()

    def _evict(self) -> None:
        if self._bytes <= self._bytes_max:
            return
        for key in [key for key in self._code if key not in self._users]:
            self._bytes -= len(self._code.pop(key).data)
            if self._bytes <= self._bytes_max:
                return

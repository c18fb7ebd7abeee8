"""`dataclass` for what is made for every message: frozen for the type checker, quick at run time.

The standard library's frozen classes set each field through `object.__setattr__`, which makes an
object cost three times as much, and a call takes some thirty of them on its way. Nobody assigns to
a frozen field here, since the type checker sees the standard decorator and refuses it; so at run
time the same class is made without the guard, and hashed and compared as a frozen one is.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(
        message_class: type | None = None, /, *, frozen: bool = False, eq: bool = True, **kept: Any
    ) -> Any:
        """As the standard library's, with the same arguments."""
        decorate = dataclasses.dataclass(eq=eq, unsafe_hash=frozen and eq, **kept)
        return decorate if message_class is None else decorate(message_class)

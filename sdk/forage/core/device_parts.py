"""Parts of outcomes on task topics, put together for each link of each device."""

from forage_wire.codec import decode
from forage_wire.errors import DecodeError
from forage_wire.limits import UNFINISHED_PART_BYTES_MAX
from forage_wire.link import link_number
from forage_wire.messages import Linked, Part
from forage_wire.parts import PartAssembler

__all__ = ["DeviceParts"]

_DEVICES_MAX = 32
"""Unfinished messages of more devices are dropped, oldest first; their controller has them too,
and offers them when they stay uncollected."""


class DeviceParts:
    """Devices number what they send for the controller's link; here parts tell their own order."""

    __slots__ = ("_assemblers",)

    def __init__(self) -> None:
        self._assemblers: dict[str, tuple[tuple[str, str, int], int, PartAssembler]] = {}

    def add(self, device: str, part: Part) -> Linked | None:
        """The message that `part` completes, or None. Raises DecodeError as its parts do."""
        # A device counts its parted messages anew with each link to its controller.
        link = (part.session, part.controller, link_number(part))
        known, latest, assembler = self._assemblers.get(device, (link, 0, PartAssembler()))
        if known != link:
            latest, assembler = 0, PartAssembler()
        if part.message < latest:
            # Sent again to the controller: it must not end what has come of a later message.
            return None
        if device not in self._assemblers and len(self._assemblers) >= _DEVICES_MAX:
            del self._assemblers[next(iter(self._assemblers))]
        self._assemblers[device] = (link, part.message, assembler)
        whole = assembler.add(part)
        if whole is None:
            return None
        del self._assemblers[device]
        message = decode(whole, UNFINISHED_PART_BYTES_MAX)
        if type(message) is Part:
            raise DecodeError("a part within parts")
        return message

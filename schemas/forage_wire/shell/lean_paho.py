"""The MQTT library without what it loads and is not used here.

`paho.mqtt.client` imports `urllib.request`, and with it some 35 modules and 2 MiB, to look up a
proxy for websockets; `uuid`, to invent client ids, which we always give; `ssl`, which we do around
it; `platform`, for the name of one error. While it is imported, others stand in their place, each
of which loads the real one when somebody uses it: a program that uses the library by itself, beside
us, finds all of it.
"""

import sys
from types import ModuleType
from typing import Any

__all__ = ["Client", "MQTTMessage"]


class _Later(ModuleType):
    """A module that is imported when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # The import system looks at what it finds; that is no use of it.
            raise AttributeError(name)
        _leave(self)
        return getattr(__import__(self.__name__, fromlist=[name]), name)


def _leave(stand_in: ModuleType) -> None:
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]


_STAND_INS = [
    _Later(name)
    for name in ("base64", "platform", "ssl", "urllib.parse", "urllib.request", "uuid")
    if name not in sys.modules
]

for _module in _STAND_INS:
    sys.modules[_module.__name__] = _module
    _parent, _, _child = _module.__name__.rpartition(".")
    if _parent:
        # The library says `urllib.request.…`; the real one takes this place when it is loaded.
        setattr(__import__(_parent), _child, _module)
    if _module.__name__ == "platform":
        # All that the library asks for while it is imported, and the same answer.
        _module.system = lambda: "Windows" if sys.platform == "win32" else "Other"  # type: ignore[attr-defined]
try:
    from paho.mqtt.client import Client, MQTTMessage
finally:
    for _module in _STAND_INS:
        _leave(_module)
        vars(_module).pop("system", None)

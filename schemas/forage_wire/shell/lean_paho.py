"""The MQTT library without what it loads and is not used here.

`paho.mqtt.client` imports `urllib.request`, and with it some 35 modules and 2 MiB, to look up a
proxy for websockets; `uuid`, to invent client ids, which we always give. Empty modules stand in
their place during the import alone; whoever needs the real ones loads them as always.
"""

import sys
from types import ModuleType

__all__ = ["Client", "MQTTMessage"]

_UNUSED = [name for name in ("urllib.request", "uuid") if name not in sys.modules]

for _name in _UNUSED:
    sys.modules[_name] = ModuleType(_name)
try:
    from paho.mqtt.client import Client, MQTTMessage
finally:
    for _name in _UNUSED:
        del sys.modules[_name]

"""The MQTT library without the HTTP stack that it loads for websockets through proxies.

`paho.mqtt.client` imports `urllib.request`, and with it some 35 modules and 2 MiB, to look up a
proxy for a transport that is not used here. An empty module stands in its place during the import
alone; whoever needs the real one loads it as always.
"""

import sys
from types import ModuleType

__all__ = ["Client", "MQTTMessage"]

_UNUSED = "urllib.request"

_stands_in = _UNUSED not in sys.modules
if _stands_in:
    sys.modules[_UNUSED] = ModuleType(_UNUSED)
try:
    from paho.mqtt.client import Client, MQTTMessage
finally:
    if _stands_in:
        del sys.modules[_UNUSED]

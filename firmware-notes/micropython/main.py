"""What a board runs when it boots: its functions by name, and its place on the bus.

Copy this folder to the board beside a `settings.json` such as

    {"host": "192.168.4.2", "name": "lamp-1", "labels": {"room": "lab"},
     "ssid": "…", "wifi_password": "…"}

and write your own functions in place of these. On a computer, `micropython main.py` does the same
with simulated pins: a trial run.
"""

import json

from forage_device import Device
from forage_mqtt import MQTTClient
from forage_run import KEEPALIVE_S, run

try:
    from machine import ADC, Pin  # A board.
except ImportError:
    ADC = Pin = None

LED_PIN = 2
ADC_FIRST_PIN = 32
CHANNELS = 4


def adc(channel):
    """A reading of 16 bits. What is raised arrives at whoever called."""
    if type(channel) is not int or not 0 <= channel < CHANNELS:
        raise ValueError(f"adc: there is no channel {channel!r}, only 0 to {CHANNELS - 1}")
    return ADC(Pin(ADC_FIRST_PIN + channel)).read_u16() if ADC else 1000 * channel + 7


def blink(times, ms=100):
    """Takes long, so it is a generator: each `yield` is a pause in which the connection lives on."""
    led = Pin(LED_PIN, Pin.OUT) if Pin else None
    for count in range(2 * times):
        if led:
            led.value(count % 2 == 0)
        yield ms
    return times


FUNCTIONS = {"lab.board.adc": adc, "lab.board.blink": blink}


def join_wifi(settings):
    """On a board with radio: its network, without power save (which delays every answer)."""
    if "ssid" not in settings:
        return
    import network

    wlan = network.WLAN(network.STA_IF)
    wlan.active(True)
    wlan.config(pm=wlan.PM_NONE)
    wlan.connect(settings["ssid"], settings["wifi_password"])


def main():
    with open("settings.json") as file:
        settings = json.load(file)
    join_wifi(settings)
    device = Device(
        settings["name"],
        FUNCTIONS,
        labels=settings.get("labels"),
        root=settings.get("root", "forage"),
    )

    def make_client(client_id):
        return MQTTClient(
            client_id,
            settings["host"],
            settings.get("port", 1883),
            settings.get("user"),
            settings.get("password"),
            keepalive=KEEPALIVE_S,
        )

    run(device, make_client, settings.get("start", ""))


main()

"""Loading the MQTT library without what is not used, beside programs that use it by themselves."""

import subprocess
import sys

import pytest


def said_by(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


def test_what_a_client_does_not_use_is_not_loaded() -> None:
    script = (
        "import sys, forage.connecting\n"
        "unused = ['ssl', 'urllib.request', 'urllib.parse', 'uuid', 'platform', 'dataclasses',"
        " 'inspect', 'ast', 'random', 'pathlib', 'ipaddress', 'asyncio', 'numpy']\n"
        "print(*[name for name in unused if name in sys.modules])"
    )
    assert said_by(script) == ""


@pytest.mark.parametrize(
    "use",
    [
        "assert library._base62(library.uuid.uuid4().int)",
        "import ssl; assert library.ssl.SSLContext is ssl.SSLContext",
        "import platform; assert library.platform.system() == platform.system()",
        "assert library.urllib.parse.quote('a b') == 'a%20b'",
        "assert library.urllib.request.getproxies() is not None",
        "library.Client(library.CallbackAPIVersion.VERSION2).tls_set()",
        "import uuid, ssl, platform, urllib.request, urllib.parse, base64; uuid.uuid4();"
        " assert urllib.request.getproxies() is not None",
    ],
)
def test_a_program_that_uses_the_library_by_itself_finds_all_of_it(use: str) -> None:
    script = (
        f"import forage_wire.shell.mqtt\nimport paho.mqtt.client as library\n{use}\nprint('done')"
    )
    assert said_by(script) == "done"

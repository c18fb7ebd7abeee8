"""Half of a surrogate pair, which Python holds and UTF-8 does not: refused where it comes in."""

from collections.abc import Callable

import pytest

import forage
from forage_wire.texts import check_text, writable
from sdk.fleet import WAIT_S
from sdk.functions import add

HALF = "a\ud800"


@pytest.mark.parametrize(
    "door",
    [
        lambda client: client.options(requires=HALF),
        lambda client: client.options(requires={"room": HALF}),
        lambda client: client.options(device=HALF),
        lambda client: client.submit(f"org.app.{HALF}", 1),
        lambda client: client.submit_all(f"org.app.{HALF}", [1]),
        lambda client: client.drain(HALF),
        lambda client: client.attach(HALF),
        lambda client: client.task(HALF),
        lambda client: client.cancel(HALF),
    ],
    ids=["label", "label map", "device", "name", "names", "drain", "attach", "task", "cancel"],
)
def test_it_is_refused_in_words_and_the_client_goes_on(
    client: forage.Client, door: Callable[[forage.Client], object]
) -> None:
    with pytest.raises(ValueError, match=r"ud800") as caught:
        door(client)
    assert type(caught.value) is ValueError
    assert client.submit(add, 1, 2).result(WAIT_S) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"broker": f"mqtt://ann:{HALF}@127.0.0.1"},
        {"broker": f"mqtt://{HALF}"},
        {"root": HALF},
        {"user": HALF},
    ],
    ids=["password", "host", "root", "user"],
)
def test_it_is_refused_in_settings(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"U\+D800|ud800") as caught:
        forage.connect(**{"broker": "mqtt://127.0.0.1", **settings})
    assert type(caught.value) is ValueError


def test_a_value_may_hold_it(client: forage.Client) -> None:
    assert client.submit(add, HALF, "\udfff").result(WAIT_S) == "a\ud800\udfff"


def test_texts_that_can_be_written_stay_as_they_are() -> None:
    for text in ("", "plain", "größer", "\U0001f43f"):
        assert check_text(text, "It") is text
        assert writable(text) == text
    assert writable("x\udcff") == "x\\udcff"

"""What these tests let decoders meet is nobody else's."""

from collections.abc import Iterator

import pytest

from forage_wire.ignored import KEYS_IGNORED


@pytest.fixture(autouse=True)
def no_keys_left() -> Iterator[None]:
    KEYS_IGNORED.clear()
    yield
    KEYS_IGNORED.clear()

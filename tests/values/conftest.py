"""What all tests of values share."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from forage_wire.values.modules import activate

# A loaded machine is slow now and then; no test here is about time.
settings.register_profile("values", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("values")


@pytest.fixture(autouse=True)
def _no_modules_of_another_test() -> Iterator[None]:
    """Leave no shipped function's modules visible to the next test."""
    yield
    activate(None)

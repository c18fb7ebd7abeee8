"""What all tests of values share."""

from hypothesis import HealthCheck, settings

# A loaded machine is slow now and then; no test here is about time.
settings.register_profile("values", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("values")

"""What all tests share: examples that are the same on every run, and no verdict that depends on a machine's speed."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "gymrl", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gymrl")

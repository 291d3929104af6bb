"""Property tests run short by default, and long as `fuzz` tests where FIM_FUZZ=1 is set."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

LONG = os.environ.get("FIM_FUZZ") == "1"

_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile("short", max_examples=60, deadline=None, derandomize=True, suppress_health_check=_CHECKS)
settings.register_profile("fuzz", max_examples=10_000, deadline=None, suppress_health_check=_CHECKS)
settings.load_profile("fuzz" if LONG else "short")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if LONG and getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.fuzz)

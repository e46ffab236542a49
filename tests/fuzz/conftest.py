"""Thousands of cases may take longer than a test may: each case has its own limit."""

from __future__ import annotations

import pytest
from fuzzing import MANY


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lift the limit of a test where many cases are asked for."""
    for item in items:
        if MANY and item.path.name.startswith("test_fuzz"):
            item.add_marker(pytest.mark.timeout(0))

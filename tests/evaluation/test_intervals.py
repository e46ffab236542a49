"""Intervals against textbook quantiles and hand arithmetic."""

import math

import pytest

from cwdpo.evaluation.intervals import bootstrap_mean, mean_interval


def test_mean_interval() -> None:
    """1, 2, 3: mean 2, standard deviation 1, half width 4.303 / √3 = 2.484."""
    assert mean_interval([1, 2, 3]) == pytest.approx((2, 2 - 2.4843, 2 + 2.4843), abs=1e-3)
    assert mean_interval([2, 2]) == (2, 2, 2)


def test_one_value_has_no_interval() -> None:
    mean, low, high = mean_interval([3])
    assert mean == 3 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (11, 2.201), (20, 2.086), (60, 2.000), (1000, 1.962)])
def test_quantiles(freedom: int, quantile: float) -> None:
    """Student's 0.975 quantiles, as tables print them."""
    values = [0.0, 1.0] * ((freedom + 1) // 2) + [0.5] * ((freedom + 1) % 2)
    _, low, high = mean_interval(values)
    deviation = math.sqrt(sum((v - 0.5) ** 2 for v in values) / freedom)
    assert (high - low) / 2 / deviation * math.sqrt(len(values)) == pytest.approx(quantile, abs=1e-3)


def test_bootstrap_of_a_mean_is_near_the_normal_one() -> None:
    values = [float(i % 10) for i in range(400)]
    _, low, high = mean_interval(values)
    assert bootstrap_mean(values) == pytest.approx((low, high), abs=0.05)

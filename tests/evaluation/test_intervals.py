"""Intervals against textbook quantiles and hand arithmetic."""

import math

import pytest

from cwdpo.evaluation.intervals import bootstrap_mean, interval_text, mean_interval, mean_row, share_interval


@pytest.mark.parametrize(
    ("values", "quantile"),
    [([1, 2, 3], 4.303), ([0, 1], 12.706), ([0, 1] * 6, 2.201), ([0, 1] * 30 + [0.5], 2.000)],
)
def test_a_mean_by_students_t(values: list[float], quantile: float) -> None:
    """Half the width is the 0.975 quantile, to three decimals as tables print it, times the standard error."""
    mean, low, high = mean_interval(values)
    center = sum(values) / len(values)
    error = math.sqrt(sum((v - center) ** 2 for v in values) / (len(values) - 1) / len(values))
    assert (mean, low, high) == pytest.approx((center, center - quantile * error, center + quantile * error), abs=1e-4)


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [0.0] * 5, [0.3, 0.1 + 0.2]])
def test_equal_values_have_no_interval(values: list[float]) -> None:
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values[0]) and math.isnan(low) and math.isnan(high)
    assert bootstrap_mean(values) is None
    assert mean_row(values) == pytest.approx({"mean": values[0]})
    assert interval_text({}, ".1f") == interval_text({"low": None, "high": None}, ".1f") == "–"


def test_the_bootstrap_of_a_mean() -> None:
    """400 zeros and 400 ones: the standard error is .5/√800 = .01768, the interval .5 ± 1.96 of it."""
    interval = bootstrap_mean([0.0, 1.0] * 400)
    assert interval == pytest.approx((0.4654, 0.5346), abs=0.004)
    assert bootstrap_mean([0.0, 1.0] * 400) == interval == share_interval([0.0, 1.0] * 400)
    assert interval_text({"low": 0.4654, "high": 0.5346}, "+.1f", 100) == "[+46.5, +53.5]"


def test_a_share_of_all_or_none() -> None:
    """Wilson: n/(n + z²) to 1 for n of n; z² = 3.8415."""
    assert share_interval([1.0] * 3) == pytest.approx((3 / 6.8415, 1.0), abs=1e-4)
    assert share_interval([0.0]) == pytest.approx((0.0, 3.8415 / 4.8415), abs=1e-4)
    assert share_interval([0.5, 0.5]) is None

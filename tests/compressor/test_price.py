"""The rate-distortion weight that leads to a size."""

from __future__ import annotations

import pytest

from pysoftq.compressor.price import HIGHEST, LOWEST, changed_price, find_price, next_price


@pytest.mark.parametrize("start", [1e-6, 0.05, 1e3])
@pytest.mark.parametrize("target", [0.5, 2.0, 6.0])
def test_the_size_is_just_below_the_target(start: float, target: float) -> None:
    def size_of(price: float) -> float:
        return float(8 / (1 + price**0.3))

    assert 0.995 * target <= size_of(find_price(size_of, target, start)) <= target


def test_sizes_that_jump() -> None:
    price = find_price(lambda price: 4.0 if price < 0.3 else 2.0, 3.0, 0.05)
    assert 0.3 <= price <= 0.3 * 1.001


def test_the_ends_of_the_range() -> None:
    assert find_price(lambda _: 5.0, 1.0, 0.05) == HIGHEST
    assert find_price(lambda _: 0.5, 1.0, 0.05) == LOWEST


def test_the_weight_rises_with_the_excess() -> None:
    assert next_price(0.1, 3.0, 2.0) == pytest.approx(0.15)
    assert next_price(0.1, 1.0, 2.0) == pytest.approx(0.05)
    assert next_price(0.1, 0.0, 2.0) == LOWEST
    assert next_price(HIGHEST, 3.0, 2.0) == HIGHEST


def test_the_weight_changes_in_small_steps() -> None:
    assert changed_price(0.1, 1.05) == pytest.approx(0.1 * 1.05**2)
    assert changed_price(0.1, 1 / 1.05) == pytest.approx(0.1 / 1.05**2)
    assert changed_price(0.1, 1.001) == pytest.approx(0.102)
    assert changed_price(0.1, 0.999) == pytest.approx(0.1 / 1.02)
    assert changed_price(0.1, 40.0) == pytest.approx(0.125)
    assert changed_price(0.1, 0.0) == pytest.approx(0.08)

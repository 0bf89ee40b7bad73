"""Means and intervals against independent computations: loops, normal theory, and simulated truth."""

from __future__ import annotations

import random
import statistics as plain

import numpy as np
import pytest
from benchmarks import false_alarms
from hypothesis import given, settings
from hypothesis import strategies as st

from padapter.comparison import statistics as ours
from padapter.comparison.statistics import (
    Difference,
    difference_by_rows,
    difference_by_seeds,
    percentile_interval,
    resampled_row_means,
    resampled_seed_means,
    spread,
)

Z = plain.NormalDist().inv_cdf(0.975)
FINITE = st.floats(-1, 1, allow_nan=False)


def loop_bootstrap(first: list, second: list, resamples: int, seed: int) -> list[float]:
    """The crossed bootstrap as its description reads, one resample, one seed, one row at a time."""
    dice = random.Random(seed)
    seeds, rows = len(first), len(first[0])
    draws = []
    for _ in range(resamples):
        chosen_seeds = [dice.randrange(seeds) for _ in range(max(1, seeds - 1))]
        chosen_rows = [dice.randrange(rows) for _ in range(rows)]
        gaps = [first[s][r] - second[s][r] for s in chosen_seeds for r in chosen_rows]
        draws.append(plain.fmean(gaps))
    return draws


@given(st.lists(FINITE, min_size=2, max_size=12))
def test_spread_is_that_of_the_standard_library(values):
    found = spread(values)
    assert found.mean == pytest.approx(plain.fmean(values), abs=1e-12)
    assert found.std == pytest.approx(plain.stdev(values), abs=1e-9)
    assert found.count == len(values)


def test_a_single_value_has_no_spread_and_none_no_mean():
    assert spread([0.5]) == ours.Spread(0.5, None, 1)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_the_interval_is_that_of_a_loop():
    generator = np.random.default_rng(3)
    hard = generator.normal(size=40)
    first = 0.2 + hard + 0.3 * generator.normal(size=(4, 1)) + 0.5 * generator.normal(size=(4, 40))
    second = hard + 0.5 * generator.normal(size=(4, 40))
    found = difference_by_rows(first, second)
    draws = sorted(loop_bootstrap(first.tolist(), second.tolist(), 4000, seed=1))
    width = draws[3900] - draws[99]
    assert found.mean == pytest.approx((first - second).mean())
    assert found.low == pytest.approx(draws[99], abs=0.06 * width)
    assert found.high == pytest.approx(draws[3900], abs=0.06 * width)
    assert (found.seeds, found.rows) == (4, 40)


def test_rows_alone_give_the_interval_of_normal_theory():
    generator = np.random.default_rng(0)
    first, second = generator.random((1, 4000)), generator.random((1, 4000))
    gaps = (first - second)[0]
    half = Z * gaps.std(ddof=1) / len(gaps) ** 0.5
    found = difference_by_rows(first, second)
    assert found.low == pytest.approx(gaps.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(gaps.mean() + half, abs=0.05 * half)


def test_many_seeds_alone_give_the_interval_of_normal_theory():
    generator = np.random.default_rng(1)
    first, second = generator.normal(0.7, 0.02, 400), generator.normal(0.69, 0.02, 400)
    half = Z * (first - second).std(ddof=1) / 20
    found = difference_by_seeds(first, second)
    assert found.low == pytest.approx((first - second).mean() - half, abs=0.06 * half)
    assert found.high == pytest.approx((first - second).mean() + half, abs=0.06 * half)
    assert (found.seeds, found.rows) == (400, 0)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_resampled_seeds_have_the_unbiased_variance(seeds):
    values = np.random.default_rng(seeds).normal(size=seeds)
    draws = resampled_seed_means(values, resamples=200_000)
    assert draws.var() == pytest.approx(values.var(ddof=1) / seeds, rel=0.02)


def test_rows_are_drawn_once_for_all_columns():
    generator = np.random.default_rng(2)
    hard = generator.normal(size=300)
    means = resampled_row_means(np.stack([hard, hard + 1, -hard], axis=1), resamples=500)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1)
    np.testing.assert_allclose(means[:, 2], -means[:, 0])
    assert means[:, 0].std() > 0.02


def test_what_all_rows_share_makes_the_interval_no_wider():
    """Pairing: hard rows are hard for both methods and must cancel."""
    generator = np.random.default_rng(5)
    hard = 10 * generator.normal(size=500)
    first = np.stack([hard + 0.1, hard + 0.1, hard + 0.1])
    second = np.stack([hard, hard, hard])
    found = difference_by_rows(first, second)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)
    assert found.is_noise is False


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Rows matter more than seeds here, as with a few thousand questions and a stable recipe."""
    generator = np.random.default_rng(11)
    covered = 0
    for trial in range(200):
        rows = generator.normal(0.1, 0.6, 150)
        gaps = rows + generator.normal(0, 0.01, (3, 1)) + generator.normal(0, 0.1, (3, 150))
        found = difference_by_rows(gaps, np.zeros_like(gaps), seed=(trial,), resamples=800)
        covered += found.low <= 0.1 <= found.high
    assert 0.90 <= covered / 200 <= 0.985


def test_memory_is_bounded_and_chunks_do_not_matter_for_the_law(monkeypatch):
    items = np.random.default_rng(4).random((1000, 2))
    whole = resampled_row_means(items, resamples=2000)
    monkeypatch.setattr(ours, "DRAWS_AT_ONCE", 3000)
    asked = []
    real = np.random.default_rng

    class Watched:
        def __init__(self, seed):
            self.inner = real(seed)

        def integers(self, low, high, size):
            asked.append(size[0] * size[1])
            return self.inner.integers(low, high, size=size)

    monkeypatch.setattr(np.random, "default_rng", Watched)
    chunked = resampled_row_means(items, resamples=2000)
    assert max(asked) <= 3000
    np.testing.assert_array_equal(chunked, whole)  # the stream of draws is the same, only cut elsewhere


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**31))
def test_shapes_signs_and_order(seeds, rows, seed):
    generator = np.random.default_rng(seed)
    first, second = generator.random((seeds, rows)), generator.random((seeds, rows))
    found = difference_by_rows(first, second, resamples=200)
    turned = difference_by_rows(second, first, resamples=200)
    assert (found.seeds, found.rows) == (seeds, rows)
    assert found.low <= found.high
    assert turned.mean == pytest.approx(-found.mean)
    assert turned.low == pytest.approx(-found.high)
    assert found == difference_by_rows(first, second, resamples=200)
    bound = np.abs(first - second).max() + 1e-9
    assert -bound <= found.low
    assert found.high <= bound


def test_one_seed_without_rows_has_no_interval():
    found = difference_by_seeds([0.7], [0.6])
    assert found == Difference(pytest.approx(0.1), None, None, 1, 0)
    assert found.is_noise is None


def test_an_interval_that_touches_zero_is_noise():
    assert Difference(0.1, 0.0, 0.2, 3, 5).is_noise is True
    assert Difference(0.1, 0.01, 0.2, 3, 5).is_noise is False
    assert Difference(-0.1, -0.2, -0.01, 3, 5).is_noise is False


def test_percentiles_are_the_middle():
    assert percentile_interval(np.arange(1001)) == pytest.approx((25, 975))
    assert percentile_interval(np.arange(1001), level=0.5) == pytest.approx((250, 750))


@pytest.mark.parametrize(
    "call",
    [
        lambda: difference_by_rows(np.zeros((2, 3)), np.zeros((3, 2))),
        lambda: difference_by_rows(np.zeros((0, 3)), np.zeros((0, 3))),
        lambda: difference_by_rows(np.zeros(3), np.zeros(3)),
        lambda: difference_by_seeds([0.1], [0.1, 0.2]),
        lambda: difference_by_seeds([], []),
        lambda: resampled_row_means(np.zeros((0, 2))),
        lambda: ours.variance_components(np.zeros(3)),
        lambda: resampled_seed_means(np.zeros((5, 2)), resamples=6),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


@pytest.mark.parametrize(
    ("seeds", "low", "high", "noise"), [(3, 0.1, 0.2, None), (10, 0.1, 0.2, False), (3, -1, 1, True)]
)
def test_a_few_seeds_alone_can_never_prove_a_difference(seeds, low, high, noise):
    assert Difference(0.15, low, high, seeds, rows=0).is_noise is noise
    assert Difference(0.15, low, high, seeds, rows=9, row_variance=2, seed_variance=1).is_noise is bool(noise)
    assert Difference(0.15, low, high, seeds, rows=9, row_variance=1, seed_variance=2).is_noise is noise


def test_two_seeds_prove_nothing_and_one_is_judged_by_its_rows():
    assert Difference(0.15, 0.1, 0.2, 2, rows=9, row_variance=1).is_noise is None
    assert Difference(0.15, -0.1, 0.2, 2, rows=9, row_variance=1).is_noise is True
    assert Difference(0.15, 0.1, 0.2, 1, rows=9, row_variance=1).is_noise is False


def test_components_of_the_variance_are_those_that_were_put_in():
    """Means of many draws against the variances that the gaps were drawn with."""
    generator = np.random.default_rng(9)
    seeds, rows, found = 4, 50, []
    for _ in range(2000):
        of_row, of_seed = generator.normal(0, 2, rows), generator.normal(0, 0.5, (seeds, 1))
        gaps = of_row + of_seed + generator.normal(size=(seeds, rows))
        means = gaps.mean(axis=1)
        of_rows, of_seeds = ours.variance_components(gaps)
        # The seeds' part is cut off at 0, which happens seldom enough here.
        found.append((of_rows, of_seeds, means.var(ddof=1) / seeds))
    of_rows, of_seeds, all_of_seeds = np.mean(found, axis=0)
    assert of_rows == pytest.approx((4 + 1 / seeds) / rows, rel=0.03)
    assert of_seeds == pytest.approx(0.25 / seeds, rel=0.06)
    assert all_of_seeds == pytest.approx((0.25 + 1 / rows) / seeds, rel=0.06)


def test_a_shift_that_all_seeds_share_is_no_variance():
    gaps = np.full((3, 8), 0.1)
    assert ours.variance_components(gaps) == pytest.approx((0, 0), abs=1e-20)
    assert ours.variance_components([[0.0, 1.0]]) == pytest.approx((0.25, 0.0))
    assert ours.variance_components([[0.0], [1.0]])[0] == 0


@pytest.mark.parametrize(("seeds", "least", "most"), [(3, 0.19, 0.31), (10, 0.03, 0.12)])
def test_how_often_seeds_alone_see_a_difference_where_there_is_none(seeds, least, most):
    """What ENOUGH_SEEDS rests on."""
    assert least <= false_alarms.seeds_alone(seeds) <= most


FULL_TABLE = [(seeds, of_seeds) for seeds in false_alarms.SEEDS for of_seeds in false_alarms.OF_SEEDS]
QUICK = ((3, 0.0), (3, 4.0))  # in every run; the rest of the table by `make test-slow`


@pytest.mark.parametrize(
    ("seeds", "of_seeds"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in FULL_TABLE],
)
def test_how_often_rows_and_a_few_seeds_see_a_difference_where_there_is_none(seeds, of_seeds):
    """Equal methods; the interval alone excludes 0 more often, the more seeds matter."""
    found = false_alarms.with_rows(seeds, of_seeds)
    # 7.2 % at the worst, and nearly three standard deviations of a thousand trials
    assert found["called_larger_than_noise"] <= 0.095
    if of_seeds == 10 and seeds < 5:
        assert found["excluded"] >= 0.2
    if seeds == 2:
        assert found["called_larger_than_noise"] == 0

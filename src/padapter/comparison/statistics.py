"""Means, spreads and bootstrap intervals of scores: pure functions on arrays.

The interval of a difference between two methods is a percentile interval (Efron & Tibshirani, *An Introduction to
the Bootstrap*, 1993, section 13.3) of a two-way bootstrap. The scores of one method form a matrix, seeds by rows of
the benchmark, and both are samples: other seeds could have been drawn, and other questions could have been asked. All
seeds are scored on the same rows, so the two ways are crossed and not nested: a resample draws rows once for all
seeds and methods, and seeds once for all rows (the "pigeonhole" bootstrap: McCullagh, *Resampling and exchangeable
arrays*, Bernoulli 6, 2000; Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 1, 2007). The two-level
bootstrap for nested data (Davison & Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8) would draw
new rows for every seed and so lose what the seeds have in common: that some rows are hard.

Of S seeds a resample draws S - 1, not S: with S the variance of a mean comes out (S - 1)/S times too small (Efron,
*The Jackknife, the Bootstrap and Other Resampling Plans*, 1982; McCarthy & Snowden, *The bootstrap and finite
population sampling*, 1985), a third at the three seeds that are usual here. Of rows there are enough not to care.

Few seeds remain few: the spread of three numbers is itself hardly known, and an interval from them covers less often
than it says when seeds matter more than rows. `variance_components` tells the two apart (the analysis of variance of
a two-way layout with one value per cell; Searle, Casella & McCulloch, *Variance Components*, 1992, chapter 4), and
`Difference.is_noise` then declines to answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
LEVEL = 0.95
# From seeds alone, the interval of two equal methods excludes 0 in a quarter of all comparisons with three seeds (all
# differences of the same sign: 2 / 2^3), in 12 % with six and in 8 % with ten, instead of the 5 % that it says.
ENOUGH_SEEDS = 10
# The spread of two numbers is known so badly that rows cannot make up for it: with two seeds that matter, up to
# half of the intervals of equal methods exclude 0 (both seeds' differences of the same sign), and the two cannot even
# tell whether they matter.
FEWEST_SEEDS = 3
# Row numbers drawn at a time: 4 Mi of them are 32 MiB.
DRAWS_AT_ONCE = 2**22

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        std: their standard deviation with n - 1 in the denominator; ``None`` for a single value.
        count: how many there were.
    """

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """The difference of two methods' mean scores, and how sure it is.

    Attributes:
        mean: first minus second, over the seeds (and rows) that both have.
        low: lower end of the interval; ``None`` where there is none.
        high: upper end.
        seeds: how many seeds were paired; more than one are resampled.
        rows: how many rows were paired and resampled; 0 where only scores of whole runs could be paired.
        row_variance: of the mean, from the choice of rows; 0 without rows.
        seed_variance: of the mean, from the choice of seeds; 0 for a single seed, and without rows, where it is not
            told apart.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    rows: int
    row_variance: float = 0.0
    seed_variance: float = 0.0

    @property
    def is_noise(self) -> bool | None:
        """Whether the interval includes 0; ``None`` where that cannot be told.

        It cannot without an interval, nor where an interval without 0 rests on too few seeds: on two; or on fewer
        than `ENOUGH_SEEDS` without rows, or where seeds move the mean more than the choice of rows does. One seed
        with rows is judged by its rows alone.
        """
        if self.low is None or self.high is None:
            return None
        if self.low <= 0 <= self.high:
            return True
        if self.rows and self.seeds == 1:
            return False
        if self.seeds >= ENOUGH_SEEDS:
            return False
        rows_matter_more = self.rows > 0 and self.seed_variance <= self.row_variance
        return False if rows_matter_more and self.seeds >= FEWEST_SEEDS else None


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation.

    Args:
        values: one per seed.

    Raises:
        ValueError: if there are none.
    """
    if len(values) == 0:
        raise ValueError("no values to take the mean of")
    numbers = np.asarray(values, dtype=np.float64)
    std = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    return Spread(float(numbers.mean()), std, len(numbers))


def resampled_row_means(items: ArrayLike, *, seed: Sequence[int] = (0,), resamples: int = RESAMPLES) -> Floats:
    """Means of every column over rows drawn with replacement, the same rows for all columns.

    Args:
        items: (N, K) scores of N rows in K runs.
        seed: of the draws.
        resamples: how many, R.

    Returns:
        (R, K). However large N is, some tens of MiB are needed besides.

    Raises:
        ValueError: if ``items`` is no matrix with at least one row.
    """
    matrix = np.asarray(items, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] == 0:
        raise ValueError(f"expected a matrix (rows, runs) with at least one row, got shape {matrix.shape}")
    rows = matrix.shape[0]
    generator = np.random.default_rng([*seed, 0])
    means = np.empty((resamples, matrix.shape[1]))
    chunk = max(1, DRAWS_AT_ONCE // rows)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = generator.integers(0, rows, size=(size, rows))
        drawn += rows * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows)
        means[start : start + size] = counts @ matrix / rows
    return means


def resampled_seed_means(values: ArrayLike, *, seed: Sequence[int] = (0,), resamples: int = RESAMPLES) -> Floats:
    """Means over S - 1 seeds drawn with replacement out of S; a single seed is kept.

    Args:
        values: (R, S), already resampled over rows, or (S,), one score per seed.
        seed: of the draws.
        resamples: R; must agree with a matrix.

    Returns:
        (R,).

    Raises:
        ValueError: for another shape.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1:
        array = np.broadcast_to(array, (resamples, array.shape[0]))
    if array.ndim != 2 or array.shape[0] != resamples or array.shape[1] == 0:
        raise ValueError(f"expected a matrix ({resamples}, seeds) with at least one seed, got shape {array.shape}")
    seeds = array.shape[1]
    generator = np.random.default_rng([*seed, 1])
    drawn = generator.integers(0, seeds, size=(resamples, max(1, seeds - 1)))
    return np.take_along_axis(array, drawn, axis=1).mean(axis=1)


def variance_components(gaps: ArrayLike) -> tuple[float, float]:
    """What the choice of rows and what that of seeds adds to the variance of a mean over both.

    The seeds' part is what the means of the seeds vary more than noise within them explains: two methods whose
    seeds differ only by such noise, which the rows already count, get 0.

    Args:
        gaps: (S, N) differences of N rows for S seeds.

    Returns:
        The rows' part and the seeds' part; the latter is 0 for a single seed, the former for a single row.

    Raises:
        ValueError: if ``gaps`` is no matrix or is empty.
    """
    matrix = np.asarray(gaps, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"expected a matrix (seeds, rows), got shape {matrix.shape}")
    seeds, rows = matrix.shape
    by_row, by_seed = matrix.mean(axis=0), matrix.mean(axis=1)
    of_rows = float(by_row.var(ddof=1)) / rows if rows > 1 else 0.0
    if seeds == 1:
        return of_rows, 0.0
    left = matrix - by_row - by_seed[:, None] + matrix.mean()
    within = float((left**2).sum()) / ((seeds - 1) * max(1, rows - 1))
    return of_rows, max(0.0, float(by_seed.var(ddof=1)) - within / rows) / seeds


def percentile_interval(draws: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of bootstrap draws: the middle ``level`` of them, (R,) to (low, high)."""
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference_by_rows(
    first: ArrayLike, second: ArrayLike, *, seed: Sequence[int] = (0,), resamples: int = RESAMPLES
) -> Difference:
    """The difference of two methods, paired by seed and row; both are resampled (see the module's text).

    Args:
        first: (S, N) scores of N rows for S seeds.
        second: the same of the method that is subtracted: same seeds, same rows, same order.
        seed: of the draws.
        resamples: how many.

    Raises:
        ValueError: if the shapes differ or are empty.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 2 or one.size == 0:
        raise ValueError(f"expected two matrices (seeds, rows) of one shape, got {one.shape} and {two.shape}")
    gaps = one - two
    by_rows = resampled_row_means(gaps.T, seed=seed, resamples=resamples)
    draws = resampled_seed_means(by_rows, seed=seed, resamples=resamples)
    seeds, rows = gaps.shape
    return Difference(float(gaps.mean()), *percentile_interval(draws), seeds, rows, *variance_components(gaps))


def difference_by_seeds(
    first: ArrayLike, second: ArrayLike, *, seed: Sequence[int] = (0,), resamples: int = RESAMPLES
) -> Difference:
    """The difference of two methods whose metric is no mean over rows: only seeds are resampled.

    The interval therefore knows nothing of the choice of rows. A single seed has none.

    Args:
        first: (S,) scores of S seeds.
        second: the same of the method that is subtracted.
        seed: of the draws.
        resamples: how many.

    Raises:
        ValueError: if the shapes differ or are empty.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 1 or one.size == 0:
        raise ValueError(f"expected two vectors (seeds,) of one length, got shapes {one.shape} and {two.shape}")
    gaps = one - two
    if len(gaps) == 1:
        return Difference(float(gaps[0]), None, None, 1, 0)
    draws = resampled_seed_means(gaps, seed=seed, resamples=resamples)
    return Difference(float(gaps.mean()), *percentile_interval(draws), len(gaps), 0)

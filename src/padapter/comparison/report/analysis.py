"""What a report says, as numbers: means, the best of every column, paired differences. No text, no formatting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from padapter.comparison import statistics
from padapter.comparison.records import MethodEntry, Results, RunRecord
from padapter.comparison.statistics import Difference, Floats, Spread
from padapter.errors import UserError

# Scores with a smaller gap print as the same number of percent and share the first place.
TIE_DIGITS = 4
BEST, SAME, WORSE, UNKNOWN, OUT = "best", "same", "worse", "unknown", ""


@dataclass(frozen=True)
class Unpaired:
    """Why two cells have no paired difference."""

    reason: str


@dataclass(frozen=True)
class Pair:
    """A paired difference together with its bootstrap draws, (R,); ``None`` where it has no interval."""

    difference: Difference
    draws: Floats | None


class Analysis:
    """Everything that is computed from results, once.

    A benchmark's name, or `AVERAGE`, names a column.

    Args:
        results: a comparison as far as it has come.

    Raises:
        UserError: if two runs fill the same place, or a run's rows disagree with its score or with each other.
    """

    AVERAGE = "average over the benchmarks"

    def __init__(self, results: Results) -> None:
        self.results = results
        self.benchmarks = tuple(entry.name for entry in results.benchmarks)
        self.cells: dict[tuple[str, str], list[RunRecord]] = {
            (method.name, benchmark): self._cell(method.name, benchmark)
            for method in results.methods
            for benchmark in self.benchmarks
        }
        # (method, benchmark, seed) -> (R,) the run's score over resampled rows. Not by the digest of its options:
        # two rows of the table may have the same ones.
        self._row_means: dict[tuple[str, str, int], Floats] = {}
        for index, benchmark in enumerate(self.benchmarks):
            self._resample_rows(index, benchmark)
        self._pairs: dict[tuple[str, str, str], Pair | Unpaired] = {}

    @cached_property
    def contenders(self) -> tuple[MethodEntry, ...]:
        """The methods that can be best."""
        return tuple(method for method in self.results.methods if not method.apart)

    @property
    def has_average(self) -> bool:
        """Whether there is a column of averages."""
        return len(self.benchmarks) > 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The benchmarks, and the average where there is more than one."""
        return (*self.benchmarks, self.AVERAGE) if self.has_average else self.benchmarks

    def runs_of(self, method: str) -> list[RunRecord]:
        """All runs of a row."""
        return [run for benchmark in self.benchmarks for run in self.cells[method, benchmark]]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs of the table."""
        return [run for method in self.results.methods for run in self.runs_of(method.name)]

    @property
    def expected(self) -> int:
        """How many runs the finished table has."""
        return len(self.results.methods) * len(self.benchmarks) * len(self.results.seeds)

    def is_complete(self, method: str, column: str) -> bool:
        """Whether a cell has all its seeds; an average needs all cells of its row."""
        columns = self.benchmarks if column == self.AVERAGE else (column,)
        return all(len(self.cells[method, each]) == len(self.results.seeds) > 0 for each in columns)

    def score(self, method: str, column: str) -> Spread | None:
        """Mean and standard deviation over the seeds of a cell; an average only where its row is complete."""
        if column != self.AVERAGE:
            runs = self.cells[method, column]
            return statistics.spread([run.score for run in runs]) if runs else None
        if not self.is_complete(method, column):
            return None
        by_seed = zip(*(self.cells[method, each] for each in self.benchmarks), strict=True)
        return statistics.spread([float(np.mean([run.score for run in runs])) for runs in by_seed])

    def base_score(self, column: str) -> float | None:
        """Score of the unadapted model, where known."""
        known = self.results.base_scores
        if column != self.AVERAGE:
            return known.get(column)
        scores = [known[each] for each in self.benchmarks if each in known]
        return float(np.mean(scores)) if len(scores) == len(self.benchmarks) else None

    def mixed(self, column: str) -> str | None:
        """Why the scores of a column cannot be ranked, if so."""
        for benchmark in self.benchmarks if column == self.AVERAGE else (column,):
            runs = [run for (_, name), cell in self.cells.items() if name == benchmark for run in cell]
            rules, rows = sorted({f"{run.metric} by {run.rule}" for run in runs}), {run.rows_digest for run in runs}
            if len(rules) > 1:
                return f"scored by different rules: {', '.join(rules)}"
            if len(rows) > 1:
                return "scored on different rows"
            if _trained_on_different_data(runs):
                return "trained on different data"
        return None

    def best(self, column: str) -> tuple[str, ...]:
        """The methods with the highest mean among those that are finished and do not stand apart.

        Several share the place if their scores print alike. Nobody is best of fewer than two.
        """
        if self.mixed(column):
            return ()
        scores = {
            method.name: round(found.mean, TIE_DIGITS)
            for method in self.contenders
            if self.is_complete(method.name, column) and (found := self.score(method.name, column))
        }
        if len(scores) < 2:
            return ()
        return tuple(name for name, value in scores.items() if value == max(scores.values()))

    def standing(self, method: str, column: str) -> str:
        """`BEST`, `SAME` (the interval of its difference to the best includes 0), `WORSE`, `UNKNOWN` or `OUT`."""
        best = self.best(column)
        if not best or method not in {each.name for each in self.contenders} or not self.is_complete(method, column):
            return OUT
        if method in best:
            return BEST
        noise = [
            pair.difference.is_noise if isinstance(pair := self.pair(method, leader, column), Pair) else None
            for leader in best
        ]
        if any(noise):
            return SAME
        return UNKNOWN if None in noise else WORSE

    def decided(self, column: str) -> bool:
        """Whether all methods that can be best are finished in a column, so that its best will stay."""
        finished = all(self.is_complete(method.name, column) for method in self.contenders)
        return finished and bool(self.best(column))

    def pair(self, first: str, second: str, column: str) -> Pair | Unpaired:
        """The difference of two methods, first minus second, over the seeds that both have."""
        key = (first, second, column)
        if key not in self._pairs:
            self._pairs[key] = self._average_pair(first, second) if column == self.AVERAGE else self._pair(*key)
        return self._pairs[key]

    def _cell(self, method: str, benchmark: str) -> list[RunRecord]:
        runs = [run for run in self.results.cell(method, benchmark) if run.seed in self.results.seeds]
        for before, after in pairwise(runs):
            if before.seed == after.seed:
                raise UserError(
                    f"{method} on {benchmark}, seed {after.seed}: two records claim the same place; that of this "
                    f"run is {record_file(after)}: delete the other file that names this method, benchmark and seed."
                )
        return runs

    def _resample_rows(self, index: int, benchmark: str) -> None:
        """Draw rows once for all runs on the same rows, which is both what pairing asks for and the cheapest."""
        groups: dict[str, list[RunRecord]] = {}
        for (_, name), runs in self.cells.items():
            for run in runs:
                if name == benchmark and run.items:
                    groups.setdefault(run.rows_digest, []).append(run)
        for runs in groups.values():
            lengths = {len(run.items) for run in runs}
            if len(lengths) > 1:
                cut = [record_file(run) for run in runs if len(run.items) < max(lengths)]
                raise UserError(
                    f"{benchmark}: runs on the same rows have scores of {sorted(lengths)} rows; "
                    f"delete what was cut to repeat these runs: {', '.join(cut)}."
                )
            items = np.asarray([run.items for run in runs], dtype=np.float64)
            for run, mean in zip(runs, items.mean(axis=1), strict=True):
                if not math.isclose(mean, run.score, abs_tol=1e-4):
                    raise UserError(
                        f"{run.method} on {benchmark}, seed {run.seed}: the score is {run.score:.6g} but the mean "
                        f"over its rows is {mean:.6g}; delete {record_file(run)} to repeat the run."
                    )
            means = statistics.resampled_row_means(items.T, seed=(index,))
            self._row_means.update({_place(run): means[:, column] for column, run in enumerate(runs)})

    def _pair(self, first: str, second: str, benchmark: str) -> Pair | Unpaired:
        ours = {run.seed: run for run in self.cells[first, benchmark]}
        theirs = {run.seed: run for run in self.cells[second, benchmark]}
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return Unpaired("no seed in common yet")
        runs = [table[seed] for table in (ours, theirs) for seed in seeds]
        if len({(run.metric, run.rule) for run in runs}) > 1:
            return Unpaired("scored by different rules")
        if len({run.rows_digest for run in runs}) > 1:
            return Unpaired("scored on different rows")
        if _trained_on_different_data(runs):
            return Unpaired("trained on different data")
        gaps = np.asarray([ours[seed].score - theirs[seed].score for seed in seeds])
        entropy = (self.benchmarks.index(benchmark),)
        if all(run.items for run in runs):
            by_rows = [self._row_means[_place(ours[seed])] - self._row_means[_place(theirs[seed])] for seed in seeds]
            draws = statistics.resampled_seed_means(np.stack(by_rows, axis=1), seed=entropy)
            items = np.asarray([ours[seed].items for seed in seeds]) - [theirs[seed].items for seed in seeds]
            components = statistics.variance_components(items)
            return _with_interval(gaps, draws, len(seeds), len(runs[0].items), components)
        if len(seeds) == 1:
            return Pair(Difference(float(gaps[0]), None, None, 1, 0), None)
        return _with_interval(gaps, statistics.resampled_seed_means(gaps, seed=entropy), len(seeds), 0)

    def _average_pair(self, first: str, second: str) -> Pair | Unpaired:
        """Runs on different benchmarks have nothing in common, so their draws are independent."""
        if not all(self.is_complete(method, self.AVERAGE) for method in (first, second)):
            return Unpaired("a benchmark is not finished")
        found = [self._pair(first, second, benchmark) for benchmark in self.benchmarks]
        pairs = [pair for pair in found if isinstance(pair, Pair)]
        if len(pairs) < len(found):
            return next(pair for pair in found if isinstance(pair, Unpaired))
        mean = float(np.mean([pair.difference.mean for pair in pairs]))
        seeds = len(self.results.seeds)
        rows = [pair.difference.rows for pair in pairs]
        draws = [pair.draws for pair in pairs if pair.draws is not None]
        if len(draws) < len(pairs):
            return Pair(Difference(mean, None, None, seeds, 0), None)
        if not all(rows):
            return _with_interval([mean], np.mean(draws, axis=0), seeds, 0)
        parts = [(pair.difference.row_variance, pair.difference.seed_variance) for pair in pairs]
        of_rows, of_seeds = (sum(part) / len(pairs) ** 2 for part in zip(*parts, strict=True))
        return _with_interval([mean], np.mean(draws, axis=0), seeds, sum(rows), (of_rows, of_seeds))


def record_file(run: RunRecord) -> str:
    """Where a comparison keeps the record of a run, seen from its folder."""
    parts = [run.stage, run.benchmark, run.method]
    if run.stage == "tune":
        parts.append(f"lr-{run.learning_rate!r}")
    return f"records/{'--'.join([*parts, f'seed-{run.seed}'])}.json"


def _trained_on_different_data(runs: Sequence[RunRecord]) -> bool:
    """Whether two runs name different training rows; one without a fingerprint says nothing of them."""
    return len({found for run in runs if (found := run.train_fingerprint)}) > 1


def _place(run: RunRecord) -> tuple[str, str, int]:
    return run.method, run.benchmark, run.seed


def _with_interval(
    gaps: Sequence[float] | Floats, draws: Floats, seeds: int, rows: int, components: tuple[float, float] = (0.0, 0.0)
) -> Pair:
    low, high = statistics.percentile_interval(draws)
    return Pair(Difference(float(np.mean(gaps)), low, high, seeds, rows, *components), draws)

"""How often the intervals of a comparison see a difference between equal methods.

``python -m benchmarks.false_alarms`` writes the table that ``docs/comparing.md`` quotes; a minute on one core.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from padapter.comparison.statistics import difference_by_rows, difference_by_seeds

RESULTS = Path(__file__).parent / "results" / "false_alarms.json"
ROWS, WITHIN_SEED = 60, 0.3
SEEDS, OF_SEEDS = (2, 3, 5), (0.0, 1.0, 2.0, 4.0, 10.0)


def with_rows(seeds: int, of_seeds: float, trials: int = 1000) -> dict[str, float]:
    """Equal methods with scores per row; seeds move a mean by ``of_seeds`` times what the choice of rows does.

    Returns:
        Shares of the trials in which the interval excludes 0, and in which a report calls that larger than noise.
    """
    generator = np.random.default_rng(8)
    excluded = alarms = 0
    for trial in range(trials):
        gaps = generator.normal(size=ROWS) + generator.normal(0, of_seeds * (seeds / ROWS) ** 0.5, (seeds, 1))
        gaps += generator.normal(0, WITHIN_SEED, (seeds, ROWS))
        found = difference_by_rows(gaps, np.zeros_like(gaps), seed=(trial,), resamples=200)
        excluded += not found.low <= 0 <= found.high
        alarms += found.is_noise is False
    return {"excluded": excluded / trials, "called_larger_than_noise": alarms / trials}


def seeds_alone(seeds: int, trials: int = 500) -> float:
    """Share of the trials in which the interval of two equal methods without scores per row excludes 0."""
    generator = np.random.default_rng(7)
    excluded = 0
    for _ in range(trials):
        found = difference_by_seeds(generator.normal(size=seeds), generator.normal(size=seeds), resamples=400)
        excluded += not found.low <= 0 <= found.high
    return excluded / trials


def main() -> None:
    """Simulate all of it and write the file."""
    rows = [
        {"seeds": seeds, "seeds_to_rows": of_seeds, **with_rows(seeds, of_seeds)}
        for seeds in SEEDS
        for of_seeds in OF_SEEDS
    ]
    alone = [{"seeds": seeds, "excluded": seeds_alone(seeds)} for seeds in (3, 10)]
    RESULTS.write_text(json.dumps({"with_rows": rows, "seeds_alone": alone}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

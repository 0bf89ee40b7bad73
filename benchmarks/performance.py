"""What benchmarks have found, as the tables and plots of ``docs/performance.md``.

    python -m benchmarks.performance [--peak-tflops X --bandwidth-gb X]

fills the page's blocks ``<!-- benchmarks/results/NAME.json: SECTION --> ... <!-- end -->`` and draws ``docs/images``.
What has not been measured is said to be so. The two numbers are those of a GPU that `roofline.PEAKS` does not know.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots, roofline
from benchmarks.timing import RESULTS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
_BLOCK = re.compile(
    r"(<!-- benchmarks/results/(?P<name>\w+)\.json: (?P<section>[^>]+?) -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL
)
Result = Mapping[str, Any]


def read(name: str, folder: Path = RESULTS) -> Result | None:
    """A benchmark's file; None if there is none, or one of toy sizes."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return None if found.get("quick") else found


def times(result: Result) -> str:
    """Ratios of medians: one table per set of sides, a row per case."""
    return _tables(
        [case for case in result["cases"] if "ratio" in case],
        sides="ratio",
        baseline="baseline",
        base_column="`{}` takes",
        base=lambda case: _spread(case["median"][case["baseline"]], case["quartiles"][case["baseline"]]),
        cell=lambda case, side: f"{case['ratio'][side]:.2f}",
        target="target",
    )


def memory(result: Result) -> str:
    """Peaks of memory and their ratios, a row per case."""
    return _tables(
        [case for case in result["cases"] if "peak_ratio" in case],
        sides="peak_mb",
        baseline="peak_baseline",
        base_column="`{}` needs",
        base=lambda case: f"{case['peak_mb'][case['peak_baseline']]:,.1f} MiB",
        cell=lambda case, side: f"{case['peak_mb'][side]:,.1f} MiB ({case['peak_ratio'][side]:.2f})",
        target="peak_target",
    )


def _tables(
    cases: Sequence[Result], *, sides: str, baseline: str, base_column: str, base: Callable[[Result], str],
    cell: Callable[[Result, str], str], target: str,
) -> str:  # fmt: skip
    groups: dict[tuple[str, ...], list[Result]] = {}
    for case in cases:
        others = [side for side in case[sides] if side != case[baseline]]
        groups.setdefault((case[baseline], *others), []).append(case)
    parts = []
    for (standard, *others), members in groups.items():
        with_targets = any(case[target] for case in members)
        header = ["Case", base_column.format(standard), *others, *(["Target"] if with_targets else [])]
        rows = [
            [case["case"], base(case), *(cell(case, side) for side in others)]
            + ([_verdict(case, sides, target)] if with_targets else [])
            for case in members
        ]
        parts.append(_table(header, rows))
    return "\n".join(parts)


def _verdict(case: Result, sides: str, target: str) -> str:
    ratios = case["ratio" if sides == "ratio" else "peak_ratio"]
    return ", ".join(
        f"{side} ≤ {most:.2f}: {'met' if ratios[side] <= most else '**missed**'}" for side, most in case[target].items()
    )


def _spread(median: float, quartiles: Sequence[float]) -> str:
    low, high = (f"{1000 * value:.3g}" for value in quartiles)
    return f"{1000 * median:.3g} ms [{low}, {high}]"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def answers(result: Result) -> str:
    """Scores and losses with and without cached features."""
    rows = []
    for case in result["cases"]:
        for what in ("accuracy", "last_loss"):
            if what in case:
                title = f"{case['case']}: {what.replace('_', ' ')}"
                rows.append([title, *(f"{case[what][side]:.4f}" for side in ("without", "cached"))])
        if "losses_compared" in case:
            title = f"{case['case']}: largest relative difference of {case['losses_compared']} losses"
            rows.append([title, "", f"{case['largest_relative_difference_of_losses']:.1e}"])
    return _table(["", "without", "cached"], rows) if rows else ""


def kernel(result: Result) -> str:
    """The GPU kernel against flash attention: ratios of medians, and peaks."""
    header = ["Case", "forward", "forward + backward", "eager: forward + backward", "peak (flash attention)"]
    rows = []
    for case in result["cases"]:
        forward, both = case["ratio_to_sdpa"]["forward"], case["ratio_to_sdpa"]["forward + backward"]
        peak = {name: f"{value / 2**20:,.0f} MiB" for name, value in case["peak_bytes"].items()}
        ratios = [f"{value:.2f}" for value in (forward["triton"], both["triton"])]
        eager = f"{both['eager']:.2f}" if "eager" in both else "-"
        rows.append([roofline.label(case), *ratios, eager, f"{peak['triton']} ({peak['sdpa']})"])
    return _table(header, rows)


def rates(result: Result) -> str:
    """Candidates per second, each side's median."""
    cases = [case for case in result["cases"] if "candidates_per_second" in case]
    rows = []
    for case in cases:
        medians = case["candidates_per_second"]
        rates = [f"{medians[side]:,.1f}" for side in ("naive", "ours")]
        rows.append([case["case"], *rates, f"{medians['ours'] / medians['naive']:.1f}"])
    return _table(["Case", "naive, candidates/s", "ours, candidates/s", "ratio"], rows) if rows else ""


def picture(name: str, plot: str, alt: str) -> Callable[[Result], str]:
    """A renderer that shows ``docs/images/PLOT.svg``."""
    return lambda result: f"![{alt}](images/{plot}.svg)\n"


SECTIONS: dict[tuple[str, str], Callable[[Result], str]] = {
    ("scaling", "Curves"): picture(
        "scaling", "scaling", "Time against number of keys, queries, heads, rows, and the reduction factor."
    ),
    ("features", "Answers"): answers,
    ("ranking", "Rates"): rates,
    ("kernel", "Time"): kernel,
    ("kernel", "Roofline"): picture("kernel", "roofline", "Arithmetic throughput against intensity, below the roof."),
}
#: Sections of every file whose cases have what `timing.compare` and `timing.compare_memory` give.
COMMON: dict[str, Callable[[Result], str]] = {"Time": times, "Memory": memory}


def section(name: str, heading: str, folder: Path = RESULTS) -> str:
    """A block's content.

    Raises:
        ValueError: no file has such a section.
    """
    render = SECTIONS.get((name, heading), COMMON.get(heading))
    if render is None:
        raise ValueError(f"{name}.json has no section {heading!r}")
    result = read(name, folder)
    text = render(result) if result is not None else ""
    if result is None or not text:
        return f"*Not measured yet: `benchmarks/results/{name}.json` is written by `python -m benchmarks {name}`.*\n"
    return f"{text}\n{origin(name, result)}\n"


def origin(name: str, result: Result) -> str:
    """Where a block's numbers come from, in a line."""
    machine = result["machine"]
    gpus = sorted({case["gpu"] for case in result["cases"] if "gpu" in case})
    where = f"{gpus[0]}, torch {machine['torch']}" if gpus else _processor(machine, result)
    return f"`benchmarks/results/{name}.json`: {where}."


def _processor(machine: Result, result: Result) -> str:
    busy = " **The cores were busy: do not quote these numbers.**" if result.get("busy") else ""
    return (
        f"{machine['cpu']}, {machine['threads']} threads on {machine.get('cores', '?')} cores, "
        f"torch {machine['torch']}, load {result.get('load_at_start', 'unknown')} at the start{busy}"
    )


def blocks() -> list[tuple[str, str]]:
    """Benchmark and section of every block of the page."""
    return [(block["name"], block["section"]) for block in _BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]


def filled(page: str, folder: Path = RESULTS) -> str:
    """The page with its blocks taken from the files they name."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{section(block['name'], block['section'], folder)}\n{block[5]}", page)


def inside_blocks(page: str) -> str:
    """What was taken from files."""
    return "\n".join(block["text"] for block in _BLOCK.finditer(page))


def outside_blocks(page: str) -> str:
    """What people have written themselves."""
    return _BLOCK.sub("", page)


def draw(folder: Path, images: Path, peak: roofline.Peak | None = None) -> list[Path]:
    """Draw the plots of what has been measured, and remove those of what has not."""
    drawn = []
    for name, plot, how in (
        ("scaling", "scaling", plots.scaling),
        ("kernel", "roofline", lambda result: roofline.figure(result, peak)),
    ):
        target = images / f"{plot}.svg"
        target.unlink(missing_ok=True)
        result = read(name, folder)
        if result is not None:
            plots.save(how(result), target, source=plots.digest(folder / f"{name}.json"))
            drawn.append(target)
    return drawn


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser("python -m benchmarks.performance", description=__doc__)
    parser.add_argument("--peak-tflops", type=float, metavar="X", help="of the GPU, dense, in the cases' precision")
    parser.add_argument("--bandwidth-gb", type=float, metavar="X", help="of the GPU's memory, in GB/s")
    chosen = parser.parse_args()
    if (chosen.peak_tflops is None) != (chosen.bandwidth_gb is None):
        parser.error("--peak-tflops and --bandwidth-gb belong together")
    peak = roofline.Peak(chosen.peak_tflops * 1e12, chosen.bandwidth_gb * 1e9) if chosen.peak_tflops else None
    for path in draw(RESULTS, IMAGES, peak):
        print(path)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()

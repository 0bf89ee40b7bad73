"""What the numbers say, in words that claim no more than they do."""

from __future__ import annotations

from padapter.comparison.report.analysis import BEST, SAME, UNKNOWN, Analysis
from padapter.comparison.report.fairness import differing_options, differing_versions
from padapter.comparison.report.numbers import listed, plural
from padapter.comparison.report.tables import column_labels


def headline(analysis: Analysis) -> str:
    """The result in a sentence or two, of those benchmarks where every method that can be best is finished."""
    done, expected = len(analysis.runs), analysis.expected
    if done == 0:
        return f"None of {plural(expected, 'run')} is finished yet."
    progress = f"{done} of {plural(expected, 'run')} {'is' if done == 1 else 'are'} finished"
    if len(analysis.contenders) < 2:
        return f"{progress}; with fewer than two methods side by side there is nothing to rank."
    decided = [benchmark for benchmark in analysis.benchmarks if analysis.decided(benchmark)]
    if not decided:
        return f"{progress}; no benchmark can be ranked yet."
    prefix = f"So far ({progress}): " if done < expected else ""
    return f"{prefix}{_leaders(analysis, decided)} {_certainty(analysis, decided)}".rstrip()


def notices(analysis: Analysis) -> list[str]:
    """What a reader must know before trusting the tables."""
    found = []
    if len(analysis.runs) < analysis.expected:
        found.append(f"Unfinished: {len(analysis.runs)} of {plural(analysis.expected, 'run')}. Missing scores are '-'.")
    if len(analysis.results.seeds) == 1:
        found.append("One seed: neither the table nor the intervals know how much a score varies from seed to seed.")
    if options := differing_options(analysis):
        found.append(f"Methods differ in: {', '.join(options)}.")
    labels = column_labels(analysis)
    for benchmark in analysis.benchmarks:
        if reason := analysis.mixed(benchmark):
            found.append(f"{labels[benchmark]}: {reason}; its scores cannot be compared and none is marked best.")
    machines = {str(sorted(_hardware(run.provenance).items())) for run in analysis.runs}
    if len(machines) > 1:
        found.append(f"Runs on {len(machines)} different machines: times and memory cannot be compared between them.")
    if versions := differing_versions(analysis):
        found.append(
            f"Runs of one benchmark with different versions: {', '.join(versions)}; scores and times may differ."
        )
    return found


def _hardware(provenance: dict[str, object]) -> dict[str, object]:
    hardware = provenance.get("hardware")
    return {str(key): value for key, value in hardware.items()} if isinstance(hardware, dict) else {}


def _leaders(analysis: Analysis, decided: list[str]) -> str:
    labels = column_labels(analysis)
    names = {method.name: method.label for method in analysis.results.methods}
    places: dict[tuple[str, ...], list[str]] = {}
    for benchmark in decided:
        places.setdefault(analysis.best(benchmark), []).append(benchmark)
    total = len(analysis.benchmarks)
    parts = []
    for leaders, where in sorted(places.items(), key=lambda item: -len(item[1])):
        verb = "has" if len(leaders) == 1 else "share"
        on = listed([labels[benchmark] for benchmark in where])
        counted = f"{len(where)} of {total} benchmarks: {on}" if total > 1 else on
        parts.append(f"{listed([names[name] for name in leaders])} {verb} the highest mean on {counted}")
    apart = [method.label for method in analysis.results.methods if method.apart]
    return (f"{listed(apart)} apart, " if apart else "") + "; ".join(parts) + "."


def _certainty(analysis: Analysis, decided: list[str]) -> str:
    labels = column_labels(analysis)
    clear, unknown, noise = [], [], []
    for benchmark in decided:
        standings = {method: analysis.standing(method.name, benchmark) for method in analysis.contenders}
        rivals = [method.label for method, standing in standings.items() if standing == SAME]
        if rivals:
            noise.append(f"on {labels[benchmark]} it is within noise of {listed(rivals)}")
        elif UNKNOWN in standings.values():
            unknown.append(labels[benchmark])
        elif any(standing != BEST for standing in standings.values()):
            clear.append(labels[benchmark])
    parts = []
    if clear:
        parts.append(f"on {listed(clear)} the lead over the others is larger than noise")
    parts += [part.replace(" it is ", " the lead is ", 1) if not parts else part for part in noise]
    if unknown:
        parts.append(f"on {listed(unknown)} no interval tells whether the lead is more than noise")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""

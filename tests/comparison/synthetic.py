"""Made-up comparisons that look like real ones."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from padapter.comparison.records import BenchmarkEntry, MethodEntry, Results, RunRecord

METHODS = (
    MethodEntry("full", "Full fine-tuning", apart=True),
    MethodEntry("p-adapter", "p-adapter"),
    MethodEntry("adapter", "Adapter (Pfeiffer)"),
    MethodEntry("adapter-houlsby", "Adapter (Houlsby)"),
    MethodEntry("lora", "LoRA"),
    MethodEntry("prefix", "Prefix tuning"),
)
BENCHMARKS = (
    BenchmarkEntry("vqa", "Shapes VQA"),
    BenchmarkEntry("entailment", "Visual entailment"),
    BenchmarkEntry("caption", "Captions"),
)
# task, metric, rule, mean score, effect of every method
_BENCHMARKS = {
    "vqa": ("vqa", "accuracy", "vqa-official-2021", 0.61),
    "entailment": ("entailment", "accuracy", "exact", 0.74),
    "caption": ("caption", "CIDEr", "ptb-cider", 0.95),
}
_METHODS = {
    # effect on the score, trainable parameters, seconds per step, GiB
    "full": (0.012, 2_711_315, 0.212, 2.91),
    "p-adapter": (0.022, 52_656, 0.131, 1.62),
    "adapter": (0.008, 52_600, 0.118, 1.55),
    "adapter-houlsby": (0.010, 104_400, 0.127, 1.58),
    "lora": (0.004, 36_864, 0.121, 1.57),
    "prefix": (-0.035, 15_360, 0.110, 1.49),
}


def make_run(
    method: str = "lora",
    benchmark: str = "vqa",
    seed: int = 0,
    *,
    rows: int = 64,
    points: int = 12,
    stage: str = "test",
    rate: float = 5e-4,
    items: bool = True,
    **changes: object,
) -> RunRecord:
    """One run; its scores depend on method, benchmark and seed, its rows are hard for all methods alike."""
    task, metric, rule, mean = _BENCHMARKS[benchmark]
    effect, trainable, seconds, memory = _METHODS[method]
    hard = np.random.default_rng(zlib.crc32(benchmark.encode())).normal(0, 0.28, rows)
    own = np.random.default_rng([zlib.crc32(f"{method} {benchmark} {rate}".encode()), seed])
    ability = mean + effect * (0.4 if benchmark == "entailment" else 1) + 0.006 * own.normal() - 0.01 * (rate > 1e-3)
    scores = ability + hard + own.normal(0, 0.18, rows)
    if metric == "accuracy":
        scores = np.clip(np.round(scores * 10) / 10, 0, 1)
    steps = np.linspace(10, 1200, points).round().astype(int)
    loss = 0.6 + 2.4 * np.exp(-steps / (160 + 1500 * (effect < 0))) - effect * 4 + 0.05 * own.normal(size=points)
    share = steps[:: max(1, points // 6)]
    record = RunRecord(
        benchmark=benchmark,
        method=method,
        seed=seed,
        stage=stage,
        key=f"{stage}-{method}-{benchmark}-{rate}-{seed}",
        task=task,
        metric=metric,
        rule=rule,
        score=float(scores.mean()),
        metrics={metric: float(scores.mean())},
        items=scores.tolist(),
        rows_digest=f"rows of {benchmark}",
        learning_rate=rate,
        steps=1200,
        parameters={"trainable": trainable, "total": 2_711_315 + (0 if method == "full" else trainable)},
        adapter_bytes=4 * trainable + 2048,
        seconds_per_step=seconds * (1 + 0.02 * own.normal()) * (1.6 if benchmark == "caption" else 1),
        seconds=1200 * seconds,
        peak_memory_bytes=int(memory * 2**30 * (1 + 0.003 * own.normal())),
        curve=[[int(s), float(v)] for s, v in zip(steps, loss, strict=True)],
        scores=[[int(s), float(ability - 0.2 * np.exp(-s / 300))] for s in share],
        options={
            "task": task,
            "model": "shapes-blip",
            "batch_size": 32,
            "max_steps": 1200,
            "warmup": 0.06,
            "method": method,
            "learning_rate": rate,
            "seed": seed,
            "method_options": {"reduction_factor": 8, "dropout": 0.1} if "adapter" in method else {"rank": 8},
        },
        provenance={
            "versions": {"python": "3.11.9", "torch": "2.13.0", "padapter": "0.1.0"},
            "hardware": {"processor": "a processor", "cores": 2, "gpus": []},
        },
    )
    if not items:
        record = replace(record, items=[])
    return replace(record, **changes)


def make_results(
    seeds: tuple[int, ...] = (0, 1, 2),
    rows: int = 64,
    points: int = 12,
    tuned: bool = True,
    benchmarks: tuple[BenchmarkEntry, ...] = BENCHMARKS,
    **changes: object,
) -> Results:
    """Six methods on three tasks; captions have no scores per row, as CIDEr of a corpus has none."""
    records = [
        make_run(method.name, benchmark.name, seed, rows=rows, points=points, items=benchmark.name != "caption")
        for method in METHODS
        for benchmark in benchmarks
        for seed in seeds
    ]
    if tuned:
        records += [
            make_run(method.name, benchmark.name, 0, rows=rows, points=points, stage="tune", rate=rate)
            for method in METHODS
            for benchmark in benchmarks
            for rate in (1e-4, 5e-4, 2e-3)
        ]
    results = Results(
        title="Adapters on the shapes worlds",
        description="Six ways to adapt shapes-blip to a new domain, each with the learning rate that was best on "
        "validation rows, 1,200 steps of 32 rows, and three seeds.",
        methods=METHODS,
        benchmarks=benchmarks,
        seeds=seeds,
        baseline="adapter",
        records=tuple(records),
        base_scores={"vqa": 0.1021, "entailment": 0.3331, "caption": 0.2144},
    )
    return replace(results, **changes)

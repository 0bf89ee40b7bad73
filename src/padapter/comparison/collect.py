"""A finished run's folder as one record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from padapter.comparison.plan import Job, digest
from padapter.comparison.records import RunRecord
from padapter.errors import UserError
from padapter.evaluation.files import read_json
from padapter.training.callbacks import DIVERGED

# Scores are rounded by the files they come from; a mean that differs by more is another metric than the items'.
MEAN_TOLERANCE = 1e-6
_DIGITS = 6


def collect(job: Job, run: Path) -> RunRecord:
    """Read what a finished run left behind.

    Args:
        job: what was asked for.
        run: the folder that ``padapter train`` wrote.

    Raises:
        UserError: if the run is not finished, or was not scored.
    """
    metrics = read_json(run / "metrics.json", "delete the run's folder to repeat it")
    scores = metrics.get("scores") or {}
    before, after = scores.get("before"), scores.get("after")
    if metrics.get("status") != "finished" or after is None:
        raise UserError(f"{run}: is not finished")
    training, metric = metrics["training"], metrics["primary_metric"]
    ids, items = _items(run / "predictions.jsonl")
    log = _lines(run / "log.jsonl")
    memory = metrics["memory"]
    return RunRecord(
        benchmark=job.benchmark,
        method=job.method,
        seed=job.seed,
        stage=job.stage,
        key=job.key,
        task=metrics["task"],
        metric=metric,
        rule=after["rule"],
        score=after["metrics"][metric],
        metrics=after["metrics"],
        items=items if _is_mean(items, after["metrics"][metric]) else [],
        rows_digest=digest([metrics["data"]["eval"]["fingerprint"], ids]),
        learning_rate=training["learning_rate"],
        steps=training["steps"],
        parameters=training["parameters"],
        adapter_bytes=_size(run),
        seconds_per_step=training["seconds_per_step"],
        seconds=training["seconds"],
        peak_memory_bytes=memory.get("gpu_bytes", memory["resident_bytes"]),
        curve=[[line["step"], line["loss"]] for line in log if "loss" in line],
        scores=[[line["step"], line[f"eval_{metric}"]] for line in log if f"eval_{metric}" in line],
        options=job.plain(),
        provenance=metrics["provenance"],
        base_score=before["metrics"][metric] if before else None,
        train_fingerprint=metrics["data"]["train"]["fingerprint"],
    )


def has_diverged(run: Path) -> bool:
    """Whether a run has stopped because its loss was no number."""
    path = run / "metrics.json"
    return path.is_file() and read_json(path, "delete the run's folder to repeat it").get("status") == DIVERGED


def collect_diverged(job: Job, run: Path) -> RunRecord:
    """The record of a tuning run without a score."""
    metrics = read_json(run / "metrics.json", "delete the run's folder to repeat it")
    curve = [
        [line["step"], line["loss"]] for line in _lines(run / "log.jsonl") if math.isfinite(line.get("loss", math.nan))
    ]
    return RunRecord(
        benchmark=job.benchmark,
        method=job.method,
        seed=job.seed,
        stage=job.stage,
        key=job.key,
        task=metrics["task"],
        metric=metrics["primary_metric"],
        rule="",
        score=0.0,
        metrics={},
        items=[],
        rows_digest="",
        learning_rate=job.options["learning_rate"],
        steps=int(curve[-1][0]) if curve else 0,
        parameters={"trainable": 0, "total": 0},
        adapter_bytes=0,
        seconds_per_step=0.0,
        seconds=0.0,
        peak_memory_bytes=0,
        curve=curve,
        options=job.plain(),
        provenance=metrics["provenance"],
        train_fingerprint=metrics["data"]["train"]["fingerprint"],
        diverged=True,
    )


def _items(path: Path) -> tuple[list[str], list[float]]:
    """Ids and scores of all rows; no scores if one of them has none."""
    rows = _lines(path)
    scored = all("score" in row for row in rows)
    return [row["id"] for row in rows], [round(row["score"], _DIGITS) for row in rows] if scored else []


def _is_mean(items: list[float], score: float) -> bool:
    return bool(items) and math.isclose(sum(items) / len(items), score, rel_tol=MEAN_TOLERANCE, abs_tol=MEAN_TOLERANCE)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _size(run: Path) -> int:
    """Bytes of the weights that were saved: an adapter's folder, or the whole model's."""
    folder = run / "adapter" if (run / "adapter").is_dir() else run / "model"
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))

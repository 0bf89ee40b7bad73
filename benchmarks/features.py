"""``--cache-features``: the first epoch, in which image states are computed and kept, against the second.

Whole training runs, each with an empty cache, and one without the option to compare losses and scores with.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers.trainer
from transformers import TrainerCallback

from benchmarks.models import blip_config, save_blip
from benchmarks.timing import compare
from padapter.cache import VARIABLE
from padapter.options import TrainOptions
from padapter.training import train

#: The second epoch takes at most this share of the first.
TARGET = 1 / 3
ROUNDS = 7


class EpochClock(TrainerCallback):
    """Seconds of every epoch of the runs of this process."""

    seconds: list[float] = []  # noqa: RUF012 - the trainer makes the instances, one for every run

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def trained(folder: Path, model: str, train_on: str, *, cached: bool, **options: Any) -> dict[str, Any]:
    """Train with an empty cache; seconds per epoch, losses per step, and the score if rows are scored."""
    shutil.rmtree(folder / "features", ignore_errors=True)
    EpochClock.seconds = []
    report = train(
        TrainOptions(
            task="vqa", model=model, train=train_on, output=str(folder / "run"), overwrite=True, cache_features=cached,
            log_every=1, save_every="never", score_base=False, quiet=True, **options,
        )
    )  # fmt: skip
    entries = [json.loads(line) for line in (report.output / "log.jsonl").read_text().splitlines()]
    scores = (report.metrics["scores"].get("after") or {}).get("metrics", {})
    return {
        "epochs": EpochClock.seconds,
        "losses": [entry["loss"] for entry in entries if "loss" in entry],
        "accuracy": scores.get("accuracy"),
    }


def speed(folder: Path, quick: bool) -> dict[str, Any]:
    """Epochs of a model of BLIP base size on few pictures."""
    config = blip_config(layers=1, width=64, side=32, words=600) if quick else blip_config()
    save_blip(folder / "model", config)
    rows, rounds = (4, 1) if quick else (8, ROUNDS)
    options = {"epochs": 2, "batch_size": rows // 2}
    model, world = str(folder / "model"), f"shapes:new-questions:train:{rows}"
    plain = trained(folder, model, world, cached=False, **options)
    runs = [trained(folder, model, world, cached=True, **options) for _ in range(rounds)]
    seconds = {name: [run["epochs"][epoch] for run in runs] for epoch, name in enumerate(("first", "second"))}
    pairs = [(a, b) for run in runs for a, b in zip(run["losses"], plain["losses"], strict=True)]
    return {
        "case": f"BLIP {'toy' if quick else 'base'}, {config.vision_config.image_size} px, {rows} rows",
        **compare(seconds, "first", second=TARGET),
        "epochs_without_cache": plain["epochs"],
        "losses_compared": len(pairs),
        "largest_relative_difference_of_losses": max(abs(a - b) / abs(b) for a, b in pairs),
    }


def scores(folder: Path, quick: bool) -> dict[str, Any]:
    """The built-in model, whose answers mean something, scored after training with and without the option."""
    rows, scored = (8, 4) if quick else (128, 512)
    options = {
        "epochs": 2, "batch_size": 16, "eval": f"shapes:source:test:{scored}", "num_beams": 1, "learning_rate": 1e-3,
    }  # fmt: skip
    found = {
        name: trained(folder, "shapes-blip", f"shapes:source:train:{rows}", cached=cached, **options)
        for name, cached in (("without", False), ("cached", True))
    }
    return {
        "case": f"shapes-blip, {scored} rows scored",
        "accuracy": {name: run["accuracy"] for name, run in found.items()},
        "last_loss": {name: run["losses"][-1] for name, run in found.items()},
    }


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    """Time at base size, then scores of the built-in model."""
    transformers.trainer.DEFAULT_CALLBACKS.append(EpochClock)
    before = os.environ.get(VARIABLE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ[VARIABLE] = folder
            yield speed(Path(folder), quick)
            yield scores(Path(folder), quick)
    finally:
        transformers.trainer.DEFAULT_CALLBACKS.remove(EpochClock)
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before

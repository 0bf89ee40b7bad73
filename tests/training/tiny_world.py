"""A tiny random BLIP and ten rows per task, written where a test wants them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

from tiny_blip import make_image, save_tiny

from padapter.options import TrainOptions

ROWS = 10
TEXTS = {
    "vqa": (
        {"question": "what color is the dog ?", "answers": ["red"] * 7 + ["blue"] * 3},
        {"question": "how many cats", "answers": ["two"] * 10},
    ),
    "entailment": (
        {"hypothesis": "the dog is red", "label": "entailment"},
        {"hypothesis": "there is a cat", "label": "contradiction"},
    ),
    "caption": ({"captions": ["a red dog", "the dog is red"]}, {"captions": ["a small cat in the picture"]}),
}


def write_model(folder: Path, **options) -> str:
    """A model with dropout, so that a resumed run is only right if the random state is."""
    return save_tiny(folder, **{"dropout": 0.1, **options})


def write_data(folder: Path, task: str) -> str:
    """The splits train, validation and test, of the same ten rows."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(ROWS):
        make_image(number).save(folder / "images" / f"{number}.png")
        lines.append(json.dumps({"image": f"images/{number}.png", **TEXTS[task][number % 2]}))
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def short_run(model: str, data: str, **changes) -> TrainOptions:
    """Options of a run of a few steps on the CPU; keywords win."""
    settings = {
        "task": "vqa",
        "model": model,
        "train": data,
        "epochs": 1,
        "batch_size": 4,
        "max_new_tokens": 6 if changes.get("task") == "caption" else 3,
        "num_beams": 1,
        "learning_rate": 0.01,
        "quiet": True,
        "device": "cpu",
        **changes,
    }
    if changes.get("task") == "entailment":
        del settings["max_new_tokens"], settings["num_beams"]
    if "max_steps" in changes:
        del settings["epochs"]
    return TrainOptions(**settings)

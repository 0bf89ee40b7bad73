"""What a run does with its training pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

from padapter.backbones import Backbone
from padapter.data.augment import Augmentation, count_mirror_words
from padapter.evaluation.pictures import read_preprocessing
from padapter.options import TrainOptions
from padapter.tasks import Task
from padapter.tasks.base import iterate_texts


def prepare_for_training(backbone: Backbone, run: Path, options: TrainOptions) -> None:
    """Make a model that was just loaded look at pictures as a run asks for, or has begun with.

    Raises:
        UserError: if the model cannot.
    """
    record = read_preprocessing(run) if options.resume else None
    if record is not None:
        backbone.preprocess_as(record)
    else:
        backbone.preprocess(image_size=options.image_size, resize=options.resize)


def describe_augmentation(
    augmentation: Augmentation | None, task: Task, rows: Dataset, quiet: bool
) -> dict[str, Any] | None:
    """What is done to training pictures, for a result file; says aloud which rows flips make untrue.

    Args:
        augmentation: of the run.
        task: tells what a row says about its picture.
        rows: of training.
        quiet: say nothing aloud.

    Returns:
        All operations with their settings; where some of them flip, how many rows speak of sides or of something to be
        read, and whether these are flipped too. ``None`` without augmentation.
    """
    if augmentation is None:
        return None
    found: dict[str, Any] = {"operations": str(augmentation)}
    if augmentation.flips:
        counts = count_mirror_words(task.texts(row) for row in iterate_texts(rows))
        found["flips"] = {"rows": len(rows), **counts, "spared": not augmentation.flips_all}
        if augmentation.flips_all and any(counts.values()) and not quiet:
            print(
                f"--augment: of {len(rows):,} training rows {counts['sides']:,} speak of sides and "
                f"{counts['reading']:,} of something to be read, and may not be true of a flipped picture; 'flip' "
                "instead of 'flip-all' leaves those as they are",
                file=sys.stderr,
            )
    return found

"""How a model reads one row: the picture after preprocessing, tokens, and what is cut."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from padapter.errors import UserError

if TYPE_CHECKING:
    import torch

    from padapter.tasks import Task

_TILES = 6
#: Stands for the target of a row without one: models read a prompt together with a target.
_NO_TARGET = (("yes", 1.0),)


@dataclass(frozen=True)
class Seen:
    """One row as a model reads it.

    Attributes:
        tiles: The picture after preprocessing: one square, or several tiles; empty where it cannot be drawn.
        prompt_tokens: Length of the prompt, with what stands for the picture in it.
        target_tokens: Length of each target, with its end token if there was room for it; empty without targets.
        room: Longest sequence that the model reads.
        prompt_cut: Whether the prompt lost its beginning.
        targets_cut: How many targets lost their end.
        text: The first sequence, token by token as text.
        problem: Why the model cannot read the row, or None.
    """

    tiles: list[Image.Image]
    prompt_tokens: int = 0
    target_tokens: tuple[int, ...] = ()
    room: int = 0
    prompt_cut: bool = False
    targets_cut: int = 0
    text: str = ""
    problem: str | None = None


class Reader:
    """A model that reads rows for the preview, in just the way in which it reads them in training.

    Args:
        model: A built-in name, a folder or a hub id.
        task: Gives prompt and targets.
        image_size: Width and height of pictures; None for the model's own.
        resize: How pictures are made square; None for the model's own way.

    Raises:
        UserError: There is no such model, or it cannot look at pictures like that.
    """

    def __init__(self, model: str, task: Task, *, image_size: int | None = None, resize: str | None = None) -> None:
        from padapter.backbones import load_backbone

        self.backbone = load_backbone(model, asks=task.asks)
        self.task = task.led_by(self.backbone.lead_in)
        self.backbone.preprocess(image_size=image_size, resize=resize)

    def read(self, row: dict[str, Any]) -> Seen:
        """Read one row.

        Args:
            row: A row of loaded data: ``image`` and the task's fields.
        """
        from padapter.backbones import TrainingExample
        from padapter.tasks.unanswered import known_targets

        backbone = self.backbone
        before = backbone.cut_prompts, backbone.cut_targets
        targets = tuple(known_targets(self.task, row))
        try:
            example = TrainingExample(backbone.picture(row["image"]), self.task.prompt(row), targets or _NO_TARGET)
            batch = backbone.collate([example])
        except UserError as problem:
            return Seen([], problem=str(problem))
        learnt = (batch["labels"] >= 0).sum(dim=1).tolist()
        prompt = backbone.prompt_ids(batch)
        target = batch["input_ids"][0][batch["labels"][0] >= 0].tolist()
        return Seen(
            self._tiles(batch.get("pixel_values")),
            prompt_tokens=len(prompt),
            target_tokens=tuple(learnt) if targets else (),
            room=backbone.max_length,
            # One prompt is joined with every target, and counted each time.
            prompt_cut=backbone.cut_prompts > before[0],
            targets_cut=backbone.cut_targets - before[1] if targets else 0,
            text=self._text([*prompt, *target] if targets else prompt),
        )

    def _tiles(self, pixels: torch.Tensor | None) -> list[Image.Image]:
        """Pictures of pixel values (..., 3, h, w), of the first sequence; none of values in another arrangement."""
        if pixels is None or pixels.dim() < 4 or pixels.shape[-3] != 3:
            return []
        processor = self.backbone.processor.image_processor
        values = pixels[0].reshape(-1, *pixels.shape[-3:])[:_TILES].float().numpy()
        mean, spread = (
            np.asarray(getattr(processor, name, None) or default, dtype=np.float32).reshape(-1, 1, 1)
            for name, default in (("image_mean", (0.0,) * 3), ("image_std", (1.0,) * 3))
        )
        colours = np.clip(np.round((values * spread + mean) * 255), 0, 255).astype(np.uint8)
        return [Image.fromarray(np.ascontiguousarray(tile.transpose(1, 2, 0))) for tile in colours]

    def _text(self, ids: list[int]) -> str:
        """Tokens with spaces between them; many equal ones, as those of a picture, are counted."""
        tokens = self.backbone.processor.tokenizer.convert_ids_to_tokens(ids)
        runs = [(token, len(list(same))) for token, same in groupby(tokens)]
        return " ".join(f"{token} x {count}" if count > 2 else " ".join([token] * count) for token, count in runs)

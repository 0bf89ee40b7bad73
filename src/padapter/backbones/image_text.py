"""Any decoder-only vision-language model of transformers: the tokens of the answer follow those of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import GenerationConfig

from padapter.backbones.base import LossReduction
from padapter.backbones.continuations import of_text
from padapter.backbones.losses import labelled, next_token_loss
from padapter.backbones.processed import Encoded, ProcessedBackbone
from padapter.backbones.sequences import IGNORE
from padapter.data import Picture

#: PaliGemma reads tokens of type 0 in both directions; what it is to say is of type 1.
_ANSWER_TYPES = {"paligemma": 1}


class ImageTextTrainingModule(nn.Module):
    """Batch of :meth:`ImageTextBackbone.collate` -> loss and logits.

    Args:
        model: The model, or a PEFT wrapper around it.
        reduction: See :func:`padapter.backbones.losses.next_token_loss`.
    """

    accepts_loss_kwargs = False  # as in DecoderTraining

    def __init__(self, model: nn.Module, reduction: LossReduction) -> None:
        super().__init__()
        if reduction not in ("sequence", "token"):
            raise ValueError(f"loss_reduction must be 'sequence' or 'token', not {reduction!r}.")
        self.model = model
        self.reduction: LossReduction = reduction

    def forward(
        self, labels: torch.Tensor, weights: torch.Tensor, image_index: torch.Tensor, **inputs: Any
    ) -> dict[str, torch.Tensor]:
        """Return ``{"loss": (), "logits": (K, V)}``."""
        logits = self.predicted(labels, image_index, **inputs)
        pictures = int(image_index.max()) + 1
        loss = next_token_loss(logits, labels, weights, num_images=pictures, reduction=self.reduction)
        return {"loss": loss, "logits": logits}

    def predicted(self, labels: torch.Tensor, image_index: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Logits (K, V) that predict the tokens with a label; arguments are the fields of a batch."""
        return of_text(self.model(**inputs, use_cache=False).logits, labels.shape[1])[labelled(labels)]


class ImageTextBackbone(ProcessedBackbone):
    """A decoder-only model; its ``max_length`` includes image tokens. Arguments as of :class:`ProcessedBackbone`."""

    written = MappingProxyType(
        {
            "input_ids": 0,
            "attention_mask": 1,
            "token_type_ids": 0,
            "mm_token_type_ids": 0,
            "image_embeds_position_mask": 0,
            "cross_attention_mask": None,  # Mllama's, (1, L, pictures, tiles)
        }
    )

    def read(self, image: Image.Image | Picture, prompt: str) -> Encoded:
        """See :meth:`ProcessedBackbone.read`."""
        return self._encode(image, prompt)

    def entry(self, key: str) -> int:
        """See :meth:`ProcessedBackbone.entry`."""
        return _ANSWER_TYPES.get(self.kind, 0) if key == "token_type_ids" else super().entry(key)

    def batch(self, prompts: Sequence[Encoded], owners: Sequence[int], answers: Sequence[list[int]]) -> Encoded:
        """See :meth:`ProcessedBackbone.batch`; pictures are repeated for every answer."""
        rows = [self.followed(prompts[owner], answer) for owner, answer in zip(owners, answers, strict=True)]
        batch = self.together(rows, left=False)
        batch["labels"] = torch.full_like(batch["input_ids"], IGNORE)
        for labels, owner, answer in zip(batch["labels"], owners, answers, strict=True):
            start = self.length(prompts[owner])
            labels[start : start + len(answer)] = torch.tensor(answer)
        return batch

    def training_module(self, loss_reduction: LossReduction) -> nn.Module:
        """See :meth:`Backbone.training_module`."""
        return ImageTextTrainingModule(self.model, loss_reduction)

    def search(self, rows: Sequence[Encoded], config: GenerationConfig) -> list[list[int]]:
        """See :meth:`ProcessedBackbone.search`."""
        inputs = self.to_device(self.together(rows, left=True))
        output = self.base_model.generate(**inputs, generation_config=config)
        ids = inputs["input_ids"]
        if output.shape[1] >= ids.shape[1] and torch.equal(output[:, : ids.shape[1]], ids):
            output = output[:, ids.shape[1] :]
        return list(output.tolist())

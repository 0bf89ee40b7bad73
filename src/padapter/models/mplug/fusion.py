"""The fusion network: asymmetric co-attention, and now and then attention over image and text together."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from padapter.models.mplug.configuration import MPlugTextConfig
from padapter.models.mplug.layers import (
    MPlugTextAttentionBlock,
    MPlugTextIntermediate,
    MPlugTextOutput,
    MPlugTextStack,
)

#: masks of text, of the image, and of image and text together, as the attention implementation takes them
Masks = tuple["torch.Tensor | None", "torch.Tensor | None", "torch.Tensor | None"]


class MPlugCoAttentionLayer(GradientCheckpointingLayer):
    """Text attends to itself, then to the image; the image states stay as they are."""

    def __init__(self, config: MPlugTextConfig) -> None:
        super().__init__()
        self.attention = MPlugTextAttentionBlock(config)
        self.crossattention = MPlugTextAttentionBlock(config, is_cross_attention=True)
        self.intermediate = MPlugTextIntermediate(config)
        self.output = MPlugTextOutput(config, config.intermediate_size)

    def forward(
        self, text: torch.Tensor, image: torch.Tensor, masks: Masks, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L, d), (B, N, d) -> the same shapes."""
        text_mask, image_mask, _ = masks
        text = self.attention(text, text_mask, **kwargs)
        text = self.crossattention(text, image_mask, image, **kwargs)
        return self.output(self.intermediate(text), text), image


class MPlugConnectedLayer(GradientCheckpointingLayer):
    """Image and text attend to both; the image states are added to what came in, the text states replace it."""

    def __init__(self, config: MPlugTextConfig) -> None:
        super().__init__()
        self.attention = MPlugTextAttentionBlock(config)
        self.intermediate = MPlugTextIntermediate(config)
        self.output = MPlugTextOutput(config, config.intermediate_size)

    def forward(
        self, text: torch.Tensor, image: torch.Tensor, masks: Masks, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L, d), (B, N, d) -> the same shapes."""
        both = self.attention(torch.cat([image, text], dim=1), masks[2], **kwargs)
        both = self.output(self.intermediate(both), both)
        tokens = image.shape[1]
        return both[:, tokens:], image + both[:, :tokens]


class MPlugFusionEncoder(nn.Module):
    """The layers of the fusion network that run (`MPlugTextConfig.fusion_layers`, `stride_layer`).

    There are no layers or embeddings in front of them, as in the published code, which never calls those.
    """

    def __init__(self, config: MPlugTextConfig) -> None:
        super().__init__()
        self.config = config
        connected = config.connected_layers
        self.encoder = MPlugTextStack(
            [
                MPlugConnectedLayer(config) if r in connected else MPlugCoAttentionLayer(config)
                for r in range(config.fusion_layers)
            ]
        )

    def forward(
        self, text: torch.Tensor, image: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fuse.

        Args:
            text: (B, L, d), states of the text encoder.
            image: (B, N, d), states of the image encoder.
            attention_mask: (B, L), 1 for tokens of the text and 0 for padding; None: no padding.
            **kwargs: for the attention function.

        Returns:
            Text states (B, L, d) and image states (B, N, d).
        """
        together = None
        if attention_mask is not None:
            ones = attention_mask.new_ones(image.shape[:2])
            together = torch.cat([ones, attention_mask], dim=1)
        masks = (
            create_bidirectional_mask(self.config, text, attention_mask),
            create_bidirectional_mask(self.config, text, None, encoder_hidden_states=image),
            create_bidirectional_mask(self.config, torch.cat([image, text], dim=1), together),
        )
        for layer in self.encoder.layer:
            text, image = layer(text, image, masks, **kwargs)
        return text, image

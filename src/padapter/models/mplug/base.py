"""What mPLUG's models share: their output, the image encoder, and with the question's encoders `MPlugModel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from padapter.errors import UserError
from padapter.models.mplug.configuration import MPlugConfig
from padapter.models.mplug.fusion import MPlugFusionEncoder
from padapter.models.mplug.text import MPlugTextModel
from padapter.models.mplug.vision import MPlugVisionModel, init_class_embedding


@dataclass
class MPlugOutput(ModelOutput):
    """What a model returns; fields it does not compute are None.

    Attributes:
        loss: see the model's ``forward``.
        logits: (S, L, V), of the decoder.
        image_states: (B, N, d), of the image encoder, or as the fusion network leaves them.
        text_states: (B, L, d), of the fusion network.
        past_key_values: the decoder's cache.
        hidden_states: the decoder's, if asked for.
        attentions: its self-attention weights, if asked for.
        cross_attentions: its cross-attention weights, if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_states: torch.Tensor | None = None
    text_states: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class MPlugBridge(nn.Module):
    """Image states of another width, made as wide as the text's: (B, N, d_image) -> (B, N, d). ViT-L needs it."""

    def __init__(self, config: MPlugConfig) -> None:
        super().__init__()
        text = config.text_config
        self.dense = nn.Linear(config.vision_config.hidden_size, text.hidden_size)
        self.LayerNorm = nn.LayerNorm(text.hidden_size, eps=text.layer_norm_eps)
        self.dropout = nn.Dropout(text.hidden_dropout_prob)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Project and norm."""
        return self.dropout(self.LayerNorm(self.dense(states)))


class MPlugPreTrainedModel(PreTrainedModel):
    """What the models have in common: the image encoder."""

    config: MPlugConfig
    config_class = MPlugConfig
    base_model_prefix = "mplug"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = (
        "MPlugVisionEmbeddings",
        "MPlugVisionLayer",
        "MPlugTextEmbeddings",
        "MPlugTextLayer",
        "MPlugCoAttentionLayer",
        "MPlugConnectedLayer",
    )
    _skip_keys_device_placement = ("past_key_values",)

    def __init__(self, config: MPlugConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_model = MPlugVisionModel(vision)
        self.bridge = MPlugBridge(config) if vision.hidden_size != text.hidden_size else None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_class_embedding(module)

    def set_image_size(self, size: int) -> None:
        """Interpolate the position embeddings to another image size, for good; see `MPlugVisionModel`."""
        self.vision_model.set_image_size(size)

    def encode_images(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> torch.Tensor:
        """Images (B, 3, h, w) -> image states (B, N, d), as wide as the text's."""
        states = self.vision_model(pixel_values, interpolate_pos_encoding, **kwargs).last_hidden_state
        return states if self.bridge is None else self.bridge(states)

    def _images(
        self, pixel_values: torch.Tensor | None, image_states: torch.Tensor | None, interpolate: bool
    ) -> torch.Tensor:
        if (pixel_values is None) == (image_states is None):
            raise UserError("pass either pixel_values or image_states.")
        return image_states if pixel_values is None else self.encode_images(pixel_values, interpolate)  # type: ignore[return-value]


class MPlugModel(MPlugPreTrainedModel):
    """Image encoder, text encoder and fusion network, without the decoder."""

    _keys_to_ignore_on_load_unexpected: Any = (r"^text_decoder\.",)

    def __init__(self, config: MPlugConfig) -> None:
        super().__init__(config)
        self.text_encoder = MPlugTextModel(config.text_config)
        self.fusion_encoder = MPlugFusionEncoder(config.text_config)
        if type(self) is MPlugModel:
            self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings of the text encoder."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace them."""
        self.text_encoder.set_input_embeddings(value)

    def fuse(
        self, image_states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a question about an image.

        Args:
            image_states: (B, N, d), from `encode_images`.
            input_ids: (B, L), the question.
            attention_mask: (B, L), 0 for padding; None: no padding.

        Returns:
            Image states (B, N, d) and text states (B, L, d) of the fusion network.
        """
        read = self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        text, image = self.fusion_encoder(read, image_states, attention_mask)
        return image, text

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> MPlugOutput:
        """Encode image and question: ``image_states`` (B, N, d) and ``text_states`` (B, L, d), after fusion.

        Args:
            pixel_values: (B, 3, h, w).
            input_ids: (B, L), the question; None: the image is encoded and nothing fused.
            attention_mask: (B, L), 0 for padding; None: no padding.
            image_states: (B, N, d), in place of ``pixel_values``.
            interpolate_pos_encoding: whether images may have another size than the model's.
            **kwargs: ignored.

        Raises:
            UserError: without an image, and for images of another size.
        """
        image = self._images(pixel_values, image_states, interpolate_pos_encoding)
        if input_ids is None:
            return MPlugOutput(image_states=image)
        image, text = self.fuse(image, input_ids, attention_mask)
        return MPlugOutput(image_states=image, text_states=text)

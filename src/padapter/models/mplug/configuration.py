"""Configurations of mPLUG; the defaults are the base model's, as published."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


def _check_heads(kind: str, hidden_size: int, heads: int) -> None:
    if heads < 1 or hidden_size % heads:
        raise ValueError(f"{kind}: hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}.")


@strict
class MPlugVisionConfig(PreTrainedConfig):
    """The image encoder: CLIP's ViT with its last layer norm on all tokens.

    Attributes:
        hidden_size: width of the encoder.
        intermediate_size: width of its feed-forward layers.
        num_hidden_layers: number of layers.
        num_attention_heads: heads of each.
        num_channels: channels of an image.
        image_size: height and width of an image in pixels.
        patch_size: height and width of a patch in pixels.
        hidden_act: activation; CLIP's is ``x * sigmoid(1.702 x)``.
        layer_norm_eps: epsilon of the layer norms.
        attention_dropout: dropout of attention weights in training; the published training code has 0.1, ModelScope's
            port has 0.
        initializer_range: standard deviation of new weights.
    """

    model_type = "mplug_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 384
    patch_size: int = 16
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.1
    initializer_range: float = 0.02

    def validate_architecture(self) -> None:
        """Refuse sizes that do not go together."""
        _check_heads("vision_config", self.hidden_size, self.num_attention_heads)
        if self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"vision_config: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}."
            )


@strict
class MPlugTextConfig(PreTrainedConfig):
    """Text encoder, fusion network and decoder, which share all sizes.

    Only layers that run are counted, and built: the published code also builds six layers and embeddings in front of
    the fusion network that it never calls.

    Attributes:
        vocab_size: of the BERT vocabulary.
        hidden_size: width.
        intermediate_size: width of the feed-forward layers.
        num_hidden_layers: layers of the decoder.
        text_encoder_layers: layers of the text encoder.
        fusion_layers: layers of the fusion network.
        stride_layer: layer r = 0, 1, ... of the fusion network is connected if r > 0 and r is a multiple of it, and a
            co-attention layer otherwise. 3 in the base model; 6 in the large one, which so has no connected layer.
        num_attention_heads: heads of every attention module.
        max_position_embeddings: longest text.
        type_vocab_size: token types; only type 0 is used.
        hidden_act: activation (erf GELU).
        layer_norm_eps: epsilon of the layer norms.
        hidden_dropout_prob: dropout of embeddings and sublayers.
        attention_probs_dropout_prob: dropout of attention weights.
        initializer_range: standard deviation of new weights.
        pad_token_id: ``[PAD]``.
        bos_token_id: ``[CLS]``, which starts every text.
        eos_token_id: ``[SEP]``, which ends what the decoder writes.
        use_cache: whether the decoder keeps keys and values when it generates.
    """

    model_type = "mplug_text_model"
    base_config_key = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    text_encoder_layers: int = 6
    fusion_layers: int = 6
    stride_layer: int = 3
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | list[int] | None = 102
    use_cache: bool = True
    tie_word_embeddings: bool = True

    def validate_architecture(self) -> None:
        """Refuse sizes that do not go together."""
        _check_heads("text_config", self.hidden_size, self.num_attention_heads)
        if self.stride_layer < 1:
            raise ValueError(f"text_config: stride_layer is {self.stride_layer}, and must be 1 or more.")
        for name in ("num_hidden_layers", "text_encoder_layers", "fusion_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"text_config: {name} is {getattr(self, name)}, and must not be negative.")

    @property
    def connected_layers(self) -> list[int]:
        """Indices of the connected layers of the fusion network."""
        return [r for r in range(1, self.fusion_layers) if r % self.stride_layer == 0]


@strict
class MPlugConfig(PreTrainedConfig):
    """Sizes of the whole model.

    An instance makes transformers' Auto classes know the models (they are imported then, and not earlier).

    Attributes:
        vision_config: `MPlugVisionConfig`, or a dictionary of its fields.
        text_config: `MPlugTextConfig`, or a dictionary of its fields.
        initializer_range: standard deviation of new weights.
        tie_word_embeddings: whether the decoder's word embeddings are also its output layer.
    """

    model_type = "mplug"
    sub_configs = {"vision_config": MPlugVisionConfig, "text_config": MPlugTextConfig}  # noqa: RUF012

    vision_config: Any = None
    text_config: Any = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        for name, kind in self.sub_configs.items():
            given = getattr(self, name)
            if not isinstance(given, PreTrainedConfig):
                setattr(self, name, kind(**(given or {})))
        super().__post_init__(**kwargs)
        from padapter.models.mplug.registration import register_models

        register_models()

"""The image encoder: CLIP's ViT, with the last layer norm on all tokens and without its projection.

transformers' ``CLIPVisionModel`` applies that layer norm to the class token only, rounds eager attention to float32 and
interpolates positions bicubically.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from padapter.errors import UserError
from padapter.models.mplug.attention import eager_attention_forward
from padapter.models.mplug.configuration import MPlugVisionConfig
from padapter.models.mplug.positions import resize_positions


class MPlugVisionEmbeddings(nn.Module):
    """Patches, class token and positions: (B, 3, h, w) -> (B, 1 + patches, d)."""

    def __init__(self, config: MPlugVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.class_embedding = nn.Parameter(torch.randn(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        side = config.image_size // config.patch_size
        self.position_embedding = nn.Embedding(side * side + 1, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Embed images; see `MPlugVisionModel.forward`."""
        height, width = pixel_values.shape[-2:]
        size, patch = self.config.image_size, self.config.patch_size
        positions = self.position_embedding.weight
        if interpolate_pos_encoding:
            if height != width or height % patch:
                raise UserError(f"images are {height} x {width} pixels; they must be square, in patches of {patch}.")
            positions = resize_positions(positions, height // patch)
        elif (height, width) != (size, size):
            raise UserError(
                f"images are {height} x {width} pixels, and the model is made for {size} x {size}: use its processor, "
                "call set_image_size(), or pass interpolate_pos_encoding=True."
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + positions


class MPlugVisionAttention(nn.Module):
    """Self-attention over all tokens of an image, unmasked: (B, N, d) -> (B, N, d)."""

    def __init__(self, config: MPlugVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the states and, of implementations that have them, the weights (B, H, N, N)."""
        heads = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attend(
            self,
            query,
            key,
            value,
            None,
            scaling=self.head_dim**-0.5,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out_proj(context.reshape(hidden_states.shape)), weights


class MPlugVisionMLP(nn.Module):
    """Two linear layers with CLIP's activation between: (B, N, d) -> (B, N, d)."""

    def __init__(self, config: MPlugVisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each token by itself."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class MPlugVisionLayer(GradientCheckpointingLayer):
    """A pre-norm block: (B, N, d) -> (B, N, d)."""

    def __init__(self, config: MPlugVisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = MPlugVisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MPlugVisionMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Attention and feed-forward, each added to what came in."""
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class MPlugVisionModel(PreTrainedModel):
    """Images -> states of all tokens, normed.

    Args:
        config: sizes.
    """

    config: MPlugVisionConfig
    config_class = MPlugVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ("MPlugVisionEmbeddings", "MPlugVisionLayer")
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": MPlugVisionLayer,
        "attentions": MPlugVisionAttention,
    }

    def __init__(self, config: MPlugVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = MPlugVisionEmbeddings(config)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(MPlugVisionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_class_embedding(module)

    def get_input_embeddings(self) -> nn.Module:
        """The convolution that embeds patches."""
        return self.embeddings.patch_embedding

    def set_image_size(self, size: int) -> None:
        """Make the encoder one for another image size: its position embeddings are interpolated, for good.

        Args:
            size: height and width in pixels.

        Raises:
            UserError: if it is not a multiple of the patch size.
        """
        if size < 1 or size % self.config.patch_size:
            raise UserError(f"image size {size} is not a multiple of the patch size, {self.config.patch_size}.")
        old = self.embeddings.position_embedding
        table = resize_positions(old.weight.detach(), size // self.config.patch_size)
        new = nn.Embedding(len(table), table.shape[1], device=table.device, dtype=table.dtype)
        new.weight.data.copy_(table)
        new.weight.requires_grad_(old.weight.requires_grad)
        self.embeddings.position_embedding = new
        self.config.image_size = size

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutput:
        """Encode images.

        Args:
            pixel_values: (B, 3, h, w).
            interpolate_pos_encoding: whether images of another size than the config's are taken, with positions
                interpolated to it.
            **kwargs: ``output_attentions``, ``output_hidden_states``, and what attention functions take.

        Returns:
            ``last_hidden_state`` (B, N, d), N = 1 + (h / patch size)^2.

        Raises:
            UserError: for images of another size.
        """
        hidden_states = self.pre_layernorm(self.embeddings(pixel_values, interpolate_pos_encoding))
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=self.post_layernorm(hidden_states))


def init_class_embedding(module: nn.Module) -> None:
    """Initialise what `PreTrainedModel` does not: the class token, a bare parameter."""
    if isinstance(module, MPlugVisionEmbeddings):
        init.normal_(module.class_embedding, mean=0.0, std=module.config.hidden_size**-0.5)

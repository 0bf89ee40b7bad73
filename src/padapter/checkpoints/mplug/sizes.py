"""Sizes of an mPLUG model, read off the shapes of its weights, and the configuration that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping

from padapter.architectures.positions import grid_side
from padapter.checkpoints.layout import Shape, common_size, layer_count
from padapter.errors import UserError
from padapter.models.mplug.configuration import MPlugConfig

HEAD_WIDTH = 64
#: Layers of the published models by width: image encoder; text encoder, fusion network as built, decoder. A file that
#: lacks its last layer would otherwise be a smaller model.
VISION_LAYERS = {768: 12, 1024: 24}
TEXT_LAYERS = {768: (6, 12, 12)}


def config_of(shapes: Mapping[str, Shape], *, fusion_layers: int, stride_layer: int | None) -> tuple[MPlugConfig, int]:
    """Configuration of a fine-tuned file, each size as most entries have it; what is not there is as in the base model.

    Args:
        shapes: of its entries.
        fusion_layers: how many layers of the fusion network run, the last ones.
        stride_layer: see `MPlugTextConfig`; None: 3, or 6 if image and text differ in width.

    Returns:
        The configuration, for images of the size in the file, and the index, in the file, of the first layer of the
        fusion network that runs.

    Raises:
        UserError: if a width is no multiple of 64, the width of a head in all published models, or the file has fewer
            layers in its fusion network than shall run.
    """
    decoder = "text_decoder.bert.encoder.layer"
    visual = "visual_encoder.visual"
    vision = common_size(shapes, f"{visual}.transformer.resblocks.{{i}}.ln_1.weight", 0, 768)
    text = common_size(shapes, f"{decoder}.{{i}}.attention.output.LayerNorm.weight", 0, 768)
    for tower, width in (("visual_encoder", vision), ("text_decoder", text)):
        if width % HEAD_WIDTH:
            raise UserError(
                f"CHECKPOINT: {tower} is {width} wide, which is no multiple of {HEAD_WIDTH}, the width of a head in "
                "all published mPLUG models; so the number of its heads cannot be told."
            )
    prefixes = ("text_encoder.encoder.layer", "fusion_encoder.encoder.layer", decoder)
    encoder, built, layers = TEXT_LAYERS.get(text) or tuple(layer_count(shapes, prefix) for prefix in prefixes)
    if built < fusion_layers:
        raise UserError(f"--fusion-layers: {fusion_layers}, but the fusion network in CHECKPOINT has {built} layers")
    patch = max(1, common_size(shapes, f"{visual}.conv1.weight", -1, 16))
    grid = grid_side(common_size(shapes, f"{visual}.positional_embedding", 0, 577)) or 24
    embedded = "text_decoder.bert.embeddings.{which}_embeddings.weight".replace
    config = MPlugConfig(
        vision_config={
            "hidden_size": vision,
            "intermediate_size": common_size(
                shapes, f"{visual}.transformer.resblocks.{{i}}.mlp.c_fc.weight", 0, 4 * vision
            ),
            "num_hidden_layers": VISION_LAYERS.get(vision) or layer_count(shapes, f"{visual}.transformer.resblocks"),
            "num_attention_heads": vision // HEAD_WIDTH,
            "image_size": grid * patch,
            "patch_size": patch,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "attention_dropout": 0.1,
        },
        text_config={
            "vocab_size": common_size(shapes, embedded("{which}", "word"), 0, 30522),
            "hidden_size": text,
            "intermediate_size": common_size(shapes, f"{decoder}.{{i}}.intermediate.dense.weight", 0, 4 * text),
            "num_hidden_layers": layers,
            "text_encoder_layers": encoder,
            "fusion_layers": fusion_layers,
            "stride_layer": stride_layer or (3 if vision == text else 6),
            "num_attention_heads": text // HEAD_WIDTH,
            "max_position_embeddings": common_size(shapes, embedded("{which}", "position"), 0, 512),
            "type_vocab_size": common_size(shapes, embedded("{which}", "token_type"), 0, 2),
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
        },
    )
    return config, built - fusion_layers

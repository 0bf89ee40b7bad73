"""Tiny random models of every architecture in the table, with an input for each: no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import nn

from padapter.models.mplug import MPlugConfig, MPlugForConditionalGeneration, MPlugForQuestionAnswering

VOCABULARY, WIDTH, HEADS, KV_HEADS, LAYERS = 99, 32, 4, 2, 2
IMAGE_TOKEN = 90
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_GROUPED = {**_TEXT, "num_key_value_heads": KV_HEADS}
_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.2,
}

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Tiny:
    """One architecture of the suite.

    Attributes:
        build: a fresh random model.
        inputs: ``inputs(rows)`` is a batch; texts are ``decoder_input_ids`` or ``input_ids`` (rows, N).
        generates: whether the model has ``generate``.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    generates: bool = True


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(rows: int, length: int = 7, image_tokens: int = 0, extra: int = 0) -> torch.Tensor:
    """Token ids (rows, 1 + image_tokens + length): a first token, the image's tokens, words."""
    words = torch.randint(3, 80, (rows, length), generator=torch.Generator().manual_seed(1 + extra))
    start = torch.full((rows, 1), 1)
    return torch.cat([start, torch.full((rows, image_tokens), IMAGE_TOKEN), words], dim=1)


def pixels(rows: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return _random(rows, 3, size, size, seed=seed)


def _text_inputs(rows: int) -> Inputs:
    ids = text(rows)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _pixel_inputs(rows: int) -> Inputs:
    return {"pixel_values": pixels(rows)}


def _captioner_inputs(rows: int) -> Inputs:
    return {**_pixel_inputs(rows), **_text_inputs(rows)}


def _image_token_inputs(image_tokens: int, size: int = 16) -> Callable[[int], Inputs]:
    def inputs(rows: int) -> Inputs:
        ids = text(rows, image_tokens=image_tokens)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels(rows, size)}

    return inputs


def _encoder_decoder_inputs(rows: int) -> Inputs:
    return {**_text_inputs(rows), "decoder_input_ids": text(rows, 5, extra=1)}


def _seq2seq_pixels(rows: int) -> Inputs:
    return {**_pixel_inputs(rows), "decoder_input_ids": text(rows, 5, extra=1)}


def _llama_text() -> tf.LlamaConfig:
    return tf.LlamaConfig(**_GROUPED)


def _clip_vision() -> tf.CLIPVisionConfig:
    return tf.CLIPVisionConfig(**_VISION)


def _siglip_vision(**more: Any) -> tf.SiglipVisionConfig:
    return tf.SiglipVisionConfig(**{**_VISION, **more})


def _opt() -> tf.OPTConfig:
    return tf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, ffn_dim=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=128, word_embed_proj_dim=WIDTH, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        init_std=0.2,
    )  # fmt: skip


def _t5() -> tf.T5Config:
    return tf.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=HEADS,
        relative_attention_num_buckets=8, decoder_start_token_id=0, eos_token_id=2, pad_token_id=0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip


def _bart() -> tf.BartConfig:
    return tf.BartConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=2,
        forced_eos_token_id=None, init_std=0.2,
    )  # fmt: skip


def _gpt2(**more: Any) -> tf.GPT2Config:
    return tf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=48,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.2, **more,
    )  # fmt: skip


def _blip() -> nn.Module:
    text_config = {**_TEXT, "encoder_hidden_size": WIDTH, "sep_token_id": 2}
    return tf.BlipForConditionalGeneration(
        tf.BlipConfig(text_config=text_config, vision_config=_VISION, projection_dim=16)
    )


def _blip_qa() -> nn.Module:
    """With the logits, which the model computes and does not return."""
    text_config = {**_TEXT, "encoder_hidden_size": WIDTH, "sep_token_id": 2}
    model = tf.BlipForQuestionAnswering(
        tf.BlipConfig(text_config=text_config, vision_config=_VISION, projection_dim=16)
    )
    model.text_decoder.register_forward_hook(_keep_logits)
    model.register_forward_hook(_return_logits)
    return model


def _keep_logits(decoder: nn.Module, args: Any, output: Any) -> None:
    decoder.__dict__["kept_logits"] = output.logits


def _return_logits(model: Any, args: Any, output: Any) -> None:
    output["logits"] = model.text_decoder.__dict__.pop("kept_logits")


def _questions(rows: int) -> Inputs:
    return {**_captioner_inputs(rows), "decoder_input_ids": text(rows, 5, extra=1)}


def _mplug(cls: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        more = {"text_encoder_layers": 1, "fusion_layers": 3, "stride_layer": 2}  # the last one is connected
        return cls(MPlugConfig(text_config={**_TEXT, **more}, vision_config=_VISION))

    return build


def _qformer(cls: type) -> Any:
    return cls(**{**_TEXT, "encoder_hidden_size": WIDTH, "cross_attention_frequency": 1})


def _blip2(language: Any, cls: str = "Blip2") -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = getattr(tf, f"{cls}Config")(
            vision_config=getattr(tf, f"{cls}VisionConfig")(**_VISION).to_dict(),
            qformer_config=_qformer(getattr(tf, f"{cls}QFormerConfig")).to_dict(),
            text_config=language().to_dict(),
            num_query_tokens=3,
            image_token_index=IMAGE_TOKEN,
        )
        return getattr(tf, f"{cls}ForConditionalGeneration")(config)

    return build


def _instruct_inputs(rows: int) -> Inputs:
    inputs = _image_token_inputs(3)(rows)
    return {**inputs, "qformer_input_ids": text(rows, 4), "qformer_attention_mask": torch.ones(rows, 5).long()}


def _git() -> nn.Module:
    return tf.GitForCausalLM(tf.GitConfig(vision_config=_VISION, **_TEXT))


def _florence2() -> nn.Module:
    vision = tf.Florence2VisionConfig(
        embed_dim=[16, WIDTH], num_heads=[2, HEADS], num_groups=[2, HEADS], depths=[1, 1], patch_size=[3, 3],
        patch_stride=[2, 2], patch_padding=[1, 1], patch_prenorm=[False, True], window_size=2, projection_dim=WIDTH,
        max_temporal_embeddings=4, max_position_embeddings=16,
    )  # fmt: skip
    config = tf.Florence2Config(text_config=_bart(), vision_config=vision, image_token_id=IMAGE_TOKEN)
    return tf.Florence2ForConditionalGeneration(config)


def _florence2_inputs(rows: int) -> Inputs:
    return {**_image_token_inputs(17)(rows), "decoder_input_ids": text(rows, 5, extra=1)}


def _kosmos2() -> nn.Module:
    text_config = {
        "vocab_size": VOCABULARY, "max_position_embeddings": 64, "embed_dim": WIDTH, "layers": LAYERS, "ffn_dim": 48,
        "attention_heads": HEADS, "init_std": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = tf.Kosmos2Config(text_config=text_config, vision_config=_VISION, latent_query_num=3)
    return tf.Kosmos2ForConditionalGeneration(config)


def _kosmos2_inputs(rows: int) -> Inputs:
    inputs = _image_token_inputs(3)(rows)
    return {**inputs, "image_embeds_position_mask": (inputs["input_ids"] == IMAGE_TOKEN).long()}


def _pix2struct() -> nn.Module:
    text_config = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS,
        "num_heads": HEADS, "relative_attention_num_buckets": 8, "pad_token_id": 0, "eos_token_id": 2,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    vision_config = {
        "hidden_size": WIDTH, "patch_embed_hidden_size": 12, "d_ff": 48, "d_kv": 8, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "seq_len": 16,
    }  # fmt: skip
    config = tf.Pix2StructConfig(text_config=text_config, vision_config=vision_config)
    return tf.Pix2StructForConditionalGeneration(config)


def _pix2struct_inputs(rows: int) -> Inputs:
    places = torch.tensor([[1, 1], [1, 2], [2, 1], [2, 2]]).float().expand(rows, 4, 2)
    patches = torch.cat([places, _random(rows, 4, 12)], dim=-1)
    return {
        "flattened_patches": patches,
        "attention_mask": torch.ones(rows, 4),
        "decoder_input_ids": text(rows, 5, extra=1),
    }


def _vit() -> tf.ViTConfig:
    return tf.ViTConfig(**_VISION)


def _vit_gpt2() -> nn.Module:
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(_vit(), _gpt2())
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return tf.VisionEncoderDecoderModel(config)


def _trocr() -> nn.Module:
    decoder = tf.TrOCRConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, decoder_layers=LAYERS, decoder_attention_heads=HEADS,
        decoder_ffn_dim=48, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, init_std=0.2,
    )  # fmt: skip
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(_vit(), decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return tf.VisionEncoderDecoderModel(config)


def _llava() -> nn.Module:
    config = tf.LlavaConfig(
        vision_config=_clip_vision(), text_config=_llama_text(), image_token_index=IMAGE_TOKEN, vision_feature_layer=-1
    )
    return tf.LlavaForConditionalGeneration(config)


def _llava_onevision() -> nn.Module:
    config = tf.LlavaOnevisionConfig(
        vision_config=_siglip_vision(), text_config=tf.Qwen2Config(**_GROUPED), image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1, image_grid_pinpoints=[[16, 16], [16, 32]], vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    return tf.LlavaOnevisionForConditionalGeneration(config)


def _onevision_inputs(rows: int) -> Inputs:
    # base picture 2 x 2, and one tile 2 x 2 with a newline token after each of its two lines
    ids = text(rows, image_tokens=4 + 6)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels(rows * 2).view(rows, 2, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]] * rows),
    }


_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def _qwen2_vl() -> nn.Module:
    config = tf.Qwen2VLConfig(
        text_config={**_GROUPED, "rope_parameters": _ROPE},
        vision_config={
            "embed_dim": WIDTH, "hidden_size": WIDTH, "depth": LAYERS, "num_heads": HEADS, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=IMAGE_TOKEN, vision_start_token_id=91, vision_end_token_id=92, video_token_id=93,
    )  # fmt: skip
    return tf.Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl() -> nn.Module:
    config = tf.Qwen2_5_VLConfig(
        text_config={**_GROUPED, "rope_parameters": _ROPE},
        vision_config={
            "hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 48, "depth": LAYERS,
            "num_heads": HEADS, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 16, "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE_TOKEN, vision_start_token_id=91, vision_end_token_id=92, video_token_id=93,
    )  # fmt: skip
    return tf.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl() -> nn.Module:
    config = tf.Qwen3VLConfig(
        text_config={**_GROUPED, "head_dim": 8, "rope_parameters": {**_ROPE, "mrope_interleaved": True}},
        vision_config={
            "hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 48, "depth": LAYERS,
            "num_heads": HEADS, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        image_token_id=IMAGE_TOKEN, vision_start_token_id=91, vision_end_token_id=92, video_token_id=93,
    )  # fmt: skip
    return tf.Qwen3VLForConditionalGeneration(config)


def _qwen_inputs(rows: int) -> Inputs:
    """One picture of 4 x 4 patches per row, which becomes 2 x 2 tokens."""
    ids = text(rows, image_tokens=4)
    ids[:, 0] = 91
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE_TOKEN).int(),
        "pixel_values": _random(rows * 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * rows),
    }


def _idefics3(cls: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        vision = getattr(tf, f"{cls}VisionConfig")(**{**_VISION, "patch_size": 4})
        config = getattr(tf, f"{cls}Config")(
            vision_config=vision, text_config=_llama_text(), scale_factor=2, image_token_id=IMAGE_TOKEN
        )
        return getattr(tf, f"{cls}ForConditionalGeneration")(config)

    return build


def _idefics3_inputs(rows: int) -> Inputs:
    inputs = _image_token_inputs(4)(rows)
    return {**inputs, "pixel_values": inputs["pixel_values"].unsqueeze(1)}  # (rows, images, 3, h, w)


def _paligemma() -> nn.Module:
    text_config = tf.GemmaConfig(**{**_GROUPED, "head_dim": 8})
    config = tf.PaliGemmaConfig(
        vision_config=_siglip_vision(projection_dim=WIDTH, vision_use_head=False),
        text_config=text_config, image_token_index=IMAGE_TOKEN, projection_dim=WIDTH, hidden_size=WIDTH,
    )  # fmt: skip
    return tf.PaliGemmaForConditionalGeneration(config)


def _gemma3() -> nn.Module:
    text_config = tf.Gemma3TextConfig(
        **{**_GROUPED, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    )
    config = tf.Gemma3Config(
        text_config=text_config, vision_config=_siglip_vision(vision_use_head=False), mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN, boi_token_index=91, eoi_token_index=92,
    )  # fmt: skip
    return tf.Gemma3ForConditionalGeneration(config)


def _with_token_types(image_tokens: int) -> Callable[[int], Inputs]:
    def inputs(rows: int) -> Inputs:
        found = _image_token_inputs(image_tokens)(rows)
        return {**found, "token_type_ids": (found["input_ids"] == IMAGE_TOKEN).long()}

    return inputs


def _internvl() -> nn.Module:
    vision = tf.InternVLVisionConfig(
        **{**_VISION, "image_size": [16, 16], "patch_size": [4, 4], "use_qk_norm": True, "norm_type": "layer_norm"}
    )
    config = tf.InternVLConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**_GROUPED), image_token_id=IMAGE_TOKEN, downsample_ratio=0.5
    )
    return tf.InternVLForConditionalGeneration(config)


def _mllama() -> nn.Module:
    text_config = {**_GROUPED, "vocab_size": VOCABULARY, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    text_config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    vision_config = {
        "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_global_layers": 1,
        "attention_heads": HEADS, "image_size": 16, "patch_size": 8, "vision_output_dim": 2 * WIDTH,
        "intermediate_layers_indices": [0], "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]],
        "initializer_range": 0.2,
    }  # fmt: skip
    config = tf.MllamaConfig(vision_config=vision_config, text_config=text_config, image_token_index=IMAGE_TOKEN)
    return tf.MllamaForConditionalGeneration(config)


def _mllama_inputs(rows: int) -> Inputs:
    ids = text(rows, image_tokens=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels(rows).view(rows, 1, 1, 3, 16, 16),
        "aspect_ratio_ids": torch.ones(rows, 1).long(),
        "aspect_ratio_mask": torch.ones(rows, 1, 1).long(),
        "cross_attention_mask": torch.ones(rows, ids.shape[1], 1, 1).long(),
    }


def _clip() -> nn.Module:
    text_config = {**_TEXT, "projection_dim": 16}
    return tf.CLIPModel(tf.CLIPConfig(text_config=text_config, vision_config=_VISION, projection_dim=16))


def _bert() -> tf.BertConfig:
    return tf.BertConfig(**_TEXT)


MODELS: dict[str, Tiny] = {
    "blip": Tiny(_blip, _captioner_inputs),
    "blip (VQA)": Tiny(_blip_qa, _questions),
    "mplug": Tiny(_mplug(MPlugForConditionalGeneration), _captioner_inputs),
    "mplug (VQA)": Tiny(_mplug(MPlugForQuestionAnswering), _questions),
    "blip-2 (OPT)": Tiny(_blip2(_opt), _image_token_inputs(3)),
    "blip-2 (T5)": Tiny(_blip2(_t5), lambda rows: {**_image_token_inputs(3)(rows), "decoder_input_ids": text(rows, 5)}),
    "instructblip": Tiny(_blip2(_llama_text, "InstructBlip"), _instruct_inputs),
    "instructblip (T5)": Tiny(
        _blip2(_t5, "InstructBlip"), lambda rows: {**_instruct_inputs(rows), "decoder_input_ids": text(rows, 5)}
    ),
    "git": Tiny(_git, _captioner_inputs),
    "florence-2": Tiny(_florence2, _florence2_inputs),
    "kosmos-2": Tiny(_kosmos2, _kosmos2_inputs),
    "pix2struct": Tiny(_pix2struct, _pix2struct_inputs),
    "vit + gpt-2": Tiny(_vit_gpt2, _seq2seq_pixels),
    "vit + trocr": Tiny(_trocr, _seq2seq_pixels),
    "llava": Tiny(_llava, _image_token_inputs(4)),
    "llava-onevision": Tiny(_llava_onevision, _onevision_inputs),
    "qwen2-vl": Tiny(_qwen2_vl, _qwen_inputs),
    "qwen2.5-vl": Tiny(_qwen2_5_vl, _qwen_inputs),
    "qwen3-vl": Tiny(_qwen3_vl, _qwen_inputs),
    "smolvlm": Tiny(_idefics3("SmolVLM"), _idefics3_inputs),
    "idefics3": Tiny(_idefics3("Idefics3"), _idefics3_inputs),
    "paligemma": Tiny(_paligemma, _with_token_types(4)),
    "gemma3": Tiny(_gemma3, _with_token_types(4)),
    "internvl": Tiny(_internvl, _image_token_inputs(4)),
    "mllama": Tiny(_mllama, _mllama_inputs),
    "vit": Tiny(lambda: tf.ViTModel(_vit()), _pixel_inputs, generates=False),
    "clip": Tiny(_clip, _captioner_inputs, generates=False),
    "siglip": Tiny(lambda: tf.SiglipVisionModel(_siglip_vision()), _pixel_inputs, generates=False),
    "dinov2": Tiny(lambda: tf.Dinov2Model(tf.Dinov2Config(**_VISION)), _pixel_inputs, generates=False),
    "llama": Tiny(lambda: tf.LlamaForCausalLM(_llama_text()), _text_inputs),
    "qwen3": Tiny(lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_GROUPED, head_dim=8)), _text_inputs),
    "t5": Tiny(lambda: tf.T5ForConditionalGeneration(_t5()), _encoder_decoder_inputs),
    "bart": Tiny(lambda: tf.BartForConditionalGeneration(_bart()), _encoder_decoder_inputs),
    "gpt-2": Tiny(lambda: tf.GPT2LMHeadModel(_gpt2()), _text_inputs),
    "bert": Tiny(lambda: tf.BertModel(_bert()), _text_inputs, generates=False),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The tiny model of this name, in evaluation mode.

    What starts at zero (gates, query tokens, biases) would cut parts of the model off; it is made random too.
    """
    torch.manual_seed(seed)
    return randomised(MODELS[name].build())


def randomised(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, without zeros: see `build`."""
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return model

"""Tiny random models of the decoder-only families with pictures that `tiny_image_text` lacks, with their processors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from tiny_image_text import PROCESSORS, TEMPLATE, build, tokenizer
from tiny_models import IMAGE_TOKEN, MODELS, _clip_vision, _llama_text, randomised

from padapter.backbones.image_text import ImageTextBackbone

_SIZE = {"height": 16, "width": 16}
_TILES = [[16, 16], [16, 32], [32, 16], [32, 32]]


def _still(processor: type, images: Any, words: str, **attributes: Any) -> Any:
    """A family's processor without one of videos, which needs torchvision."""

    class Still(processor):
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            self.image_token, self.image_token_id = "<image>", IMAGE_TOKEN
            self.video_token, self.video_token_id = "<video>", 93
            for name, value in attributes.items():
                setattr(self, name, value)
            tf.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return Still(images, tokenizer(), TEMPLATE.replace("IMAGE", words))


def _gemma3() -> Any:
    made = tokenizer()
    for name, token, number in (("boi", "<vs>", 91), ("eoi", "<ve>", 92)):
        setattr(made, f"{name}_token", token)
        setattr(made, f"{name}_token_id", number)
    images = tf.Gemma3ImageProcessor(size=_SIZE)
    return tf.Gemma3Processor(images, made, chat_template=TEMPLATE.replace("IMAGE", "<vs>"), image_seq_length=4)


def _internvl() -> Any:
    images = tf.GotOcr2ImageProcessor(size=_SIZE, crop_to_patches=True, min_patches=1, max_patches=4)
    return _still(
        tf.InternVLProcessor, images, "<image>", image_seq_length=4, start_image_token="<vs>", end_image_token="<ve>",
        start_image_token_id=91, end_image_token_id=92,
        multimodal_pattern=re.compile("(?P<image><image>)|(?P<video><video>)"),
    )  # fmt: skip


def _qwen(processor: type) -> Any:
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    images = tf.Qwen2VLImageProcessor(size={"shortest_edge": 1024, "longest_edge": 1024}, **sizes)
    return _still(processor, images, "<vs> <image> <ve>")


def _llava_next() -> Any:
    images = tf.LlavaNextImageProcessor(size={"shortest_edge": 16}, crop_size=_SIZE, image_grid_pinpoints=_TILES)
    return tf.LlavaNextProcessor(
        images, tokenizer(), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip


def _onevision(ratio: str = "anyres_max_9") -> Any:
    images = tf.LlavaOnevisionImageProcessor(size=_SIZE, image_grid_pinpoints=_TILES)
    return _still(
        tf.LlavaOnevisionProcessor, images, "<image>", num_image_tokens=4, vision_feature_select_strategy="full",
        vision_aspect_ratio=ratio,
    )  # fmt: skip


def _mllama() -> Any:
    images = tf.MllamaImageProcessor(size=_SIZE, max_image_tiles=4)
    return tf.MllamaProcessor(images, tokenizer(), chat_template=TEMPLATE.replace("IMAGE", "<image>"))


def _cropped() -> Any:
    return tf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=_SIZE)


def _kosmos2() -> Any:
    processor = tf.Kosmos2Processor(_cropped(), tokenizer(), num_patch_index_tokens=2)
    processor.num_image_tokens = 3
    return processor


def _git() -> Any:
    return tf.GitProcessor(_cropped(), tokenizer())


def _llava_next_model() -> Any:
    """Takes the features of the layer before the last."""
    config = tf.LlavaNextConfig(
        vision_config=_clip_vision(), text_config=_llama_text(), image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2, image_grid_pinpoints=_TILES,
    )  # fmt: skip
    return tf.LlavaNextForConditionalGeneration(config)


def _onevision_model(ratio: str = "anyres_max_9") -> Any:
    config = MODELS["llava-onevision"].build().config
    config.image_grid_pinpoints, config.vision_aspect_ratio = _TILES, ratio
    return tf.LlavaOnevisionForConditionalGeneration(config)


def _mllama_model() -> Any:
    """Pictures of up to four tiles."""
    config = MODELS["mllama"].build().config
    config.vision_config.max_num_tiles = 4
    config.vision_config.supported_aspect_ratios = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    return tf.MllamaForConditionalGeneration(config)


def _kosmos2_model() -> Any:
    """With room for the words that the processor adds."""
    config = MODELS["kosmos-2"].build().config
    config.text_config.vocab_size = 128
    return tf.Kosmos2ForConditionalGeneration(config)


#: Families, with those of `tiny_image_text`: how a processor is made.
FAMILIES: dict[str, Callable[[], Any]] = {
    **PROCESSORS,
    "gemma3": _gemma3,
    "git": _git,
    "internvl": _internvl,
    "kosmos-2": _kosmos2,
    "llava-next": _llava_next,
    "llava-onevision": _onevision,
    "llava-onevision shrunk": lambda: _onevision("anyres_max_3"),
    "mllama": _mllama,
    "qwen2.5-vl": lambda: _qwen(tf.Qwen2_5_VLProcessor),
    "qwen3-vl": lambda: _qwen(tf.Qwen3VLProcessor),
    "smolvlm": PROCESSORS["idefics3"],
}
_OTHER: dict[str, Callable[[], Any]] = {
    "kosmos-2": _kosmos2_model,
    "llava-next": _llava_next_model,
    "llava-onevision": _onevision_model,
    "llava-onevision shrunk": lambda: _onevision_model("anyres_max_3"),
    "mllama": _mllama_model,
}


def make_family(name: str, processor: Any = None) -> ImageTextBackbone:
    """A random model of this family in evaluation mode, with its processor."""
    torch.manual_seed(0)
    model = randomised(_OTHER[name]()) if name in _OTHER else build(name)
    return ImageTextBackbone(model, processor or FAMILIES[name](), name)

"""Tiny random image-text models in folders, each with a processor made on the spot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parents[1] / "architectures"))

from tiny_models import build

from padapter.options import TrainOptions
from padapter.training import train

SPECIAL = {
    0: "<pad>",
    1: "<s>",
    2: "</s>",
    3: "<unk>",
    90: "<image>",
    91: "<vs>",
    92: "<ve>",
    93: "<video>",
    94: "<fake_token_around_image>",
    95: "<end_of_utterance>",
    96: "<global-img>",
}
WORDS = [
    "user",
    "assistant",
    "what",
    "color",
    "is",
    "the",
    "thing",
    "?",
    "red",
    "blue",
    "green",
    "yellow",
    "yes",
    "no",
    "a",
    "an",
    ".",
    ",",
    "how",
    "many",
    "1",
    "2",
    "3",
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)


def tokenizer(**more: Any) -> Any:
    names = dict(SPECIAL)
    words = iter(WORDS)
    for i in range(99):
        if i not in names:
            names[i] = next(words, f"w{i}")
    core = Tokenizer(models.WordLevel({name: i for i, name in names.items()}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=[name for i, name in SPECIAL.items() if i >= 90], padding_side="left",
        **more,
    )  # fmt: skip
    for attribute, token in (("image_token", "<image>"), ("video_token", "<video>")):
        setattr(made, attribute, token)
        setattr(made, attribute + "_id", made.convert_tokens_to_ids(token))
    return made


_SIZE = {"height": 16, "width": 16}


def _llava() -> Any:
    images = tf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=_SIZE)
    return tf.LlavaProcessor(
        image_processor=images, tokenizer=tokenizer(), patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip


class StillQwen2VLProcessor(tf.Qwen2VLProcessor):
    """Without the video processor, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token, self.video_token = "<image>", "<video>"
        self.image_token_id, self.video_token_id = 90, 93
        tf.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def _qwen2_vl() -> Any:
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    images = tf.Qwen2VLImageProcessor(size={"shortest_edge": 256, "longest_edge": 256}, **sizes)
    return StillQwen2VLProcessor(images, tokenizer(), TEMPLATE.replace("IMAGE", "<vs> <image> <ve>"))


def _paligemma() -> Any:
    images = tf.SiglipImageProcessor(size=_SIZE)
    images.image_seq_length = 4
    return tf.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer())


def _blip2() -> Any:
    return tf.Blip2Processor(
        image_processor=tf.BlipImageProcessor(size=_SIZE), tokenizer=tokenizer(), num_query_tokens=3
    )


def _idefics3() -> Any:
    made = tokenizer()
    images = tf.Idefics3ImageProcessor(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    return tf.Idefics3Processor(
        image_processor=images, tokenizer=made, image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>")
    )


def _instructblip() -> Any:
    made = _plain()
    made.image_token = tf.AddedToken("<image>", normalized=False, special=True)
    return tf.InstructBlipProcessor(tf.BlipImageProcessor(size=_SIZE), made, _plain(), num_query_tokens=3)


def _florence2() -> Any:
    images = tf.CLIPImageProcessor(size=_SIZE, do_center_crop=False)
    images.image_seq_length = 17
    return tf.Florence2Processor(image_processor=images, tokenizer=_plain(image_token="<image>"))


def _pix2struct() -> Any:
    return tf.Pix2StructProcessor(
        image_processor=tf.Pix2StructImageProcessor(patch_size={"height": 2, "width": 2}, max_patches=12),
        tokenizer=_plain(),
    )


def _trocr() -> Any:
    return tf.TrOCRProcessor(image_processor=tf.ViTImageProcessor(size=_SIZE), tokenizer=_plain())


def _plain(**more: Any) -> Any:
    """A tokenizer without types of tokens, as those of T5, BART and GPT-2."""
    made = tokenizer(**more)
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


class Halves:
    """Image processor and tokenizer without a processor around them, as in older checkpoints."""

    def __init__(self) -> None:
        self.image_processor, self.tokenizer = tf.ViTImageProcessor(size=_SIZE), _plain()

    def save_pretrained(self, folder: Path) -> None:
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": _llava,
    "qwen2-vl": _qwen2_vl,
    "paligemma": _paligemma,
    "blip-2 (OPT)": _blip2,
    "idefics3": _idefics3,
    "instructblip": _instructblip,
}
ENCODER_DECODERS: dict[str, Callable[[], Any]] = {
    "blip-2 (T5)": _blip2,
    "instructblip (T5)": _instructblip,
    "florence-2": _florence2,
    "pix2struct": _pix2struct,
    "vit + gpt-2": Halves,
    "vit + trocr": _trocr,
}


def a_run_from_data_to_score(folder: Path, output: Path, task: str, method: str) -> None:
    """Train the model in a folder for two steps by a method, and score it on four rows."""
    options = TrainOptions(
        task=task,
        model=str(folder),
        train="shapes:source:train:8",
        eval="shapes:source:test:4",
        eval_split="test",
        method=method,
        output=str(output),
        max_steps=2,
        batch_size=2,
        num_beams=1 if task != "entailment" else None,
        quiet=True,
    )
    metrics = train(options).metrics
    assert metrics["status"] == "finished"
    assert metrics["scores"]["after"]["rows"] == 4
    assert (output / "adapter").is_dir() == (method != "full")


def save(name: str, folder: Path) -> Path:
    """Write model and processor of this name to a folder."""
    build(name).save_pretrained(folder)
    {**PROCESSORS, **ENCODER_DECODERS}[name]().save_pretrained(folder)
    return folder

"""Ranking 3,128 candidates against a full forward for each of them.

The candidates are made up, of whole words of the model's vocabulary, as long as answers of VQA v2: `LENGTHS` is the
share of 1, 2, 3 and 4 words among the majority answers of 550 of its questions. Words are drawn by Zipf's law, so that
some answers begin alike. The model of BLIP base size has random weights and a made-up vocabulary. Both models carry a
p-adapter that is not at its starting point.

The naive side of ranking encodes the picture once, as ours does, and is given `NAIVE` of the candidates, drawn at
random, in one batch. Its rate is extrapolated from these.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from benchmarks.models import blip_config
from benchmarks.timing import REPEATS, compare, interleaved

CANDIDATES = 3128
LENGTHS = {1: 0.70, 2: 0.19, 3: 0.10, 4: 0.01}
NAIVE = 16


def blip_base(quick: bool = False) -> Any:
    """A backbone of BLIP base size, 224 px, with random weights and words w0, w1, ..."""
    from transformers import BertTokenizer, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from padapter.backbones import BlipBackbone
    from padapter.models.vocabulary import SPECIAL

    config = blip_config(layers=1, width=32, side=32, words=400) if quick else blip_config()
    vocabulary = [*SPECIAL, *(f"w{i}" for i in range(config.text_config.vocab_size - len(SPECIAL)))]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    side = config.vision_config.image_size
    images = BlipImageProcessorPil(size={"height": side, "width": side})
    return BlipBackbone(model, BlipProcessor(image_processor=images, tokenizer=tokenizer), "blip-base-size")


def shapes_blip() -> Any:
    """The built-in model."""
    from padapter.backbones import load_backbone

    return load_backbone("shapes-blip")


def adapted(backbone: Any, method: str) -> Any:
    """The backbone with a method whose parameters are moved away from their start."""
    from padapter.methods import get_method

    name, _, options = method.partition(":")
    chosen = get_method(name)
    chosen.apply(backbone, chosen.parse(dict(item.split("=") for item in options.split(",") if item)))
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    backbone.model.eval()
    return backbone


def phrases(backbone: Any, count: int) -> list[str]:
    """Different texts of whole words, their lengths as `LENGTHS` says."""
    drawn = random.Random(0)
    words = [word for word in backbone.processor.tokenizer.get_vocab() if word[0].isalpha()]
    drawn.shuffle(words)
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    found: dict[str, None] = {}
    while len(found) < count:
        length = drawn.choices(list(LENGTHS), list(LENGTHS.values()))[0]
        text = " ".join(drawn.choices(words, weights, k=length)) if length > 1 else drawn.choice(words)
        # A small vocabulary has too few words for the share of one-word answers; two-word ones take their place.
        if text in found and length == 1 and len(found) >= len(words):
            text = " ".join(drawn.choices(words, weights, k=2))
        found[text] = None
    texts = list(found)
    drawn.shuffle(texts)
    return texts


@torch.no_grad()
def naive(backbone: Any, image: Image.Image, prompt: str, candidates: list[str]) -> list[float]:
    """Scores by full forwards of ``[DEC] prompt candidate [SEP]``, without a cache, padded to the longest."""
    tokenizer, blip = backbone.processor.tokenizer, backbone.base_model
    pixels = backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    states = blip.vision_model(pixel_values=pixels).last_hidden_state
    head = [backbone.start_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
    tails = [[*ids, backbone.end_id] for ids in tokenizer(candidates, add_special_tokens=False).input_ids]
    width = max(map(len, tails))
    ids = torch.tensor([[*head, *tail, *[backbone.pad_id] * (width - len(tail))] for tail in tails])
    mask = (ids != backbone.pad_id).long()
    logits = blip.text_decoder(
        input_ids=ids, attention_mask=mask, encoder_hidden_states=states.expand(len(ids), -1, -1), use_cache=False
    ).logits
    chosen = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2) * mask[:, 1:]
    scores: list[float] = chosen[:, len(head) - 1 :].sum(1).tolist()
    return scores


def ranking(name: str, backbone: Any, *, count: int, repeats: int) -> dict[str, Any]:
    """Candidates per second, both ways."""
    candidates = phrases(backbone, count)
    prompt = " ".join(word for text in candidates[:8] for word in text.split()[:1])
    image = Image.effect_noise((224, 224), 60).convert("RGB")
    few = random.Random(1).sample(candidates, min(NAIVE, len(candidates)))

    def ours() -> list[float]:
        scores: list[float] = backbone.rank([image], [prompt], candidates)[0]
        return scores

    found = dict(zip(candidates, ours(), strict=True))
    difference = max(
        abs(found[text] - score) for text, score in zip(few, naive(backbone, image, prompt, few), strict=True)
    )
    sides = {"ours": ours, "naive": lambda: naive(backbone, image, prompt, few)}
    seconds = interleaved(sides, repeats, warm=True)
    rates = {
        "ours": [len(candidates) / value for value in seconds["ours"]],
        "naive": [len(few) / value for value in seconds["naive"]],
    }
    tokens = backbone.processor.tokenizer(candidates, add_special_tokens=False).input_ids
    return {
        "case": f"{name}: {len(candidates)} candidates, one question",
        "naive_candidates": len(few),
        "tokens": sum(map(len, tokens)),
        "tokens_read": len({tuple(ids[:end]) for ids in tokens for end in range(1, len(ids) + 1)}),
        "largest_difference": difference,
        "candidates_per_second": {side: round(statistics.median(values), 1) for side, values in rates.items()},
        **compare({side: [1 / rate for rate in values] for side, values in rates.items()}, "naive"),
    }


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    """Both models; ``quick`` is to see that they run."""
    count, repeats = (64, 2) if quick else (CANDIDATES, REPEATS)
    yield ranking("shapes-blip", adapted(shapes_blip(), "p-adapter"), count=count, repeats=repeats)
    yield ranking("BLIP base size", adapted(blip_base(quick), "p-adapter"), count=count, repeats=repeats)

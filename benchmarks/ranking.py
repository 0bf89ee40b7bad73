"""Ranking 3,128 candidates, and generation: ours against a full forward of prompt and candidate for every candidate.

The candidates are made up, of whole words of the model's vocabulary, as long as answers of VQA v2: `LENGTHS` is the
share of 1, 2, 3 and 4 words among the majority answers of 550 of its questions. Words are drawn by Zipf's law, so that
some answers begin alike. The model of BLIP base size has random weights and a made-up vocabulary. Both models carry a
p-adapter that is not at its starting point.

The naive side encodes the picture once, as ours does, and is given `NAIVE` of the candidates, drawn at random, in
chunks of 64. Its rate is extrapolated from these.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image

from benchmarks.timing import interleaved, ratios

CANDIDATES = 3128
LENGTHS = {1: 0.70, 2: 0.19, 3: 0.10, 4: 0.01}
NAIVE = 64
_CHUNK = 64


def blip_base() -> Any:
    """A backbone of BLIP base size, 224 px, with random weights and words w0, w1, ..."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from padapter.backbones import BlipBackbone

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *(f"w{i}" for i in range(30_515))]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    ids = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config={"vocab_size": 30_524, "num_attention_heads": 12, **ids},
        vision_config={"image_size": 224, "initializer_range": 0.02},
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    images = BlipImageProcessorPil(size={"height": 224, "width": 224})
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
    scores: list[float] = []
    for rows in ids.split(_CHUNK):
        mask = (rows != backbone.pad_id).long()
        logits = blip.text_decoder(
            input_ids=rows, attention_mask=mask, encoder_hidden_states=states.expand(len(rows), -1, -1), use_cache=False
        ).logits
        chosen = logits[:, :-1].log_softmax(-1).gather(2, rows[:, 1:].unsqueeze(2)).squeeze(2) * mask[:, 1:]
        scores += chosen[:, len(head) - 1 :].sum(1).tolist()
    return scores


def case(name: str, build: Callable[[], Any], *, repeats: int, quick: bool) -> dict[str, Any]:
    """Candidates per second of one model, both ways."""
    backbone = adapted(build(), "p-adapter")
    candidates = phrases(backbone, 64 if quick else CANDIDATES)
    prompt = " ".join(phrases(backbone, 8)[:8])
    image = Image.effect_noise((224, 224), 60).convert("RGB")
    few = random.Random(1).sample(candidates, min(NAIVE, len(candidates)))

    def ours() -> list[float]:
        scores: list[float] = backbone.rank([image], [prompt], candidates)[0]
        return scores

    expected, found = naive(backbone, image, prompt, few), dict(zip(candidates, ours(), strict=True))
    difference = max(abs(found[text] - score) for text, score in zip(few, expected, strict=True))
    seconds = interleaved({"ours": ours, "naive": lambda: naive(backbone, image, prompt, few)}, repeats)
    rates = {
        "ours": [len(candidates) / value for value in seconds["ours"]],
        "naive": [len(few) / value for value in seconds["naive"]],
    }
    return {
        "case": f"{name}: {len(candidates)} candidates, one question",
        "naive_candidates": len(few),
        "tokens": sum(len(ids) for ids in backbone.processor.tokenizer(candidates, add_special_tokens=False).input_ids),
        "largest_difference": difference,
        "candidates_per_second": rates,
        "ratio_to_naive": ratios(rates, "naive"),
    }


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    """One case per model."""
    torch.set_flush_denormal(True)
    yield case("shapes-blip", shapes_blip, repeats=2 if quick else 7, quick=quick)
    yield case("BLIP base size", blip_base, repeats=1 if quick else 7, quick=quick)


if __name__ == "__main__":
    import sys

    start = time.perf_counter()
    for result in run("--quick" in sys.argv):
        print(result)
    print(time.perf_counter() - start)

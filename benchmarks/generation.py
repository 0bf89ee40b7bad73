"""Beam search against transformers' own, with the models of `benchmarks.ranking`.

Both sides use a cache; transformers' own reads the image again for every beam and moves what it has read with the
beams.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from benchmarks.ranking import adapted, blip_base, phrases, shapes_blip
from benchmarks.timing import REPEATS, compare, interleaved

BEAMS, NEW_TOKENS = 3, 8


@torch.no_grad()
def plain_generate(backbone: Any, images: list[Image.Image], prompts: list[str]) -> list[str]:
    """Beam search by the decoder's own ``generate``; prompts of equal length."""
    from transformers import GenerationConfig

    tokenizer, blip = backbone.processor.tokenizer, backbone.base_model
    pixels = backbone.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    head = tokenizer(prompts, add_special_tokens=False).input_ids
    ids = torch.tensor([[backbone.start_id, *tokens] for tokens in head])
    config = GenerationConfig(
        num_beams=BEAMS,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        bos_token_id=backbone.start_id,
        eos_token_id=backbone.end_id,
        pad_token_id=backbone.pad_id,
    )
    output = blip.text_decoder.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        encoder_hidden_states=blip.vision_model(pixel_values=pixels).last_hidden_state,
        generation_config=config,
    )
    texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def generation(name: str, backbone: Any, *, rows: int, repeats: int) -> dict[str, Any]:
    """New tokens per second of beam search, both ways."""
    words = [text for text in phrases(backbone, 300) if " " not in text]
    prompts = [" ".join(words[row * 6 : row * 6 + 6]) for row in range(rows)]
    images = [Image.effect_noise((224, 224), 40 + row).convert("RGB") for row in range(rows)]

    def ours() -> list[str]:
        texts: list[str] = backbone.generate(
            images, prompts, num_beams=BEAMS, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS
        )
        return texts

    same = ours() == plain_generate(backbone, images, prompts)
    sides = {"ours": ours, "plain": lambda: plain_generate(backbone, images, prompts)}
    seconds = interleaved(sides, repeats, warm=True)
    rates = {side: [rows * NEW_TOKENS / value for value in values] for side, values in seconds.items()}
    return {
        "case": f"{name}: {rows} rows, {BEAMS} beams, {NEW_TOKENS} new tokens",
        "same_texts": same,
        "tokens_per_second": {side: round(statistics.median(values), 1) for side, values in rates.items()},
        **compare(seconds, "plain"),
    }


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    """Both models; ``quick`` is to see that they run."""
    repeats = 2 if quick else REPEATS
    yield generation("shapes-blip", adapted(shapes_blip(), "p-adapter"), rows=2 if quick else 16, repeats=repeats)
    yield generation("BLIP base size", adapted(blip_base(quick), "p-adapter"), rows=1, repeats=repeats)

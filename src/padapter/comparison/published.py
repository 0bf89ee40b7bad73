"""What is published of the slides' models: their sizes, and the printed shares of trainable parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BlipConfig, PretrainedConfig

from padapter.checkpoints.blip.sizes import Sizes, make_config
from padapter.comparison.counting import SkeletonFactory
from padapter.methods import trainable_parameters
from padapter.models.mplug import MPlugConfig

PRINTED = (0.71, 6.39)
"""Per cent, as printed beside the small and the large methods of the slides' table."""


def blip_base_config() -> BlipConfig:
    """BLIP base as published, at 224 px: ViT-B/16 and a BERT-base decoder of 30,524 words."""
    towers = (768, 3072, 12)
    base = Sizes(vision=towers, text=towers, patch=16, grid=14, words=30524, positions=512)
    return make_config(base, image_size=224, ids={"bos": 30522, "sep": 102, "pad": 0})


CONFIGS: Mapping[str, tuple[str, Callable[[], PretrainedConfig]]] = {
    "./models/blip-base-capfilt-l": ("BLIP base at 224 px", blip_base_config),
    "./models/mplug-base": ("mPLUG base at 384 px", MPlugConfig),
}
"""Model, spelled exactly as in ``recipes/paper`` -> what it is, and its configuration. No other name is guessed at."""


@dataclass(frozen=True)
class Denominator:
    """One reading of "share of parameters".

    Attributes:
        name: of what the parameters are a share.
        size: its number of parameters.
        shares: for each printed share the nearest one that a method of the comparison gives: (method, per cent).
    """

    name: str
    size: int
    shares: tuple[tuple[str, float], ...]

    @property
    def distance(self) -> float:
        """Sum over the printed shares of the relative difference, as a difference of logarithms."""
        return sum(abs(math.log(share / printed)) for (_, share), printed in zip(self.shares, PRINTED, strict=True))

    @property
    def reproduces(self) -> bool:
        """Whether all printed shares come out to the digit."""
        return all(round(share, 2) == printed for (_, share), printed in zip(self.shares, PRINTED, strict=True))


def denominators(skeletons: SkeletonFactory, trainable: Mapping[str, int]) -> list[Denominator]:
    """All readings, the nearest first.

    Args:
        skeletons: makes the unadapted model.
        trainable: method -> number of trained parameters, without full fine-tuning.
    """
    skeleton = skeletons("meta")
    model: Any = skeleton.model
    text = model.get_submodule(skeleton.parts["text"])
    whole, decoder = trainable_parameters(model)[1], trainable_parameters(text)[1]
    sizes = {
        "the whole model": whole,
        "the whole model without word embeddings": whole - _words(model),
        "the text decoder": decoder,
        "the text decoder without word embeddings": decoder - _words(text),
        "the image tower": trainable_parameters(model.get_submodule(skeleton.parts["image"]))[1],
    }
    found = [
        _denominator(name, {label: 100 * n / size for label, n in trainable.items()}, size)
        for name, size in sizes.items()
    ]
    with_adapters = {label: 100 * n / (whole + n) for label, n in trainable.items()}
    found.append(_denominator("the whole model with what was added", with_adapters, whole))
    return sorted(found, key=lambda item: item.distance)


def _words(module: torch.nn.Module) -> int:
    """Parameters of all tables of words in a module; mPLUG has one in its text encoder and one in its decoder."""
    tables = [each for each in module.modules() if isinstance(each, torch.nn.Embedding)]
    largest = max(table.num_embeddings for table in tables)
    return sum(table.weight.numel() for table in tables if table.num_embeddings == largest)


def _denominator(name: str, shares: Mapping[str, float], size: int) -> Denominator:
    nearest = [min(shares.items(), key=lambda item: abs(math.log(item[1] / printed))) for printed in PRINTED]
    return Denominator(name, size, tuple(nearest))


def lines(readings: Sequence[Denominator]) -> list[str]:
    """What to print of the readings: whether one of them gives the printed shares, and the nearest."""
    printed = " and ".join(f"{share} %" for share in PRINTED)
    exact = [item.name for item in readings if item.reproduces]
    if exact:
        first = f"The slides' {printed} are shares of {exact[0]}."
    else:
        first = f"The slides print {printed}; none of {len(readings)} readings gives both at these sizes. The nearest:"
    told = [
        f"  of {item.name} ({item.size:,}): " + ", ".join(f"{label} {share:.2f} %" for label, share in item.shares)
        for item in readings[:3]
    ]
    return [first, *told]

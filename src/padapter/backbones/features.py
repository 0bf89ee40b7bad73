"""Frozen features once: what a frozen image encoder says about a picture is kept on disk and never computed again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from padapter.backbones.digest import add_tensors
from padapter.backbones.feature_store import FeatureStore
from padapter.data import Picture
from padapter.errors import UserError

logger = logging.getLogger(__name__)

KEPT, FRESH, ORDER, DIGESTS = "kept_states", "pixel_values", "image_order", "digests"
#: Changes when pictures are opened or features are computed in another way.
FORMAT = 1


class FeatureCache:
    """Image states by the content of pictures, in half precision.

    Whether states come from the disk or were computed just now, they are those rounded to half precision, so that a
    second run computes with the same numbers as the first.

    Args:
        folder: of all feature caches; each encoder with its preprocessing has a folder of its own in it.
        encoder: the frozen image encoder.
        encode: pixels (I, 3, h, w) -> states (I, N, d).
        pixels: RGB images -> pixels (I, 3, h, w).
        identity: what else the states depend on, such as preprocessing and precision.
        dtype: that states are given back in.
        training: whether parameters that ask for gradients will be trained.

    Raises:
        UserError: if the encoder is trained, adapted, or draws random numbers.
    """

    def __init__(
        self,
        folder: Path,
        encoder: nn.Module,
        encode: Callable[[torch.Tensor], torch.Tensor],
        pixels: Callable[[Sequence[Any]], torch.Tensor],
        *,
        identity: Mapping[str, Any],
        dtype: torch.dtype,
        training: bool,
    ) -> None:
        refuse_unless_frozen(encoder, training)
        self.encode = encode
        self.pixels = pixels
        self.dtype = dtype
        self.writable = True
        blank = Picture(np.zeros((8, 8, 3), dtype=np.uint8))
        with torch.no_grad():
            shape = tuple(encode(pixels([blank.open()]).to(_device(encoder))).shape[1:])
        self.kept, self.computed = 0, 0
        self.store = FeatureStore(folder / "features" / encoder_digest(encoder, identity), shape)

    def summary(self) -> dict[str, Any]:
        """For a result file: the folder, and how often states were read and computed in this process."""
        return {"folder": str(self.store.folder), "kept": self.kept, "computed": self.computed}

    def batch(self, pictures: Sequence[Picture]) -> dict[str, torch.Tensor]:
        """What a model needs to have the states of pictures; pictures are decoded only if their states are unknown.

        Args:
            pictures: I of them; one that occurs several times is taken once.

        Returns:
            ``kept_states`` (H, N, d) from the disk; ``pixel_values`` (M, 3, h, w) and ``digests`` (M, 32) of the
            pictures to be encoded; ``image_order`` (I,): places of the pictures in the H + M states.
        """
        unique = {picture.digest: picture for picture in pictures}
        kept = self.store.find(unique)
        fresh = [digest for digest in unique if digest not in kept]
        place = {digest: index for index, digest in enumerate([*kept, *fresh])}
        found = {ORDER: torch.tensor([place[picture.digest] for picture in pictures])}
        if kept:
            found[KEPT] = torch.from_numpy(np.stack(list(kept.values())))
        if fresh:
            found[FRESH] = self.pixels([unique[digest].open() for digest in fresh])
            found[DIGESTS] = torch.from_numpy(np.frombuffer(b"".join(fresh), dtype=np.uint8).reshape(-1, 32).copy())
        return found

    def states(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """States (I, N, d) of the pictures of :meth:`batch`; those computed now are added to the disk."""
        parts = [batch[KEPT].to(self.dtype)] if KEPT in batch else []
        self.kept += len(batch.get(KEPT, ()))
        if FRESH in batch:
            parts.append(self._encoded(batch[FRESH], batch[DIGESTS]))
            self.computed += len(batch[FRESH])
        return torch.cat(parts)[batch[ORDER]]

    def _encoded(self, pixels: torch.Tensor, digests: torch.Tensor) -> torch.Tensor:
        """States as the next run will read them; those that half precision cannot hold stay what they are."""
        with torch.no_grad():
            exact = self.encode(pixels)
            half = exact.to(torch.float16)
            fits = half.isfinite().flatten(1).all(dim=1)  # (M,)
            self._keep(digests[fits], half[fits])
            return torch.where(fits[:, None, None], half.to(self.dtype), exact.to(self.dtype))

    def _keep(self, digests: torch.Tensor, states: torch.Tensor) -> None:
        if not self.writable:
            return
        keys = [bytes(row) for row in digests.cpu().numpy()]
        try:
            self.store.add(dict(zip(keys, states.cpu().numpy(), strict=True)))
        except OSError as error:
            self.writable = False
            logger.warning("Features are no longer kept in %s (%s); training goes on.", self.store.folder, error)


_RATES = ("attention_dropout", "drop_path_rate")


def refuse_unless_frozen(encoder: nn.Module, training: bool) -> None:
    """Refuse an encoder whose output is not a function of the picture alone, the same in every step.

    Args:
        encoder: of images.
        training: whether parameters that ask for gradients will be trained.

    Raises:
        UserError: saying what in it is trained, adapted or, in training, random.
    """
    for name, parameter in encoder.named_parameters():
        if training and parameter.requires_grad:
            raise UserError(f"--cache-features: the image encoder is trained ({name}); leave the option out")
    for name, module in encoder.named_modules():
        if isinstance(module, BaseTunerLayer):
            raise UserError(f"--cache-features: the image encoder has an adapter ({name}); leave the option out")
        if training and "dropout" in type(module).__name__.lower() and getattr(module, "p", 0) > 0:
            raise UserError(f"--cache-features: the image encoder draws at random ({name}); leave the option out")
    config = getattr(encoder, "config", None)
    drawn = [f"{name} {rate:g}" for name in _RATES if (rate := getattr(config, name, 0))]
    if training and drawn:
        raise UserError(
            f"--cache-features: in training the image encoder has dropout ({', '.join(drawn)} of vision_config in the "
            "model's config.json), so a picture has other features in every step, as where the model was pre-trained; "
            "leave the option out, or set it to 0 there to train without (mPLUG: `padapter convert mplug "
            "--image-dropout 0`). `eval` and `predict` keep features either way"
        )


def encoder_digest(encoder: nn.Module, identity: Mapping[str, Any]) -> str:
    """Hexadecimal digest of weights, configuration, and whatever else is named."""
    config = getattr(encoder, "config", None)
    about = {
        "format": FORMAT,
        "class": f"{type(encoder).__module__}.{type(encoder).__qualname__}",
        "config": {**(config.to_dict() if config is not None else {}), "transformers_version": None},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "pillow")},
        **identity,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    add_tensors(digest, encoder.state_dict())
    return digest.hexdigest()[:32]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device

"""Full fine-tuning: every weight is trained, and the whole model is saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padapter.errors import UserError
from padapter.methods.base import Method, differences, read_weights
from padapter.methods.options import option

if TYPE_CHECKING:
    from padapter.backbones import Backbone


@dataclass(frozen=True)
class FullOptions:
    """Options of method ``full``."""

    freeze_image_tower: bool = option(False, help="Train everything but the image tower.")


class Full(Method[FullOptions]):
    """Train all weights."""

    name = "full"
    all_learn = False  # many models hold weights that no task of theirs uses: pooling heads, last norms
    summary = "Full fine-tuning: every weight of the model."
    options = FullOptions

    def apply(self, backbone: Backbone, options: FullOptions) -> None:
        """See :meth:`Method.apply`."""
        if backbone.model is not backbone.base_model:
            raise UserError(f"model '{backbone.name}' carries an adapter; load it again before method 'full'.")
        backbone.model.requires_grad_(True)
        if options.freeze_image_tower:
            backbone.model.get_submodule(backbone.parts["image"]).requires_grad_(False)

    def save(self, backbone: Backbone, directory: str | Path) -> None:
        """Write model and processor; the folder can be given as a model again."""
        backbone.base_model.save_pretrained(str(directory))
        backbone.processor.save_pretrained(str(directory))

    def load(self, backbone: Backbone, directory: str | Path, trainable: bool = False) -> None:
        """See :meth:`Method.load`."""
        folder = Path(directory)
        base: Any = backbone.base_model
        if not (folder / "config.json").is_file():
            raise UserError(f"'{folder}' holds no model: method 'full' reads a folder with config.json and weights.")
        weights = _read(folder)
        # Tied weights are stored once; the model lists them under every name.
        tied = set(base.all_tied_weights_keys)
        room = {name: tensor for name, tensor in base.state_dict().items() if name in weights or name not in tied}
        problem = differences(room, weights)
        if problem:
            raise UserError(f"model '{folder}' does not fit model '{backbone.name}': {problem}")
        base.load_state_dict(weights, strict=False)
        base.requires_grad_(trainable)


def _read(folder: Path) -> dict[str, Any]:
    """Read all weight files of a folder written by ``save_pretrained``, sharded or not."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(f"'{folder}' has no model*.safetensors.")
    weights: dict[str, Any] = {}
    for file in files:
        weights.update(read_weights(file))
    return weights

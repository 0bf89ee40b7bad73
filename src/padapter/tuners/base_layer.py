"""The bottleneck, written once, as a PEFT layer around an output projection.

State-dict rule of PEFT and transformers: one ``ModuleDict`` or ``ParameterDict`` per leaf, its name starts with the
method's prefix, the adapter's name comes right after it. Any other layout loads silently as the base model through one
of the two doors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from padapter.errors import UserError
from padapter.tuners.base_config import INIT_STD, AdapterConfig
from padapter.tuners.batches import Batch, Group
from padapter.tuners.offload import fetched


@dataclass(frozen=True)
class BottleneckSettings:
    """What the bottleneck of one adapter does besides its weights."""

    activation: Callable[[torch.Tensor], torch.Tensor]
    dropout: float
    scaling: float


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A Linear with bottleneck adapters behind it: ``y = W x + b``, then ``y + s W_up act(W_down dropout(y))``.

    Several active adapters add their changes to the same ``W x + b``, so their order does not matter. Disabled, the
    layer is exactly the Linear it wraps.

    Args:
        base_layer: the Linear (or a PEFT layer around it).

    Raises:
        UserError: if the module has no ``in_features`` and ``out_features``.
    """

    prefix: ClassVar[str]
    parameter_leaves: ClassVar[frozenset[str]] = frozenset()
    other_param_names: tuple[str, ...] = ("settings",)

    if TYPE_CHECKING:  # what BaseTunerLayer provides, untyped
        adapter_layer_names: tuple[str, ...]
        merged_adapters: list[str]
        _active_adapter: list[str]
        disable_adapters: bool
        active_adapters: list[str]
        get_base_layer: Callable[[], nn.Module]
        set_adapter: Callable[..., None]
        _move_adapter_to_device_of_base_layer: Callable[[str], None]
        _cast_input_dtype: Callable[[torch.Tensor, torch.dtype], torch.Tensor]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        for attribute in self.adapter_layer_names:
            is_parameter = attribute.removeprefix(self.prefix) in self.parameter_leaves
            setattr(self, attribute, nn.ParameterDict() if is_parameter else nn.ModuleDict())
        self.settings: dict[str, Any] = {}
        self.in_features, self.out_features = features(self.get_base_layer())
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter = []
        self.batch: Batch | None = None
        self.part = "decoder"  # which part of the model it belongs to: what the rows of its batch are

    def leaf(self, name: str) -> Any:
        """The dict of one leaf by its name without the prefix, e.g. ``down``."""
        return getattr(self, self.prefix + name)

    def add_bottleneck(self, adapter_name: str, in_features: int, width: int, config: AdapterConfig) -> None:
        """Create W_down (width, in_features) and W_up (out_features, width) of an adapter."""
        self.leaf("down")[adapter_name] = nn.Linear(in_features, width)
        self.leaf("up")[adapter_name] = nn.Linear(width, self.out_features)
        if config.init_weights:
            init_linear(self.leaf("down")[adapter_name])
            nn.init.zeros_(self.leaf("up")[adapter_name].weight)
            nn.init.zeros_(self.leaf("up")[adapter_name].bias)

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter."""
        raise NotImplementedError

    def finish_update(self, adapter_name: str, config: AdapterConfig) -> None:
        """Put a new adapter where the base layer is, and give it the state of the active adapters."""
        with fetched(self.get_base_layer()):
            self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self.train(self.training)  # its new modules too

    def present(self) -> list[str]:
        """Names of the adapters that take part in a forward pass: enabled, active, and held by this layer."""
        if self.disable_adapters:
            return []
        names = self.active_adapters if self.batch is None else self.batch.names
        return [name for name in names if name in self.settings]

    def groups(self, rows: int, flat: bool = False) -> list[Group]:
        """Which adapter serves which of the ``rows`` rows of a batch; see `Batch.groups`."""
        if self.disable_adapters:
            return []
        if self.batch is not None:
            return [group for group in self.batch.groups(rows, self.part, flat) if group.name in self.settings]
        return [Group(name, None) for name in self.present()]

    def bottleneck(self, adapter_name: str, states: torch.Tensor) -> torch.Tensor:
        """``s W_up act(W_down dropout(x))`` for x (B, N, d), in the dtype of the adapter."""
        down, up = self.leaf("down")[adapter_name], self.leaf("up")[adapter_name]
        settings = self.settings[adapter_name]
        states = self._cast_input_dtype(states, down.weight.dtype)
        states = F.dropout(states, settings.dropout, self.training)
        return settings.scaling * up(settings.activation(down(states)))

    def change(self, adapter_name: str, group: Group, result: torch.Tensor) -> torch.Tensor:
        """What one adapter adds to the rows of its group.

        Args:
            adapter_name: the adapter.
            group: its rows of the batch.
            result: (B, N, d), output of the base layer for the whole batch.

        Returns:
            (rows of the group, N, d).
        """
        raise NotImplementedError

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the base layer and add the changes of the active adapters; x (B, N, in_features)."""
        result = self.base_layer(x, *args, **kwargs)
        changed = result
        for group in self.groups(result.shape[0], flat=result.dim() == 2):
            delta = self.change(group.name, group, result)
            changed = group.add(changed, delta.to(result.dtype))
        return changed

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing: PEFT asks every layer of a model, whichever method it merges. Our tuners refuse to merge."""

    def unmerge(self) -> None:
        """Nothing, as `merge`."""

    def release(self) -> None:
        """Undo what the layer did to other modules of the model; called when its last adapter goes."""

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; with the last one, everything the layer did to other modules is undone."""
        super().delete_adapter(adapter_name)
        if not self.settings:
            self.release()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Give back the Linear; called by PEFT's ``unload``. Merging is refused: a bottleneck is not linear."""
        if merge:
            raise UserError(NOT_MERGEABLE)
        layer: nn.Module = self
        while layer is not self.get_base_layer():
            if isinstance(layer, BottleneckLayer):
                layer.release()
            layer = cast(nn.Module, layer.base_layer)
        return layer

    def __repr__(self) -> str:
        return f"{type(self).__module__.split('.')[0]}." + super().__repr__()


NOT_MERGEABLE = (
    "a bottleneck adapter is not linear, so it cannot be merged into the weights of the model. Keep it beside the "
    "model (save_pretrained / PeftModel.from_pretrained), or call unload() to get the base model back."
)


def init_linear(linear: nn.Linear) -> None:
    """Weights normal(0, 0.02), bias zero, as in the p-adapter authors' code."""
    nn.init.normal_(linear.weight, std=INIT_STD)
    nn.init.zeros_(linear.bias)


def features(linear: nn.Module) -> tuple[int, int]:
    """Input and output width of a Linear, of a quantised Linear, or of transformers' Conv1D.

    Raises:
        UserError: if the module is none of these, or is one whose ``forward`` is never called.
    """
    if isinstance(linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise UserError(
            "the output projection of torch.nn.MultiheadAttention cannot be adapted: that class reads its weight and "
            "never calls it. Leave it out of `target_modules` (or name it in `exclude_modules`)."
        )
    if isinstance(linear, Conv1D):
        return linear.weight.shape[0], linear.weight.shape[1]
    with contextlib.suppress(AttributeError):
        if not isinstance(linear, (nn.Embedding, nn.Bilinear)):
            return linear.in_features, linear.out_features  # type: ignore[return-value]
    raise UserError(f"a module of class {type(linear).__name__} cannot be adapted; target torch.nn.Linear modules.")


def modules_of(model: nn.Module) -> Iterator[BottleneckLayer]:
    """Every adapter layer of this package in a model."""
    return (module for module in model.modules() if isinstance(module, BottleneckLayer))

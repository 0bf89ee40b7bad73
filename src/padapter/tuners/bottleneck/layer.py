"""The layer of the vanilla adapter: sequential or parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from padapter.architectures import AttentionSite, Site
from padapter.architectures.per_thread import PerThread
from padapter.tuners.base_layer import BottleneckLayer, BottleneckSettings, features, init_linear
from padapter.tuners.batches import Group
from padapter.tuners.bottleneck.config import BottleneckConfig


@dataclass(frozen=True)
class VanillaSettings(BottleneckSettings):
    """`BottleneckSettings`, and what the adapter reads."""

    parallel: bool


class InputCapture:
    """Forward pre-hook on a block's first projection: hands what enters it to the layer at the block's end."""

    def __init__(self, layer: VanillaLayer) -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Keep the input while a parallel adapter wants it."""
        self.layer.entered = args[0] if self.layer.reads_input() else None


class VanillaLayer(BottleneckLayer):
    """A Linear with vanilla adapters.

    Args:
        base_layer: the output projection.
        site: the block it belongs to, for parallel adapters.
    """

    prefix: ClassVar[str] = "bottleneck_"
    adapter_layer_names: tuple[str, ...] = ("bottleneck_down", "bottleneck_up", "bottleneck_scale")
    parameter_leaves: ClassVar[frozenset[str]] = frozenset({"scale"})
    entered = PerThread()  # (B, N, in_features): what entered the block, until its output has been made

    def __init__(self, base_layer: nn.Module, site: Site | None) -> None:
        super().__init__(base_layer)
        # A plain reference: the block's input must not become a sub-module of its output.
        self.__dict__["_source"] = _source(site)
        self.part = "decoder" if site is None else site.part

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter; parallel ones start to listen to the block's input."""
        parallel = config.mode == "parallel"
        source: nn.Module | None = self.__dict__["_source"]
        reads = self.out_features if not parallel or source is None else features(source)[0]
        self.add_bottleneck(adapter_name, reads, config.width(self.out_features), config)
        if not config.init_weights and parallel:
            init_linear(self.leaf("up")[adapter_name])
        if config.scaling == "learned":
            self.leaf("scale")[adapter_name] = nn.Parameter(torch.ones(1))
        self.settings[adapter_name] = VanillaSettings(
            config.activation_function(),
            config.dropout,
            1.0 if config.scaling == "learned" else float(config.scaling),
            parallel,
        )
        if parallel and source is not None and self._hook_id() is None:
            source.register_forward_pre_hook(InputCapture(self))
        self.finish_update(adapter_name, config)

    def reads_input(self) -> bool:
        """Whether a parallel adapter takes part in the forward pass."""
        return any(self.settings[name].parallel for name in self.present())

    def change(self, adapter_name: str, group: Group, result: torch.Tensor) -> torch.Tensor:
        """``s W_up act(W_down x)``, x the output of the block or what entered it."""
        states = result
        if self.settings[adapter_name].parallel:
            if self.entered is None:
                raise RuntimeError("a parallel adapter ran without the input of its block having been seen.")
            states = self.entered
        delta = self.bottleneck(adapter_name, group.take(states))
        scale = self.leaf("scale")
        return delta * scale[adapter_name] if adapter_name in scale else delta

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the base layer and add the changes of the active adapters; x (B, N, in_features)."""
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            self.entered = None

    def release(self) -> None:
        """Stop listening to the block's input."""
        hook = self._hook_id()
        if hook is not None:
            del self.__dict__["_source"]._forward_pre_hooks[hook]

    def _hook_id(self) -> int | None:
        source: nn.Module | None = self.__dict__["_source"]
        hooks = {} if source is None else source._forward_pre_hooks
        mine = (key for key, hook in hooks.items() if isinstance(hook, InputCapture) and hook.layer is self)
        return next(mine, None)


def _source(site: Site | None) -> nn.Module | None:
    if site is None:
        return None
    return site.query if isinstance(site, AttentionSite) else site.input

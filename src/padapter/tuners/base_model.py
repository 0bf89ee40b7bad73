"""The ``BaseTuner`` that both tuners share: resolving targets, refusing what cannot work, mixed batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND
from torch import nn

from padapter.architectures import AttentionSite, Site, as_pattern, default_sites, find_sites
from padapter.architectures.checkpointing import forget_checkpointing, support_checkpointing
from padapter.errors import UserError
from padapter.tuners.base_config import AdapterConfig
from padapter.tuners.base_layer import NOT_MERGEABLE, BottleneckLayer
from padapter.tuners.batches import check_one_name_per_sample, mixed_batch, rows_per_sample
from padapter.tuners.offload import fetched


class BottleneckTuner(BaseTuner):
    """Base of the tuners: puts a `BottleneckLayer` around each target."""

    prefix: str
    tuner_layer_cls: type[BottleneckLayer]
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    @property
    def sites(self) -> dict[str, Site]:
        """The blocks of the model, by the name of their output projection."""
        return self.__dict__["_sites"]

    def default_blocks(self, config: AdapterConfig) -> dict[str, bool]:
        """Which blocks a config without targets adapts: keys ``attention`` and ``feed_forward``."""
        raise NotImplementedError

    def check_target(self, config: AdapterConfig, target: nn.Module, key: str, site: Site | None) -> None:
        """Raise `UserError` if the config cannot be applied to this target."""
        raise NotImplementedError

    def new_layer(self, target: nn.Module, site: Site | None) -> BottleneckLayer:
        """Wrap a target that has no layer of this tuner yet."""
        raise NotImplementedError

    def _prepare_adapter_config(self, peft_config: AdapterConfig, model_config: dict[str, Any]) -> AdapterConfig:
        if peft_config.target_modules is not None:
            return peft_config
        model: nn.Module = self.__dict__["_adapted"]
        blocks = self.default_blocks(peft_config)
        chosen = default_sites(self.sites, **blocks, where=peft_config.where_list(), layers=peft_config.layer_indices())
        if not chosen:
            raise UserError(nothing_to_adapt(model, peft_config, self.sites, blocks))
        self._say_what_adds_nothing(peft_config, blocks)
        # The layers are part of the expression now; PEFT does not combine the two.
        peft_config.target_modules = as_pattern(chosen, [name for name, _ in model.named_modules()])
        peft_config.layers_to_transform = None
        peft_config.layers_pattern = None
        return peft_config

    def _say_what_adds_nothing(self, config: AdapterConfig, blocks: Mapping[str, bool]) -> None:
        """Warn of values of ``where`` that choose no module, beside others that do."""
        for value in config.where_list():
            if not default_sites(self.sites, **blocks, where=[value], layers=config.layer_indices()):
                name = type(self.__dict__["_adapted"]).__name__
                warnings.warn(
                    f"{type(config).__name__}: {value!r} in where={config.where_list()!r} adds nothing. {name} has "
                    f"{count_parts(self.sites, blocks)}.",
                    stacklevel=2,
                )

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the model; see ``BaseTuner.inject_adapter``.

        Raises:
            UserError: if the adapter's name or one of its targets cannot be used; the model is then unchanged.
        """
        check_adapter_name(adapter_name, model)
        self.__dict__["_adapted"] = model
        self.__dict__["_sites"] = find_sites(model)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        support_checkpointing(model)

    def unload(self) -> nn.Module:
        """The base model without any adapter; see ``BaseTuner.unload``."""
        model: nn.Module = super().unload()
        forget_checkpointing(model)
        return model

    def _prepare_model(self, peft_config: AdapterConfig, model: nn.Module) -> None:
        sites = self.sites
        if peft_config.target_modules == INCLUDE_LINEAR_LAYERS_SHORTHAND:
            return  # PEFT turns it into names later; each is checked when its turn comes
        inside: tuple[str, ...] = ()
        for key, module in list(model.named_modules()):
            if key.startswith(inside) and inside:
                continue
            if isinstance(module, BaseTunerLayer):
                inside = (*inside, f"{key}.")
            if key and self._check_target_module_exists(peft_config, key):
                self.check_target(peft_config, module, key, sites.get(key))

    def _create_and_replace(
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        site = self.sites.get(current_key)
        self.check_target(peft_config, target, current_key, site)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.new_layer(target, site).train(target.training)
        layer._active_adapter = list(self.active_adapters)
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        with fetched(layer.get_base_layer()):  # PEFT puts the adapter where the weight is
            self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise UserError(NOT_MERGEABLE)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        # Samples are counted here, where no beams exist yet: below, twice as many rows could be beams or a mistake.
        check_one_name_per_sample(names, args, kwargs)
        inputs = {**({"input_ids": args[0]} if args else {}), **kwargs}
        with mixed_batch(self.model, names, num_beams=rows_per_sample(self.model, kwargs), inputs=inputs):
            yield


def nothing_to_adapt(
    model: nn.Module, config: AdapterConfig, sites: Mapping[str, Site], blocks: Mapping[str, bool]
) -> str:
    """Why a model has no default targets for a configuration, and what to do."""
    found = count_parts(sites, blocks)
    if found:
        return (
            f"{type(config).__name__}: where={config.where!r} with layers_to_transform={config.layers_to_transform!r} "
            f"leaves nothing to adapt. {type(model).__name__} has {found}."
        )
    seen = sorted({type(module).__name__ for module in model.modules() if "Attention" in type(module).__name__})
    return (
        f"no default `target_modules` for {type(model).__name__}: padapter found no attention module it knows how to "
        f"read (attention-like classes of this model: {', '.join(seen) or 'none'}). It looked for modules that call "
        "transformers' attention interface with separate projections of the usual names, and for those of its table. "
        "Please specify `target_modules` in the config, or describe the model's attention with "
        "padapter.architectures.register_architecture."
    )


def count_parts(sites: Mapping[str, Site], blocks: Mapping[str, bool]) -> str:
    """How many modules of the blocks asked for each part of a model has, in words; empty if there are none."""
    parts: dict[str, int] = {}
    for site in sites.values():
        if blocks["attention" if isinstance(site, AttentionSite) else "feed_forward"]:
            parts[site.part] = parts.get(site.part, 0) + 1
    return ", ".join(f"{count} in the {part} part" for part, count in sorted(parts.items()))


_RESERVED = frozenset(dir(nn.ModuleDict())) | frozenset(dir(nn.ParameterDict()))


def check_adapter_name(name: str, model: nn.Module) -> None:
    """Refuse adapter names that PyTorch, PEFT or transformers would trip over.

    Raises:
        UserError: if the name is empty, has a dot, or is an attribute of ``torch.nn.ModuleDict``.
    """
    if not name or "." in name or name in _RESERVED:
        raise UserError(f"adapter name {name!r} cannot be used; choose a name without dots, like 'default' or 'vqa'.")
    parts = {part for module in _base_module_names(model) for part in module.split(".")}
    clash = sorted(part for part in parts if name in part)
    if clash and not name.isdigit():
        warnings.warn(
            f"adapter name {name!r} occurs in module names of the model ({', '.join(clash[:3])}); transformers' "
            "load_adapter may report base weights as missing, though the values are right. Another name avoids that.",
            stacklevel=2,
        )


def _base_module_names(model: nn.Module) -> Iterator[str]:
    layers = tuple(f"{key}." for key, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return (key for key, _ in model.named_modules() if not key.startswith(layers))

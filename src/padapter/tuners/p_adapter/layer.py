"""The layer of the p-adapter: all its parameters, around the output projection of an attention module."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from padapter.architectures import AttentionCall, AttentionSite, PackedSlice, Site, attach, detach
from padapter.architectures.per_thread import PerThread
from padapter.functional import metric_factor
from padapter.functional.graph import without_autocast
from padapter.tuners.base_config import INIT_STD, AdapterConfig
from padapter.tuners.base_layer import BottleneckLayer, init_linear
from padapter.tuners.batches import Group
from padapter.tuners.offload import fetched, is_offloaded
from padapter.tuners.p_adapter.config import PAdapterConfig
from padapter.tuners.p_adapter.message_passing import (
    MESSAGE_PASSING,
    MessagePassing,
    without_padding,
    without_queries,
)
from padapter.tuners.p_adapter.metric import KeptMetric, direction, enrol, metric_factor_of
from padapter.tuners.p_adapter.settings import settings_of
from padapter.tuners.weights import projection_weight, stored_weight


class PAdapterLayer(BottleneckLayer):
    """An output projection with p-adapters.

    Two calls make one step. The attention module calls `attend`, which gives it the context to project; then it, or
    its owner, calls `forward` on that context. What the second call needs from the first waits in ``_messages``.

    Args:
        base_layer: the output projection of an attention module or of a feed-forward block.
        site: the block it belongs to.
    """

    prefix: ClassVar[str] = "p_adapter_"
    adapter_layer_names: tuple[str, ...] = (
        "p_adapter_down",
        "p_adapter_up",
        "p_adapter_gate",
        "p_adapter_p",
        "p_adapter_mu",
        "p_adapter_mapping",  # PEFT finds `modules_to_save` by how names end: no leaf may end like a module of a model
    )
    parameter_leaves: ClassVar[frozenset[str]] = frozenset({"p", "mu", "mapping"})
    _messages = PerThread()  # adapter name -> what `attend` made for `forward`; None outside of a pass

    def __init__(self, base_layer: nn.Module, site: Site) -> None:
        super().__init__(base_layer)
        # Plain references: the attention module must not become a sub-module of its own output projection.
        self.__dict__["_site"] = site
        self.part = site.part
        self._metric: KeptMetric | None = None
        self._metric_doubted = False
        self._number = enrol(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As ``torch.nn.Module``; a copy is another layer."""
        super().__setstate__(state)
        self._number = enrol(self)
        self._metric, self._metric_doubted = None, False  # its key is about addresses

    def update_layer(self, adapter_name: str, config: PAdapterConfig) -> None:
        """Add an adapter, and connect the attention module if it is the first."""
        site = self.__dict__["_site"]
        if not isinstance(site, AttentionSite):
            width = config.ffn_width(self.out_features)
            self.add_bottleneck(adapter_name, self.out_features, width, config)
            self.settings[adapter_name] = settings_of(config, "vanilla", "row", update_values=False)
            self.finish_update(adapter_name, config)
            return
        width = config.width(self.out_features, site.num_heads)
        self.add_bottleneck(adapter_name, self.out_features, width, config)
        if config.form == "bottleneck" and config.gate:
            self.leaf("gate")[adapter_name] = nn.Linear(self.out_features, width)
            if config.init_weights:
                init_linear(self.leaf("gate")[adapter_name])
        self._add_exponents(adapter_name, config, site.num_heads if config.per_head else 1)
        if "mapping" in MESSAGE_PASSING[config.message_passing].takes:
            self._add_mapping(adapter_name, config, site.num_heads, width)
        degree = config.resolve_degree(site.decoder)
        self.settings[adapter_name] = settings_of(config, config.form, degree, update_values=not site.decoder)
        attach(site, self)
        self.finish_update(adapter_name, config)

    def finish_update(self, adapter_name: str, config: AdapterConfig) -> None:
        """Place the adapter; p and mu stay float32, where 1.1 is nearer to 1.1 than in bfloat16."""
        exact = {name: self.leaf(name)[adapter_name] for name in ("p", "mu") if adapter_name in self.leaf(name)}
        super().finish_update(adapter_name, config)
        for name, value in exact.items():
            placed = self.leaf(name)[adapter_name]
            if placed.dtype != value.dtype:
                self.leaf(name)[adapter_name] = nn.Parameter(value.detach().to(placed.device), placed.requires_grad)

    def changes_attention(self) -> bool:
        """Whether an enabled, active adapter of this layer takes part in attention.

        A layer that another PEFT method's ``unload`` has dropped from the model no longer does.
        """
        return bool(self.present()) and any(part is self for part in self.__dict__["_site"].output().modules())

    def exponents(self, adapter_name: str) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """The p >= 1 and mu >= 0 that an adapter uses: floats, or tensors of one number or one per head.

        Out of range, the value is clamped and the gradient is passed straight through, so that it can come back.
        """
        with fetched(self.leaf("p"), self.leaf("mu")):
            return self._exponents(adapter_name)

    def _exponents(self, adapter_name: str) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        settings = self.settings[adapter_name]
        p: torch.Tensor | float = settings.p
        mu: torch.Tensor | float = settings.mu
        if adapter_name in self.leaf("p"):
            p = _at_least(self.leaf("p")[adapter_name], 1.0)
        if settings.form == "bottleneck":
            theta = self.leaf("mu").get(adapter_name)
            mu = 2 * settings.mu if theta is None else settings.mu * (2 + torch.tanh(theta))
        elif adapter_name in self.leaf("mu"):
            mu = _at_least(self.leaf("mu")[adapter_name], 0.0)
        return p, mu

    def train(self, mode: bool = True) -> PAdapterLayer:
        """As ``torch.nn.Module.train``; what was computed from the projection's weight is compared with it anew.

        Writes through ``weight.data`` leave no trace that `metric_factor` could see; trainers call this once a step.
        """
        self._metric_doubted = True
        super().train(mode)
        return self

    def metric_factor(self, num_heads: int) -> torch.Tensor:
        """R with R R^T = Wo Wo^T per head, (H, dh, dh); computed again when the projection has changed.

        Args:
            num_heads: H.
        """
        projection = self.get_base_layer()
        stored = stored_weight(projection)
        version = 0 if stored.is_inference() else stored._version
        key: tuple[Any, ...] = (id(stored), stored.data_ptr(), version, stored.device, stored.dtype, num_heads)
        if is_offloaded(projection):  # a new tensor for each call, but nobody writes to what is stored away
            key = ("offloaded", stored.dtype, num_heads)
        known, doubted = self._metric, self._metric_doubted
        if known is not None and known.key == key and not doubted:
            return known.factor
        # Not in inference mode, even if this call is: what is made there can never take part in training.
        with torch.inference_mode(False), torch.no_grad(), without_autocast(stored.device), fetched(projection):
            weight = projection_weight(projection)
            weight = weight.clone() if weight.is_inference() else weight
            wide = weight if weight.dtype == torch.float64 else weight.float()
            mark = wide @ direction(wide.shape[1]).to(wide)
            same = known is not None and known.key == key and known.mark.dtype == mark.dtype and not mark.is_meta
            if known is None or not same or not torch.equal(known.mark, mark):
                known = KeptMetric(key, metric_factor(wide, num_heads), mark)
        self._metric, self._metric_doubted = known, False
        return known.factor

    def attend(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Context of the attention module, as the active adapters want it.

        One projected adapter, or one per row of a mixed batch, replaces the context. Everything else (the bottleneck
        form, several adapters at once) leaves the plain context and has its message added by `forward`.

        Args:
            call: the arguments of the attention function.

        Returns:
            Context (B, N1, H, dh), and weights (B, H, N1, N2) where recorded: those that made the context, that is,
            calibrated ones where one projected adapter is active and plain ones otherwise.
        """
        groups = self.groups(call.query.shape[0]) if call.packed is None else self._groups_of_slice(call.packed)
        if call.packed is None or call.packed.start == 0 or self._messages is None:
            self._messages = {}
        if len(groups) == 1 and groups[0].rows is None and self._form(groups[0]) == "projected":
            return self._calibrate(groups[0].name, call, groups[0])
        context, weights = call.plain()
        for group in groups:
            if self._form(group) == "bottleneck":
                self._leave(group.name, self._bottleneck_message(group.name, call, group))
            elif group.rows is None:
                self._leave(group.name, self._calibrate(group.name, call, group)[0].flatten(2))
            else:
                calibrated, calibrated_weights = self._calibrate(group.name, call, group)
                context = group.put(context, calibrated)
                if weights is not None and calibrated_weights is not None:
                    weights = group.put(weights, calibrated_weights)
        return context, weights

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Project the context x (B, N1, H * dh) and add the changes of the active adapters; (B, N1, d)."""
        if self._messages is None and isinstance(self.__dict__["_site"], AttentionSite) and self.present():
            site = self.__dict__["_site"]
            raise RuntimeError(
                f"the output projection of attention module {site.name!r} was called, but not its attention function, "
                "so the p-adapter would have been left out. Does the module run a fused or replaced attention?"
            )
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            self._messages = None

    def change(self, adapter_name: str, group: Group, result: torch.Tensor) -> torch.Tensor:
        """What one adapter adds to h = Wo ctx + b; see `attend` for who made ctx.

        Projected: ``U - h + s W_up act(W_down U)``, where U = h if this adapter made the context alone.
        Bottleneck: ``s W_up (act(W_gate h) * Ubar)``.
        """
        messages = self._messages or {}
        form = self._form(group)
        if form == "vanilla" or adapter_name not in messages:
            return self.bottleneck(adapter_name, group.take(result))
        message = torch.cat(messages[adapter_name], dim=1)  # (B, N1, H * dh), or (B, N1, r) in the bottleneck form
        if message.dim() != result.dim():  # a packed sequence has no batch dimension
            message = message.flatten(0, 1)
        if form == "projected":
            states = self.base_layer(message)  # (B, N1, d)
            return (states - result) + self.bottleneck(adapter_name, states)
        settings = self.settings[adapter_name]
        if adapter_name in self.leaf("gate"):
            gate = self.leaf("gate")[adapter_name]
            message = message * settings.activation(gate(self._cast_input_dtype(group.take(result), gate.weight.dtype)))
        return settings.scaling * self.leaf("up")[adapter_name](message)

    def release(self) -> None:
        """Give the attention module its own class back."""
        site = self.__dict__["_site"]
        if isinstance(site, AttentionSite):
            detach(site.module)

    def _groups_of_slice(self, packed: PackedSlice) -> list[Group]:
        """Who serves the queries of one image of a packed sequence: all of them belong to one sample."""
        groups = self.groups(packed.total)
        return [Group(group.name, None) for group in groups if group.rows is None or packed.start in group.rows]

    def _leave(self, adapter_name: str, message: torch.Tensor) -> None:
        """Leave a message (B, N1, ...) for `forward`; those of one pass follow each other along N1."""
        messages: dict[str, list[torch.Tensor]] = self._messages
        messages.setdefault(adapter_name, []).append(message)

    def _form(self, group: Group) -> str:
        return self.settings[group.name].form

    def _calibrate(
        self, adapter_name: str, call: AttentionCall, group: Group
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Equations (7)-(8) in head space: context (rows, N1, H, dh), weights (rows, H, N1, N2) where recorded."""
        operator, arguments = self._operator(adapter_name, call, group)
        query, key, value = (group.take(states) for states in (call.query, call.key, call.value))
        if "metric_factor" in operator.takes:
            arguments["metric_factor"] = self._metric_factor(call.query)
        arguments["node_query"] = None if call.node_query is None else group.take(call.node_query)
        context = self._pass(adapter_name, call, group, operator, query, key, value, **arguments)
        weights = operator.weights(query, key, value, **arguments)[0] if call.need_weights else None
        # Contiguous, as transformers' own attention functions return it: some modules use `view` on it. And a copy
        # where there are gradients: the fused operators keep their context, and modules may change theirs in place.
        context = context.transpose(1, 2)
        if context.requires_grad:
            return context.clone(memory_format=torch.contiguous_format), weights
        return context.contiguous(), weights

    def _bottleneck_message(self, adapter_name: str, call: AttentionCall, group: Group) -> torch.Tensor:
        """Message passing between bottleneck features: Ubar (rows, N1, r)."""
        operator, arguments = self._operator(adapter_name, call, group)
        query, key, value = (group.take(states) for states in (call.query, call.key, call.value))
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)  # (rows, H, N2, dk | dh)
        arguments["node_query"] = self._bottleneck_features(adapter_name, query)
        features = self._bottleneck_features(adapter_name, value)
        message = self._pass(adapter_name, call, group, operator, query, key, features, **arguments)
        return message.transpose(1, 2).flatten(2)

    def _pass(
        self, name: str, call: AttentionCall, group: Group, operator: MessagePassing, *states: torch.Tensor, **more: Any
    ) -> torch.Tensor:
        """Pass messages between query, key and value: (rows, H, N1, dh). A recorded call is computed step by step."""
        if call.passed is None:
            return operator.context(*states, dropout_p=call.dropout, **more)
        step = operator.last_step(*states, **more)
        call.passed(name, self._form(group), group.rows, step)
        return step.context(call.dropout).to(states[2].dtype)

    def _bottleneck_features(self, adapter_name: str, states: torch.Tensor) -> torch.Tensor:
        """``(Wo x + b) W_down`` of states (B, H, N, dh), cut into heads: (B, H, N, r / H)."""
        down = self.leaf("down")[adapter_name]
        heads = states.shape[1]
        projection = self.get_base_layer()
        with fetched(projection, down):
            weight = projection_weight(projection).to(down.weight.dtype)
            folded = down.weight @ weight  # (r, H * dh): one small product instead of N wide ones
            bias = down.bias
            if getattr(projection, "bias", None) is not None:
                bias = bias + down.weight @ projection.bias.to(down.weight.dtype)
        joined = states.transpose(1, 2).flatten(2).to(folded.dtype)  # (B, N, H * dh)
        joined = F.dropout(joined, self.settings[adapter_name].dropout, self.training)
        return F.linear(joined, folded, bias).unflatten(-1, (heads, -1)).transpose(1, 2)

    def _operator(self, adapter_name: str, call: AttentionCall, group: Group) -> tuple[MessagePassing, dict[str, Any]]:
        settings = self.settings[adapter_name]
        operator = MESSAGE_PASSING[settings.operator]
        mask = call.attention_mask
        if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
            mask = group.take(mask)
        if settings.sums_over_queries(operator):
            mask = self._without_padding(mask, call, group)
        p, mu = self.exponents(adapter_name)
        available = {
            "p": p,
            "mu": mu,
            "steps": settings.steps,
            "teleport": settings.teleport,
            "theta": settings.theta,
            "update_values": settings.update_values,
            "mapping": self._mapping(adapter_name),
        }
        arguments = {name: value for name, value in available.items() if name in operator.takes} | {
            "attention_mask": mask,
            "is_causal": call.is_causal,
            "scale": call.scaling,
            "degree": settings.degree,
        }
        return operator, arguments

    def _mapping(self, adapter_name: str) -> torch.Tensor | None:
        """W = I + what is trained, (H, dh, dh), so that weight decay pulls W to the identity and not to zero."""
        with fetched(self.leaf("mapping")):
            change = self.leaf("mapping").get(adapter_name)
        if change is None:
            return None
        exact = torch.promote_types(change.dtype, torch.float32)  # near 1, half precision would round the change away
        return change.to(exact) + torch.eye(change.shape[-1], dtype=exact, device=change.device)

    def _without_padding(self, mask: torch.Tensor | None, call: AttentionCall, group: Group) -> torch.Tensor | None:
        """The mask of the rows of a group, without queries that are padding."""
        if self.__dict__["_site"].cross:
            if call.present is None:
                return mask
            present = call.present if call.present.shape[0] == 1 else group.take(call.present)
            return without_queries(mask, present.unsqueeze(1))
        return None if mask is None else without_padding(mask, call.query.shape[2], call.key.shape[2])

    def _metric_factor(self, query: torch.Tensor) -> torch.Tensor:
        """`metric_factor` for a query (B, H, N1, dk), in a compiled graph too."""
        num_heads = query.shape[1]
        if not torch.compiler.is_compiling():
            return self.metric_factor(num_heads)
        is_double = stored_weight(self.get_base_layer()).dtype == torch.float64
        with torch.no_grad():
            return metric_factor_of(self._number, query, num_heads, self.in_features // num_heads, is_double)

    def _add_exponents(self, adapter_name: str, config: PAdapterConfig, size: int) -> None:
        takes = MESSAGE_PASSING[config.message_passing].takes
        if config.learn_p and "p" in takes:
            self.leaf("p")[adapter_name] = nn.Parameter(torch.full((size,), float(config.p)))
        if config.learn_mu and "mu" in takes:
            start = 0.0 if config.form == "bottleneck" else float(config.mu)
            self.leaf("mu")[adapter_name] = nn.Parameter(torch.full((size,), start))

    def _add_mapping(self, adapter_name: str, config: PAdapterConfig, heads: int, width: int) -> None:
        """``W - I`` per head, between node features: head features, or those of the bottleneck ``width``."""
        features = (width if config.form == "bottleneck" else self.in_features) // heads
        std = 0.0 if config.init_weights else INIT_STD
        self.leaf("mapping")[adapter_name] = nn.Parameter(std * torch.randn(heads, features, features))


def _at_least(value: torch.Tensor, low: float) -> torch.Tensor:
    return value.clamp(min=low).detach() + (value - value.detach())

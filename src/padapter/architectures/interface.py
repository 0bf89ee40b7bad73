"""The seam: an attention function that asks the adapter layer of its output projection for the context.

The function has the signature of transformers' attention interface and is registered there under `ATTENTION_NAME`.
An attention module reaches it through a *shim*, a subclass put in place by assigning ``module.__class__``: parameters,
hooks, ``isinstance`` and deepcopy stay as they were. The module finds its adapter layer by a plain reference in its
``__dict__``; it is no sub-module, so names, parameters and the state dict of the model do not change.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import output_capturing

from padapter.architectures.node_query import NodeQueryTap, PackedSlice
from padapter.architectures.padding import PaddingTap
from padapter.architectures.sites import AttentionSite
from padapter.errors import UserError
from padapter.functional.graph import Step

ATTENTION_NAME = "p_adapter"
_LAYER = "_padapter_layer"
_TAP = "_padapter_node_query"
_PADDING = "_padapter_padding"

# Arguments of attention functions that change the scores beyond scale, mask and additive bias.
_CHANGE_SCORES = ("softcap", "s_aux", "head_mask")

PlainAttention = Callable[[], tuple[torch.Tensor, "torch.Tensor | None"]]


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention function.

    Attributes:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk).
        value: (B, Hkv, N2, dh).
        attention_mask: boolean (True = attend) or additive, broadcastable to (B, H, N1, N2), or None.
        is_causal: whether a causal mask applies on top (only where there is no mask).
        scaling: factor of the scores, None for dk ** -0.5.
        dropout: probability of dropping an attention weight; 0 in evaluation.
        plain: runs the module's own attention; gives its context (B, N1, H, dh) and its weights, if it has them.
        need_weights: whether somebody records the attention weights of this call.
        node_query: (B, H, N1, dh), features of the query nodes; None for the query itself.
        packed: which slice of a packed sequence this is, where a module attends to one image after another.
        present: (B or 1, N1), which queries of an encoder's cross-attention are no padding; None where nothing is known
            of padding.
        passed: told of every message passing, if somebody records it: the adapter's name, its form, the rows of the
            batch it serves (None: all) and the step, from whose very tensors the context is then made.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attention_mask: torch.Tensor | None
    is_causal: bool
    scaling: float | None
    dropout: float
    plain: PlainAttention
    need_weights: bool
    node_query: torch.Tensor | None = None
    packed: PackedSlice | None = None
    present: torch.Tensor | None = None
    passed: Callable[[str, str, tuple[int, ...] | None, Step], None] | None = None


class AttentionAdapter(Protocol):
    """What an attention module needs from the adapter layer around its output projection."""

    def changes_attention(self) -> bool:
        """Whether an enabled, active adapter of this layer takes part in attention."""

    def attend(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return context (B, N1, H, dh) and, where recorded, weights (B, H, N1, N2)."""


class AttentionShim:
    """Base of the classes that make an attention module call `p_adapter_attention`.

    Attributes:
        padapter_original: the class the module had, and gets back from `detach`.
        padapter_shim: the shim that was combined with it.
    """

    padapter_original: ClassVar[type[nn.Module]]
    padapter_shim: ClassVar[type[AttentionShim]]

    @property
    def padapter_layer(self) -> AttentionAdapter:
        """The adapter layer around this module's output projection."""
        return self.__dict__[_LAYER]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The combined class is made at run time, so pickle cannot find it by name.
        return _rebuild, (type(self).padapter_shim, type(self).padapter_original), self.__dict__


class _ConfigView:
    """A model config that answers one question differently: which attention function to call."""

    __slots__ = ("_config",)

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        if name == "_config":  # only while being copied or unpickled, before it is set
            raise AttributeError(name)
        return ATTENTION_NAME if name == "_attn_implementation" else getattr(self._config, name)


class InterfaceShim(AttentionShim):
    """Shim of modules that look their function up by ``self.config._attn_implementation``."""

    @property
    def config(self) -> Any:
        """The module's config; names the adapter's attention function while an adapter is active."""
        config = self.__dict__["config"]
        return _ConfigView(config) if self.padapter_layer.changes_attention() else config

    @config.setter
    def config(self, value: Any) -> None:
        self.__dict__["config"] = value


def p_adapter_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    plain: PlainAttention | None = None,
    node_query: torch.Tensor | None = None,
    need_weights: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention as the active adapters of the module's output projection compute it.

    Args:
        module: the attention module, a shim.
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk).
        value: (B, Hkv, N2, dh).
        attention_mask: boolean or additive, broadcastable to (B, H, N1, N2), or None.
        scaling: factor of the scores.
        dropout: probability of dropping an attention weight.
        is_causal: whether attention is causal where no mask is given; default: the module's ``is_causal``.
        plain: the module's own attention; default: the function its config names.
        node_query: (B, H, N1, dh), features of the query nodes; default: what the row of the module says, and
            without such a word the query.
        need_weights: whether the weights are wanted although nobody records them.
        **kwargs: handed to the module's own attention.

    Returns:
        Context (B, N1, H, dh) and, where recorded, weights (B, H, N1, N2).

    Raises:
        UserError: if the masks of the model's attention implementation cannot be read (flash and flex attention), or
            if its scores are changed in a way that message passing does not follow (soft caps, sinks, biases).
    """
    if not isinstance(module, AttentionShim):
        raise UserError(
            f"attention implementation {ATTENTION_NAME!r} works only for modules that carry a p-adapter, not for "
            f"{type(module).__name__}; leave the model's own `attn_implementation` and add a PAdapterConfig."
        )
    changed = sorted(name for name in _CHANGE_SCORES if kwargs.get(name) is not None)
    if changed:
        raise UserError(
            f"attention of {type(module).padapter_original.__name__} is called with {', '.join(changed)}, which the "
            "p-adapter does not follow yet; leave these modules out with `exclude_modules`."
        )
    if plain is None:
        own = _own_function(module)

        def plain() -> tuple[torch.Tensor, torch.Tensor | None]:
            return own(
                module, query, key, value, attention_mask,
                scaling=scaling, dropout=dropout, is_causal=is_causal, **kwargs,
            )  # fmt: skip

    causal = is_causal if is_causal is not None else getattr(module, "is_causal", False)
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    packed = None
    if node_query is None and _TAP in module.__dict__:
        node_query, packed = module.__dict__[_TAP].take(query)
    call = AttentionCall(
        query=query,
        key=key,
        value=value,
        attention_mask=_with_bias(attention_mask, kwargs.get("position_bias")),
        is_causal=causal,
        scaling=scaling,
        dropout=dropout,
        plain=plain,
        need_weights=need_weights or attention_weights_recorded(),
        node_query=node_query,
        packed=packed,
        present=module.__dict__[_PADDING].take(query) if _PADDING in module.__dict__ else None,
    )
    return module.padapter_layer.attend(call)


def _with_bias(mask: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Mask and additive position bias (1 or B, H, N1, N2) as one additive mask."""
    if bias is None or mask is None:
        return bias if mask is None else mask
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    return mask + bias


def attention_weights_recorded() -> bool:
    """Whether the running model call was asked for attention weights (``output_attentions=True``)."""
    collector = output_capturing._active_collector
    # A compiler cannot read a context variable; while one traces, transformers keeps the same in an attribute.
    collected = collector.global_var if torch.compiler.is_compiling() else collector.get()
    return collected is not None and any("attentions" in key for key in collected)


def attach(site: AttentionSite, adapter: AttentionAdapter) -> None:
    """Make the attention module of a site call `p_adapter_attention` with this adapter layer.

    Raises:
        UserError: if the module already answers to another adapter layer, or cannot be redirected.
    """
    module = site.module
    current = attached(module)
    if current is adapter:
        return
    if current is not None:
        raise UserError(
            f"attention module {site.name!r} already carries a p-adapter of another PEFT model. Add the new adapter "
            "to that model with `add_adapter`, or `unload()` it first."
        )
    shim = site.row.shim or InterfaceShim
    if shim is InterfaceShim and "config" not in module.__dict__:
        raise UserError(
            f"attention module {site.name!r} ({type(module).__name__}) has no `config`, so it cannot use transformers' "
            "attention interface; give its architecture row a `shim`."
        )
    if "forward" in module.__dict__ and "_old_forward" not in module.__dict__ and "forward" in shim.__dict__:
        raise UserError(
            f"attention module {site.name!r} has its `forward` replaced on the instance; undo that before adding a "
            "p-adapter."
        )
    module.__dict__[_LAYER] = adapter
    _set_class(module, _combine(shim, type(module)))
    if site.row.node_query is not None:
        module.__dict__[_TAP] = NodeQueryTap(module, site.row.node_query)  # type: ignore[arg-type]
    if site.padding is not None:
        module.__dict__[_PADDING] = PaddingTap(module, site.padding)  # type: ignore[arg-type]


def attached(module: nn.Module) -> AttentionAdapter | None:
    """The adapter layer that an attention module answers to, if any."""
    return module.__dict__.get(_LAYER)


def replace_adapter(module: nn.Module, adapter: AttentionAdapter) -> None:
    """Make an attention module that answers to an adapter layer answer to another one."""
    module.__dict__[_LAYER] = adapter


def detach(module: nn.Module) -> None:
    """Give an attention module its own class back; modules without a shim are left alone."""
    if isinstance(module, AttentionShim):
        for name in (_TAP, _PADDING):
            tap = module.__dict__.pop(name, None)
            if tap is not None:
                tap.remove()
        _set_class(module, type(module).padapter_original)
        del module.__dict__[_LAYER]


def _set_class(module: nn.Module, cls: type) -> None:
    module.__class__ = cls
    if "_old_forward" in module.__dict__:  # accelerate's device hooks keep the bound forward of the former class
        module.__dict__["_old_forward"] = types.MethodType(cls.forward, module)  # type: ignore[attr-defined]


def rest_on(module: nn.Module, original: type[nn.Module]) -> None:
    """Make a module one of another class; below its shim, if it has one."""
    _set_class(
        module, _combine(type(module).padapter_shim, original) if isinstance(module, AttentionShim) else original
    )


_COMBINED: dict[tuple[type, type], type] = {}


def _combine(shim: type[AttentionShim], original: type) -> type:
    key = (shim, original)
    if key not in _COMBINED:
        namespace = {"padapter_original": original, "padapter_shim": shim, "__module__": shim.__module__}
        _COMBINED[key] = type(f"PAdapter{original.__name__}", key, namespace)
    return _COMBINED[key]


def _rebuild(shim: type[AttentionShim], original: type) -> Any:
    cls: Any = _combine(shim, original)
    return cls.__new__(cls)


def _own_function(module: AttentionShim) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    name = module.__dict__["config"]._attn_implementation or "eager"
    if any(kind in name for kind in ("flash", "flex", "paged")):
        raise UserError(
            f"attention implementation {name!r} does not hand a mask to the attention function; load the model with "
            'attn_implementation="sdpa" or "eager" to use a p-adapter.'
        )
    if name in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[name]
    original = type(module).padapter_original
    eager = getattr(sys.modules[original.__module__], "eager_attention_forward", None)
    if eager is None:
        raise UserError(
            f"{original.__module__} has no `eager_attention_forward`, which {original.__name__} needs for "
            f"attention implementation {name!r}; use another `attn_implementation` or give the row a shim."
        )
    return eager


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, p_adapter_attention)

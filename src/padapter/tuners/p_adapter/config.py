"""Options of the p-adapter."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from padapter.errors import UserError
from padapter.functional import DEGREES
from padapter.tuners.base_config import AdapterConfig, Variant
from padapter.tuners.p_adapter.message_passing import LAYER_FIELDS, MESSAGE_PASSING
from padapter.tuners.registration import add_peft_type

FORMS = ("projected", "bottleneck")


@dataclass
class PAdapterConfig(AdapterConfig):
    """Configuration of p-adapters (arXiv 2312.10613).

    ``projected`` is the published method, equations (5)-(9): attention is replaced by p-Laplacian message passing on
    its graph, with distances measured behind the frozen output projection, and a bottleneck follows. It changes the
    model from the start, by as much as (p, mu) depart from (2, 0).

    ``bottleneck`` follows the authors' code: attention stays as it is, and message passing happens between
    bottleneck features ``(Wo x + b) W_down``, cut into heads; the result, gated by ``act(h W_gate)``, goes through
    W_up and is added to the attention output h. It starts as the base model exactly.

    Args:
        form: "projected" or "bottleneck".
        p: exponent of the p-Laplacian, >= 1; 2 is ordinary attention, less favours close nodes, more distant ones.
        mu: weight of a node's own feature, >= 0.
        learn_p: whether p is trained, from ``p``. If not, ``p`` of the config is used and nothing is saved. A
            trained p below 1 counts as 1, but keeps its gradient.
        learn_mu: the same for mu; below 0 counts as 0. In the bottleneck form mu is ``mu (2 + tanh(theta))``
            with theta trained from 0, so it starts at twice ``mu``; that is also its value when it is not trained.
        per_head: one p and one mu per head instead of one per attention module.
        message_passing: the graph layer: "pgnn" (p-Laplacian), "gcn" (plain attention), "appnp" (personalised
            propagation), "gcnii" (that with a trained matrix per head), or one of `register_message_passing`. p and mu
            are those of pgnn.
        steps: how often pgnn, appnp and gcnii pass messages. Where attention is bidirectional, value nodes are updated
            from the queries between steps; in decoders they keep their features, so that no token sees a later one.
        teleport: share of a node's own features in each step of appnp and gcnii; >= 0 and < 1.
        theta: strength of gcnii's matrix W: step l computes with ``(1 - b) I + b W``, ``b = log(theta / l + 1)``. W
            starts at the identity, so gcnii starts as appnp.
        degree: "row", "symmetric" (encoders and projected form only), or "auto": symmetric where attention is
            bidirectional, row in decoders.
        gate: whether the bottleneck form has its gate; not used by the projected form.
        scaling: factor of what the bottleneck adds.
        activation: in the bottleneck (projected form) or of the gate (bottleneck form).
        ffn_adapter: whether feed-forward blocks get a vanilla adapter behind them too; default: only in the
            bottleneck form. With ``target_modules`` given, those among them that are feed-forward outputs.
        ffn_reduction_factor: the ``reduction_factor`` of these.
    """

    form: str = field(default="projected")
    p: float = field(default=1.5)
    mu: float = field(default=0.1)
    learn_p: bool = field(default=True)
    learn_mu: bool = field(default=True)
    per_head: bool = field(default=False)
    message_passing: str = field(default="pgnn")
    steps: int = field(default=1)
    teleport: float = field(default=0.1)
    theta: float = field(default=0.5)
    degree: str = field(default="auto")
    gate: bool = field(default=True)
    scaling: float = field(default=1.0)
    ffn_adapter: bool | None = field(default=None)
    ffn_reduction_factor: float = field(default=8)

    def __post_init__(self) -> None:
        self.peft_type = add_peft_type("P_ADAPTER")
        super().__post_init__()
        self.check_choice("form", FORMS)
        self.check_choice("message_passing", tuple(MESSAGE_PASSING))
        self.check_choice("degree", ("auto", *DEGREES))
        self.check_number("p", 1)
        self.check_number("mu", 0)
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise self.refuse("steps", "a positive integer")
        self.check_number("teleport", 0, below=1)
        self.check_number("theta", 0, strict=True)
        self.check_number("scaling", 0, strict=True)
        self.check_number("ffn_reduction_factor", 0, strict=True)
        for name in ("learn_p", "learn_mu", "per_head", "gate"):
            self.check_flag(name)
        if self.ffn_adapter is not None:
            self.check_flag("ffn_adapter")
        self._check_bottleneck_form()
        self._check_contradictions()

    @property
    def adapts_ffn(self) -> bool:
        """``ffn_adapter``, with its default filled in."""
        return self.form == "bottleneck" if self.ffn_adapter is None else self.ffn_adapter

    def width(self, features: int, num_heads: int) -> int:
        """Width of the bottleneck behind an attention module.

        Raises:
            UserError: if the bottleneck form is asked for an ``r`` that the heads do not divide.
        """
        if self.form == "projected":
            return self.r if self.r is not None else max(1, int(self.share(features)))
        if self.r is None:
            return num_heads * max(1, round(self.share(features) / num_heads))
        if self.r % num_heads:
            below = self.r // num_heads * num_heads
            nearest = " or ".join(str(width) for width in (below, below + num_heads) if width)
            raise UserError(
                f"PAdapterConfig: `r` must be a multiple of the {num_heads} attention heads with form='bottleneck', "
                f"got {self.r}; nearest: {nearest}."
            )
        return self.r

    def ffn_width(self, features: int) -> int:
        """Width of the bottleneck behind a feed-forward block."""
        return max(1, int(features // self.ffn_reduction_factor))

    def resolve_degree(self, decoder: bool) -> str:
        """``degree``, with "auto" decided.

        Raises:
            UserError: for symmetric degrees in a decoder.
        """
        if self.degree == "auto":
            return "row" if decoder or self.form == "bottleneck" else "symmetric"
        if self.degree == "symmetric" and decoder:
            raise UserError(
                "PAdapterConfig: `degree`='symmetric' cannot be used in a decoder: the degree of a value node sums "
                "over all queries, so a token would see later ones, and generation with a cache would compute other "
                "numbers. Use degree='row' or 'auto'."
            )
        return self.degree

    def _check_bottleneck_form(self) -> None:
        if self.form != "bottleneck":
            return
        if self.degree == "symmetric":
            raise self.refuse("degree", "'row' or 'auto' with form='bottleneck', whose degrees are 1")
        if self.mu == 0 and self.learn_mu and "mu" in MESSAGE_PASSING[self.message_passing].takes:
            raise self.refuse("mu", "> 0 with form='bottleneck' and learn_mu=True (mu (2 + tanh(theta)) stays 0)")

    def _check_contradictions(self) -> None:
        takes = MESSAGE_PASSING[self.message_passing].takes
        without_effect = (
            *((name, name not in takes, f"with message_passing={self.message_passing!r}") for name in LAYER_FIELDS),
            ("gate", self.form != "bottleneck", f"with form={self.form!r}"),
            ("ffn_reduction_factor", not self.adapts_ffn, "without ffn_adapter=True"),
        )
        defaults = {known.name: known.default for known in fields(self)}
        for name, unused, why in without_effect:
            if unused and getattr(self, name) != defaults[name]:
                raise self.contradiction(name, why)

    @classmethod
    def variants(cls) -> dict[str, Variant]:
        """What the conformance suite runs."""
        projected: dict[str, dict[str, Any]] = {
            "projected": {},
            "projected-heads": {"per_head": True, "p": 2.5, "mu": 1.0, "r": 5, "scaling": 0.5, "degree": "row"},
            "projected-fixed": {"learn_p": False, "learn_mu": False, "ffn_adapter": True, "p": 1.0, "mu": 0.0},
        }
        bottleneck: dict[str, dict[str, Any]] = {
            "bottleneck": {"form": "bottleneck", "p": 1.25},
            "bottleneck-plain": {"form": "bottleneck", "gate": False, "ffn_adapter": False, "r": 8, "per_head": True},
        }
        gcn = {
            "projected-gcn": {"message_passing": "gcn"},
            "bottleneck-gcn": {"message_passing": "gcn", "form": "bottleneck"},
        }
        layers: dict[str, dict[str, Any]] = {
            "projected-steps": {"steps": 3, "p": 1.25},
            "projected-appnp": {"message_passing": "appnp", "teleport": 0.3},
            "projected-gcnii": {"message_passing": "gcnii", "steps": 2},
            "bottleneck-gcnii": {"message_passing": "gcnii", "form": "bottleneck", "theta": 1.0},
        }
        options = projected | bottleneck | gcn | layers
        return {name: Variant(option, name.startswith("bottleneck")) for name, option in options.items()}

"""The tuner of the p-adapter."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND
from torch import nn

from padapter.architectures import AttentionSite, Site, describe_sites
from padapter.errors import UserError
from padapter.tuners.base_layer import features
from padapter.tuners.base_model import BottleneckTuner
from padapter.tuners.p_adapter.config import PAdapterConfig
from padapter.tuners.p_adapter.layer import PAdapterLayer
from padapter.tuners.p_adapter.message_passing import MESSAGE_PASSING
from padapter.tuners.weights import check_readable


class PAdapterModel(BottleneckTuner):
    """Adds p-adapters to the attention modules of a model."""

    prefix: str = "p_adapter_"
    tuner_layer_cls = PAdapterLayer

    def default_blocks(self, config: PAdapterConfig) -> dict[str, bool]:
        """Attention always, feed-forward blocks if the config says so."""
        return {"attention": True, "feed_forward": config.adapts_ffn}

    def _prepare_model(self, peft_config: PAdapterConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        operator = MESSAGE_PASSING[peft_config.message_passing]
        if peft_config.steps == 1 or operator.steps_in_decoders(peft_config):
            return
        # PEFT's shorthand becomes names only later; it means all of them.
        every = peft_config.target_modules == INCLUDE_LINEAR_LAYERS_SHORTHAND
        adapted = [
            site
            for key, site in self.sites.items()
            if isinstance(site, AttentionSite) and (every or self._check_target_module_exists(peft_config, key))
        ]
        if adapted and all(site.decoder for site in adapted):
            raise UserError(
                f"PAdapterConfig: `steps`={peft_config.steps} has no effect with "
                f"message_passing={peft_config.message_passing!r} in a decoder, and all that would be adapted is one: "
                "value nodes keep their features there (no token may see a later one), so every step computes the "
                "same. Leave `steps` out, adapt an encoder (`where`), or use message_passing='pgnn' with a p other "
                "than 2."
            )

    def check_target(self, config: PAdapterConfig, target: nn.Module, key: str, site: Site | None) -> None:
        """A target must be the output projection of a known attention module (or feed-forward block)."""
        if site is None:
            raise UserError(
                f"target module {key!r} ({type(target).__name__}) is not the output projection of an attention module "
                f"padapter knows; it looked for {describe_sites(self.sites.values())}. Name such a projection in "
                "`target_modules`, or describe the model's attention with padapter.architectures.register_architecture."
            )
        linear = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        width = features(linear)[1]
        if isinstance(site, AttentionSite):
            check_readable(linear, f"target module {key!r}")
            config.width(width, site.num_heads)
            config.resolve_degree(site.decoder)
        elif not config.adapts_ffn:
            raise UserError(
                f"target module {key!r} is the output of a feed-forward block, but `ffn_adapter` is off; pass "
                "ffn_adapter=True to put a vanilla adapter there, or leave it out of `target_modules`."
            )

    def new_layer(self, target: nn.Module, site: Site | None) -> PAdapterLayer:
        """Wrap an output projection."""
        if site is None:  # refused by check_target
            raise UserError("a p-adapter needs an attention module.")
        return PAdapterLayer(target, site)

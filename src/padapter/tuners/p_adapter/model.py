"""The tuner of the p-adapter."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from padapter.architectures import AttentionSite, Site, describe_sites
from padapter.errors import UserError
from padapter.tuners.base_layer import features
from padapter.tuners.base_model import BottleneckTuner
from padapter.tuners.p_adapter.config import PAdapterConfig
from padapter.tuners.p_adapter.layer import PAdapterLayer
from padapter.tuners.weights import check_readable


class PAdapterModel(BottleneckTuner):
    """Adds p-adapters to the attention modules of a model."""

    prefix: str = "p_adapter_"
    tuner_layer_cls = PAdapterLayer

    def default_blocks(self, config: PAdapterConfig) -> dict[str, bool]:
        """Attention always, feed-forward blocks if the config says so."""
        return {"attention": True, "feed_forward": config.adapts_ffn}

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

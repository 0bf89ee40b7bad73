"""The tuner of the vanilla adapter."""

from __future__ import annotations

from torch import nn

from padapter.architectures import Site, describe_sites
from padapter.errors import UserError
from padapter.tuners.base_layer import features
from padapter.tuners.base_model import BottleneckTuner
from padapter.tuners.bottleneck.config import BottleneckConfig
from padapter.tuners.bottleneck.layer import VanillaLayer


class BottleneckModel(BottleneckTuner):
    """Adds vanilla bottleneck adapters to a model."""

    prefix: str = "bottleneck_"
    tuner_layer_cls = VanillaLayer

    def default_blocks(self, config: BottleneckConfig) -> dict[str, bool]:
        """The blocks of ``config.location``."""
        return {
            "attention": config.location in ("attention", "both"),
            "feed_forward": config.location in ("feedforward", "both"),
        }

    def check_target(self, config: BottleneckConfig, target: nn.Module, key: str, site: Site | None) -> None:
        """Any Linear will do; parallel adapters need a known block."""
        try:
            features(getattr(target, "get_base_layer", lambda: target)())
        except UserError as error:
            raise UserError(f"target module {key!r} of class {type(target).__name__}: {error}") from error
        if config.mode == "parallel" and site is None:
            raise UserError(
                f"target module {key!r}: mode 'parallel' reads what enters the block, but {key!r} is not the output "
                "projection of an attention or feed-forward block padapter knows (attention: "
                f"{describe_sites(self.sites.values())}). Use mode='sequential', or "
                "padapter.architectures.register_architecture."
            )

    def new_layer(self, target: nn.Module, site: Site | None) -> VanillaLayer:
        """Wrap a Linear."""
        return VanillaLayer(target, site)

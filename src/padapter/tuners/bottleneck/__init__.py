"""The vanilla bottleneck adapter of Houlsby et al. (2019) and Pfeiffer et al. (2021), as a PEFT method."""

from __future__ import annotations

from padapter.tuners.bottleneck.config import BottleneckConfig
from padapter.tuners.bottleneck.layer import VanillaLayer
from padapter.tuners.bottleneck.model import BottleneckModel

__all__ = ["BottleneckConfig", "BottleneckModel", "VanillaLayer"]

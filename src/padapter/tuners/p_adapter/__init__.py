"""The p-adapter: attention as p-Laplacian message passing, and a bottleneck behind it, as a PEFT method."""

from __future__ import annotations

from padapter.tuners.p_adapter.config import PAdapterConfig
from padapter.tuners.p_adapter.layer import PAdapterLayer
from padapter.tuners.p_adapter.model import PAdapterModel

__all__ = ["PAdapterConfig", "PAdapterLayer", "PAdapterModel"]

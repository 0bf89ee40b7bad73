"""The p-adapter: attention as p-Laplacian message passing, and a bottleneck behind it, as a PEFT method."""

from __future__ import annotations

from padapter.tuners.p_adapter.config import PAdapterConfig
from padapter.tuners.p_adapter.layer import PAdapterLayer
from padapter.tuners.p_adapter.message_passing import MessagePassing, register_message_passing
from padapter.tuners.p_adapter.model import PAdapterModel

__all__ = ["MessagePassing", "PAdapterConfig", "PAdapterLayer", "PAdapterModel", "register_message_passing"]

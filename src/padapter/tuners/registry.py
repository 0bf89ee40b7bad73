"""The methods: one line each."""

from __future__ import annotations

from padapter.tuners.bottleneck import BottleneckConfig, BottleneckModel
from padapter.tuners.p_adapter import PAdapterConfig, PAdapterModel
from padapter.tuners.registration import Tuner

METHODS = (
    Tuner("p_adapter", PAdapterConfig, PAdapterModel),
    Tuner("bottleneck", BottleneckConfig, BottleneckModel),
)

"""How a model family reads text and pixels: collate, loss, generate, rank."""

from __future__ import annotations

from padapter.backbones.base import Backbone, TargetError, TrainingExample
from padapter.backbones.blip import BlipBackbone
from padapter.backbones.loading import BACKBONES, load_backbone

__all__ = ["BACKBONES", "Backbone", "BlipBackbone", "TargetError", "TrainingExample", "load_backbone"]

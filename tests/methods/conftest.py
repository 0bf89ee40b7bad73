from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The tiny model is the backbones' own.
sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

from tiny_blip import make_backbone, make_image


@pytest.fixture
def backbone():
    """A random BLIP of 2 layers x 32, in eval mode."""
    return make_backbone()


@pytest.fixture
def images():
    return [make_image(seed) for seed in range(4)]

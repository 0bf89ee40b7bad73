from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parent))

from tiny_blip import make_backbone, make_image


@pytest.fixture
def backbone():
    """A random BLIP of 2 layers x 32, in eval mode."""
    return make_backbone()


@pytest.fixture
def images():
    return [make_image(seed) for seed in range(4)]

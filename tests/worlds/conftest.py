from __future__ import annotations

import sys

import pytest
from PIL import Image

from padapter.worlds.shapes import load_world


@pytest.fixture
def without_pictures(monkeypatch):
    """Rows are made without painting their pictures, which takes nearly all of the time: for tests of texts alone."""
    blank = Image.new("RGB", (1, 1))
    monkeypatch.setattr(sys.modules[load_world.__module__], "render", lambda scene: blank)
    monkeypatch.delenv("PADAPTER_CACHE", raising=False)  # nobody is to find these rows there

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))
sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from run_fixtures import data, model  # noqa: F401

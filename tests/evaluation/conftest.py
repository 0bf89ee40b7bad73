from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

from run_fixtures import data, model, options  # noqa: F401
from two_processes import two  # noqa: F401

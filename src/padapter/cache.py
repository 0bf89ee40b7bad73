"""Where things are kept that can be computed again."""

from __future__ import annotations

import os
from pathlib import Path

#: Environment variable that names the folder.
VARIABLE = "PADAPTER_CACHE"


def cache_folder() -> Path:
    """``PADAPTER_CACHE``, or else ``padapter`` in the user's cache folder."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "padapter"

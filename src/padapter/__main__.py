"""``python -m padapter`` is the command ``padapter``."""

from __future__ import annotations

from padapter.cli import main

if __name__ == "__main__":
    main()

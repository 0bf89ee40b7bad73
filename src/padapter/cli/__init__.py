"""The command ``padapter``: parse, call, print. Heavy imports stand inside the handlers."""

from __future__ import annotations

from padapter.cli.app import app, main

__all__ = ["app", "main"]

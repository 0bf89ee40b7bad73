"""What will the model see? One page with sample rows as they are trained on, counts, and what is wrong."""

from __future__ import annotations

from padapter.preview.options import PreviewOptions

__all__ = ["PreviewOptions"]

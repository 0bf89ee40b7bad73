"""How a row on disk becomes a row in memory: reading, checking, opening images. No torch."""

from __future__ import annotations

from padapter.data.benchmarks.scheme import overlap
from padapter.data.check import check_data
from padapter.data.images import IMAGE_SUFFIXES, MAX_PIXELS, ImageError, ImageSource, open_image, verify_image
from padapter.data.infer import infer_task
from padapter.data.load import LoadedData, load_data
from padapter.data.picture import Picture, opened
from padapter.data.report import Problem, Report
from padapter.data.schema import Field

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Field",
    "ImageError",
    "ImageSource",
    "LoadedData",
    "Picture",
    "Problem",
    "Report",
    "check_data",
    "infer_task",
    "load_data",
    "open_image",
    "opened",
    "overlap",
    "verify_image",
]

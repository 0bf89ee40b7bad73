"""Worlds: data that needs no download.

``load_world("new-questions", "vqa", "train")`` is the shapes world; see :mod:`padapter.worlds.shapes`.
"""

from padapter.worlds.shapes import DOMAINS, export_world, load_world

__all__ = ["DOMAINS", "export_world", "load_world"]

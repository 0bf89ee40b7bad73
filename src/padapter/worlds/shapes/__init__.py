"""The shapes world: small scenes with captions, questions and hypotheses, in a source and two target domains.

* ``source``: what the built-in model was pre-trained on.
* ``new-questions``: the same pictures, spoken about in other words, with other questions and other answers. What
  changes is language, so an adapter in the decoder can learn it. The main benchmark.
* ``new-pictures``: new shapes, colors, backgrounds, noise and crowding, in the old words. What changes is vision, so
  a frozen image tower is the ceiling: this is what adapters in the image tower are for.
"""

from padapter.worlds.shapes.domains import DOMAINS, Domain
from padapter.worlds.shapes.render import render
from padapter.worlds.shapes.rows import SPLITS, export_world, load_world, scene_of
from padapter.worlds.shapes.scenes import Scene, Thing

__all__ = [
    "DOMAINS",
    "SPLITS",
    "Domain",
    "Scene",
    "Thing",
    "export_world",
    "load_world",
    "render",
    "scene_of",
]

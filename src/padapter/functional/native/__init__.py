"""The operators of `padapter.functional.fused` on processors: C, compiled where it runs.

`attention.c` holds the mathematics, `library` compiles and loads it, `launch` calls it; column sums are PyTorch's.
"""

from padapter.functional.native.degrees import degrees, degrees_backward
from padapter.functional.native.launch import backward, forward
from padapter.functional.native.library import obstacle

__all__ = ["backward", "degrees", "degrees_backward", "forward", "obstacle"]

"""p-Laplacian attention as GPU kernels (Triton): forward and backward, nothing of size N1 x N2 in memory.

`padapter.functional.p_laplacian_attention` runs them where `padapter.functional.dispatch` says they can. Files:
``attention`` prepares, ``operators`` are PyTorch's view (autograd, fake tensors), ``launch`` holds block sizes and
arguments, ``kernel_*`` are the kernels, the only files that import Triton.
"""

"""What the kernels share: reading tiles, scores with their mask, squared distances, and derivatives of one tile.

Tiles of scores come in two orientations, (queries, keys) where a program owns queries and (keys, queries) where it owns
keys, so that no computed tile is ever transposed. ``queries`` and ``keys`` are therefore given as index tiles that
broadcast, (BLOCK, 1) and (1, BLOCK) or the other way round, and so is every number that belongs to a query.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(base, rows, stride, width, count, BLOCK_WIDTH: tl.constexpr):
    """Rows of a matrix with ``count`` rows of ``width`` numbers, (len(rows), BLOCK_WIDTH); zeros outside of it."""
    columns = tl.arange(0, BLOCK_WIDTH)
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    # 64 bits: sequences times the distance of rows may exceed 32.
    return tl.load(base + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(base, rows, stride, width, count, tile, BLOCK_WIDTH: tl.constexpr):
    """The opposite of `load_tile`, rounding to what is stored."""
    columns = tl.arange(0, BLOCK_WIDTH)
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    address = base + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(address, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def load_row(base, rows, count):
    """One number per query, (len(rows),); zeros outside."""
    return tl.load(base + rows, mask=rows < count, other=0.0)


@triton.jit
def product(first, second, PRECISION: tl.constexpr):
    """A product of matrices, summed in float32; PRECISION is what `tl.dot` takes, or "emulated"."""
    if PRECISION == "emulated":  # Triton's interpreter multiplies the bits of bfloat16 as if they were integers
        result = tl.dot(first.to(tl.float32), second.to(tl.float32), input_precision="ieee")
    else:
        result = tl.dot(first, second, input_precision=PRECISION)
    return result


@triton.jit
def sizes(features):
    """``|x|^2`` of each row, in float32."""
    exact = features.to(tl.float32)
    return tl.sum(exact * exact, 1)


@triton.jit
def masked(
    scores, queries, keys, mask_base, mask_stride_q, mask_stride_k, N1, N2, CAUSAL: tl.constexpr, MASK: tl.constexpr
):
    """Scores with the mask added, -inf where a key is removed or an index lies outside; MASK is 0, 1 bool, 2 added."""
    inside = (queries < N1) & (keys < N2)
    keep = inside
    if CAUSAL:
        keep = keep & (keys <= queries)
    if MASK != 0:
        address = mask_base + queries.to(tl.int64) * mask_stride_q + keys.to(tl.int64) * mask_stride_k
        if MASK == 1:
            keep = keep & (tl.load(address, mask=inside, other=0) != 0)
        else:
            scores += tl.load(address, mask=inside, other=0.0).to(tl.float32)
    return tl.where(keep, scores, float("-inf"))


@triton.jit
def distances2(products, first_sizes, second_sizes, relative, least):
    """``|x|^2 + |y|^2 - 2 x.y``, held above its rounding error, and whether it was above it by itself."""
    both = first_sizes + second_sizes
    distance2 = both - 2 * products
    floor = both * relative + least
    above = distance2 > floor
    return tl.where(above, distance2, floor), above


@triton.jit
def scrambled(place, first, second):
    """The number of 32 bits at a place of the sequence of a key of two words, as `dropout.scrambled` says."""
    number = place.to(tl.uint32) * 0x9E3779B1 + first
    number = (number ^ (number >> 16)) * 0x7FEB352D
    number = ((number ^ (number >> 15)) + second) * 0x846CA68B
    return number ^ (number >> 16)


@triton.jit
def pair_key(seed_ptr, pair):
    """The two words that decide what is dropped of a pair (batch, head), from a seed of 64 bits."""
    seed = tl.load(seed_ptr)
    first = seed.to(tl.uint32)
    second = (seed >> 32).to(tl.uint32)
    return scrambled(2 * pair, first, second), scrambled(2 * pair + 1, first, second)


@triton.jit
def kept(first, second, queries, keys, below):
    """Which weights of a tile are kept, of the pair with this key; see `padapter.functional.fused.dropout`."""
    number = scrambled(keys, scrambled(2 * queries, first, second), scrambled(2 * queries + 1, first, second))
    return (number >> 1).to(tl.int32) >= below


@triton.jit
def log_weights(scores, row_max, row_log, log_total, log_distance2, half_p, DISTANCE: tl.constexpr):
    """``log M_ij`` and ``log W_ij``, W being the weights of the sum; both -inf where a key is removed."""
    log_M = (scores - row_max) - row_log
    if DISTANCE:
        log_W = half_p * log_M + (half_p - 1) * log_distance2 - log_total
    else:
        log_W = log_M - log_total
    return log_M, log_W


@triton.jit
def score_gradients(change, log_M, restart_change, half_p, DISTANCE: tl.constexpr, RESTART: tl.constexpr):
    """``dL/dS_ij`` from ``change = dL/d log Mbar_ij`` and, through M's normaliser, from ``dL/d log restart``."""
    if DISTANCE:
        result = half_p * change
    else:
        result = change
    if RESTART:
        result += half_p * restart_change * tl.exp(log_M)
    return result

"""The forward kernel: one program per block of queries, one pass over the keys."""

from __future__ import annotations

import triton
import triton.language as tl

from padapter.functional.fused.kernel_parts import (
    distances2,
    kept,
    load_tile,
    masked,
    pair_key,
    product,
    sizes,
    store_tile,
)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, n_ptr, x_ptr, y_ptr, p_ptr, restart_ptr, mask_ptr, seed_ptr,
    out_ptr, row_max_ptr, row_log_ptr, log_total_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, n_b, n_h, n_n, x_b, x_h, x_n, y_b, y_h, y_n, m_b, m_h, m_q, m_k,
    o_b, o_h, o_n,
    H, k_groups, v_groups, y_groups, N1, N2, DK, DH, blocks, scale, relative, least, below, factor,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    DISTANCE: tl.constexpr, RESTART: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Context of a block of queries, and the three numbers per query from which the weights can be made again.

    Two softmaxes run at once: of S (``row_max``, ``row_sum``), which gives M's normaliser, and of
    ``z = p/2 (S - row_max) + (p/2 - 1) log delta^2`` (``z_max``, ``z_sum``). z is taken relative to the running maximum
    of S, since p/2 times a score may be beyond float32 where the score is not.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    head_row = (pid // blocks).to(tl.int64)
    b = head_row // H
    h = head_row % H
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)

    q = load_tile(q_ptr + b * q_b + h * q_h, rows, q_n, DK, N1, BLOCK_K)
    k_base = k_ptr + b * k_b + (h // k_groups) * k_h
    v_base = v_ptr + b * v_b + (h // v_groups) * v_h
    mask_base = mask_ptr + b * m_b + h * m_h
    half_p = 1.0
    if DISTANCE:
        half_p = tl.load(p_ptr + h) * 0.5
        x = load_tile(x_ptr + b * x_b + h * x_h, rows, x_n, DH, N1, BLOCK_D)
        x_sizes = sizes(x)
        y_base = y_ptr + b * y_b + (h // y_groups) * y_h

    if DROPOUT:
        first, second = pair_key(seed_ptr, head_row)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    z_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    z_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    end = N2
    if CAUSAL:
        end = tl.minimum(N2, (block + 1) * BLOCK_M)
    for start in range(0, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = load_tile(k_base, columns, k_n, DK, N2, BLOCK_K)
        S = product(q, tl.trans(k), PRECISION) * scale
        S = masked(S, rows[:, None], columns[None, :], mask_base, m_q, m_k, N1, N2, CAUSAL, MASK)
        new_max = tl.maximum(row_max, tl.max(S, 1))
        base = tl.where(new_max == float("-inf"), 0.0, new_max)  # an empty row must not make NaN
        relative_S = S - base[:, None]
        exp_S = tl.exp(relative_S)
        decay = tl.exp(row_max - base)
        row_sum = row_sum * decay + tl.sum(exp_S, 1)
        if DISTANCE:
            y = load_tile(y_base, columns, y_n, DH, N2, BLOCK_D)
            products = product(x, tl.trans(y), PRECISION)
            distance2, _ = distances2(products, x_sizes[:, None], sizes(y)[None, :], relative, least)
            z = half_p * relative_S + (half_p - 1) * tl.log(distance2)
            moved = z_max + half_p * (row_max - base)
            new_z = tl.maximum(moved, tl.max(z, 1))
            z_base = tl.where(new_z == float("-inf"), 0.0, new_z)
            weights = tl.exp(z - z_base[:, None])
            decay = tl.exp(moved - z_base)
            z_sum = z_sum * decay + tl.sum(weights, 1)
            z_max = new_z
        else:
            weights = exp_S
        row_max = new_max
        if DROPOUT:  # of the weights that are summed, not of their sum
            weights = tl.where(kept(first, second, rows[:, None], columns[None, :], below), weights, 0.0)
        v = load_tile(v_base, columns, v_n, DH, N2, BLOCK_D)
        acc = acc * decay[:, None] + product(weights.to(v.dtype), v, PRECISION)

    empty = row_max == float("-inf")
    row_max = tl.where(empty, 0.0, row_max)
    row_log = tl.log(tl.where(empty, 1.0, row_sum))  # stored as +inf for an empty row: M is 0 there
    if DISTANCE:
        total = tl.where(empty, 1.0, z_sum)
        log_sum = z_max + tl.log(total) - half_p * row_log  # log of the sum of Mbar
    else:
        total = tl.where(empty, 1.0, row_sum)
        log_sum = tl.where(empty, float("-inf"), 0.0)
    if DROPOUT:
        acc = acc * factor
    if RESTART:
        restart = tl.load(restart_ptr + h)
        log_restart = tl.where(restart > 0, tl.log(tl.where(restart > 0, restart, 1.0)), float("-inf"))
        larger = tl.maximum(log_sum, log_restart)
        nothing = larger == float("-inf")
        larger = tl.where(nothing, 0.0, larger)
        summed = tl.exp(log_sum - larger) + tl.exp(log_restart - larger)
        log_total = larger + tl.log(tl.where(nothing, 1.0, summed))
        beta = tl.exp(log_restart - log_total)
        n = load_tile(n_ptr + b * n_b + h * n_h, rows, n_n, DH, N1, BLOCK_D)
        acc = acc * (tl.exp(log_sum - log_total) / total)[:, None] + beta[:, None] * n.to(tl.float32)
    else:
        log_total = tl.where(empty, 0.0, log_sum)
        acc = acc / total[:, None]
    store_tile(out_ptr + b * o_b + h * o_h, rows, o_n, DH, N1, acc, BLOCK_D)
    statistics = head_row * N1 + rows
    inside = rows < N1
    tl.store(row_max_ptr + statistics, row_max, mask=inside)
    tl.store(row_log_ptr + statistics, tl.where(empty, float("inf"), row_log), mask=inside)
    tl.store(log_total_ptr + statistics, log_total, mask=inside)

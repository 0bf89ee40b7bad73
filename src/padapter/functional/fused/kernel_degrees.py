"""Column sums of M, the degrees ``D_j`` of value nodes, and their gradient; nothing about p, mu or features."""

from __future__ import annotations

import triton
import triton.language as tl

from padapter.functional.fused.kernel_parts import load_row, load_tile, masked, product, store_tile


@triton.jit
def row_statistics_kernel(
    q_ptr, k_ptr, mask_ptr, row_max_ptr, row_log_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, m_b, m_h, m_q, m_k,
    H, k_groups, N1, N2, DK, blocks, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Maximum of each query's scores and the log of ``sum exp(S - max)``; 0 and +inf without a key."""
    pid = tl.program_id(0)
    block = pid % blocks
    head_row = (pid // blocks).to(tl.int64)
    b = head_row // H
    h = head_row % H
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q = load_tile(q_ptr + b * q_b + h * q_h, rows, q_n, DK, N1, BLOCK_K)
    k_base = k_ptr + b * k_b + (h // k_groups) * k_h
    mask_base = mask_ptr + b * m_b + h * m_h
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    end = N2
    if CAUSAL:
        end = tl.minimum(N2, (block + 1) * BLOCK_M)
    for start in range(0, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = load_tile(k_base, columns, k_n, DK, N2, BLOCK_K)
        S = product(q, tl.trans(k), PRECISION) * scale
        S = masked(S, rows[:, None], columns[None, :], mask_base, m_q, m_k, N1, N2, CAUSAL, MASK)
        new_max = tl.maximum(row_max, tl.max(S, 1))
        base = tl.where(new_max == float("-inf"), 0.0, new_max)
        row_sum = row_sum * tl.exp(row_max - base) + tl.sum(tl.exp(S - base[:, None]), 1)
        row_max = new_max
    empty = row_max == float("-inf")
    statistics = head_row * N1 + rows
    tl.store(row_max_ptr + statistics, tl.where(empty, 0.0, row_max), mask=rows < N1)
    row_log = tl.where(empty, float("inf"), tl.log(tl.where(empty, 1.0, row_sum)))
    tl.store(row_log_ptr + statistics, row_log, mask=rows < N1)


@triton.jit
def column_sums_kernel(
    q_ptr, k_ptr, mask_ptr, row_max_ptr, row_log_ptr, degrees_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, m_b, m_h, m_q, m_k,
    H, k_groups, N1, N2, DK, blocks, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``D_j = sum_i M_ij`` of a block of keys."""
    pid = tl.program_id(0)
    block = pid % blocks
    head_row = (pid // blocks).to(tl.int64)
    b = head_row // H
    h = head_row % H
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k = load_tile(k_ptr + b * k_b + (h // k_groups) * k_h, columns, k_n, DK, N2, BLOCK_K)
    q_base = q_ptr + b * q_b + h * q_h
    mask_base = mask_ptr + b * m_b + h * m_h
    statistics = head_row * N1
    degrees = tl.zeros([BLOCK_N], tl.float32)
    begin = 0
    if CAUSAL:
        begin = (block * BLOCK_N) // BLOCK_M * BLOCK_M
    for start in range(begin, N1, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = load_tile(q_base, rows, q_n, DK, N1, BLOCK_K)
        row_max = load_row(row_max_ptr + statistics, rows, N1)
        row_log = load_row(row_log_ptr + statistics, rows, N1)
        S = product(k, tl.trans(q), PRECISION) * scale
        S = masked(S, rows[None, :], columns[:, None], mask_base, m_q, m_k, N1, N2, CAUSAL, MASK)
        degrees += tl.sum(tl.exp((S - row_max[None, :]) - row_log[None, :]), 1)
    tl.store(degrees_ptr + head_row * N2 + columns, degrees, mask=columns < N2)


@triton.jit
def degrees_backward_rows_kernel(
    q_ptr, k_ptr, mask_ptr, row_max_ptr, row_log_ptr, g_ptr, dq_ptr, delta_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, m_b, m_h, m_q, m_k,
    H, k_groups, N1, N2, DK, blocks, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``delta_i = sum_j M_ij g_j`` in a first pass, ``dq_i = scale sum_j M_ij (g_j - delta_i) k_j`` in a second."""
    pid = tl.program_id(0)
    block = pid % blocks
    head_row = (pid // blocks).to(tl.int64)
    b = head_row // H
    h = head_row % H
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q = load_tile(q_ptr + b * q_b + h * q_h, rows, q_n, DK, N1, BLOCK_K)
    k_base = k_ptr + b * k_b + (h // k_groups) * k_h
    mask_base = mask_ptr + b * m_b + h * m_h
    statistics = head_row * N1
    row_max = load_row(row_max_ptr + statistics, rows, N1)
    row_log = load_row(row_log_ptr + statistics, rows, N1)
    g_base = g_ptr + head_row * N2
    end = N2
    if CAUSAL:
        end = tl.minimum(N2, (block + 1) * BLOCK_M)
    delta = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = load_tile(k_base, columns, k_n, DK, N2, BLOCK_K)
        g = load_row(g_base, columns, N2)
        S = product(q, tl.trans(k), PRECISION) * scale
        S = masked(S, rows[:, None], columns[None, :], mask_base, m_q, m_k, N1, N2, CAUSAL, MASK)
        delta += tl.sum(tl.exp((S - row_max[:, None]) - row_log[:, None]) * g[None, :], 1)
    tl.store(delta_ptr + statistics + rows, delta, mask=rows < N1)
    dq = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(0, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = load_tile(k_base, columns, k_n, DK, N2, BLOCK_K)
        g = load_row(g_base, columns, N2)
        S = product(q, tl.trans(k), PRECISION) * scale
        S = masked(S, rows[:, None], columns[None, :], mask_base, m_q, m_k, N1, N2, CAUSAL, MASK)
        dS = tl.exp((S - row_max[:, None]) - row_log[:, None]) * (g[None, :] - delta[:, None])
        dq += product(dS.to(k.dtype), k, PRECISION)
    store_tile(dq_ptr + statistics * DK, rows, DK, DK, N1, dq * scale, BLOCK_K)


@triton.jit
def degrees_backward_columns_kernel(
    q_ptr, k_ptr, mask_ptr, row_max_ptr, row_log_ptr, g_ptr, delta_ptr, dk_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, m_b, m_h, m_q, m_k,
    H, k_groups, N1, N2, DK, blocks, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``dk_j = scale sum_i M_ij (g_j - delta_i) q_i`` of a block of keys of one query head."""
    pid = tl.program_id(0)
    block = pid % blocks
    head_row = (pid // blocks).to(tl.int64)
    b = head_row // H
    h = head_row % H
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k = load_tile(k_ptr + b * k_b + (h // k_groups) * k_h, columns, k_n, DK, N2, BLOCK_K)
    g = load_row(g_ptr + head_row * N2, columns, N2)
    q_base = q_ptr + b * q_b + h * q_h
    mask_base = mask_ptr + b * m_b + h * m_h
    statistics = head_row * N1
    dk = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    begin = 0
    if CAUSAL:
        begin = (block * BLOCK_N) // BLOCK_M * BLOCK_M
    for start in range(begin, N1, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = load_tile(q_base, rows, q_n, DK, N1, BLOCK_K)
        row_max = load_row(row_max_ptr + statistics, rows, N1)
        row_log = load_row(row_log_ptr + statistics, rows, N1)
        delta = load_row(delta_ptr + statistics, rows, N1)
        S = product(k, tl.trans(q), PRECISION) * scale
        S = masked(S, rows[None, :], columns[:, None], mask_base, m_q, m_k, N1, N2, CAUSAL, MASK)
        dS = tl.exp((S - row_max[None, :]) - row_log[None, :]) * (g[:, None] - delta[None, :])
        dk += product(dS.to(q.dtype), q, PRECISION)
    store_tile(dk_ptr + head_row * N2 * DK, columns, DK, DK, N2, dk * scale, BLOCK_K)

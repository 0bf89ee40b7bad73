"""The backward kernels: one over blocks of queries, then one over blocks of keys; no atomic additions.

The weights are made again from the three numbers per query that the forward pass kept. docs/mathematics.md derives the
formulas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from padapter.functional.fused.kernel_parts import (
    distances2,
    kept,
    load_row,
    load_tile,
    log_weights,
    masked,
    pair_key,
    product,
    score_gradients,
    sizes,
    store_tile,
)


@triton.jit
def backward_rows_kernel(
    q_ptr, k_ptr, v_ptr, n_ptr, x_ptr, y_ptr, p_ptr, restart_ptr, mask_ptr, seed_ptr,
    out_ptr, row_max_ptr, row_log_ptr, log_total_ptr, g_ptr,
    dq_ptr, dn_ptr, dx_ptr, dp_ptr, drestart_ptr, delta_ptr, restart_change_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, n_b, n_h, n_n, x_b, x_h, x_n, y_b, y_h, y_n, m_b, m_h, m_q, m_k,
    o_b, o_h, o_n, g_b, g_h, g_n,
    H, k_groups, v_groups, y_groups, N1, N2, DK, DH, blocks, scale, relative, least, below, factor, largest_inverse,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    DISTANCE: tl.constexpr, RESTART: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of what belongs to queries, each query's share of those of p and the restart, and what keys need."""
    pid = tl.program_id(0)
    block = pid % blocks
    head_row = (pid // blocks).to(tl.int64)
    b = head_row // H
    h = head_row % H
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < N1
    statistics = head_row * N1

    q = load_tile(q_ptr + b * q_b + h * q_h, rows, q_n, DK, N1, BLOCK_K)
    g = load_tile(g_ptr + b * g_b + h * g_h, rows, g_n, DH, N1, BLOCK_D)
    out = load_tile(out_ptr + b * o_b + h * o_h, rows, o_n, DH, N1, BLOCK_D)
    g_exact = g.to(tl.float32)
    delta = tl.sum(g_exact * out.to(tl.float32), 1)
    tl.store(delta_ptr + statistics + rows, delta, mask=inside)
    row_max = load_row(row_max_ptr + statistics, rows, N1)
    row_log = load_row(row_log_ptr + statistics, rows, N1)
    log_total = load_row(log_total_ptr + statistics, rows, N1)
    k_base = k_ptr + b * k_b + (h // k_groups) * k_h
    v_base = v_ptr + b * v_b + (h // v_groups) * v_h
    mask_base = mask_ptr + b * m_b + h * m_h

    half_p = 1.0
    if DISTANCE:
        half_p = tl.load(p_ptr + h) * 0.5
        x = load_tile(x_ptr + b * x_b + h * x_h, rows, x_n, DH, N1, BLOCK_D)
        x_sizes = sizes(x)
        y_base = y_ptr + b * y_b + (h // y_groups) * y_h
        dx = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        pull = tl.zeros([BLOCK_M], tl.float32)
        dp = tl.zeros([BLOCK_M], tl.float32)
    restart_change = tl.zeros([BLOCK_M], tl.float32)
    if RESTART:
        restart = tl.load(restart_ptr + h)
        log_restart = tl.where(restart > 0, tl.log(tl.where(restart > 0, restart, 1.0)), float("-inf"))
        beta = tl.exp(log_restart - log_total)
        n = load_tile(n_ptr + b * n_b + h * n_h, rows, n_n, DH, N1, BLOCK_D)
        own = tl.sum(g_exact * n.to(tl.float32), 1) - delta
        restart_change = beta * own
        tl.store(restart_change_ptr + statistics + rows, restart_change, mask=inside)
        # Without a key beta is 1, or 0 for a restart of 0: no gradient across that jump.
        drestart = tl.where(row_log == float("inf"), 0.0, own * tl.exp(tl.minimum(-log_total, largest_inverse)))
        tl.store(drestart_ptr + statistics + rows, drestart, mask=inside)
        dn_base = dn_ptr + statistics * DH
        store_tile(dn_base, rows, DH, DH, N1, beta[:, None] * g_exact, BLOCK_D)

    if DROPOUT:
        first, second = pair_key(seed_ptr, head_row)
    dq = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    end = N2
    if CAUSAL:
        end = tl.minimum(N2, (block + 1) * BLOCK_M)
    for start in range(0, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = load_tile(k_base, columns, k_n, DK, N2, BLOCK_K)
        v = load_tile(v_base, columns, v_n, DH, N2, BLOCK_D)
        S = product(q, tl.trans(k), PRECISION) * scale
        S = masked(S, rows[:, None], columns[None, :], mask_base, m_q, m_k, N1, N2, CAUSAL, MASK)
        log_distance2 = S
        if DISTANCE:
            y = load_tile(y_base, columns, y_n, DH, N2, BLOCK_D)
            products = product(x, tl.trans(y), PRECISION)
            distance2, above = distances2(products, x_sizes[:, None], sizes(y)[None, :], relative, least)
            log_distance2 = tl.log(distance2)
        log_M, log_W = log_weights(
            S, row_max[:, None], row_log[:, None], log_total[:, None], log_distance2, half_p, DISTANCE
        )
        dW = product(g, tl.trans(v), PRECISION)
        if DROPOUT:
            dW = tl.where(kept(first, second, rows[:, None], columns[None, :], below), dW * factor, 0.0)
        change = tl.exp(log_W) * (dW - delta[:, None])
        dS = score_gradients(change, log_M, restart_change[:, None], half_p, DISTANCE, RESTART)
        dq += product(dS.to(k.dtype), k, PRECISION)
        if DISTANCE:
            dp += tl.sum(change * tl.where(float("-inf") == S, 0.0, log_M + log_distance2), 1)
            # Rounded once, so that x sum_j c_j and sum_j c_j y_j cancel where x = y.
            pulls = tl.where(above, change / distance2, 0.0).to(y.dtype)
            pull += tl.sum(pulls.to(tl.float32), 1)
            dx += product(pulls, y, PRECISION)
    store_tile(dq_ptr + statistics * DK, rows, DK, DK, N1, dq * scale, BLOCK_K)
    if DISTANCE:
        dx = (x.to(tl.float32) * pull[:, None] - dx) * (2 * (half_p - 1))
        store_tile(dx_ptr + statistics * DH, rows, DH, DH, N1, dx, BLOCK_D)
        tl.store(dp_ptr + statistics + rows, 0.5 * dp, mask=inside)


@triton.jit
def backward_columns_kernel(
    q_ptr, k_ptr, v_ptr, x_ptr, y_ptr, p_ptr, mask_ptr, seed_ptr,
    row_max_ptr, row_log_ptr, log_total_ptr, g_ptr, delta_ptr, restart_change_ptr,
    dk_ptr, dv_ptr, dy_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, x_b, x_h, x_n, y_b, y_h, y_n, m_b, m_h, m_q, m_k, g_b, g_h, g_n,
    H, k_groups, v_groups, y_groups, N1, N2, DK, DH, blocks, scale, relative, least, below, factor,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    DISTANCE: tl.constexpr, RESTART: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of what belongs to keys; one program per block of keys of a *query* head, tiles are (keys, queries)."""
    pid = tl.program_id(0)
    block = pid % blocks
    head_row = (pid // blocks).to(tl.int64)
    b = head_row // H
    h = head_row % H
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    statistics = head_row * N1

    k = load_tile(k_ptr + b * k_b + (h // k_groups) * k_h, columns, k_n, DK, N2, BLOCK_K)
    v = load_tile(v_ptr + b * v_b + (h // v_groups) * v_h, columns, v_n, DH, N2, BLOCK_D)
    q_base = q_ptr + b * q_b + h * q_h
    g_base = g_ptr + b * g_b + h * g_h
    mask_base = mask_ptr + b * m_b + h * m_h
    dk = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    half_p = 1.0
    if DISTANCE:
        half_p = tl.load(p_ptr + h) * 0.5
        y = load_tile(y_ptr + b * y_b + (h // y_groups) * y_h, columns, y_n, DH, N2, BLOCK_D)
        y_sizes = sizes(y)
        x_base = x_ptr + b * x_b + h * x_h
        dy = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        pull = tl.zeros([BLOCK_N], tl.float32)

    if DROPOUT:
        first, second = pair_key(seed_ptr, head_row)
    begin = 0
    if CAUSAL:
        begin = (block * BLOCK_N) // BLOCK_M * BLOCK_M
    for start in range(begin, N1, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = load_tile(q_base, rows, q_n, DK, N1, BLOCK_K)
        g = load_tile(g_base, rows, g_n, DH, N1, BLOCK_D)
        row_max = load_row(row_max_ptr + statistics, rows, N1)
        row_log = load_row(row_log_ptr + statistics, rows, N1)
        log_total = load_row(log_total_ptr + statistics, rows, N1)
        delta = load_row(delta_ptr + statistics, rows, N1)
        restart_change = delta
        if RESTART:
            restart_change = load_row(restart_change_ptr + statistics, rows, N1)
        S = product(k, tl.trans(q), PRECISION) * scale
        S = masked(S, rows[None, :], columns[:, None], mask_base, m_q, m_k, N1, N2, CAUSAL, MASK)
        log_distance2 = S
        if DISTANCE:
            x = load_tile(x_base, rows, x_n, DH, N1, BLOCK_D)
            products = product(y, tl.trans(x), PRECISION)
            distance2, above = distances2(products, y_sizes[:, None], sizes(x)[None, :], relative, least)
            log_distance2 = tl.log(distance2)
        log_M, log_W = log_weights(
            S, row_max[None, :], row_log[None, :], log_total[None, :], log_distance2, half_p, DISTANCE
        )
        W = tl.exp(log_W)
        summed = W
        if DROPOUT:
            keep = kept(first, second, rows[None, :], columns[:, None], below)
            summed = tl.where(keep, W * factor, 0.0)
        dv += product(summed.to(g.dtype), g, PRECISION)
        dW = product(v, tl.trans(g), PRECISION)
        if DROPOUT:
            dW = tl.where(keep, dW * factor, 0.0)
        change = W * (dW - delta[None, :])
        dS = score_gradients(change, log_M, restart_change[None, :], half_p, DISTANCE, RESTART)
        dk += product(dS.to(q.dtype), q, PRECISION)
        if DISTANCE:
            pulls = tl.where(above, change / distance2, 0.0).to(x.dtype)
            pull += tl.sum(pulls.to(tl.float32), 1)
            dy += product(pulls, x, PRECISION)
    statistics = head_row * N2
    store_tile(dk_ptr + statistics * DK, columns, DK, DK, N2, dk * scale, BLOCK_K)
    store_tile(dv_ptr + statistics * DH, columns, DH, DH, N2, dv, BLOCK_D)
    if DISTANCE:
        dy = (y.to(tl.float32) * pull[:, None] - dy) * (2 * (half_p - 1))
        store_tile(dy_ptr + statistics * DH, columns, DH, DH, N2, dy, BLOCK_D)

/* Products of small matrices, with one operand laid out in panels: PANEL columns side by side, row after row. */

#ifndef PADAPTER_PRODUCTS_H
#define PADAPTER_PRODUCTS_H

#include "attention.h"

/* C (rows, PANEL) = A B, or += A B, with A's element (i, k) at a[i * ai + k * ak] and rows of B at b + k * bk. */
static inline __attribute__((always_inline)) void tile(
    const int rows, long depth, const float *a, long ai, long ak, const float *b, long bk, float *c, long ci, int add)
{
    Floats left[ROWS], right[ROWS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        left[i] = add ? load(c + i * ci) : (Floats){0};
        right[i] = add ? load(c + i * ci + LANES) : (Floats){0};
    }
    for (long k = 0; k < depth; k++) {
        Floats b0 = load(b + k * bk), b1 = load(b + k * bk + LANES);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            Floats x = all(a[i * ai + k * ak]);
            left[i] += x * b0;
            right[i] += x * b1;
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        store(c + i * ci, left[i]);
        store(c + i * ci + LANES, right[i]);
    }
}

static inline __attribute__((always_inline)) void tiles(
    long rows, long depth, const float *a, long ai, long ak, const float *b, long bk, float *c, long ci, int add)
{
    switch (rows) {
    case 6: tile(6, depth, a, ai, ak, b, bk, c, ci, add); break;
    case 5: tile(5, depth, a, ai, ak, b, bk, c, ci, add); break;
    case 4: tile(4, depth, a, ai, ak, b, bk, c, ci, add); break;
    case 3: tile(3, depth, a, ai, ak, b, bk, c, ci, add); break;
    case 2: tile(2, depth, a, ai, ak, b, bk, c, ci, add); break;
    case 1: tile(1, depth, a, ai, ak, b, bk, c, ci, add); break;
    }
}

static inline long least_of(long a, long b) { return a < b ? a : b; }

/* C (n, columns) = A (n, depth) B, or += A B; B is `panels` of (depth, PANEL), one after the other. */
static void times_panels(
    long n, long depth, long columns, const float *a, long ai, const float *panels, float *c, long ci, int add)
{
    const long chunk = 256; /* rows of a panel that stay in the first cache */
    for (long column = 0; column < columns; column += PANEL) {
        const float *panel = panels + column * depth;
        for (long k = 0; k < depth; k += chunk) {
            long deep = least_of(chunk, depth - k);
            for (long i = 0; i < n; i += ROWS)
                tiles(least_of(ROWS, n - i), deep, a + i * ai + k, ai, 1, panel + k * PANEL, PANEL, c + i * ci + column,
                      ci, add || k > 0);
        }
    }
}

/* Rows (m, width) as panels of (m, PANEL). */
static void pack(long m, long width, const float *rows, long stride, float *panels)
{
    for (long column = 0; column < width; column += PANEL)
        for (long j = 0; j < m; j++, panels += PANEL) {
            store(panels, load(rows + j * stride + column));
            store(panels + LANES, load(rows + j * stride + column + LANES));
        }
}

/* C (m, columns) = A^T B, or += A^T B, with A (n, m) and B (n, columns) in plain rows. B is packed first, into `panels`:
   rows that lie far apart, in steps of a power of 2, would push each other out of the first cache. */
static void transposed_times(
    long m, long n, long columns, const float *a, long an, const float *b, long bn, float *panels, float *c, long cm,
    int add)
{
    pack(n, columns, b, bn, panels);
    for (long j = 0; j < m; j += ROWS)
        for (long column = 0; column < columns; column += PANEL)
            tiles(least_of(ROWS, m - j), n, a + j, 1, an, panels + column * n, PANEL, c + j * cm + column, cm, add);
}

/* Eight rows of eight numbers, transposed. */
typedef float Eight __attribute__((vector_size(32)));
typedef float UnalignedEight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int Order __attribute__((vector_size(32)));
#if defined(__clang__)
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIX(a, b, ...) __builtin_shuffle(a, b, (Order){__VA_ARGS__})
#endif

static inline void transpose_eight(const float *from, long stride, float *to, long gap)
{
    Eight r[8], s[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = (Eight) * (const UnalignedEight *)(from + i * stride);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        s[i] = MIX(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        s[i + 1] = MIX(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = MIX(s[i], s[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        r[i + 1] = MIX(s[i], s[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        r[i + 2] = MIX(s[i + 1], s[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        r[i + 3] = MIX(s[i + 1], s[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        *(UnalignedEight *)(to + i * gap) = (UnalignedEight)MIX(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(UnalignedEight *)(to + (i + 4) * gap) = (UnalignedEight)MIX(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* Rows (m, width) as panels of their transpose, (width, PANEL); zeros behind the last row. Widths are multiples of 8. */
static void pack_transposed(long m, long width, const float *rows, long stride, float *panels)
{
    for (long first = 0; first < m; first += PANEL, panels += width * PANEL)
        for (long j = 0; j < PANEL; j += 8)
            for (long k = 0; k < width; k += 8)
                if (first + j + 8 <= m)
                    transpose_eight(rows + (first + j) * stride + k, stride, panels + k * PANEL + j, PANEL);
                else
                    for (long i = 0; i < 64; i++) {
                        long row = first + j + i / 8;
                        panels[(k + i % 8) * PANEL + j + i / 8] = row < m ? rows[row * stride + k + i % 8] : 0.0f;
                    }
}

#endif

/* Products of small matrices. Whatever a vector's width is, sums run over k in one order. */

#ifndef PADAPTER_PRODUCTS_H
#define PADAPTER_PRODUCTS_H

#include "attention.h"

/* C (rows, vectors * LANES) = A B, or += A B, with A's element (i, k) at a[i * ai + k * ak] and rows of B at b + k * bk. */
static inline __attribute__((always_inline)) void tile(
    const int rows, const int vectors, long depth, const float *a, long ai, long ak, const float *b, long bk, float *c,
    long ci, int add)
{
    Floats sums[TALL][2];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) sums[i][v] = add ? load(c + i * ci + v * LANES) : (Floats){0};
    for (long k = 0; k < depth; k++) {
        Floats right[2];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) right[v] = load(b + k * bk + v * LANES);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            Floats x = all(a[i * ai + k * ak]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) sums[i][v] += x * right[v];
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) store(c + i * ci + v * LANES, sums[i][v]);
}

#define CASE(rows, vectors)                                                                                            \
    case rows: tile(rows, vectors, depth, a, ai, ak, b, bk, c, ci, add); break;

/* Up to ROWS rows of PANEL columns. */
static inline __attribute__((always_inline)) void wide_tile(
    long rows, long depth, const float *a, long ai, long ak, const float *b, long bk, float *c, long ci, int add)
{
    switch (rows) { CASE(6, 2) CASE(5, 2) CASE(4, 2) CASE(3, 2) CASE(2, 2) CASE(1, 2) }
}

/* Up to TALL rows of LANES columns. */
static inline __attribute__((always_inline)) void tall_tile(
    long rows, long depth, const float *a, long ai, long ak, const float *b, long bk, float *c, long ci, int add)
{
    switch (rows) {
        CASE(12, 1) CASE(11, 1) CASE(10, 1) CASE(9, 1) CASE(8, 1) CASE(7, 1)
        CASE(6, 1) CASE(5, 1) CASE(4, 1) CASE(3, 1) CASE(2, 1) CASE(1, 1)
    }
}

static inline long least_of(long a, long b) { return a < b ? a : b; }

/* C (n, columns) = A B, or += A B, where n is large and B stays in the first cache. Columns are multiples of LANES. */
static void flat_product(
    long n, long depth, long columns, const float *a, long ai, long ak, const float *b, long bk, float *c, long ci, int add)
{
    const long whole = columns / PANEL * PANEL;
    for (long i = 0; whole && i < n; i += ROWS)
        for (long column = 0; column < whole; column += PANEL)
            wide_tile(least_of(ROWS, n - i), depth, a + i * ai, ai, ak, b + column, bk, c + i * ci + column, ci, add);
    for (long i = 0; whole < columns && i < n; i += TALL)
        tall_tile(least_of(TALL, n - i), depth, a + i * ai, ai, ak, b + whole, bk, c + i * ci + whole, ci, add);
}

/* C (n, columns) = A B, or += A B, where the depth is large. Columns are multiples of PANEL. */
static void deep_product(
    long n, long depth, long columns, const float *a, long ai, long ak, const float *b, long bk, float *c, long ci, int add)
{
    const long chunk = 128; /* rows of a panel of B that stay in the first cache */
    for (long column = 0; column < columns; column += PANEL)
        for (long k = 0; k < depth; k += chunk)
            for (long i = 0; i < n; i += ROWS)
                wide_tile(least_of(ROWS, n - i), least_of(chunk, depth - k), a + i * ai + k * ak, ai, ak,
                          b + k * bk + column, bk, c + i * ci + column, ci, add || k > 0);
}

/* Up to eight rows of eight numbers, transposed; zeros for those that are missing. */
typedef float Eight __attribute__((vector_size(32)));
typedef float UnalignedEight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int Order __attribute__((vector_size(32)));
#if defined(__clang__)
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIX(a, b, ...) __builtin_shuffle(a, b, (Order){__VA_ARGS__})
#endif

static inline void transpose_eight(const float *from, long rows, long stride, float *to, long gap)
{
    Eight r[8], s[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = i < rows ? (Eight) * (const UnalignedEight *)(from + i * stride) : (Eight){0};
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

/* Rows (m, columns) transposed, to (columns, gap); zeros from column m to the next multiple of LANES. */
static void transpose(long m, long columns, const float *rows, long stride, float *to, long gap)
{
    const long end = (m + LANES - 1) / LANES * LANES;
    for (long i = 0; i < end; i += 8)
        for (long k = 0; k < columns; k += 8)
            if (k + 8 <= columns)
                transpose_eight(rows + i * stride + k, m - i, stride, to + k * gap + i, gap);
            else
                for (long row = i; row < i + 8; row++)
                    for (long column = k; column < least_of(k + 8, columns); column++)
                        to[column * gap + row] = row < m ? rows[row * stride + column] : 0.0f;
}

/* Rows (m, width), side by side. Widths are multiples of LANES. */
static void copy(long m, long width, const float *rows, long stride, float *to)
{
    for (long j = 0; j < m; j++)
        for (long k = 0; k < width; k += LANES) store(to + j * width + k, load(rows + j * stride + k));
}

#endif

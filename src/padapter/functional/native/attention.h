/* What Python hands over (`launch.py` holds the same fields in the same order), and vectors of floats.

   Distances are those of x R and y R, where there is a metric R: |x R|^2 + |y R|^2 - 2 (x R R^T) . y. The forward pass gets R
   and writes the two squares, the backward pass reads them and gets R R^T, so that it need not multiply y. Gradients of what stands for something else, as values
   do for the nodes whose distances are taken, are added to that one's: then the pointers are the same.

   All numbers are float32, and the last dimension of every tensor is contiguous. Widths of features are multiples of
   padapter_panel(). An absent tensor is a null pointer. */

#ifndef PADAPTER_ATTENTION_H
#define PADAPTER_ATTENTION_H

typedef struct {
    float *at;
    long batch, head, row; /* strides, in numbers */
} View;

typedef struct {
    View query, key, value, node, x, y, metric, mask, upstream, out;
    View d_query, d_key, d_value, d_node, d_x, d_y;
    float *row_max, *row_log, *log_total; /* (B, H, N1) */
    float *x_sizes, *y_sizes;             /* (B, H, N1) and (B, H, N2): |x R|^2 and |y R|^2 */
    float *p, *restart;                   /* (H,) */
    float *d_p, *d_restart;               /* (B, H) */
    const long long *seed;                /* of dropped weights, which kept ones make up for; null: none is */
    long B, H, N1, N2, DK, DH;
    long key_groups, value_groups, y_groups; /* how many query heads share a head */
    long causal, below;
    float scale, relative, least, largest_inverse, factor;
    long threads;  /* how many may work on it */
    long backward; /* 1 in the backward pass */
    long next;     /* number of the next (batch, head) pair; threads count it up together */
} Problem;

#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif
#define PANEL (2 * LANES) /* columns that are computed together: two registers */
#define ROWS 6            /* rows that are computed together */
#define TALL (2 * ROWS)   /* the same, of one register */

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int Ints __attribute__((vector_size(4 * LANES)));
typedef unsigned Words __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline Floats load(const float *from) { return (Floats)*(const Unaligned *)from; }
static inline void store(float *to, Floats value) { *(Unaligned *)to = (Unaligned)value; }
static inline Floats all(float value) { return value - (Floats){0}; }
static inline Floats either(Ints which, Floats yes, Floats no) { return (Floats)((which & (Ints)yes) | (~which & (Ints)no)); }
#if defined(__AVX512F__)
#include <immintrin.h>
static inline Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__)
#include <immintrin.h>
static inline Floats larger(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
#else
static inline Floats larger(Floats a, Floats b) { return either(a > b, a, b); } /* b if either is NaN */
#endif

static inline Floats smaller(Floats a, Floats b) { return either(a < b, a, b); }

/* The first n of LANES numbers, zeros behind them; and back. */
static inline Floats take(const float *from, long n)
{
    if (n >= LANES) return load(from);
    Floats v = {0};
    for (long lane = 0; lane < n; lane++) v[lane] = from[lane];
    return v;
}
static inline void put(float *to, long n, Floats v)
{
    if (n >= LANES) store(to, v);
    for (long lane = 0; n < LANES && lane < n; lane++) to[lane] = v[lane];
}

static inline float sum_of(Floats v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

/* e^x for x <= 88, 0 below -87.3 (the smallest normal number), NaN for NaN: 2^n e^r with |r| <= log(2) / 2. What is left of
   e^r behind 1 + r is r^2 times a polynomial that interpolates it in Chebyshev's nodes, to 8e-9. */
static inline Floats exp_of(Floats x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    Floats shifted = x * 1.44269504f + magic;
    Floats r = x - (shifted - magic) * 0.693147181f, tail = all(0.00139269266f);
    tail = tail * r + 0.00836377387f;
    tail = tail * r + 0.0416665501f;
    tail = tail * r + 0.166665734f;
    tail = tail * r + 0.5f;
    Floats power = tail * (r * r) + (r + 1.0f);
    Ints exponent = ((Ints)shifted << 23) + (Ints)all(1.0f); /* of magic, only zeros are left */
    return (Floats)(~(x < all(-87.3f)) & (Ints)(power * (Floats)exponent));
}

/* log x for normal x > 0: x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)). What is left of log(1 + f) behind
   f - f^2 / 2 is f^3 times a polynomial that interpolates it in Chebyshev's nodes, to 2e-8. */
static inline Floats log_of(Floats x) {
    const int half = 0x3f3504f3; /* sqrt(1/2) */
    Ints bits = (Ints)x - half;
    Floats n = __builtin_convertvector(bits >> 23, Floats);
    Floats f = (Floats)((bits & 0x007fffff) + half) - 1.0f, f2 = f * f;
    Floats tail = all(-0.0790274377f);
    tail = tail * f + 0.126223198f;
    tail = tail * f - 0.129981838f;
    tail = tail * f + 0.142144959f;
    tail = tail * f - 0.166412815f;
    tail = tail * f + 0.200010451f;
    tail = tail * f - 0.250003064f;
    tail = tail * f + 0.333333307f;
    tail = tail * f - 0.5f;
    return n * 0.693147181f + (tail * f2 + f);
}

#endif

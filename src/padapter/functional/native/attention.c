/* p-Laplacian attention on processors, forward and backward: docs/mathematics.md, "The fused form", whose names are used
   here. A thread takes one (batch, head) pair after the other. Of the (N1, N2) matrices only a few rows exist at a time,
   which stay in the processor's caches; the backward pass makes them again. Sums run in one order, whatever the number
   of threads. */

#define _GNU_SOURCE
#include <math.h>

#include "attention.h"
#include "dropout.h"
#include "products.h"
#include "room.h"

/* A B^T of a block of rows: dot products of (rows, width) with all columns, which come as transposed panels. */
static void with_columns(
    const Problem *it, long rows, long width, const float *a, long stride, const float *panels, float *to)
{
    const long m = padded(it->N2);
    for (long column = 0; column < m; column += PANEL)
        times_panels(rows, width, PANEL, a, stride, panels + column * width, to + column, m, 0);
}

/* One row of S, from dot products: scaled, masked, -inf behind the last column. Returns its maximum. */
static float finish_scores(const Problem *it, long i, const float *mask, float *s)
{
    const long m = padded(it->N2), end = it->causal ? least_of(i + 1, it->N2) : it->N2;
    Floats largest = all(-INFINITY);
    for (long j = 0; j < m; j += LANES) {
        Floats v = load(s + j) * it->scale;
        if (j + LANES > end) {
            for (int lane = 0; lane < LANES; lane++) v[lane] = j + lane < end ? v[lane] + (mask ? mask[j + lane] : 0) : -INFINITY;
        } else if (mask)
            v += load(mask + j);
        store(s + j, v);
        largest = larger(largest, v);
    }
    return largest_of(largest);
}

/* Distances delta^2 of one vector of nodes, held above their floor. */
static inline Floats distances(const Problem *it, Floats products, Floats y2, float x2, Floats *floor)
{
    Floats sizes = y2 + x2;
    *floor = sizes * it->relative + it->least;
    return larger(sizes - 2.0f * products, *floor);
}

static inline float one_log(float x) { return log_of(all(x))[0]; }
static inline float one_exp(float x) { return exp_of(all(x))[0]; }

/* What a row's weights are to be divided by, and the share of its own features. */
typedef struct {
    float total, beta;
} Weight;

/* One row of S (in s) and of x . y (in xy, or null) becomes a row of exp(z - max z), in s. */
static Weight weigh_row(
    const Problem *it, long i, const float *mask, float p, float restart, float x2, const float *y2, float *s,
    const float *xy, float *row_max, float *row_log, float *log_total)
{
    const long m = padded(it->N2);
    const float half = p / 2;
    float most = finish_scores(it, i, mask, s);
    most = most == -INFINITY ? 0.0f : most; /* a row without any key */
    const float invalid = x2 != x2 ? x2 : 0.0f; /* the bits of a NaN would have a logarithm */
    Floats sums = {0}, largest = all(-INFINITY), floor;
    for (long j = 0; j < m; j += LANES) {
        Floats log_m = load(s + j) - most, z = log_m * half; /* both without the row's log sum */
        if (xy) z += log_of(distances(it, load(xy + j), load(y2 + j), x2, &floor)) * (half - 1.0f) + invalid;
        sums += exp_of(log_m);
        store(s + j, z);
        largest = larger(largest, z);
    }
    const float sum = sum_of(sums), log_sum = sum == 0.0f ? 0.0f : one_log(sum), shift = half * log_sum;
    float top = largest_of(largest) - shift, log_restart = restart > 0.0f ? logf(restart) : -INFINITY;
    top = top > log_restart ? top : log_restart;
    top = top == -INFINITY ? 0.0f : top;
    sums = (Floats){0};
    for (long j = 0; j < m; j += LANES) {
        Floats w = exp_of(load(s + j) - (top + shift));
        store(s + j, w);
        sums += w;
    }
    /* -top is at most the limit where there is a restart: top >= log restart */
    const float own = restart * expf(fminf(-top, it->largest_inverse)), total = sum_of(sums) + own;
    *row_max = most;
    *row_log = log_sum;
    *log_total = total == 0.0f ? INFINITY : top + logf(total);
    return (Weight){total, total == 0.0f ? 0.0f : own / total};
}

static void forward_pair(const Problem *it, long batch, long head, Room *room)
{
    const Key pair = key_of_pair(it, batch * it->H + head);
    const long m = padded(it->N2), block = block_rows(it);
    const float p = it->p[head], restart = it->restart ? it->restart[head] : 0.0f;
    read_pair(it, batch, head, room, 0);
    for (long first = 0; first < it->N1; first += block) {
        const long rows = least_of(block, it->N1 - first), at = (batch * it->H + head) * it->N1 + first;
        const Rows x = read_block(it, batch, head, first, rows, room);
        float *out = row_of(it->out, batch, head, first);
        with_columns(it, rows, it->DK, row_of(it->query, batch, head, first), it->query.row, room->keys, room->a);
        if (x.at) with_columns(it, rows, it->DH, x.at, x.row, room->nodes, room->b);
        Weight found[block];
        for (long i = 0; i < rows; i++) {
            const float x2 = x.at ? it->x_sizes[at + i] = size_of(x, i, it->DH) : 0.0f;
            found[i] = weigh_row(
                it, first + i, row_of(it->mask, batch, head, first + i), p, restart, x2, room->y2, room->a + i * m,
                x.at ? room->b + i * m : 0, it->row_max + at + i, it->row_log + at + i, it->log_total + at + i);
        }
        if (it->seed)
            for (long i = 0; i < rows; i++) drop(drops_of(it, pair, first + i), it->N2, room->a + i * m);
        times_panels(rows, it->N2, it->DH, room->a, m, room->value_rows, out, it->out.row, 0);
        for (long i = 0; i < rows; i++) {
            const float *node = row_of(it->node, batch, head, first + i);
            for (long k = 0; k < it->DH; k += LANES) {
                float *to = out + i * it->out.row + k;
                Floats v = found[i].total == 0.0f ? (Floats){0} : load(to) / found[i].total;
                store(to, node ? v + found[i].beta * load(node + k) : v);
            }
        }
    }
}

/* What one row adds to sums. */
typedef struct {
    Floats p, e;
} RowSums;

/* A row of S, of x . y and of G V^T becomes one of W as it is summed, of -e and of dS. */
static inline __attribute__((always_inline)) RowSums differentiate_row(
    const Problem *it, const int near, const int restarts, const int dropping, Drops row, float p, float x2,
    const float *y2, float row_max, float row_log, float log_total, float delta, float own, float *s, float *xy,
    float *gv, float *e_sums)
{
    const long m = padded(it->N2);
    const float half = p / 2, scaled = half * it->scale;
    RowSums sums = {{0}, {0}};
    for (long j = 0; j < m; j += LANES) {
        Floats log_m = load(s + j) - row_max - row_log, z = log_m * half, log_d = {0}, d = {0}, floor;
        if (near) {
            d = distances(it, load(xy + j), load(y2 + j), x2, &floor);
            log_d = log_of(d);
            z += log_d * (half - 1.0f);
        }
        Floats w = exp_of(z - log_total), summed = w, change = load(gv + j);
        if (dropping) {
            const Floats factors = factors_of(row, j);
            summed *= factors;
            change *= factors;
        }
        Floats c = w * (change - delta);
        sums.p += c * (larger(log_m, all(-1e30f)) + log_d); /* c is 0 where log M is -inf */
        if (near) {
            Floats e = (Floats)((d > floor) & (Ints)(c / d * (p - 2.0f))); /* none where it is held */
            sums.e += e;
            store(xy + j, -e);
            store(e_sums + j, load(e_sums + j) + e);
        }
        store(s + j, summed);
        store(gv + j, (restarts ? c + own * exp_of(log_m) : c) * scaled);
    }
    return sums;
}

/* What one block of rows adds to the gradients of the pair's p and restart. */
typedef struct {
    double p, restart;
} Sums;

/* Scores of a block, in room->a, b and c, become W, -e and dS; e_rows gets sums of e, d_node beta_i G_i. */
static Sums differentiate_block(
    const Problem *it, long batch, long head, long first, long rows, Room *room, float *e_rows)
{
    const long m = padded(it->N2), at = (batch * it->H + head) * it->N1 + first;
    const float p = it->p[head], restart = it->restart ? it->restart[head] : 0.0f;
    const Key pair = key_of_pair(it, batch * it->H + head);
    Sums found = {0, 0};
    for (long i = 0; i < rows; i++) {
        const float *g = row_of(it->upstream, batch, head, first + i), *node = row_of(it->node, batch, head, first + i);
        const float log_total = it->log_total[at + i], delta = dot(g, row_of(it->out, batch, head, first + i), it->DH);
        const float share = it->restart ? one_exp(fminf(-log_total, it->largest_inverse)) : 0.0f;
        const float surplus = node ? dot(g, node, it->DH) - delta : 0.0f, beta = restart * share;
        const float x2 = it->x_sizes ? it->x_sizes[at + i] : 0.0f;
        float *s = room->a + i * m, *xy = room->b + i * m, *gv = room->c + i * m;
        finish_scores(it, first + i, row_of(it->mask, batch, head, first + i), s);
#define DIFFERENTIATE(near, restarts, dropping)                                                                        \
    differentiate_row(it, near, restarts, dropping, drops_of(it, pair, first + i), p, x2, room->y2, it->row_max[at + i], \
                      it->row_log[at + i], log_total, delta, beta * surplus, s, xy, gv, room->e_sums)
#define EITHER(near, restarts) (it->seed ? DIFFERENTIATE(near, restarts, 1) : DIFFERENTIATE(near, restarts, 0))
        RowSums sums = it->x.at ? (it->restart ? EITHER(1, 1) : EITHER(1, 0)) : (it->restart ? EITHER(0, 1) : EITHER(0, 0));
#undef EITHER
#undef DIFFERENTIATE
        found.p += 0.5 * sum_of(sums.p);
        found.restart += surplus * share;
        e_rows[i] = sum_of(sums.e);
        float *d_node = row_of(it->d_node, batch, head, first + i);
        for (long k = 0; d_node && k < it->DH; k += LANES) store(d_node + k, beta * load(g + k));
    }
    return found;
}

/* to = factor_i x_i, or += factor_i x_i, for every row i. */
static void scaled(long rows, long width, const float *factors, Rows x, Rows to, int add)
{
    for (long i = 0; i < rows; i++)
        for (long k = 0; k < width; k += LANES) {
            Floats change = factors[i] * load(x.at + i * x.row + k);
            store(to.at + i * to.row + k, add ? load(to.at + i * to.row + k) + change : change);
        }
}

static void backward_pair(const Problem *it, long batch, long head, Room *room)
{
    const long m = padded(it->N2), block = block_rows(it), pair = batch * it->H + head, DK = it->DK, DH = it->DH;
    const Rows d_key = rows_of(it->d_key, batch, head, 0), d_value = rows_of(it->d_value, batch, head, 0);
    const Rows d_y = rows_of(it->d_y, batch, head, 0), y = read_pair(it, batch, head, room, 1);
    Sums sums = {0, 0};
    for (long j = 0; j < m; j++) room->e_sums[j] = 0.0f;
    for (long first = 0; first < it->N1; first += block) {
        const long rows = least_of(block, it->N1 - first), add = first > 0;
        const Rows query = rows_of(it->query, batch, head, first), g = rows_of(it->upstream, batch, head, first);
        const Rows x = read_block(it, batch, head, first, rows, room);
        const Rows d_query = rows_of(it->d_query, batch, head, first), d_node = rows_of(it->d_node, batch, head, first);
        const Rows d_x = rows_of(it->d_x, batch, head, first);
        float e_rows[block];
        with_columns(it, rows, DK, query.at, query.row, room->keys, room->a);
        with_columns(it, rows, DH, g.at, g.row, room->values, room->c);
        if (x.at) with_columns(it, rows, DH, x.at, x.row, room->nodes, room->b);
        Sums more = differentiate_block(it, batch, head, first, rows, room, e_rows);
        sums.p += more.p;
        sums.restart += more.restart;
        if (d_x.at) {
            const Rows to = it->metric.at ? (Rows){room->d_x, DH} : d_x;
            scaled(rows, DH, e_rows, rows_of(it->x, batch, head, first), to, to.at == d_node.at);
            times_panels(rows, it->N2, DH, room->b, m, room->node_rows, to.at, to.row, 1);
            if (it->metric.at)
                times_panels(rows, DH, DH, to.at, to.row, room->metric, d_x.at, d_x.row, d_x.at == d_node.at);
        }
        times_panels(rows, it->N2, DK, room->c, m, room->key_rows, d_query.at, d_query.row,
                     d_query.at == d_node.at || d_query.at == d_x.at);
        if (!d_key.at) continue;
        transposed_times(it->N2, rows, DK, room->c, m, query.at, query.row, room->packed, d_key.at, d_key.row, add);
        transposed_times(it->N2, rows, DH, room->a, m, g.at, g.row, room->packed, d_value.at, d_value.row, add);
        if (d_y.at)
            transposed_times(it->N2, rows, DH, room->b, m, x.at, x.row, room->packed, d_y.at, d_y.row,
                             add || d_y.at == d_value.at);
    }
    if (d_y.at && it->metric.at) {
        scaled(it->N2, DH, room->e_sums, y, (Rows){room->d_y, DH}, 0);
        times_panels(it->N2, DH, DH, room->d_y, DH, room->metric, d_y.at, d_y.row, 1);
    } else if (d_y.at)
        scaled(it->N2, DH, room->e_sums, y, d_y, 1);
    it->d_p[pair] = (float)sums.p;
    if (it->d_restart) it->d_restart[pair] = (float)sums.restart;
}

/* Numbers too small to be normal count as 0, in every thread alike: they say nothing, and take a hundred times as long. */
#if defined(__SSE__)
#include <xmmintrin.h>
static unsigned flush_denormals(void)
{
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}
static void restore(unsigned before) { _mm_setcsr(before); }
#else
static unsigned flush_denormals(void) { return 0; }
static void restore(unsigned before) { (void)before; }
#endif

static int every_pair(Problem *it)
{
    Room room;
    if (!make_room(it, &room)) return 1;
    const unsigned before = flush_denormals();
    for (;;) {
        long pair = __atomic_fetch_add(&it->next, 1, __ATOMIC_SEQ_CST);
        if (pair >= it->B * it->H) break;
        (it->backward ? backward_pair : forward_pair)(it, pair / it->H, pair % it->H, &room);
    }
    restore(before);
    give_memory(room.keys);
    return 0;
}

/* Asks for large pages: without them, a good part of the time of writing to fresh memory goes into getting it. */
#if defined(__linux__)
#include <stdint.h>
#include <sys/mman.h>
void padapter_prepare(void *from, long bytes)
{
    const uintptr_t page = 1 << 21, first = ((uintptr_t)from + page - 1) & ~(page - 1);
    const uintptr_t end = ((uintptr_t)from + (uintptr_t)bytes) & ~(page - 1);
    if (end > first) madvise((void *)first, end - first, MADV_HUGEPAGE);
}
#else
void padapter_prepare(void *from, long bytes) { (void)from, (void)bytes; }
#endif

/* Computes everything, by several threads; 1 if none of them had memory. */
int padapter_forward(Problem *it) { return by_threads(it, every_pair); }
int padapter_backward(Problem *it)
{
    it->backward = 1;
    return by_threads(it, every_pair);
}
long padapter_panel(void) { return PANEL; }
long padapter_problem_size(void) { return sizeof(Problem); }

/* p-Laplacian attention on processors, forward and backward: docs/mathematics.md, "The fused form", whose names are used
   here. A thread takes one (batch, head) pair after the other. Of the (N1, N2) matrices only a few rows exist at a time,
   which stay in the processor's caches; the backward pass makes them again. Sums run in one order, whatever the number
   of threads. */

#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>

#include "attention.h"
#include "products.h"

/* Numbers of a matrix of scores that are worked on at a time: 96 KB each of three, in a second cache. */
#define BLOCK 32768

static inline long padded(long columns) { return (columns + PANEL - 1) / PANEL * PANEL; }
static inline float *row_of(View view, long batch, long head, long row) {
    return view.at ? view.at + batch * view.batch + head * view.head + row * view.row : 0;
}

/* Rows of scores that are worked on at a time: a multiple of ROWS, and blocks of about one size. */
static long block_rows(const Problem *it)
{
    long most = BLOCK / padded(it->N2) / ROWS * ROWS;
    most = most < ROWS ? ROWS : most;
    long blocks = (it->N1 + most - 1) / most;
    return ((it->N1 + blocks - 1) / blocks + ROWS - 1) / ROWS * ROWS;
}

/* One pair's keys, values and value nodes as both passes read them, and room for rows of scores. */
typedef struct {
    float *keys, *values, *nodes;         /* transposed panels: (DK | DH, N2) */
    float *key_rows, *value_rows, *node_rows; /* panels: (N2, DK | DH) */
    float *y2;                            /* (N2,): |y_j|^2, 0 behind the last */
    float *e_sums;                        /* (N2,): sums of e over queries */
    float *a, *b, *c;                     /* rows of scores */
} Room;

static int make_room(const Problem *it, Room *room, int backward)
{
    const long m = padded(it->N2), rows = block_rows(it) * m;
    const int near = it->x.at != 0, same = it->y.at == it->value.at, apart = near && !same;
    long sizes[] = {m * it->DK,           backward || same ? m * it->DH : 0,
                    apart ? m * it->DH : 0, backward ? m * it->DK : 0,
                    m * it->DH,           backward && apart ? m * it->DH : 0,
                    m,                    m,
                    rows,                 near ? rows : 0,
                    backward ? rows : 0};
    float **parts[] = {&room->keys,      &room->values, &room->nodes, &room->key_rows, &room->value_rows, &room->node_rows,
                       &room->y2,        &room->e_sums, &room->a,     &room->b,        &room->c};
    long total = 0;
    for (int i = 0; i < 11; i++) total += (sizes[i] + 15) / 16 * 16;
    float *at = aligned_alloc(64, (size_t)total * sizeof(float));
    if (!at) return 0;
    for (int i = 0; i < 11; i++) {
        *parts[i] = at;
        at += (sizes[i] + 15) / 16 * 16;
    }
    return 1;
}

static inline float dot(const float *a, const float *b, long width)
{
    Floats sum = {0};
    for (long k = 0; k < width; k += LANES) sum += load(a + k) * load(b + k);
    return sum_of(sum);
}

static void read_pair(const Problem *it, long batch, long head, Room *room, int backward)
{
    const float *key = row_of(it->key, batch, head / it->key_groups, 0);
    const float *value = row_of(it->value, batch, head / it->value_groups, 0);
    const float *y = row_of(it->y, batch, head / it->y_groups, 0);
    const int same = y == value; /* distances of the values themselves */
    if (same) {
        room->nodes = room->values;
        room->node_rows = room->value_rows;
    }
    pack_transposed(it->N2, it->DK, key, it->key.row, room->keys);
    pack(it->N2, it->DH, value, it->value.row, room->value_rows);
    if (backward || same) pack_transposed(it->N2, it->DH, value, it->value.row, room->values);
    if (y && !same) pack_transposed(it->N2, it->DH, y, it->y.row, room->nodes);
    if (y)
        for (long j = 0; j < padded(it->N2); j++)
            room->y2[j] = j < it->N2 ? dot(y + j * it->y.row, y + j * it->y.row, it->DH) : 0.0f;
    if (!backward) return;
    pack(it->N2, it->DK, key, it->key.row, room->key_rows);
    if (y && !same) pack(it->N2, it->DH, y, it->y.row, room->node_rows);
}

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

/* One row of S (in s) and of x . y (in xy, or null) becomes a row of exp(z - max z), in s; returns what 1 / alpha is. */
static float weigh_row(
    const Problem *it, long i, const float *mask, float p, float restart, float x2, const float *y2, float *s,
    const float *xy, float *row_max, float *row_log, float *log_total)
{
    const long m = padded(it->N2);
    const float half = p / 2;
    float most = finish_scores(it, i, mask, s);
    most = most == -INFINITY ? 0.0f : most; /* a row without any key */
    const float invalid = x2 - x2; /* NaN or 0: the bits of a NaN would have a logarithm */
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
    float total = sum_of(sums) + restart * expf(fminf(-top, it->largest_inverse));
    *row_max = most;
    *row_log = log_sum;
    *log_total = total == 0.0f ? INFINITY : top + logf(total);
    return total;
}

static void forward_pair(const Problem *it, long batch, long head, Room *room)
{
    const long m = padded(it->N2), block = block_rows(it);
    const float p = it->p[head], restart = it->restart ? it->restart[head] : 0.0f;
    read_pair(it, batch, head, room, 0);
    for (long first = 0; first < it->N1; first += block) {
        const long rows = least_of(block, it->N1 - first), at = (batch * it->H + head) * it->N1 + first;
        const float *x = row_of(it->x, batch, head, first);
        float *out = row_of(it->out, batch, head, first);
        with_columns(it, rows, it->DK, row_of(it->query, batch, head, first), it->query.row, room->keys, room->a);
        if (x) with_columns(it, rows, it->DH, x, it->x.row, room->nodes, room->b);
        float totals[block];
        for (long i = 0; i < rows; i++) {
            const float *own = x ? x + i * it->x.row : 0;
            totals[i] = weigh_row(
                it, first + i, row_of(it->mask, batch, head, first + i), p, restart, x ? dot(own, own, it->DH) : 0.0f,
                room->y2, room->a + i * m, x ? room->b + i * m : 0, it->row_max + at + i, it->row_log + at + i,
                it->log_total + at + i);
        }
        times_panels(rows, it->N2, it->DH, room->a, m, room->value_rows, out, it->out.row, 0);
        for (long i = 0; i < rows; i++) {
            const float *node = row_of(it->node, batch, head, first + i);
            const float beta = restart * one_exp(fminf(-it->log_total[at + i], 88.0f));
            for (long k = 0; k < it->DH; k += LANES) {
                float *to = out + i * it->out.row + k;
                Floats v = totals[i] == 0.0f ? (Floats){0} : load(to) / totals[i];
                store(to, node ? v + beta * load(node + k) : v);
            }
        }
    }
}

/* What one row adds to sums. */
typedef struct {
    Floats p, e;
} RowSums;

/* A row of S, of x . y and of G V^T becomes one of W, of -e and of dS. */
static inline __attribute__((always_inline)) RowSums differentiate_row(
    const Problem *it, const int near, const int restarts, float p, float x2, const float *y2, float row_max,
    float row_log, float log_total, float delta, float change, float *s, float *xy, float *gv, float *e_sums)
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
        Floats w = exp_of(z - log_total), c = w * (load(gv + j) - delta);
        sums.p += c * (larger(log_m, all(-1e30f)) + log_d); /* c is 0 where log M is -inf */
        if (near) {
            Floats e = (Floats)((d > floor) & (Ints)(c / d * (p - 2.0f))); /* none where it is held */
            sums.e += e;
            store(xy + j, -e);
            store(e_sums + j, load(e_sums + j) + e);
        }
        store(s + j, w);
        store(gv + j, (restarts ? c + change * exp_of(log_m) : c) * scaled);
    }
    return sums;
}

static void backward_pair(const Problem *it, long batch, long head, Room *room)
{
    const long m = padded(it->N2), block = block_rows(it), pair = batch * it->H + head;
    const float p = it->p[head], restart = it->restart ? it->restart[head] : 0.0f;
    double d_p = 0, d_restart = 0;
    float *d_key = row_of(it->d_key, batch, head, 0), *d_value = row_of(it->d_value, batch, head, 0);
    float *d_y = row_of(it->d_y, batch, head, 0);
    read_pair(it, batch, head, room, 1);
    for (long j = 0; j < m; j++) room->e_sums[j] = 0.0f;
    for (long first = 0; first < it->N1; first += block) {
        const long rows = least_of(block, it->N1 - first), at = pair * it->N1 + first;
        const float *query = row_of(it->query, batch, head, first), *x = row_of(it->x, batch, head, first);
        const float *g = row_of(it->upstream, batch, head, first);
        float *d_query = row_of(it->d_query, batch, head, first), *d_x = row_of(it->d_x, batch, head, first);
        float *d_node = row_of(it->d_node, batch, head, first);
        float e_rows[block];
        with_columns(it, rows, it->DK, query, it->query.row, room->keys, room->a);
        with_columns(it, rows, it->DH, g, it->upstream.row, room->values, room->c);
        if (x) with_columns(it, rows, it->DH, x, it->x.row, room->nodes, room->b);
        for (long i = 0; i < rows; i++) {
            const float *gi = g + i * it->upstream.row, *node = row_of(it->node, batch, head, first + i);
            const float log_total = it->log_total[at + i];
            const float delta = dot(gi, row_of(it->out, batch, head, first + i), it->DH);
            const float share = it->restart ? one_exp(fminf(-log_total, it->largest_inverse)) : 0.0f;
            const float surplus = node ? dot(gi, node, it->DH) - delta : 0.0f, beta = restart * share;
            const float x2 = x ? dot(x + i * it->x.row, x + i * it->x.row, it->DH) : 0.0f;
            float *s = room->a + i * m, *xy = room->b + i * m, *gv = room->c + i * m;
            finish_scores(it, first + i, row_of(it->mask, batch, head, first + i), s);
#define DIFFERENTIATE(near, restarts)                                                                                  \
    differentiate_row(it, near, restarts, p, x2, room->y2, it->row_max[at + i], it->row_log[at + i], log_total, delta, \
                      beta * surplus, s, xy, gv, room->e_sums)
            RowSums sums = x ? (it->restart ? DIFFERENTIATE(1, 1) : DIFFERENTIATE(1, 0))
                             : (it->restart ? DIFFERENTIATE(0, 1) : DIFFERENTIATE(0, 0));
#undef DIFFERENTIATE
            d_p += 0.5 * sum_of(sums.p);
            d_restart += surplus * share;
            e_rows[i] = sum_of(sums.e);
            if (d_node)
                for (long k = 0; k < it->DH; k += LANES) store(d_node + i * it->d_node.row + k, beta * load(gi + k));
        }
        if (d_x)
            for (long i = 0; i < rows; i++)
                for (long k = 0; k < it->DH; k += LANES) {
                    float *to = d_x + i * it->d_x.row + k;
                    Floats change = e_rows[i] * load(x + i * it->x.row + k);
                    store(to, d_x == d_node ? load(to) + change : change);
                }
        if (d_x) times_panels(rows, it->N2, it->DH, room->b, m, room->node_rows, d_x, it->d_x.row, 1);
        times_panels(rows, it->N2, it->DK, room->c, m, room->key_rows, d_query, it->d_query.row,
                     d_query == d_node || d_query == d_x);
        const int add = first > 0;
        if (d_key) transposed_times(it->N2, rows, it->DK, room->c, m, query, it->query.row, d_key, it->d_key.row, add);
        if (d_value) transposed_times(it->N2, rows, it->DH, room->a, m, g, it->upstream.row, d_value, it->d_value.row, add);
        if (d_y) transposed_times(it->N2, rows, it->DH, room->b, m, x, it->x.row, d_y, it->d_y.row, add || d_y == d_value);
    }
    if (d_y) {
        const float *y = row_of(it->y, batch, head / it->y_groups, 0);
        for (long j = 0; j < it->N2; j++)
            for (long k = 0; k < it->DH; k += LANES) {
                float *to = d_y + j * it->d_y.row + k;
                store(to, load(to) + room->e_sums[j] * load(y + j * it->y.row + k));
            }
    }
    it->d_p[pair] = (float)d_p;
    if (it->d_restart) it->d_restart[pair] = (float)d_restart;
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

static int every_pair(Problem *it, int backward)
{
    Room room;
    if (!make_room(it, &room, backward)) return 1;
    const unsigned before = flush_denormals();
    for (;;) {
        long pair = __atomic_fetch_add(&it->next, 1, __ATOMIC_RELAXED);
        if (pair >= it->B * it->H) break;
        (backward ? backward_pair : forward_pair)(it, pair / it->H, pair % it->H, &room);
    }
    restore(before);
    free(room.keys);
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

/* Called by every thread with the same problem; 1 if there was no memory. */
int padapter_forward(Problem *it) { return every_pair(it, 0); }
int padapter_backward(Problem *it) { return every_pair(it, 1); }
long padapter_panel(void) { return PANEL; }
long padapter_problem_size(void) { return sizeof(Problem); }

/* p-Laplacian attention on processors, forward and backward: docs/mathematics.md, "The fused form", whose names are used
   here. A thread takes one (batch, head) pair after the other. Of the (N1, N2) matrices only a few rows exist at a time,
   which stay in the processor's caches; the backward pass makes them again. Sums run in one order, whatever the number
   of threads. */

#define _GNU_SOURCE
#include "attention.h"
#include "scores.h"

/* Dot products of a block's rows (rows, width) with those of all keys, values or value nodes: (N2, R). */
static void with_columns(const Problem *it, const Block *block, long width, Rows a, Rows nodes, Room *room, float *to)
{
    transpose(block->rows, width, a.at, a.row, room->columns, block->R);
    flat_product(it->N2, width, block->R, nodes.at, nodes.row, 1, room->columns, block->R, to, block->R, 0);
}

/* Scores (N2, R) times keys, values or value nodes: (rows, width), or added to it. */
static void times_nodes(const Problem *it, const Block *block, long width, const float *s, Rows nodes, Rows to, int add)
{
    deep_product(block->rows, it->N2, width, s, 1, block->R, nodes.at, nodes.row, (float *)to.at, to.row, add);
}

/* Scores (N2, R) times rows of the block: (N2, width), or added to it. */
static void times_block(
    const Problem *it, const Block *block, long width, const float *s, Rows a, Room *room, Rows to, int add)
{
    copy(block->rows, width, a.at, a.row, room->packed);
    flat_product(it->N2, block->rows, width, s, block->R, 1, room->packed, width, (float *)to.at, to.row, add);
}

static inline Block block_of(const Problem *it, long batch, long head, long first, long R)
{
    return (Block){first, least_of(R, it->N1 - first), R, (batch * it->H + head) * it->N1 + first};
}

static void forward_pair(const Problem *it, long batch, long head, Room *room)
{
    const Key pair = key_of_pair(it, batch * it->H + head);
    const long R = block_rows(it);
    const float p = it->p[head], restart = it->restart ? it->restart[head] : 0.0f;
    read_pair(it, batch, head, room);
    for (long first = 0; first < it->N1; first += R) {
        const Block block = block_of(it, batch, head, first, R);
        const Mask mask = read_mask(it, batch, head, &block, room);
        const Rows x = read_block(it, batch, head, &block, room), out = rows_of(it->out, batch, head, first);
        with_columns(it, &block, it->DK, rows_of(it->query, batch, head, first), room->keys, room, room->a);
        if (x.at) with_columns(it, &block, it->DH, x, room->nodes, room, room->b);
        float total[R], beta[R];
        for (long i = 0; i < block.rows; i += LANES) {
            const Queries of = queries_of(it, &block, i);
            const long at = block.at + i;
            Floats x2 = {0};
            for (long lane = 0; x.at && lane < of.count; lane++) x2[lane] = size_of(x, i + lane, it->DH);
            const Weighed found =
                weigh(it, &of, &mask, p, restart, x2, room->y2, room->a + i, x.at ? room->b + i : 0);
            if (it->seed) drop(it, &of, pair, room->a + i);
            if (x.at) put(it->x_sizes + at, of.count, x2);
            put(it->row_max + at, of.count, found.most);
            put(it->row_log + at, of.count, found.log_sum);
            put(it->log_total + at, of.count, found.log_total);
            store(total + i, found.total);
            store(beta + i, found.beta);
        }
        times_nodes(it, &block, it->DH, room->a, room->values, out, 0);
        for (long i = 0; i < block.rows; i++) {
            const float *node = row_of(it->node, batch, head, first + i);
            float *to = (float *)out.at + i * out.row;
            for (long k = 0; k < it->DH; k += LANES) {
                Floats v = total[i] == 0.0f ? (Floats){0} : load(to + k) / total[i];
                store(to + k, node ? v + beta[i] * load(node + k) : v);
            }
        }
    }
}

/* What one block of queries adds to the gradients of the pair's p and restart. */
typedef struct {
    double p, restart;
} Sums;

/* Scores of a block, in room->a, b and c, become W, -e and dS; e_rows gets sums of e, d_node beta_i G_i. */
static Sums differentiate_block(
    const Problem *it, long batch, long head, const Block *block, const Mask *mask, Room *room, float *e_rows)
{
    const float p = it->p[head], restart = it->restart ? it->restart[head] : 0.0f;
    const Key pair = key_of_pair(it, batch * it->H + head);
    Sums found = {0, 0};
    for (long i = 0; i < block->rows; i += LANES) {
        const Queries of = queries_of(it, block, i);
        const long at = block->at + i;
        Changes changes = {
            it->x_sizes ? take(it->x_sizes + at, of.count) : (Floats){0}, take(it->row_max + at, of.count),
            take(it->row_log + at, of.count), take(it->log_total + at, of.count), {0}, {0}, {0}, {0}};
        const Floats share = it->restart ? exp_of(smaller(-changes.log_total, all(it->largest_inverse))) : (Floats){0};
        for (long lane = 0; lane < of.count; lane++) {
            const long row = of.row + lane;
            const float *g = row_of(it->upstream, batch, head, row), *node = row_of(it->node, batch, head, row);
            const float delta = dot(g, row_of(it->out, batch, head, row), it->DH), beta = restart * share[lane];
            const float surplus = node ? dot(g, node, it->DH) - delta : 0.0f;
            changes.delta[lane] = delta;
            changes.own[lane] = beta * surplus;
            found.restart += surplus * share[lane];
            float *d_node = row_of(it->d_node, batch, head, row);
            for (long k = 0; d_node && k < it->DH; k += LANES) store(d_node + k, beta * load(g + k));
        }
        float *s = room->a + i, *xy = room->b + i, *gv = room->c + i, *e_sums = it->d_y.at ? room->e_sums : 0;
        finish_scores(it, &of, mask, s);
        const Drops drops = it->seed ? drops_of(it, pair, of.row) : (Drops){{0}, {0}, 0, 0};
#define DIFFERENTIATE(near, restarts, dropping)                                                                        \
    differentiate(it, near, restarts, dropping, &of, &drops, p, room->y2, &changes, s, xy, gv, e_sums)
#define EITHER(near, restarts) (it->seed ? DIFFERENTIATE(near, restarts, 1) : DIFFERENTIATE(near, restarts, 0))
        it->x.at ? (it->restart ? EITHER(1, 1) : EITHER(1, 0)) : (it->restart ? EITHER(0, 1) : EITHER(0, 0));
#undef EITHER
#undef DIFFERENTIATE
        found.p += 0.5 * sum_of(changes.p);
        store(e_rows + i, changes.e);
    }
    return found;
}

/* to = factor_i x_i, or += factor_i x_i, for every row i. */
static void scaled(long rows, long width, const float *factors, Rows x, Rows to, int add)
{
    for (long i = 0; i < rows; i++)
        for (long k = 0; k < width; k += LANES) {
            Floats change = factors[i] * load(x.at + i * x.row + k);
            float *at = (float *)to.at + i * to.row + k;
            store(at, add ? load(at) + change : change);
        }
}

static void backward_pair(const Problem *it, long batch, long head, Room *room)
{
    const long R = block_rows(it), pair = batch * it->H + head, DK = it->DK, DH = it->DH;
    const Rows d_key = rows_of(it->d_key, batch, head, 0), d_value = rows_of(it->d_value, batch, head, 0);
    const Rows d_y = rows_of(it->d_y, batch, head, 0), metric = rows_of(it->metric, 0, head, 0);
    const Rows y = read_pair(it, batch, head, room);
    Sums sums = {0, 0};
    for (long j = 0; d_y.at && j < it->N2 * LANES; j++) room->e_sums[j] = 0.0f;
    for (long first = 0; first < it->N1; first += R) {
        const Block block = block_of(it, batch, head, first, R);
        const Mask mask = read_mask(it, batch, head, &block, room);
        const long add = first > 0;
        const Rows query = rows_of(it->query, batch, head, first), g = rows_of(it->upstream, batch, head, first);
        const Rows x = read_block(it, batch, head, &block, room);
        const Rows d_query = rows_of(it->d_query, batch, head, first), d_node = rows_of(it->d_node, batch, head, first);
        const Rows d_x = rows_of(it->d_x, batch, head, first);
        float e_rows[R];
        with_columns(it, &block, DK, query, room->keys, room, room->a);
        with_columns(it, &block, DH, g, room->values, room, room->c);
        if (x.at) with_columns(it, &block, DH, x, room->nodes, room, room->b);
        Sums more = differentiate_block(it, batch, head, &block, &mask, room, e_rows);
        sums.p += more.p;
        sums.restart += more.restart;
        if (d_x.at) {
            const Rows to = metric.at ? (Rows){room->d_x, DH} : d_x;
            scaled(block.rows, DH, e_rows, rows_of(it->x, batch, head, first), to, to.at == d_node.at);
            times_nodes(it, &block, DH, room->b, room->nodes, to, 1);
            if (metric.at)
                flat_product(block.rows, DH, DH, to.at, to.row, 1, metric.at, metric.row, (float *)d_x.at, d_x.row,
                             d_x.at == d_node.at);
        }
        times_nodes(it, &block, DK, room->c, room->keys, d_query, d_query.at == d_node.at || d_query.at == d_x.at);
        if (!d_key.at) continue;
        times_block(it, &block, DK, room->c, query, room, d_key, add);
        times_block(it, &block, DH, room->a, g, room, d_value, add);
        if (d_y.at) times_block(it, &block, DH, room->b, x, room, d_y, add || d_y.at == d_value.at);
    }
    if (d_y.at) {
        for (long j = 0; j < it->N2; j++) room->e_sums[j] = sum_of(load(room->e_sums + j * LANES));
        scaled(it->N2, DH, room->e_sums, y, metric.at ? (Rows){room->d_y, DH} : d_y, !metric.at);
        if (metric.at)
            flat_product(it->N2, DH, DH, room->d_y, DH, 1, metric.at, metric.row, (float *)d_y.at, d_y.row, 1);
    }
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
    give_memory(room.memory);
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

/* Scores of a block of queries, transposed: (N2, R), a row per key, a lane per query. What is done to them one by one. */

#ifndef PADAPTER_SCORES_H
#define PADAPTER_SCORES_H

#include <math.h>

#include "dropout.h"
#include "room.h"

/* LANES queries of a block, from number `at` of its block and `row` of all on. */
typedef struct {
    long at, row, count, R;
    long end; /* keys that any of them attends to */
    Ints valid;
} Queries;

static Queries queries_of(const Problem *it, const Block *block, long at)
{
    Queries found = {at, block->first + at, least_of(block->rows - at, LANES), block->R, it->N2, {0}};
    if (it->causal) found.end = least_of(found.row + LANES, it->N2);
    for (int lane = 0; lane < LANES; lane++) found.valid[lane] = lane < found.count ? -1 : 0;
    return found;
}

/* A score with what the mask adds: a key that it removes is gone, whatever its features are. */
static inline Floats masked(Floats score, Floats mask) { return either(mask == all(-INFINITY), mask, score + mask); }

/* Dot products become S: scaled, masked. Returns the largest of each query. */
static Floats finish_scores(const Problem *it, const Queries *of, const Mask *mask, float *s)
{
    Ints rows;
    for (int lane = 0; lane < LANES; lane++) rows[lane] = (int)(of->row + lane);
    Floats largest = all(-INFINITY);
    for (long j = 0; j < of->end; j++) {
        Floats v = load(s + j * of->R) * it->scale;
        if (mask->every)
            v = masked(v, all(mask->every[j]));
        else if (mask->each)
            v = masked(v, load(mask->each + j * of->R + of->at));
        if (it->causal && j > of->row) v = either(rows >= (int)j, v, all(-INFINITY));
        store(s + j * of->R, v);
        largest = larger(largest, v);
    }
    return largest;
}

/* Distances delta^2 to one value node, held above their floor. */
static inline Floats distances(const Problem *it, Floats products, float y2, Floats x2, Floats *floor)
{
    Floats sizes = x2 + y2;
    *floor = sizes * it->relative + it->least;
    return larger(sizes - 2.0f * products, *floor);
}

/* What queries' weights are to be divided by, the share of their own features, and what the backward pass reads. */
typedef struct {
    Floats total, beta, most, log_sum, log_total;
} Weighed;

/* S (in s) and x . y (in xy, or null) become exp(z - max z), in s. */
static Weighed weigh(
    const Problem *it, const Queries *of, const Mask *mask, float p, float restart, Floats x2, const float *y2, float *s,
    const float *xy)
{
    const long R = of->R;
    const float half = p / 2;
    Weighed found;
    Floats most = finish_scores(it, of, mask, s);
    found.most = most = either(most == all(-INFINITY), (Floats){0}, most); /* a query without any key */
    const Floats invalid = either(x2 != x2, x2, (Floats){0});              /* the bits of a NaN would have a logarithm */
    Floats sums = {0}, largest = all(-INFINITY), floor;
    for (long j = 0; j < of->end; j++) {
        Floats log_m = load(s + j * R) - most, z = log_m * half; /* both without the row's log sum */
        if (xy) z += log_of(distances(it, load(xy + j * R), y2[j], x2, &floor)) * (half - 1.0f) + invalid;
        sums += exp_of(log_m);
        store(s + j * R, z);
        largest = larger(largest, z);
    }
    found.log_sum = either(sums == 0.0f, (Floats){0}, log_of(sums));
    const Floats shift = found.log_sum * half;
    Floats top = larger(largest - shift, all(restart > 0.0f ? logf(restart) : -INFINITY));
    top = either(top == all(-INFINITY), (Floats){0}, top);
    sums = (Floats){0};
    for (long j = 0; j < of->end; j++) {
        Floats w = exp_of(load(s + j * R) - (top + shift));
        store(s + j * R, w);
        sums += w;
    }
    for (long j = of->end; j < it->N2; j++) store(s + j * R, (Floats){0});
    /* -top is at most the limit where there is a restart: top >= log restart */
    const Floats own = exp_of(smaller(-top, all(it->largest_inverse))) * restart, total = sums + own;
    const Ints empty = total == 0.0f;
    found.total = total;
    found.beta = either(empty, (Floats){0}, own / total);
    found.log_total = either(empty, all(INFINITY), top + log_of(total) + (total - total)); /* NaN stays NaN */
    return found;
}

/* Weights that are summed: some are dropped, which the kept ones make up for. */
static void drop(const Problem *it, const Queries *of, Key pair, float *s)
{
    const Drops drops = drops_of(it, pair, of->row);
    for (long j = 0; j < of->end; j++) store(s + j * of->R, load(s + j * of->R) * factors_of(&drops, j));
}

/* What the backward pass knows of queries, and what it sums over keys. */
typedef struct {
    Floats x2, most, log_sum, log_total, delta, own;
    Floats p, e;
} Changes;

/* S, x . y and G V^T become W as it is summed, -e and dS; `e_sums` (N2, LANES), or null, gets sums of e. */
static inline __attribute__((always_inline)) void differentiate(
    const Problem *it, const int near, const int restarts, const int dropping, const Queries *of, const Drops *drops,
    float p, const float *y2, Changes *changes, float *s, float *xy, float *gv, float *e_sums)
{
    const long R = of->R;
    const float half = p / 2, scaled = half * it->scale;
    const Floats x2 = changes->x2, most = changes->most, log_sum = changes->log_sum, log_total = changes->log_total;
    const Floats delta = changes->delta, own = changes->own;
    Floats p_sum = {0}, e_sum = {0};
    for (long j = 0; j < of->end; j++) {
        Floats log_m = load(s + j * R) - most - log_sum, z = log_m * half, log_d = {0}, d = {0}, floor;
        if (near) {
            d = distances(it, load(xy + j * R), y2[j], x2, &floor);
            log_d = log_of(d);
            z += log_d * (half - 1.0f);
        }
        Floats w = exp_of(z - log_total), summed = w, change = load(gv + j * R);
        if (dropping) {
            const Floats factors = factors_of(drops, j);
            summed *= factors;
            change *= factors;
        }
        Floats c = w * (change - delta);
        p_sum += c * (larger(log_m, all(-1e30f)) + log_d); /* c is 0 where log M is -inf */
        if (near) {
            Floats e = (Floats)((d > floor) & of->valid & (Ints)(c / d * (p - 2.0f))); /* none where it is held */
            e_sum += e;
            store(xy + j * R, -e);
            if (e_sums) store(e_sums + j * LANES, load(e_sums + j * LANES) + e);
        }
        store(s + j * R, summed);
        store(gv + j * R, (restarts ? c + own * exp_of(log_m) : c) * scaled);
    }
    for (long j = of->end; j < it->N2; j++) {
        store(s + j * R, (Floats){0});
        store(gv + j * R, (Floats){0});
        if (near) store(xy + j * R, (Floats){0});
    }
    changes->p = (Floats)(of->valid & (Ints)p_sum);
    changes->e = e_sum;
}

#endif

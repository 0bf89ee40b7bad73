/* What a thread holds of one (batch, head) pair, and how it is read. */

#ifndef PADAPTER_ROOM_H
#define PADAPTER_ROOM_H

#include "products.h"
#include "threads.h"

/* Numbers of a matrix of scores that are worked on at a time: 128 KB each of three, in a second cache. */
#define BLOCK 32768
#define LARGEST_BLOCK 64 /* queries, which stay in the first cache */
#define SMALLEST_BLOCK PANEL
          /* queries for which keys and values are read where they are */

static inline float *row_of(View view, long batch, long head, long row) {
    return view.at ? view.at + batch * view.batch + head * view.head + row * view.row : 0;
}

static inline long padded(long rows) { return (rows + LANES - 1) / LANES * LANES; }

/* Queries that are worked on at a time: blocks of about one size, which is a multiple of LANES. */
static long block_rows(const Problem *it)
{
    long most = BLOCK / it->N2 / LANES * LANES;
    most = least_of(most < SMALLEST_BLOCK ? SMALLEST_BLOCK : most, LARGEST_BLOCK);
    long blocks = (it->N1 + most - 1) / most;
    return padded((it->N1 + blocks - 1) / blocks);
}

/* Rows of numbers. */
typedef struct {
    const float *at;
    long row;
} Rows;

/* One pair's keys, values and value nodes, and room for a block of queries. */
typedef struct {
    float *memory;
    Rows keys, values, nodes;                 /* (N2, DK | DH) */
    float *key_copy, *value_copy, *node_copy; /* them, side by side */
    float *y2;                                /* (N2,): |y_j|^2 */
    float *e_sums;                            /* (N2, LANES): sums of e over queries */
    float *a, *b, *c;                         /* (N2, R): scores */
    float *mask;                              /* (N2, R) */
    float *columns;                           /* (DK | DH, R): queries or query nodes, transposed */
    float *packed;                            /* (R, DK | DH): them, side by side */
    float *x, *d_x;                           /* (R, DH): query nodes times R, or R R^T, and the gradient there */
    float *d_y;                               /* (N2, DH): a gradient in front of R R^T */
} Room;

#define PARTS 14

/* Rows that several blocks of queries read are worth a copy that lies side by side. */
static inline int copies(const Problem *it) { return it->N1 > block_rows(it); }

static int make_room(const Problem *it, Room *room)
{
    const long backward = it->backward, N2 = it->N2, R = block_rows(it), DK = it->DK, DH = it->DH;
    const long near = it->x.at != 0, metric = it->metric.at != 0, most = DK > DH ? DK : DH;
    const long apart = near && (it->y.at != it->value.at || (metric && !backward));
    const struct {
        float **part;
        long size;
    } parts[PARTS] = {
        {&room->key_copy, copies(it) * N2 * DK},
        {&room->value_copy, copies(it) * N2 * DH},
        {&room->node_copy, (apart && (copies(it) || metric)) * N2 * DH},
        {&room->y2, N2},
        {&room->e_sums, (it->d_y.at != 0) * N2 * LANES},
        {&room->a, R * N2},
        {&room->b, near * R * N2},
        {&room->c, backward * R * N2},
        {&room->mask, (it->mask.at && it->mask.row) * R * N2},
        {&room->columns, most * R},
        {&room->packed, (it->d_key.at != 0) * most * R},
        {&room->x, metric * R * DH},
        {&room->d_x, metric * backward * R * DH},
        {&room->d_y, metric * (it->d_y.at != 0) * N2 * DH},
    };
    long total = 0;
    for (int i = 0; i < PARTS; i++) total += (parts[i].size + 15) / 16 * 16;
    float *at = take_memory(total * (long)sizeof(float));
    if (!at) return 0;
    room->memory = at;
    for (int i = 0; i < PARTS; i++) {
        *parts[i].part = at;
        at += (parts[i].size + 15) / 16 * 16;
    }
    return 1;
}

static inline Rows rows_of(View view, long batch, long head, long first)
{
    return (Rows){row_of(view, batch, head, first), view.row};
}

static inline float dot(const float *a, const float *b, long width)
{
    Floats sum = {0};
    for (long k = 0; k < width; k += LANES) sum += load(a + k) * load(b + k);
    return sum_of(sum);
}

static inline float size_of(Rows x, long i, long width) { return dot(x.at + i * x.row, x.at + i * x.row, width); }

/* C (n, DH) = A R, where what is 0 in the first rows of a panel of R is left out: it is a triangle where it comes from a
   projection. */
static void times_triangle(long n, long width, Rows a, Rows metric, float *c)
{
    for (long column = 0; column < width; column += PANEL) {
        long skip = 0, zeros = 0;
        for (; skip < width; skip++) {
            for (zeros = 0; zeros < PANEL && metric.at[skip * metric.row + column + zeros] == 0.0f;) zeros++;
            if (zeros < PANEL) break;
        }
        for (long i = 0; i < n; i += ROWS)
            wide_tile(least_of(ROWS, n - i), width - skip, a.at + i * a.row + skip, a.row, 1,
                      metric.at + skip * metric.row + column, metric.row, c + i * width + column, width, 0);
    }
}

/* Rows as they are, or side by side. */
static Rows read_rows(const Problem *it, Rows rows, long width, float *to)
{
    if (!copies(it)) return rows;
    copy(it->N2, width, rows.at, rows.row, to);
    return (Rows){to, width};
}

/* Reads a pair, and returns the value nodes as they were given. */
static Rows read_pair(const Problem *it, long batch, long head, Room *room)
{
    const Rows value = rows_of(it->value, batch, head / it->value_groups, 0);
    const Rows y = rows_of(it->y, batch, head / it->y_groups, 0);
    room->keys = read_rows(it, rows_of(it->key, batch, head / it->key_groups, 0), it->DK, room->key_copy);
    room->values = read_rows(it, value, it->DH, room->value_copy);
    if (!y.at) return y;
    if (it->metric.at && !it->backward) {
        times_triangle(it->N2, it->DH, y, rows_of(it->metric, 0, head, 0), room->node_copy);
        room->nodes = (Rows){room->node_copy, it->DH};
    } else
        room->nodes = y.at == value.at ? room->values : read_rows(it, y, it->DH, room->node_copy);
    float *sizes = it->y_sizes + (batch * it->H + head) * it->N2;
    for (long j = 0; j < it->N2; j++) {
        if (!it->backward) sizes[j] = size_of(room->nodes, j, it->DH);
        room->y2[j] = sizes[j];
    }
    return y;
}

/* A block of queries; what is added to its scores: the same for every query, or one row per key; null for nothing. */
typedef struct {
    long first, rows, R, at; /* at: its number among all queries */
} Block;

typedef struct {
    const float *every, *each;
} Mask;

static Mask read_mask(const Problem *it, long batch, long head, const Block *block, Room *room)
{
    const float *from = row_of(it->mask, batch, head, block->first);
    if (!from || !it->mask.row) return (Mask){from, 0};
    transpose(block->rows, it->N2, from, it->mask.row, room->mask, block->R);
    return (Mask){0, room->mask};
}

/* Query nodes of a block whose distances are taken: times R, or times R R^T in the backward pass. */
static Rows read_block(const Problem *it, long batch, long head, const Block *block, Room *room)
{
    const Rows x = rows_of(it->x, batch, head, block->first), metric = rows_of(it->metric, 0, head, 0);
    if (!metric.at) return x;
    flat_product(block->rows, it->DH, it->DH, x.at, x.row, 1, metric.at, metric.row, room->x, it->DH, 0);
    return (Rows){room->x, it->DH};
}

#endif

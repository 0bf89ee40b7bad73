/* What a thread holds of one (batch, head) pair, and how it is read. */

#ifndef PADAPTER_ROOM_H
#define PADAPTER_ROOM_H

#include "products.h"
#include "threads.h"

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

/* One pair's keys, values and value nodes as both passes read them, and room for a block of rows. */
typedef struct {
    float *keys, *values, *nodes;             /* transposed panels: (DK | DH, N2) */
    float *key_rows, *value_rows, *node_rows; /* panels: (N2, DK | DH) */
    float *y2;                                /* (N2,): |y_j|^2, 0 behind the last */
    float *e_sums;                            /* (N2,): sums of e over queries */
    float *a, *b, *c;                         /* rows of scores */
    float *packed;                            /* (rows, DK | DH): rows of queries or query nodes */
    float *metric;                            /* panels: (DH, DH), R or R R^T */
    float *x, *d_x;                           /* (rows, DH): times it */
    float *y, *d_y;                           /* (N2, DH): times it */
} Room;

#define PARTS 17

static int make_room(const Problem *it, Room *room)
{
    const long backward = it->backward;
    const long m = padded(it->N2), rows = block_rows(it), near = it->x.at != 0, metric = it->metric.at != 0;
    const long same = it->y.at == it->value.at && (backward || !metric), apart = near && !same;
    const long DK = it->DK, DH = it->DH;
    const struct {
        float **part;
        long size;
    } parts[PARTS] = {
        {&room->keys, m * DK},
        {&room->values, (backward || same) * m * DH},
        {&room->nodes, apart * m * DH},
        {&room->key_rows, backward * m * DK},
        {&room->value_rows, m * DH},
        {&room->node_rows, (backward && apart) * m * DH},
        {&room->y2, m},
        {&room->e_sums, m},
        {&room->a, rows * m},
        {&room->b, near * rows * m},
        {&room->c, backward * rows * m},
        {&room->packed, (it->d_key.at != 0) * rows * (DK > DH ? DK : DH)},
        {&room->metric, metric * DH * DH},
        {&room->x, metric * rows * DH},
        {&room->d_x, metric * backward * rows * DH},
        {&room->y, metric * !backward * m * DH},
        {&room->d_y, metric * (it->d_y.at != 0) * m * DH},
    };
    long total = 0;
    for (int i = 0; i < PARTS; i++) total += (parts[i].size + 15) / 16 * 16;
    float *at = take_memory(total * (long)sizeof(float));
    if (!at) return 0;
    for (int i = 0; i < PARTS; i++) {
        *parts[i].part = at;
        at += (parts[i].size + 15) / 16 * 16;
    }
    return 1;
}

/* Rows of numbers. */
typedef struct {
    float *at;
    long row;
} Rows;

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

/* C (n, columns) = A (n, depth) B, as `times_panels`, but what is 0 in the first rows of a panel is left out: R is a
   triangle where it comes from a projection. */
static void times_triangle(long n, long depth, long columns, Rows a, const float *panels, float *c, long ci)
{
    for (long column = 0; column < columns; column += PANEL, panels += PANEL * depth) {
        long zeros = 0;
        while (zeros < PANEL * depth && panels[zeros] == 0.0f) zeros++;
        const long skip = zeros / PANEL;
        for (long i = 0; i < n; i += ROWS)
            tiles(least_of(ROWS, n - i), depth - skip, a.at + i * a.row + skip, a.row, 1, panels + skip * PANEL, PANEL,
                  c + i * ci + column, ci, 0);
    }
}

/* Reads a pair, and returns the value nodes whose distances are taken: behind R in the forward pass. */
static Rows read_pair(const Problem *it, long batch, long head, Room *room, int backward)
{
    const float *key = row_of(it->key, batch, head / it->key_groups, 0);
    const float *value = row_of(it->value, batch, head / it->value_groups, 0);
    Rows y = rows_of(it->y, batch, head / it->y_groups, 0);
    if (it->metric.at) pack(it->DH, it->DH, row_of(it->metric, 0, head, 0), it->metric.row, room->metric);
    if (it->metric.at && !backward) {
        times_triangle(it->N2, it->DH, it->DH, y, room->metric, room->y, it->DH);
        y = (Rows){room->y, it->DH};
    }
    const int same = y.at == value; /* distances of the values themselves */
    if (same) {
        room->nodes = room->values;
        room->node_rows = room->value_rows;
    }
    pack_transposed(it->N2, it->DK, key, it->key.row, room->keys);
    if (!backward || same) pack(it->N2, it->DH, value, it->value.row, room->value_rows);
    if (backward || same) pack_transposed(it->N2, it->DH, value, it->value.row, room->values);
    if (y.at && !same) pack_transposed(it->N2, it->DH, y.at, y.row, room->nodes);
    float *sizes = it->y_sizes + (batch * it->H + head) * it->N2;
    for (long j = 0; y.at && j < padded(it->N2); j++) {
        if (!backward && j < it->N2) sizes[j] = size_of(y, j, it->DH);
        room->y2[j] = j < it->N2 ? sizes[j] : 0.0f;
    }
    if (backward) pack(it->N2, it->DK, key, it->key.row, room->key_rows);
    if (backward && y.at && !same) pack(it->N2, it->DH, y.at, y.row, room->node_rows);
    return y;
}

/* Query nodes of a block whose distances are taken: times R, or times R R^T in the backward pass. */
static Rows read_block(const Problem *it, long batch, long head, long first, long rows, Room *room)
{
    Rows x = rows_of(it->x, batch, head, first);
    if (!it->metric.at) return x;
    times_panels(rows, it->DH, it->DH, x.at, x.row, room->metric, room->x, it->DH, 0);
    return (Rows){room->x, it->DH};
}

#endif

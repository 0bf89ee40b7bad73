/* Which weights are dropped: `padapter.functional.fused.dropout` says how numbers follow from a seed. */

#ifndef PADAPTER_DROPOUT_H
#define PADAPTER_DROPOUT_H

#include "attention.h"

typedef struct {
    unsigned first, second;
} Key;

/* The number at a place, which comes multiplied by STEP already: one number, or LANES of them. */
#define STEP 0x9E3779B1u
#define SCRAMBLE(number, key)                                                                                          \
    do {                                                                                                               \
        number += (key).first;                                                                                         \
        number = (number ^ number >> 16) * 0x7FEB352Du;                                                                \
        number = ((number ^ number >> 15) + (key).second) * 0x846CA68Bu;                                               \
        number ^= number >> 16;                                                                                        \
    } while (0)

static Key child_of(Key key, unsigned i)
{
    unsigned first = 2 * i * STEP, second = (2 * i + 1) * STEP;
    SCRAMBLE(first, key);
    SCRAMBLE(second, key);
    return (Key){first, second};
}

static Key key_of_pair(const Problem *it, long pair)
{
    const unsigned long long seed = it->seed ? (unsigned long long)*it->seed : 0;
    return child_of((Key){(unsigned)seed, (unsigned)(seed >> 32)}, (unsigned)pair);
}

/* What is dropped of LANES rows of weights. */
typedef struct {
    Words first, second;
    int below;
    float factor;
} Drops;

static Drops drops_of(const Problem *it, Key pair, long row)
{
    Drops found = {{0}, {0}, (int)it->below, it->factor};
    for (int lane = 0; lane < LANES; lane++) {
        Key key = child_of(pair, (unsigned)(row + lane));
        found.first[lane] = key.first;
        found.second[lane] = key.second;
    }
    return found;
}

/* The factors of the weights of these rows in column j: 0 where one is dropped. */
static inline Floats factors_of(const Drops *rows, long j)
{
    Words number = (Words){0} + (unsigned)j * STEP;
    SCRAMBLE(number, *rows);
    return (Floats)(((Ints)(number >> 1) >= rows->below) & (Ints)all(rows->factor));
}

#endif

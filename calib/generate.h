/* Greedy decoding with a cache of keys and values: the whole model stays in the memory of the device, a prompt passes in parts, then one
 * row per token.  Quantized linears run through packed products, whose inputs are rounded to the model's own 16 bits as in every
 * runtime; where there is no such product, and everywhere else, numbers are FP32.
 */
#ifndef CALIB_GENERATE_H
#define CALIB_GENERATE_H

#include "calib/block.h"
#include "calib/progress.h"

typedef struct generation {
    int32_t *ids; /* the new ones, in the arena */
    int64_t count;
    bool ended;            /* the last one is an end of text */
    double load_seconds;   /* weights from disk */
    double prompt_seconds; /* until the first new id */
    double decode_seconds; /* the count - 1 ids after it, one step each */
    double
        bytes_per_token; /* what a step cannot but move: all weights but the embedding, the rows of the cache (mean) */
} generation;

/* The ids against the vocabulary, and all of them with `count` new ones against the positions that the model has: QL_USAGE. */
ql_status generate_check(const model *m, const int32_t *ids, int64_t n_ids, int64_t count);

/* At most `count` ids after `ids`, which were checked.  QL_NOMEM with sizes if weights and cache do not fit.  p has
 * generate_steps() steps. */
int64_t generate_steps(const model *m, int64_t count);
ql_status generate(ql_ctx *ctx, model *m, const int32_t *ids, int64_t n_ids, int64_t count, ql_arena *arena,
                   progress *p, generation *out);

#endif

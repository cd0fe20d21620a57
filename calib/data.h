/* The calibration rows on the device: tokens, the batches they pass in, and the residual stream between blocks.
 *
 * Batches hold whole sequences, as many as follow from the row length alone, and where statistics are made of them (in steps) of one
 * leaf only (calib/tree.h): what passes through the products together depends neither on memory nor threads, nor on how many ranks
 * share the rows.
 */
#ifndef CALIB_DATA_H
#define CALIB_DATA_H

#include "calib/block.h"
#include "calib/tree.h"
#include "formats/tokens.h"

/* The rows on their way through one model. */
typedef struct stream {
    ql_mat x; /* F32 [tokens][hidden]: input of the current block */
    ql_mat
        act; /* F32 [tokens][max(heads * d, intermediate)]: between the steps of one block; absent where nobody stops there */
} stream;

typedef struct dataset {
    ql_ctx *ctx;
    token_file tokens; /* those of the leaves: a view */
    int64_t first_seq; /* of them, among all */
    ql_arena *host;
    leaf_range leaves;
    int64_t n_batches, max_rows;
    batch *batches;                /* leaf after leaf */
    int64_t n_skipped, skip_limit; /* sequences that became non-finite, at most 1 % of all */
    ql_mat position;               /* I32 [1][tokens] */
    stream rows;                   /* through the model being made */
    stream original;               /* through the full-precision model, to measure drift; absent if nobody asks */
} dataset;

/* What a dataset is for: whole blocks at once, step by step, or step by step beside the original. */
typedef enum dataset_use { DATASET_WHOLE_BLOCKS, DATASET_STEPS, DATASET_STEPS_AND_ORIGINAL } dataset_use;
ql_status dataset_open(ql_ctx *ctx, const model_config *config, const token_file *tokens, leaf_range leaves,
                       dataset_use use, ql_arena *device, dataset *out);
void dataset_close(dataset *d);

/* x of all streams = embedding of the tokens. */
ql_status dataset_embed(dataset *d, const model *m, ql_arena *device);

/* The rows of a batch. */
ql_mat stream_x(const stream *s, const batch *b);
ql_mat stream_act(const stream *s, const batch *b, int64_t width);

/* Looks for NaN and infinity in values [rows][*] that batch i just computed.  If there are any, their sequence is dropped for good:
 * the batch splits around it, *dropped tells the caller to repeat batch i.  More than 1 % of the sequences is QL_FORMAT. */
ql_status dataset_check(dataset *d, int64_t i, ql_mat values, int64_t layer, const char *where, bool *dropped);

#endif

/* The calibration rows: tokens, the batches they pass in, and the residual stream between blocks.
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

/* Which rows wait in page-locked host memory, from which one batch at a time visits the device.  The bytes of a job do not show it. */
typedef enum row_place { ROWS_ON_DEVICE, ROWS_BETWEEN_STEPS_ON_HOST, ROWS_ON_HOST, ROW_PLACES } row_place;
extern const char *const row_place_names[]; /* "device", "host between steps", "host"; ends with NULL */

/* A value for every token. */
typedef struct row_store {
    ql_mat all;  /* [tokens][width], absent where nobody needs it; in host memory if there is a slot */
    ql_mat slot; /* device [rows of a batch][width] */
} row_store;

/* The rows on their way through one model. */
typedef struct stream {
    row_store x;   /* F32, hidden: input of the current block */
    row_store act; /* as the forward pass has them, max(heads * d, intermediate): between the steps of a block */
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
    stream original;               /* through the full-precision model, to measure drift: whole halves of a block */
    row_store kept;                /* x at the beginning of a block that is passed twice */
    void *pinned[4];               /* what is in host memory */
    int n_pinned;
} dataset;

/* What a dataset is for: whole blocks at once, step by step, step by step beside the original, or step by step and then all again. */
typedef enum dataset_use {
    DATASET_WHOLE_BLOCKS,
    DATASET_STEPS,
    DATASET_STEPS_AND_ORIGINAL,
    DATASET_STEPS_AND_AGAIN
} dataset_use;

typedef struct dataset_setting {
    dataset_use use;
    ql_dtype precision; /* of the forward pass */
    row_place place;
} dataset_setting;

ql_status dataset_open(ql_ctx *ctx, const model_config *config, const token_file *tokens, leaf_range leaves,
                       const dataset_setting *setting, ql_arena *device, dataset *out);
void dataset_close(dataset *d);

/* x of all streams = embedding of the tokens. */
ql_status dataset_embed(dataset *d, const model *m, ql_arena *device);

/* The first `width` columns for the rows of a batch, on the device: where they are, or else where they may be until another batch of the
 * store is asked for. */
ql_mat rows_room(const row_store *store, const batch *b, int64_t width);
/* The same with what the store holds of them; what was kept must have been as wide. */
ql_status rows_fetch(const dataset *d, const row_store *store, const batch *b, int64_t width, ql_mat *rows);
/* After rows_room or rows_fetch, of this store or another: now the store holds them. */
ql_status rows_keep(const dataset *d, const row_store *store, const batch *b, ql_mat rows);

/* All tokens of a leaf of this rank, whether or not their sequence was dropped: how many, and what a store of whole rows holds of them, in
 * host memory (from `arena`, or the store's own until something is enqueued). */
int64_t tokens_of_leaf(const dataset *d, int64_t leaf);
ql_status rows_of_leaf(const dataset *d, const row_store *store, int64_t leaf, ql_arena *arena, const void **rows);
ql_status rows_set_leaf(const dataset *d, const row_store *store, int64_t leaf, const void *rows);

/* Sequence `index` of this rank does not pass any more. */
ql_status dataset_drop(dataset *d, int64_t index);

/* Looks for NaN and infinity in values [rows][*] that batch i just computed.  If there are any, their sequence is dropped for good:
 * the batch splits around it, *dropped tells the caller to repeat batch i.  More than 1 % of the sequences is QL_FORMAT. */
ql_status dataset_check(dataset *d, int64_t i, ql_mat values, int64_t layer, const char *where, bool *dropped);

#endif

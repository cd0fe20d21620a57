/* What the files of calib/layer share: the rows of a job on their way through one block (calib/layer_rows.c). */
#ifndef CALIB_LAYER_PARTS_H
#define CALIB_LAYER_PARTS_H

#include "calib/layer.h"

/* "layer 3: forward", where progress is shown. */
void layer_show(const engine *e, int64_t layer, const char *what);

/* Brings every row of the model being made from one point of the block to the next; `to` = SITES is the end of the block.  kv: NULL, or
 * takes the ranges of K after RoPE and of V on the way. */
ql_status rows_advance(engine *e, const block *b, int64_t layer, site_id to, capture kv[2]);
/* The rows of the original model, one addition ahead: behind o and down its stream is what theirs is compared with.  At the other two
 * points they stay where they are. */
ql_status rows_advance_original(engine *e, const block *original, int64_t layer, site_id site);
/* Every row of a stream through the whole block. */
ql_status rows_forward(engine *e, const stream *s, const block *b, int64_t layer);

/* Statistics of what the rows look like at one point.  Repeatable: nothing moves.  d: NULL, or the drift from `original` to measure. */
ql_status rows_observe(engine *e, const block *b, int64_t layer, site_id site, capture *c, const block *original,
                       drift *d);
/* Zeros of the shape that rows_observe adds to. */
ql_status rows_open_drift(engine *e, site_id site, drift *d);

/* Room for the copy that rows_restore goes back to. */
ql_status rows_save(engine *e);
ql_status rows_restore(engine *e);

#endif

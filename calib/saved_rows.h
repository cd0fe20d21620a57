/* Activations between two blocks, saved now and then, so that a resumed job goes on from there instead of passing its rows through all
 * blocks before.  They are a convenience: what is missing, damaged or another job's is not used, and no job fails because they cannot
 * be written.
 *
 *   WORK/rows/rows.json                 {"job", "layer", "sha256": {"0": "...", ...}}: the set that counts, and of each leaf the file's hash
 *   WORK/rows/0012-leaf07.safetensors   what one leaf (calib/tree.h) brings to layer 12: "x" and "original", F32 [tokens][hidden], and
 *                                       "dropped", I64, the sequences that became non-finite
 *
 * One file per leaf, so that it does not matter how many ranks share the rows. */
#ifndef CALIB_SAVED_ROWS_H
#define CALIB_SAVED_ROWS_H

#include "calib/layer.h"

typedef struct saved_rows {
    engine *engine;
    const char *work_dir, *dir, *job; /* WORK, WORK/rows, the fingerprint; they live as long */
    double every;                     /* seconds between two sets, at least; 0: none is made */
    double last, cost;                /* when the last one was complete, and how long it took */
} saved_rows;

/* work_dir and job live as long as `out`, whose rows are open in e->data, or there are none and nothing is done.  All ranks. */
ql_status saved_rows_open(engine *e, const char *work_dir, const char *job, double every, ql_arena *arena,
                          saved_rows *out);
/* Takes the rows of the set that was saved, unless it is that of a layer behind `done`; *layer: whose input they are now.  All ranks. */
ql_status saved_rows_load(saved_rows *s, int64_t done, int64_t *layer);
/* The rows are now the input of `layer`: saves them if it is time.  All ranks. */
ql_status saved_rows_step(saved_rows *s, int64_t layer);
/* The job needs them no more. */
void saved_rows_remove(saved_rows *s);

#endif

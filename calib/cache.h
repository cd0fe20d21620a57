/* Statistics that jobs leave for each other: a directory of stores (formats/stats.h), one for each model, calibration rows and device.
 *
 *   cache_use use;
 *   QL_TRY(cache_open(ctx, &cache, &request, &use));        // made now, or by an earlier job
 *   request.stats_dir = use.dir;                            // NULL: there is none, the job makes its own as it goes
 *   ... quantize_run ...
 *   cache_close(&use);
 *
 * The same statistics in the same order give the same bytes, so whether a store was there shows in the time alone.
 *
 *   DIR/KEY       complete; KEY is a hash of what the statistics depend on (calib/fingerprint.h) and of which files the weights are
 *   DIR/KEY.new   being made, with a journal (calib/journal.h): a job that was killed goes on with it; renamed when complete
 *   DIR/KEY.old   being removed
 *
 * A directory is flock'ed: shared while a job reads it, exclusive while one makes, checks or removes it.  Nobody waits: who finds a
 * store in the making, no room, or damage runs as if there were no cache; what is damaged is removed first.
 */
#ifndef CALIB_CACHE_H
#define CALIB_CACHE_H

#include "calib/job.h"

typedef struct cache {
    const char *dir;
    uint64_t limit; /* bytes of all stores; the least recently used one goes first */
} cache;

typedef struct cache_use {
    const char *dir; /* NULL: none */
    ql_arena *arena;
    int pin;
} cache_use;

/* For a request with rows and full-precision statistics.  may_make: false where the job has layers already, so that only what is left
 * would profit.  Several ranks make and read it together.  An error is an interruption, that memory is short, or that the ranks have come apart. */
ql_status cache_open(ql_ctx *ctx, const cache *c, const quantize_request *request, bool may_make, cache_use *use);
void cache_close(cache_use *use);

#endif

/* Calls that run again and again under a clock: what a benchmark needs of a backend.
 *
 *   ql_replay *replay;
 *   QL_TRY(ql_replay_open(ctx, "qalib/gemm/16x4096x4096/sgemm", call, data, 32, &replay));
 *   double seconds;  QL_TRY(ql_replay_run(replay, &seconds));      // call(data, i) for the next 32 values of i
 *   ql_replay_close(replay);
 *
 * On CUDA the calls become one graph, whose replays are timed by events; calls that wait for a result, which no graph can hold, are
 * enqueued one by one.  Every run is an NVTX range with the label.  On the CPU the wall clock counts or, with one thread, processor
 * time: the load of others then stays out.
 */
#ifndef HOST_REPLAY_H
#define HOST_REPLAY_H

#include "host/qalib.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef ql_status (*ql_call)(void *data, int64_t i);

typedef struct ql_replay {
    ql_ctx *ctx;
    char label[128];
    ql_call call;
    void *data;
    int64_t count,
        next; /* calls of a run; i of the next one, where calls are made anew: a graph repeats 0 .. count-1 */
    int is_graph;
    void *state; /* the backend's */
} ql_replay;

/* Runs call(data, 0) once before anything is recorded, so that its buffers have grown. */
ql_status ql_replay_open(ql_ctx *ctx, const char *label, ql_call call, void *data, int64_t count, ql_replay **replay);
ql_status ql_replay_run(ql_replay *replay, double *seconds);
void ql_replay_close(ql_replay *replay); /* NULL is allowed */

/* What the device says of itself, in bytes. */
typedef struct ql_facts {
    size_t cache;       /* the largest one: data beyond a few times this size come from memory */
    size_t memory_free; /* of the device; SIZE_MAX on the CPU, which has the system's */
    size_t memory_peak; /* most that was gone from the device's since the context was opened; 0 on the CPU */
} ql_facts;
ql_status ql_device_facts(ql_ctx *ctx, ql_facts *facts);

/* Enqueues a copy within the memory of the context, what ql_pin gave included, by all threads or the copy engine of the device. */
ql_status ql_copy(ql_ctx *ctx, void *to, const void *from, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif

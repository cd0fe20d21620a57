/* Calls under the clock of the CPU, its largest cache, and copies by all threads. */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "host/ops.h"
#include "host/status.h"

static double now(const ql_ctx *ctx) {
    struct timespec t;
    clock_gettime(ctx->threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Idle threads of OpenMP and of BLAS spin for some 25 ms before they sleep, on the cores that the next measurement needs. */
static void let_threads_sleep(const ql_ctx *ctx) {
    if (ctx->threads > 1) nanosleep(&(struct timespec){.tv_nsec = 40000000}, NULL);
}

ql_status ql_cpu_replay_open(ql_replay *r) {
    (void)r;
    return QL_OK;
}

ql_status ql_cpu_replay_run(ql_replay *r, double *seconds) {
    let_threads_sleep(r->ctx);
    double begin = now(r->ctx);
    for (int64_t i = 0; i < r->count; i++) QL_TRY(r->call(r->data, r->next++));
    *seconds = now(r->ctx) - begin;
    return QL_OK;
}

ql_status ql_cpu_replay_close(ql_replay *r) {
    (void)r;
    return QL_OK;
}

ql_status ql_cpu_annotate(ql_ctx *ctx, const char *name) {
    (void)ctx, (void)name;
    return QL_OK;
}

ql_status ql_cpu_facts(ql_ctx *ctx, ql_facts *facts) {
    (void)ctx;
    const int levels[] = {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE};
    long cache = 0;
    for (int i = 0; i < 3 && cache <= 0; i++) cache = sysconf(levels[i]);
    *facts = (ql_facts){.cache = cache > 0 ? (size_t)cache : 32u << 20, .memory_free = SIZE_MAX};
    return QL_OK;
}

/* Pieces of a megabyte: enough of them for any number of threads. */
ql_status ql_cpu_copy(ql_ctx *ctx, void *to, const void *from, size_t bytes) {
    const size_t piece = 1 << 20;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (size_t at = 0; at < bytes; at += piece)
        memcpy((char *)to + at, (const char *)from + at, bytes - at < piece ? bytes - at : piece);
    return QL_OK;
}

/* What the benchmarks share: one context, operands, a clock, quantiles, and plain sgemm on the same threads to compare with.
 *
 *   PROGRAM [repeats] [threads]
 *
 * Operations and sgemm are timed in turns, so that both see the same machine.  With one thread, processor time counts instead of
 * wall time: the load of others then stays out of the ratios.
 */
#ifndef PERF_BENCH_H
#define PERF_BENCH_H

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/cpu/blas.h"
#include "host/mat.h"
#include "host/rng.h"

enum { MOST_REPEATS = 1000 };

typedef double sample[MOST_REPEATS];

static ql_ctx *ctx;
static int repeats = 15;
static void (*set_blas_threads)(int);

static inline double seconds(void) {
    struct timespec t;
    clock_gettime(ql_ctx_threads(ctx) == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline void need(ql_status status) {
    if (status == QL_OK) return;
    fprintf(stderr, "%s\n", ql_last_error());
    exit(1);
}

static inline void bench_open(const char *program, int argc, char **argv) {
    if (argc > 1) repeats = atoi(argv[1]);
    if (repeats < 1 || repeats > MOST_REPEATS) {
        fprintf(stderr, "%s: expected 1 to %d repeats\n", program, MOST_REPEATS);
        exit(64);
    }
    need(ql_ctx_open("cpu", argc > 2 ? atoi(argv[2]) : 0, &ctx));
    *(void **)&set_blas_threads = dlsym(RTLD_DEFAULT, "openblas_set_num_threads");
}

static inline ql_mat zeros(ql_dtype dtype, int64_t rows, int64_t cols) {
    ql_mat mat = ql_mat_of(NULL, dtype, rows, cols);
    need(ql_alloc(ctx, ql_mat_bytes(mat), &mat.data));
    memset(mat.data, 0, ql_mat_bytes(mat));
    return mat;
}

/* Uniform values of variance 1: quicker to make than normal ones. */
static inline ql_mat random_mat(int64_t rows, int64_t cols, uint64_t seed) {
    ql_mat mat = zeros(QL_F32, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++)
        ((float *)mat.data)[i] = (float)(3.4641 * (ql_random_uniform(seed, (uint64_t)i) - 0.5));
    return mat;
}

static inline void plain_sgemm(ql_mat x, ql_mat w, ql_mat y) {
    const int m = (int)x.rows, n = (int)w.rows, k = (int)x.cols;
    const float one = 1, zero = 0;
    if (set_blas_threads) set_blas_threads(ql_ctx_threads(ctx));
    sgemm_("T", "N", &n, &m, &k, &one, w.data, &k, x.data, &k, &zero, y.data, &n);
    if (set_blas_threads) set_blas_threads(1);
}

/* Idle threads of both libraries spin for some 25 ms before they sleep, on the cores that the next measurement needs. */
static inline void settle(void) { nanosleep(&(struct timespec){.tv_nsec = 40000000}, NULL); }

static inline int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline double quantile(double *values, double q) {
    qsort(values, (size_t)repeats, sizeof *values, compare);
    return values[(int)(q * (repeats - 1) + 0.5)];
}

#endif

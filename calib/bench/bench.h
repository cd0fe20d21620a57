/* Benchmarks of operations: one table of operations, one protocol, one form of result.
 *
 *   bench_roofs roofs;    QL_TRY(bench_measure_roofs(ctx, &roofs));                    // what this device can do, in this run
 *   bench_setting how = {.op = bench_find("w4a16"), .shape = {16, 4096, 4096}, .bits = 4, .group = 128, .peers = true};
 *   bench_result result;  QL_TRY(bench_measure(ctx, &how, &roofs, &result));
 *
 * The protocol: random normal data; weights in as many copies as it takes to find none of them in a cache, used in turns; warm-up; then
 * repeats of a replay (host/replay.h), alternating with the peer's, so that both see the same machine.  A time is the median of the
 * repeats, with the 10 and 90 % quantiles.
 *
 * Adding an operation: a prepare and a call function in products.c, calibration.c or forward.c, and a line in its table.
 */
#ifndef CALIB_BENCH_BENCH_H
#define CALIB_BENCH_BENCH_H

#include "host/mem.h"
#include "host/replay.h"

typedef struct bench_shape {
    int64_t m, n, k; /* 0 where an operation does not have it */
} bench_shape;

/* Where the n and k of an operation come from when a model is named. */
typedef enum bench_source { OF_LINEARS, OF_INPUTS, OF_HEADS, OF_VOCABULARY } bench_source;

typedef struct bench bench;

typedef struct bench_op {
    const char *name, *what;
    const char *sizes;   /* which of m, n and k it has, "mnk" */
    bench_source source; /* linears: (n, k); inputs: k; heads: k = heads * d, n = m; vocabulary: n */
    ql_status (*prepare)(bench *b);
    ql_status (*call)(void *b, int64_t i);
} bench_op;

typedef struct bench_setting {
    const bench_op *op;
    bench_shape shape;
    int bits;
    int64_t group, heads, kv_heads; /* heads 0: as many of 64 values as k has */
    bool ordered;                   /* columns in an order without any pattern */
    bool peers;
    const char *choices; /* file of measured choices for dense products (ql_plan_measure), or NULL */
    int64_t iters;       /* 0: by the protocol; else this many calls, once, for profilers */
} bench_setting;

/* What one call works on; each operation uses some of it. */
typedef struct operands {
    ql_mat x, w, y, h, r, codes, words;
    ql_mat one, two, three, four; /* small results */
    ql_qweight q;
    ql_grid grid;
    ql_arguments product;
} operands;

/* A case while it runs. */
struct bench {
    ql_ctx *ctx;
    ql_arena *device, *host;
    bench_setting how;
    int64_t copies;
    operands *of; /* [copies] */
    ql_mat order; /* I32 [1][k] or absent */
    ql_attention_shape attention;
    int64_t *start, n_seq;
    ql_plan *product;
    void *workspace;
    /* Set by prepare: */
    double flops, bytes; /* that the formula needs, and that cannot but move */
    double rate;         /* of the dense roof that the arithmetic runs at: 1, or 2 for 8 bits on tensor cores */
    bench_shape peer;    /* the dense product that one would call instead; m = 0: none */
    char plan[48];       /* how it is computed */
};

typedef struct bench_times {
    double median, p10, p90; /* seconds per call */
    int64_t repeats, calls;  /* of a repeat */
    bool is_graph;
} bench_times;

typedef struct bench_result {
    bench_setting how;
    char plan[48], peer_plan[48];
    double flops, bytes, roof; /* share of the measured roof */
    bench_times own, peer;     /* peer.repeats = 0: none */
    bench_shape peer_shape;
    double speedup; /* the peer's time over ours, median of neighbours */
    bool differs;   /* the 10 and 90 % quantiles of both do not overlap */
} bench_result;

typedef struct bench_roofs {
    double copy;  /* bytes per second, read and written */
    double dense; /* FLOP per second of the peer's product of large squares */
    char plan[48];
    int64_t square;
} bench_roofs;

/* ---- measuring --------------------------------------------------------------------------------------------------------- */

ql_status bench_measure_roofs(ql_ctx *ctx, bench_roofs *roofs);
ql_status bench_measure(ql_ctx *ctx, const bench_setting *how, const bench_roofs *roofs, bench_result *out);

/* Has the library's dense product measured for up to shape.m tokens, which takes seconds, and keeps the choices in the file. */
ql_status bench_choose(ql_ctx *ctx, bench_shape shape, const char *choices);

/* ---- operations and models --------------------------------------------------------------------------------------------- */

const bench_op *bench_at(int index);                                          /* NULL behind the last */
const bench_op *bench_find(const char *name);                                 /* NULL if there is none */
extern const bench_op bench_products[], bench_calibration[], bench_forward[]; /* each ends with a NULL name */
extern const bench_op bench_dense_peer;                                       /* m, n, k; not in a table */

typedef struct bench_model {
    const char *name;
    int64_t vocab, heads, kv_heads, head_dim;
    bench_shape linears[4]; /* n and k: q, k and v together; o; gate and up together; down */
} bench_model;
extern const bench_model bench_models[]; /* ends with a NULL name */

/* ---- what prepare functions use ---------------------------------------------------------------------------------------- */

/* Allocates b->of: copies of operands of which `bytes` are the weight's. */
ql_status bench_rotate(bench *b, double bytes);
/* A new matrix of random values: floating point normal, I8, U8 and I32 uniform over all bits (U8: below 2^how.bits). */
ql_status bench_random(bench *b, ql_dtype dtype, int64_t rows, int64_t cols, ql_mat *mat);
ql_status bench_scales(bench *b, int64_t rows, int64_t cols, ql_mat *mat); /* F32 about 0.01, exactly FP16 */
ql_status bench_zeros(bench *b, ql_dtype dtype, int64_t rows, int64_t cols, ql_mat *mat);
ql_status bench_order(bench *b); /* b->order if one is asked for */

/* ---- results ----------------------------------------------------------------------------------------------------------- */

void bench_print_head(const bench_roofs *roofs, ql_ctx *ctx, bool peers);
void bench_print_row(const bench_result *r);
ql_status bench_print_json(const bench_roofs *roofs, ql_ctx *ctx, const bench_result *results, int64_t count);
ql_status bench_save_csv(const char *path, const bench_result *results, int64_t count);
/* Speed over arithmetic intensity beneath the measured roofs. */
ql_status bench_save_svg(const char *path, const bench_roofs *roofs, ql_ctx *ctx, const bench_result *results,
                         int64_t count);

#endif

/* Benchmarks of the engine as a job uses it, on a model with random weights: one block of a real model's size, and the rates that
 * `qalib plan --rates` reads.
 *
 * A rate is what plan counts for a phase over the time that the engine took, so that both mean the same.
 */
#ifndef CALIB_BENCH_WHOLE_H
#define CALIB_BENCH_WHOLE_H

#include "calib/bench/bench.h"
#include "calib/bench/synthetic.h"
#include "calib/plan.h"

typedef struct whole_setting {
    const recipe *recipe;
    int64_t rows, seq_len;
    pass_setting pass;
    uint64_t program;        /* bytes in memory before the work */
    const plan_rates *rates; /* for the forecast: rough ones, or measured before */
} whole_setting;

typedef struct block_result {
    phases spent;
    row_place place;
    double seconds, flops;
    uint64_t peak_host, peak_device; /* of the process; of the engine's arenas */
    plan forecast;                   /* for the same block, by setting.rates */
    plan projection;                 /* the whole model as it is, unscaled, by the rates of this block */
} block_result;

/* Block 0 of shape (blocks = 1), as calib/job.c makes it: read, statistics, solve, commit.  Embedding rows is not part of it. */
ql_status bench_block(ql_ctx *ctx, const synthetic_shape *shape, const whole_setting *how, ql_arena *arena,
                      block_result *out);

/* Whole jobs of a shape (blocks = all), `repeats` times, after one that warms up. */
ql_status bench_rates(ql_ctx *ctx, const synthetic_shape *shape, const whole_setting *how, int repeats, ql_arena *arena,
                      plan_rates *out);
ql_status bench_save_rates(ql_ctx *ctx, const char *path, const plan_rates *rates);

#endif

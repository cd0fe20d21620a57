/* A whole GPTQ job against plain sgemm of the same floating-point operations on the same threads, phase by phase.
 *
 *   build/bench_job MODEL TOKENS [repeats] [threads]        for instance demo/model demo/demo-calib.h5 3 2
 *
 * sgemm (1024^3, single-threaded calls side by side on all threads, as the job makes them) is measured before, between and after
 * the jobs, so that both see the same machine.  The last line is the ratio that matters: operations of all phases over
 * their time, over the rate of sgemm.
 */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/job.h"
#include "host/cpu/blas.h"
#include "perf/bench.h"

enum { SIZE = 1024, MOST_REPEATS = 50 };

/* FLOP/s of all threads together. */
static double sgemm_rate(int threads) {
    const int n = SIZE, calls = 8;
    const float one = 1, zero = 0;
    float *data = calloc((size_t)threads * 3 * SIZE * SIZE, sizeof *data);
    if (!data) need(ql_fail(QL_NOMEM, "no memory for sgemm"));
    for (size_t i = 0; i < (size_t)threads * 3 * SIZE * SIZE; i++) data[i] = (float)(i % 97) / 97 - 0.5f;
    double begin = seconds_now();
#pragma omp parallel num_threads(threads)
    for (int call = 0; call < calls; call++) {
        float *mine = data + (size_t)omp_get_thread_num() * 3 * SIZE * SIZE;
        sgemm_("T", "N", &n, &n, &n, &one, mine, &n, mine + SIZE * SIZE, &n, &zero, mine + 2 * SIZE * SIZE, &n);
    }
    double rate = 2.0 * SIZE * SIZE * SIZE * calls * threads / (seconds_now() - begin);
    free(data);
    return rate;
}

/* One job into a throw-away directory; seconds and operations are added to the phases. */
static void run_job(ql_ctx *ctx, const char *model_dir, const char *tokens, double seconds[PHASES],
                    double flops[PHASES]) {
    char base[] = "/tmp/bench_job.XXXXXX", out[64], work[64];
    json_t *report, *spent;
    size_t i;
    if (!mkdtemp(base)) need(ql_fail_errno("%s", base));
    snprintf(out, sizeof out, "%s/out", base);
    snprintf(work, sizeof work, "%s/work", base);
    quantize_request request = {.model_dir = model_dir,
                                .out_dir = out,
                                .work_dir = work,
                                .tokens_path = tokens,
                                .mode = STATISTICS_PROPAGATED,
                                .shard_size = 5000000000u};
    recipe_defaults(&request.recipe);
    need(recipe_check(&request.recipe));
    need(quantize_run(ctx, &request, 1, &report));
    json_array_foreach(json_object_get(json_object_get(report, "environment"), "phases"), i, spent) {
        seconds[i] += json_number_value(json_object_get(spent, "seconds"));
        flops[i] += json_number_value(json_object_get(spent, "flops"));
    }
    json_decref(report);
    need(ql_dir_remove(base));
}

static void print(const double seconds[PHASES], const double flops[PHASES], int repeats, double rate) {
    double all_seconds = 0, all_flops = 0;
    printf("%-12s %10s %10s %10s %10s\n", "phase", "seconds", "GFLOP", "GFLOP/s", "of sgemm");
    for (int i = 0; i < PHASES; i++) {
        all_seconds += seconds[i];
        all_flops += flops[i];
        if (flops[i] > 0)
            printf("%-12s %10.3f %10.2f %10.1f %9.0f%%\n", phase_names[i], seconds[i] / repeats,
                   flops[i] / repeats * 1e-9, flops[i] / seconds[i] * 1e-9, 100 * flops[i] / seconds[i] / rate);
        else printf("%-12s %10.3f\n", phase_names[i], seconds[i] / repeats);
    }
    printf("%-12s %10.3f %10.2f %10.1f %9.0f%%\n", "job", all_seconds / repeats, all_flops / repeats * 1e-9,
           all_flops / all_seconds * 1e-9, 100 * all_flops / all_seconds / rate);
}

int main(int argc, char **argv) {
    if (argc < 3) need(ql_fail(QL_USAGE, "usage: bench_job MODEL TOKENS [repeats] [threads]"));
    int repeats = argc > 3 ? atoi(argv[3]) : 3, threads = argc > 4 ? atoi(argv[4]) : 0, rates = 0;
    if (repeats < 1 || repeats > MOST_REPEATS) need(ql_fail(QL_USAGE, "1 to %d repeats", MOST_REPEATS));
    double seconds[PHASES] = {0}, flops[PHASES] = {0}, rate[MOST_REPEATS + 1];
    ql_ctx *ctx;
    need(ql_ctx_open("cpu", threads, &ctx));
    threads = ql_ctx_threads(ctx);
    sgemm_rate(threads); /* warm */
    rate[rates++] = sgemm_rate(threads);
    for (int i = 0; i < repeats; i++) {
        run_job(ctx, argv[1], argv[2], seconds, flops);
        rate[rates++] = sgemm_rate(threads);
    }
    double middle = median(rate, rates);
    printf("%s\n%d threads, %d jobs; sgemm %.1f GFLOP/s (median; %.1f to %.1f)\n", ql_ctx_describe(ctx), threads,
           repeats, middle * 1e-9, rate[0] * 1e-9, rate[rates - 1] * 1e-9);
    print(seconds, flops, repeats, middle);
    ql_ctx_close(ctx);
    return 0;
}

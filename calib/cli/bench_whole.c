/* qalib bench block, and qalib bench --rates: the engine at work on a model with random weights. */
#include <string.h>

#include "calib/bench/whole.h"
#include "calib/cli/cli.h"
#include "calib/machine.h"
#include "formats/json.h"

enum { MOST_ROWS = 1000000, RATE_REPEATS = 2 };

typedef struct request {
    synthetic_shape shape;
    recipe recipe;
    plan_rates rates;
    whole_setting how;
} request;

static bool is_gpu(ql_ctx *ctx) { return strncmp(ql_ctx_device(ctx), "cuda", 4) == 0; }

/* Without --config: a block of the size of Llama-2-70B's for a GPU, one that takes seconds for a processor. */
static ql_status read_shape(const cli *args, ql_ctx *ctx, int64_t blocks, ql_arena *arena, synthetic_shape *out) {
    const char *path = cli_value(args, "config");
    int64_t scale = 1;
    QL_TRY(cli_int(args, "scale", 1, 1024, &scale));
    if (path) return synthetic_read(path, scale, blocks, arena, out);
    if (cli_has(args, "scale")) return ql_fail(QL_USAGE, "--scale divides what --config FILE says");
    return is_gpu(ctx) ? synthetic_llama(8192, 28672, 64, 8, blocks, arena, out)
                       : synthetic_llama(1024, 2816, 16, 4, blocks, arena, out);
}

static ql_status read_request(const cli *args, ql_ctx *ctx, int64_t blocks, ql_arena *arena, request *r) {
    *r = (request){.how = {.rows = is_gpu(ctx) ? 128 : 16, .seq_len = is_gpu(ctx) ? 2048 : 256}};
    recipe_defaults(&r->recipe);
    QL_TRY(recipe_check(&r->recipe));
    QL_TRY(cli_int(args, "samples", 1, MOST_ROWS, &r->how.rows));
    QL_TRY(cli_int(args, "seqlen", 2, MOST_ROWS, &r->how.seq_len));
    QL_TRY(cli_pass(args, ctx, &r->how.pass));
    if (is_gpu(ctx)) plan_gpu_rates(plan_find_gpu("h100"), r->how.pass.bf16, &r->rates);
    else plan_cpu_rates(ql_ctx_threads(ctx), &r->rates);
    r->how.recipe = &r->recipe;
    r->how.rates = &r->rates;
    r->how.program = machine_memory_resident();
    return read_shape(args, ctx, blocks, arena, &r->shape);
}

/* ---- rates -------------------------------------------------------------------------------------------------------------- */

static ql_status rates(const cli *args, ql_ctx *ctx, ql_arena *arena) {
    request r;
    plan_rates measured;
    const char *path = cli_value(args, "rates");
    QL_TRY(read_request(args, ctx, 2, arena, &r));
    ql_status status = bench_rates(ctx, &r.shape, &r.how, RATE_REPEATS, arena, &measured);
    synthetic_close(&r.shape);
    QL_TRY(status);
    QL_TRY(bench_save_rates(ctx, path, &measured));
    for (int i = 0; i < PLAN_PHASES && !cli_has(args, "json"); i++)
        if (plan_phase_kinds[i] != PLAN_LINKS)
            printf("%-12s %10.3f %s\n", plan_phase_names[i], measured.of[i] / 1e9,
                   plan_phase_kinds[i] == PLAN_DISK ? "GB/s" : "GFLOP/s");
    if (cli_has(args, "json")) printf("{\"rates\": \"%s\"}\n", path);
    return QL_OK;
}

/* ---- block -------------------------------------------------------------------------------------------------------------- */

static json_t *phases_document(const block_result *b, const bench_roofs *roofs) {
    json_t *list = json_array();
    for (int i = 0; i < PHASES; i++) {
        double seconds = b->spent.seconds[i], rate = seconds > 0 ? b->spent.flops[i] / seconds : 0;
        if (seconds <= 0) continue;
        json_array_append_new(list,
                              json_pack("{s:s, s:f, s:f, s:f, s:f, s:I}", "name", phase_names[i], "seconds", seconds,
                                        "flops", b->spent.flops[i], "tflop_s", rate / 1e12, "percent_of_roof",
                                        100 * rate / roofs->dense, "peak_bytes", (json_int_t)b->spent.memory[i]));
    }
    return list;
}

static json_t *forecast_document(const plan *p) {
    return json_pack("{s:f, s:I, s:I, s:s}", "seconds", p->seconds, "peak_host_bytes", (json_int_t)p->peak_host_bytes,
                     "peak_device_bytes", (json_int_t)p->peak_device_bytes, "rates_source",
                     p->measured ? "measured" : "datasheet");
}

static ql_status print_json(ql_ctx *ctx, const request *r, const block_result *b, const bench_roofs *roofs) {
    const model_config *c = &r->shape.config;
    json_t *shape = json_pack("{s:I, s:I, s:I, s:I, s:I}", "hidden", (json_int_t)c->hidden, "intermediate",
                              (json_int_t)c->intermediate, "heads", (json_int_t)c->heads, "kv_heads",
                              (json_int_t)c->kv_heads, "head_dim", (json_int_t)c->head_dim);
    json_t *document = json_pack(
        "{s:s, s:s, s:i, s:s, s:s, s:o, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:o, s:o, s:o}", "device",
        ql_ctx_device(ctx), "device_description", ql_ctx_describe(ctx), "threads", ql_ctx_threads(ctx), "forward",
        r->how.pass.bf16 ? "bf16" : "fp32", "rows", row_place_names[b->place], "shape", shape, "samples",
        (json_int_t)r->how.rows, "seqlen", (json_int_t)r->how.seq_len, "seconds", b->seconds, "flops", b->flops,
        "tflop_s", b->flops / b->seconds / 1e12, "percent_of_roof", 100 * b->flops / b->seconds / roofs->dense,
        "roof_tflop_s", roofs->dense / 1e12, "peak_host_bytes", (json_int_t)b->peak_host, "peak_device_bytes",
        (json_int_t)(is_gpu(ctx) ? b->peak_device : 0), "phases", phases_document(b, roofs), "forecast",
        forecast_document(&b->forecast), "projection", forecast_document(&b->projection));
    if (!document) return ql_fail(QL_NOMEM, "no memory for the result");
    json_object_set_new(json_object_get(document, "projection"), "blocks",
                        json_integer((json_int_t)r->shape.whole.layers));
    json_dumpf(document, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(document);
    return QL_OK;
}

static void print_text(ql_ctx *ctx, const request *r, const block_result *b, const bench_roofs *roofs) {
    const model_config *c = &r->shape.config;
    char time[DURATION_SIZE];
    printf("%s, %d threads; hidden %lld, intermediate %lld, %lld heads, %lld for keys; %lld x %lld tokens\n",
           ql_ctx_describe(ctx), ql_ctx_threads(ctx), (long long)c->hidden, (long long)c->intermediate,
           (long long)c->heads, (long long)c->kv_heads, (long long)r->how.rows, (long long)r->how.seq_len);
    printf("forward in %s, rows wait on the %s\n", r->how.pass.bf16 ? "bf16" : "fp32", row_place_names[b->place]);
    printf("%-12s %10s %10s %8s %12s\n", "phase", "seconds", "TFLOP/s", "of roof", "peak MB");
    for (int i = 0; i < PHASES; i++) {
        double seconds = b->spent.seconds[i], rate = seconds > 0 ? b->spent.flops[i] / seconds : 0;
        if (seconds > 0)
            printf("%-12s %10.3f %10.3f %7.0f%% %12.1f\n", phase_names[i], seconds, rate / 1e12,
                   100 * rate / roofs->dense, (double)b->spent.memory[i] / 1e6);
    }
    printf("%-12s %10.3f %10.3f %7.0f%% %12.1f  (roof %.3f TFLOP/s)\n", "block", b->seconds,
           b->flops / b->seconds / 1e12, 100 * b->flops / b->seconds / roofs->dense,
           (double)(is_gpu(ctx) ? b->peak_device : b->peak_host) / 1e6, roofs->dense / 1e12);
    printf("forecast     %10.3f s and %.1f MB by %s rates\n", b->forecast.seconds,
           (double)(is_gpu(ctx) ? b->forecast.peak_device_bytes : b->forecast.peak_host_bytes) / 1e6,
           b->forecast.measured ? "measured" : "datasheet");
    progress_duration(time, b->projection.seconds);
    printf("whole model  %s for %lld blocks unscaled, %.3f GB on the host, %.3f GB on the device\n", time,
           (long long)r->shape.whole.layers, (double)b->projection.peak_host_bytes / 1e9,
           (double)b->projection.peak_device_bytes / 1e9);
}

static ql_status block_of(const cli *args, ql_ctx *ctx, ql_arena *arena) {
    request r;
    block_result b;
    bench_roofs roofs;
    const char *path = cli_value(args, "rates");
    QL_TRY(read_request(args, ctx, 1, arena, &r));
    ql_status status = path ? plan_load_rates(path, &r.rates) : QL_OK;
    if (status == QL_OK) status = bench_block(ctx, &r.shape, &r.how, arena, &b);
    if (status == QL_OK) status = bench_measure_roofs(ctx, &roofs);
    if (status == QL_OK && cli_has(args, "json")) status = print_json(ctx, &r, &b, &roofs);
    else if (status == QL_OK) print_text(ctx, &r, &b, &roofs);
    synthetic_close(&r.shape);
    return status;
}

ql_status cli_bench_whole(const cli *args) {
    const char *what = cli_positional(args, 0);
    ql_arena *arena;
    ql_ctx *ctx;
    if (what && strcmp(what, "block") != 0)
        return ql_fail(QL_USAGE, "bench \"%s\": expected block, --op LIST, or --rates FILE", what);
    if (cli_has(args, "op")) return ql_fail(QL_USAGE, "--op measures operations: give it without block and --rates");
    if (what && !cli_has(args, "config")) return ql_fail(QL_USAGE, "bench block needs --config FILE");
    QL_TRY(cli_open_ctx(args, &ctx));
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) status = what ? block_of(args, ctx, arena) : rates(args, ctx, arena);
    if (status == QL_OK || arena) ql_arena_close(arena);
    cli_close_ctx(ctx);
    return status;
}

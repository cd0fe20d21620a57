/* qalib generate: greedy decoding, to see a model speak and how fast it does. */
#include <jansson.h>
#include <stdio.h>

#include "calib/cli/cli.h"
#include "calib/generate.h"

enum { DEFAULT_COUNT = 64, MOST_IDS = 1 << 20 };

static double rate(const generation *g) {
    return g->count > 1 && g->decode_seconds > 0 ? (double)(g->count - 1) / g->decode_seconds : 0;
}

static ql_status print_json(const generation *g, int64_t n_ids, const model *m, ql_ctx *ctx) {
    json_t *ids = json_array();
    int failed = 0;
    for (int64_t i = 0; i < g->count; i++) failed |= json_array_append_new(ids, json_integer(g->ids[i]));
    json_t *j = json_pack("{s:o, s:I, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:s}", "ids", ids, "prompt_tokens",
                          (json_int_t)n_ids, "stopped_by", g->ended ? "end of text" : "count", "tokens_per_second",
                          rate(g), "bytes_per_token", g->bytes_per_token, "bytes_per_second",
                          rate(g) * g->bytes_per_token, "load_seconds", g->load_seconds, "prompt_seconds",
                          g->prompt_seconds, "decode_seconds", g->decode_seconds, "weights",
                          m->quantized ? "packed gptq" : m->config.torch_dtype, "device", ql_ctx_describe(ctx));
    if (!j || failed) {
        json_decref(j);
        return ql_fail(QL_NOMEM, "no memory for the result");
    }
    json_dumpf(j, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(j);
    return QL_OK;
}

static void print_text(const generation *g, int64_t n_ids) {
    printf("ids      ");
    for (int64_t i = 0; i < g->count; i++) printf("%s%d", i ? "," : "", g->ids[i]);
    printf("\nend      %s\n", g->ended ? "the last id is an end of text" : "as many as asked for");
    printf("prompt   %lld ids in %.3f s\n", (long long)n_ids, g->prompt_seconds);
    printf("speed    %.2f ids per second, %.3f GB each, %.2f GB/s\n", rate(g), 1e-9 * g->bytes_per_token,
           1e-9 * rate(g) * g->bytes_per_token);
}

static ql_status run(const cli *args) {
    model m = {0};
    generation result;
    progress *p = NULL;
    ql_ctx *ctx = NULL;
    ql_arena *arena = NULL;
    int64_t count = DEFAULT_COUNT, n_ids = 0;
    int32_t *ids = NULL;
    QL_TRY(cli_int(args, "count", 1, MOST_IDS, &count));
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) status = cli_ints(args, "ids", 0, INT32_MAX, arena, &ids, &n_ids);
    if (status == QL_OK) status = cli_open_ctx(args, &ctx);
    if (status == QL_OK) status = model_open(ctx, cli_value(args, "model"), &m);
    if (status == QL_OK) status = generate_check(&m, ids, n_ids, count);
    if (status == QL_OK) status = progress_open(cli_progress(args), "generate", generate_steps(&m, count), &p);
    if (status == QL_OK) status = generate(ctx, &m, ids, n_ids, count, arena, p, &result);
    progress_close(p);
    if (status == QL_OK && cli_has(args, "json")) status = print_json(&result, n_ids, &m, ctx);
    else if (status == QL_OK) print_text(&result, n_ids);
    model_close(&m);
    cli_close_ctx(ctx);
    ql_arena_close(arena);
    return status;
}

static const cli_option options[] = {
    {"model", 'm', "DIR", true, "model directory: 16 or 32 bits, or GPTQ (runs through the packed product)"},
    {"ids", 'i', "LIST", true, "token ids to begin with, separated by commas"},
    {"count", 'n', "N", false, "most ids to generate (default: 64)"},
    {0},
};

const cli_command cmd_generate = {
    .name = "generate",
    .summary = "greedy decoding: the ids that follow given ones, and how fast",
    .options = options,
    .details =
        "Every id is the arg max of the logits.  Ends after -n ids or at an eos_token_id of generation_config.json or "
        "config.json.  The whole model stays in the memory of the device.  Bytes are those that a step cannot but "
        "move: all weights as the device holds them, and the keys and values so far.",
    .examples = "qalib generate -m OUT --ids 1,15,27\nqalib generate -m OUT --ids 1,15,27 -n 256 --json",
    .run = run,
};

/* qalib quantize: the main job. */
#include <stdio.h>
#include <string.h>

#include "calib/cache.h"
#include "calib/cli/cli.h"
#include "calib/job.h"
#include "calib/report.h"
#include "calib/schemes.h"
#include "host/file.h"

/* What the command line asks for: one output in --output itself, or one per name of --scheme or of the recipe's outputs beneath it. */
typedef struct order {
    int count;
    const char *name[MOST_OUTPUTS]; /* NULL: none was named */
    recipe_outputs outputs;         /* of a recipe file; count 0: they are schemes */
    quantize_request request[MOST_OUTPUTS];
    json_t *report[MOST_OUTPUTS];
} order;

/* ---- the statistics ------------------------------------------------------------------------------------------------------- */

static const char *what_needs_data(const recipe *r) {
    return recipe_needs_blocks(r) ? "--smoothing, --activations static or --kv-cache"
           : r->clip              ? "--clip"
                                  : "--method gptq";
}

static ql_status find_statistics(const cli *args, const char *scheme, quantize_request *r) {
    bool from_store = cli_has(args, "stats");
    r->tokens_path = cli_value(args, "calib");
    r->stats_dir = cli_value(args, "stats");
    r->imatrix_path = cli_value(args, "imatrix");
    if (r->tokens_path && r->stats_dir)
        return ql_fail(QL_USAGE,
                       "--calib and --stats: give the rows or the statistics that were made of them, not both");
    if (r->imatrix_path && (r->tokens_path || r->stats_dir))
        return ql_fail(QL_USAGE, "--imatrix: goes without --calib and --stats, from which importance is taken already");
    if (r->tokens_path || r->stats_dir) return cli_statistics(args, scheme, &r->recipe, from_store, &r->mode);
    r->mode = STATISTICS_NONE;
    if (r->imatrix_path && r->recipe.base.type != CODE_BLOCKS && recipe_needs_data(&r->recipe))
        return ql_fail(QL_USAGE, "--imatrix: is for GGUF files alone; %s needs --calib tokens.h5 or --stats DIR",
                       scheme ? scheme : "this recipe");
    return recipe_needs_data(&r->recipe)
               ? ql_fail(QL_USAGE, "%s needs data: --calib tokens.h5 or --stats DIR", what_needs_data(&r->recipe))
               : QL_OK;
}

/* ---- the order ------------------------------------------------------------------------------------------------------------ */

static ql_status without_slashes(const char *path, ql_arena *arena, char **out) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    return ql_arena_format(arena, out, "%.*s", (int)length, path);
}

/* OUT and OUT.work, or OUT/<scheme> and OUT.work/<scheme>. */
static ql_status choose_directories(const cli *args, const char *scheme, ql_arena *arena, quantize_request *r) {
    char *out, *work;
    const char *given = cli_value(args, "work");
    QL_TRY(without_slashes(cli_value(args, "output"), arena, &out));
    if (given) QL_TRY(without_slashes(given, arena, &work));
    else QL_TRY(ql_arena_format(arena, &work, "%s.work", out));
    if (scheme) QL_TRY(ql_arena_format(arena, &out, "%s/%s", out, scheme));
    if (scheme) QL_TRY(ql_arena_format(arena, &work, "%s/%s", work, scheme));
    r->out_dir = out;
    r->work_dir = work;
    return QL_OK;
}

/* name: of a scheme or, if there is one, of `given`. */
static ql_status take_request(const cli *args, const char *name, const recipe_output *given, ql_arena *arena,
                              quantize_request *r) {
    named_scheme named = {.format = given ? (output_format)given->format : OUTPUT_GPTQ};
    *r = (quantize_request){
        .model_dir = cli_value(args, "model"),
        .shard_size = 5000000000u,
        .resume = cli_has(args, "resume"),
        .progress = cli_progress(args),
    };
    if (given) r->recipe = given->recipe;
    QL_TRY(given ? cli_recipe_over(args, &r->recipe) : cli_recipe(args, name, arena, &r->recipe));
    if (name && !given) QL_TRY(scheme_find(name, &named));
    int format = (int)named.format;
    QL_TRY(cli_choice(args, "format", output_format_names, &format));
    QL_TRY(cli_bytes(args, "shard-size", &r->shard_size));
    r->format = (output_format)format;
    QL_TRY(find_statistics(args, name, r));
    return choose_directories(args, name, arena, r);
}

/* "a,b,c": each name once. */
static ql_status take_schemes(const char *list, ql_arena *arena, order *o) {
    char *rest, *name;
    QL_TRY(ql_arena_string(arena, list, &rest));
    while ((name = strsep(&rest, ","))) {
        for (int i = 0; i < o->count; i++)
            if (strcmp(o->name[i], name) == 0) return ql_fail(QL_USAGE, "--scheme: %s is given twice", name);
        if (o->count == MOST_OUTPUTS) return ql_fail(QL_USAGE, "--scheme: more than %d names", MOST_OUTPUTS);
        o->name[o->count++] = name;
    }
    return QL_OK;
}

static ql_status parse(const cli *args, ql_arena *arena, order *o) {
    const char *schemes = cli_value(args, "scheme"), *file = cli_value(args, "recipe");
    recipe single;
    recipe_defaults(&single);
    if (file && !schemes) QL_TRY(recipe_load_outputs(file, arena, &single, &o->outputs));
    if (schemes) QL_TRY(take_schemes(schemes, arena, o));
    else o->count = o->outputs.count ? o->outputs.count : 1;
    for (int i = 0; i < o->outputs.count; i++) o->name[i] = o->outputs.output[i].name;
    for (int i = 0; i < o->count; i++) {
        const recipe_output *given = o->outputs.count ? &o->outputs.output[i] : NULL;
        QL_TRY(take_request(args, o->name[i], given, arena, &o->request[i]));
    }
    return QL_OK;
}

/* ---- the work --------------------------------------------------------------------------------------------------------------- */

enum { CACHE_USUAL = 20 }; /* GB */

/* With --cache, from the statistics of an earlier job, or leaving its own. */
static ql_status run_shared(const cli *args, ql_ctx *ctx, quantize_request shared[], int count, json_t *reports[]) {
    cache c = {cli_value(args, "cache"), CACHE_USUAL * 1000000000ull};
    cache_use use = {.pin = -1};
    bool reads = false, fresh = true;
    QL_TRY(cli_bytes(args, "cache-limit", &c.limit));
    for (int i = 0; i < count; i++) {
        char journal[4096];
        snprintf(journal, sizeof journal, "%s/journal.jsonl", shared[i].work_dir);
        reads = reads || recipe_statistics(&shared[i].recipe) || shared[i].recipe.kv_cache;
        fresh = fresh && !ql_path_exists(journal);
    }
    if (c.dir && reads && shared[0].tokens_path && shared[0].mode == STATISTICS_FP)
        QL_TRY(cache_open(ctx, &c, &shared[0], fresh, &use));
    for (int i = 0; use.dir && i < count; i++) shared[i].stats_dir = use.dir;
    ql_status status = quantize_run(ctx, shared, count, reports);
    cache_close(&use);
    return status;
}

/* What shares full-precision statistics, or needs none, goes in one pass; where rows follow the result, each has its own. */
static ql_status run_all(const cli *args, ql_ctx *ctx, order *o) {
    quantize_request shared[MOST_OUTPUTS];
    json_t *reports[MOST_OUTPUTS];
    int place[MOST_OUTPUTS], count = 0;
    for (int i = 0; i < o->count; i++)
        if (o->request[i].mode != STATISTICS_PROPAGATED) place[count] = i, shared[count++] = o->request[i];
    if (count > 0) QL_TRY(run_shared(args, ctx, shared, count, reports));
    for (int i = 0; i < count; i++) o->report[place[i]] = reports[i];
    for (int i = 0; i < o->count; i++)
        if (o->request[i].mode == STATISTICS_PROPAGATED) QL_TRY(quantize_run(ctx, &o->request[i], 1, &o->report[i]));
    return QL_OK;
}

static void print_json(const order *o) {
    json_t *outputs = json_object();
    for (int i = 0; o->name[0] && i < o->count; i++) json_object_set(outputs, o->name[i], o->report[i]);
    json_t *whole = o->name[0] ? json_pack("{s:O}", "outputs", outputs) : json_incref(o->report[0]);
    json_dumpf(whole, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(whole);
    json_decref(outputs);
}

static void print_result(const quantize_request *r, const json_t *report) {
    bool gguf = r->format == OUTPUT_GGUF;
    report_print(report);
    printf("next: qalib verify %s ; qalib eval -m %s --tokens eval.h5 --base %s\n", r->out_dir, r->out_dir,
           r->model_dir);
    if (gguf) printf("load: llama-cli -m %s/" GGUF_MODEL "\n", r->out_dir);
    else printf("load: vllm serve %s\n", r->out_dir);
}

static ql_status run(const cli *args) {
    order o = {0};
    ql_arena *arena;
    ql_ctx *ctx = NULL;
    ql_comm *comm = NULL;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = cli_open_ranks(args, &comm);
    if (status == QL_OK) status = parse(args, arena, &o);
    if (status == QL_OK) status = cli_open_ctx(args, &ctx);
    pass_setting pass = {0};
    if (status == QL_OK) status = cli_pass(args, ctx, &pass);
    for (int i = 0; i < o.count; i++) o.request[i].comm = comm, o.request[i].pass = pass;
    if (status == QL_OK) status = run_all(args, ctx, &o);
    if (ql_comm_rank(comm) > 0) o.count = 0; /* rank 0 has the reports */
    if (status == QL_OK && o.count > 0 && cli_has(args, "json")) print_json(&o);
    for (int i = 0; i < o.count; i++) {
        if (status == QL_OK && !cli_has(args, "json")) print_result(&o.request[i], o.report[i]);
        json_decref(o.report[i]);
    }
    cli_close_ctx(ctx);
    ql_arena_close(arena);
    return status;
}

const cli_option cli_quantize_options[] = {
    {"model", 'm', "DIR", true, "model directory (config.json and safetensors, 16 or 32 bits)"},
    {"output", 'o', "DIR", true,
     "where the model goes, or with --scheme or several outputs OUTPUT/<name>; must not exist or be empty"},
    {"calib", 'c', "FILE", false, "calibration rows (qalib tokenize)"},
    {"stats", 0, "DIR", false, "statistics of qalib calibrate instead: no forward pass"},
    {"imatrix", 0, "FILE", false,
     "importance of inputs for a GGUF file instead (of llama-imatrix, or qalib stats imatrix)"},
    {"statistics", 0, "MODE", false,
     "of --calib: propagated (through what is already quantized; default) or fp (default of a scheme but GPTQ below 4 "
     "bits)"},
    {"cache", 0, "DIR", false,
     "of full-precision statistics of --calib: start from those that an earlier job left here, or leave them; same "
     "bytes"},
    {"cache-limit", 0, "BYTES", false, "of all of it; the least recently used go first (default: 20GB)"},
    {"work", 'w', "DIR", false, "committed layers and journal (default: OUTPUT.work)"},
    {"resume", 0, NULL, false, "go on where an interrupted job stopped; content with a finished one"},
    {"format", 'f', "NAME", false,
     "gptq (default), gptq_v2, awq, compressed-tensors, fp8, bitsandbytes, gguf, or dense: a plain 16-bit checkpoint"},
    {"deterministic", 0, NULL, false, "the same bytes for any number of threads and ranks: always so, costs nothing"},
    {"comm-timeout", 0, "S", false, "give up when another rank is missing for so long (default: 600)"},
    {"shard-size", 0, "BYTES", false, "largest file, for instance 500MB (default: 5GB)"},
    CLI_PRECISION_OPTION,
    CLI_PLACE_OPTION,
    CLI_SAVE_OPTION,
    {NULL, 0, NULL, false, NULL},
};

const cli_command cmd_quantize = {
    .name = "quantize",
    .summary = "quantize a model, to what vLLM, transformers, exllamav2, llama.cpp and Ollama load",
    .options = cli_quantize_options,
    .shared = cli_recipe_options,
    .details =
        "Every finished layer is committed; a job that was killed goes on with --resume and gives the same bytes.",
    .examples = "qalib quantize -m MODEL -o OUT --method gptq --bits 4 --group-size 128 --sym --calib tokens.h5\n"
                "qalib quantize -m MODEL -o OUT --scheme W4A16-GPTQ-g128,W8A16-RTN-g128 --stats STATS\n"
                "qalib quantize -m MODEL -o OUT --scheme Q4_K_M --imatrix FILE\n"
                "qalib quantize -m MODEL -o OUT --method rtn --bits 8 --group-size -1",
    .run = run,
};

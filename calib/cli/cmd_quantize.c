/* qalib quantize: the main job. */
#include <stdio.h>
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/job.h"
#include "calib/report.h"

/* The recipe of the flags that quantize and plan share: file or scheme first, flags over it. */
static ql_status resolve_mode(const cli *args, quantize_request *r) {
    static const char *const names[] = {"propagated", "fp", NULL};
    int choice = 0;
    r->tokens_path = cli_value(args, "calib");
    r->stats_dir = cli_value(args, "stats");
    if (r->tokens_path && r->stats_dir)
        return ql_fail(QL_USAGE,
                       "--calib and --stats: give the rows or the statistics that were made of them, not both");
    QL_TRY(cli_choice(args, "statistics", names, &choice));
    r->mode = choice == 0 ? STATISTICS_PROPAGATED : STATISTICS_FP;
    if (r->stats_dir) {
        if (cli_has(args, "statistics") && r->mode != STATISTICS_FP)
            return ql_fail(QL_USAGE, "--stats holds full-precision statistics; --statistics propagated needs --calib");
        r->mode = STATISTICS_FP;
    }
    bool smooths = r->recipe.smoothing != SMOOTHING_NONE;
    bool needs_data = r->recipe.base.method != METHOD_RTN || smooths || r->recipe.clip;
    if (smooths && cli_has(args, "statistics") && r->mode != STATISTICS_FP)
        return ql_fail(QL_USAGE, "--smoothing chooses all scales of a block at once: it needs --statistics fp");
    if (smooths) r->mode = STATISTICS_FP;
    if (!r->tokens_path && !r->stats_dir) r->mode = STATISTICS_NONE;
    if (needs_data && r->mode == STATISTICS_NONE)
        return ql_fail(QL_USAGE, "%s%s needs data: --calib tokens.h5 or --stats DIR",
                       smooths          ? "--smoothing"
                       : r->recipe.clip ? "--clip"
                                        : "--method ",
                       smooths || r->recipe.clip ? "" : method_names[r->recipe.base.method]);
    if (r->recipe.literature && needs_data && r->mode != STATISTICS_PROPAGATED)
        return ql_fail(QL_USAGE, "--literature propagates through quantized blocks: it needs --calib, not %s",
                       r->stats_dir ? "--stats" : "--statistics fp");
    return QL_OK;
}

static ql_status default_work_dir(quantize_request *r, ql_arena *arena) {
    if (r->work_dir) return QL_OK;
    size_t length = strlen(r->out_dir);
    char *work;
    while (length > 1 && r->out_dir[length - 1] == '/') length--;
    QL_TRY(ql_arena_format(arena, &work, "%.*s.work", (int)length, r->out_dir));
    r->work_dir = work;
    return QL_OK;
}

static ql_status parse(const cli *args, ql_arena *arena, quantize_request *r) {
    int format = OUTPUT_GPTQ;
    *r = (quantize_request){
        .model_dir = cli_value(args, "model"),
        .out_dir = cli_value(args, "output"),
        .work_dir = cli_value(args, "work"),
        .shard_size = 5000000000u,
        .resume = cli_has(args, "resume"),
        .progress = cli_progress(args),
    };
    QL_TRY(cli_recipe(args, arena, &r->recipe));
    QL_TRY(cli_choice(args, "format", output_format_names, &format));
    QL_TRY(cli_bytes(args, "shard-size", &r->shard_size));
    r->format = (output_format)format;
    QL_TRY(resolve_mode(args, r));
    return default_work_dir(r, arena);
}

static ql_status run(const cli *args) {
    quantize_request request;
    ql_arena *arena;
    ql_ctx *ctx = NULL;
    json_t *report = NULL;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = parse(args, arena, &request);
    if (status == QL_OK) status = cli_open_ctx(args, &ctx);
    if (status == QL_OK) status = quantize_run(ctx, &request, 1, &report);
    if (status == QL_OK && cli_has(args, "json")) {
        json_dumpf(report, stdout, JSON_INDENT(2));
        putchar('\n');
    } else if (status == QL_OK) {
        report_print(report);
        printf("next: qalib verify %s ; qalib eval -m %s --tokens eval.h5 --base %s\n", request.out_dir,
               request.out_dir, request.model_dir);
        printf("load: vllm serve %s\n", request.out_dir);
    }
    json_decref(report);
    ql_ctx_close(ctx);
    ql_arena_close(arena);
    return status;
}

static const cli_option options[] = {
    {"model", 'm', "DIR", true, "model directory (config.json and safetensors, 16 or 32 bits)"},
    {"output", 'o', "DIR", true, "where the quantized model goes; must not exist or be empty"},
    {"calib", 'c', "FILE", false, "calibration rows (qalib tokenize)"},
    {"stats", 0, "DIR", false, "statistics of qalib calibrate instead: no forward pass"},
    {"statistics", 0, "MODE", false, "of --calib: propagated (through what is already quantized; default) or fp"},
    {"work", 'w', "DIR", false, "committed layers and journal (default: OUTPUT.work)"},
    {"resume", 0, NULL, false, "go on where an interrupted job stopped; content with a finished one"},
    {"format", 'f', "NAME", false, "gptq (default), gptq_v2, awq, or dense: a plain 16-bit checkpoint"},
    {"shard-size", 0, "BYTES", false, "largest file, for instance 500MB (default: 5GB)"},
    {NULL, 0, NULL, false, NULL},
};

const cli_command cmd_quantize = {
    .name = "quantize",
    .summary = "quantize a model: RTN or GPTQ, to what vLLM, transformers and exllamav2 load",
    .options = options,
    .shared = cli_recipe_options,
    .details =
        "Every finished layer is committed; a job that was killed goes on with --resume and gives the same bytes.",
    .examples = "qalib quantize -m MODEL -o OUT --method gptq --bits 4 --group-size 128 --sym --calib tokens.h5\n"
                "qalib quantize -m MODEL -o OUT --scheme W4A16-GPTQ-g128 --stats STATS\n"
                "qalib quantize -m MODEL -o OUT --method rtn --bits 8 --group-size -1",
    .run = run,
};

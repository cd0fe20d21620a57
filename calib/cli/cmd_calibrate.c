/* qalib calibrate: statistics of a model on calibration rows, into a store that every method reads. */
#include <stdio.h>
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/job.h"

static const struct {
    const char *name;
    int bit;
} kinds[] = {{"hessian", STATS_HESSIAN}, {"moments", STATS_MOMENTS}, {"hist", STATS_HIST}};

/* "hessian,moments" to bits. */
static ql_status parse_kinds(const char *list, int *bits) {
    *bits = list ? 0 : STATS_ALL;
    while (list && *list) {
        size_t length = strcspn(list, ","), i;
        for (i = 0; i < 3 && (strlen(kinds[i].name) != length || strncmp(list, kinds[i].name, length) != 0); i++) {}
        if (i == 3)
            return ql_fail(QL_USAGE, "--collect \"%.*s\": expected hessian, moments and hist, separated by commas",
                           (int)length, list);
        *bits |= kinds[i].bit;
        list += length + (list[length] == ',');
    }
    return *bits ? QL_OK : ql_fail(QL_USAGE, "--collect: nothing to collect");
}

static ql_status run(const cli *args) {
    calibrate_request request = {
        .model_dir = cli_value(args, "model"),
        .tokens_path = cli_value(args, "calib"),
        .work_dir = cli_value(args, "work"),
        .resume = cli_has(args, "resume"),
        .progress = cli_progress(args),
    };
    ql_ctx *ctx = NULL;
    json_t *report = NULL;
    QL_TRY(cli_open_ranks(args, &request.comm));
    QL_TRY(parse_kinds(cli_value(args, "collect"), &request.kinds));
    QL_TRY(cli_open_ctx(args, &ctx));
    ql_status status = cli_pass(args, ctx, &request.pass);
    if (status == QL_OK) status = calibrate_run(ctx, &request, &report);
    if (report && cli_has(args, "json")) json_dumpf(report, stdout, JSON_INDENT(2)), putchar('\n');
    else if (report)
        printf("%lld layers of statistics in %s (%lld tokens in %lld rows, mode fp)\n",
               (long long)json_integer_value(json_object_get(report, "layers")), request.work_dir,
               (long long)json_integer_value(json_object_get(report, "n_tokens")),
               (long long)json_integer_value(json_object_get(report, "n_seq")));
    json_decref(report);
    cli_close_ctx(ctx);
    return status;
}

static const cli_option options[] = {
    {"model", 'm', "DIR", true, "model directory (config.json and safetensors, 16 or 32 bits)"},
    {"calib", 'c', "FILE", true, "calibration rows (qalib tokenize)"},
    {"work", 'w', "DIR", true, "where the store is written, one file per layer"},
    {"collect", 0, "LIST", false, "what to collect: hessian, moments, hist (default: all)"},
    {"resume", 0, NULL, false, "go on where an interrupted run stopped; starts from the beginning if there is none"},
    {"comm-timeout", 0, "S", false, "give up when another rank is missing for so long (default: 600)"},
    CLI_PRECISION_OPTION,
    CLI_PLACE_OPTION,
    CLI_SAVE_OPTION,
    {NULL, 0, NULL, false, NULL},
};

const cli_command cmd_calibrate = {
    .name = "calibrate",
    .summary = "collect statistics that every method and bit width can use",
    .options = options,
    .details = "One full-precision pass over the rows: for each distinct input of each layer the Hessian (sum of x "
               "x^T), moments and a\n"
               "histogram of magnitudes.  qalib quantize --stats DIR then needs no forward pass.",
    .examples = "qalib calibrate -m MODEL --calib tokens.h5 -w STATS\nqalib quantize -m MODEL -o OUT --method gptq "
                "--bits 4 --stats STATS",
    .run = run,
};

#include <jansson.h>
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/export.h"

static ql_status print_json(const cli *args, const export_result *r) {
    json_t *document =
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:I}", "in", cli_positional(args, 0), "out", cli_value(args, "output"),
                  "from", r->from, "to", r->to, "modules", (json_int_t)r->modules, "bytes", (json_int_t)r->bytes);
    if (!document) return ql_fail(QL_NOMEM, "no memory for the result");
    json_dumpf(document, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(document);
    return QL_OK;
}

static ql_status run(const cli *args) {
    const char *names[OUTPUT_DENSE + 1] = {NULL};
    int format = 0;
    export_result result;
    export_request request = {
        .in = cli_positional(args, 0), .out = cli_value(args, "output"), .shard_size = 5000000000u};
    for (int i = 0; i < OUTPUT_DENSE; i++) names[i] = output_format_names[i];
    QL_TRY(cli_choice(args, "format", names, &format));
    QL_TRY(cli_bytes(args, "shard-size", &request.shard_size));
    request.format = (output_format)format;
    QL_TRY(export_run(&request, &result));
    if (cli_has(args, "json")) return print_json(args, &result);
    printf("%lld modules from %s to %s, all codes and scales as they were; %llu bytes of tensors\n",
           (long long)result.modules, result.from, result.to, (unsigned long long)result.bytes);
    return QL_OK;
}

static const cli_option options[] = {
    {"output", 'o', "DIR", true, "new directory"},
    {"format", 'f', "NAME", true, "gptq, gptq_v2, awq, compressed-tensors, fp8 or bitsandbytes"},
    {"shard-size", 0, "BYTES", false, "largest file, for instance 500MB (default: 5GB)"},
    {0},
};

const cli_command cmd_export = {
    .name = "export",
    .summary = "convert a quantized checkpoint to another format without loss",
    .positional = "DIR",
    .options = options,
    .details = "Codes, scales and zero points stay as they are, bit for bit; what the other format cannot hold is "
               "refused by name\n"
               "(exit 78), and nothing is written.",
    .examples = "qalib export OUT -o OUT-ct --format compressed-tensors\nqalib export OUT -o OUT-awq --format awq",
    .run = run,
};

#include <jansson.h>

#include "calib/cli/cli.h"
#include "calib/verify.h"
#include "host/log.h"

/* NULL: out of memory. */
static json_t *texts(const char *const *list, int64_t count) {
    json_t *array = json_array();
    int failed = 0;
    for (int64_t i = 0; i < count && i < VERIFY_SHOWN; i++)
        failed |= json_array_append_new(array, json_string(list[i]));
    if (!failed) return array;
    json_decref(array);
    return NULL;
}

static json_t *rows(const verify_result *r) {
    json_t *array = json_array();
    int failed = 0;
    for (int64_t i = 0; i < r->row_count; i++)
        failed |=
            json_array_append_new(array, json_pack("{s:s, s:i, s:I, s:f, s:f}", "module", r->rows[i].module, "bits",
                                                   r->rows[i].bits, "group_size", (json_int_t)r->rows[i].group, "error",
                                                   r->rows[i].error, "bound", r->rows[i].bound));
    if (!failed) return array;
    json_decref(array);
    return NULL;
}

static json_t *document(const verify_result *r) {
    return json_pack("{s:b, s:b, s:b, s:I, s:I, s:I, s:I, s:o, s:I, s:o, s:o}", "ok", r->findings == 0, "quantized",
                     r->quantized, "hashed", r->hashed, "files", (json_int_t)r->files, "tensors",
                     (json_int_t)r->tensors, "modules", (json_int_t)r->modules, "findings", (json_int_t)r->findings,
                     "first_findings", texts(r->finding, r->findings), "extra_files", (json_int_t)r->extras,
                     "first_extra_files", texts(r->extra, r->extras), "against", rows(r));
}

static void print_summary(const char *dir, const verify_result *r) {
    if (r->row_count > 0) printf("%-48s %4s %6s %10s %10s\n", "module", "bits", "group", "error", "bound");
    for (int64_t i = 0; i < r->row_count; i++)
        printf("%-48s %4d %6lld %10.6f %10.6f\n", r->rows[i].module, r->rows[i].bits, (long long)r->rows[i].group,
               r->rows[i].error, r->rows[i].bound);
    for (int64_t i = 0; i < r->extras && i < VERIFY_SHOWN; i++) printf("%s: not in SHA256SUMS\n", r->extra[i]);
    if (r->hashed) printf("%s: %lld files hashed, ", dir, (long long)r->files);
    else printf("%s: no SHA256SUMS, ", dir);
    printf("%lld tensors, %lld quantized modules, %lld findings\n", (long long)r->tensors, (long long)r->modules,
           (long long)r->findings);
}

static ql_status print_json(const verify_result *r) {
    json_t *json = document(r);
    if (!json) return ql_fail(QL_NOMEM, "no memory for the result");
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
    return QL_OK;
}

static ql_status report(const cli *args, const verify_result *r) {
    const char *dir = cli_positional(args, 0);
    for (int64_t i = 0; i < r->findings && i < VERIFY_SHOWN; i++) ql_log(QL_ERROR, "%s", r->finding[i]);
    if (cli_has(args, "json")) QL_TRY(print_json(r));
    else print_summary(dir, r);
    if (r->findings == 0) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: %lld findings", dir, (long long)r->findings);
}

static ql_status run(const cli *args) {
    ql_arena *arena;
    verify_result result;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = verify_directory(cli_positional(args, 0), cli_value(args, "against"), arena, &result);
    if (status == QL_OK) status = report(args, &result);
    ql_arena_close(arena);
    return status;
}

static const cli_option options[] = {
    {"against", 0, "DIR", false, "also compare the decoded weights with those of this base model"},
    {0},
};

const cli_command cmd_verify = {
    .name = "verify",
    .summary = "check a checkpoint: hashes, structure, numbers",
    .positional = "DIR",
    .options = options,
    .details =
        "Every file of SHA256SUMS; exactly the tensors that config.json implies, with their shapes; every scale, zero "
        "point and\n"
        "decoded weight.  Exits 65 if anything is not as it should be, with one line for each of the first findings.",
    .examples = "qalib verify OUT\nqalib verify OUT --against MODEL\nqalib verify OUT --json",
    .run = run,
};

/* qalib report: reports and evaluations of several runs, joined. */
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/report_html.h"
#include "calib/report_read.h"
#include "formats/json.h"
#include "host/file.h"
#include "host/log.h"

enum { MOST_RUNS = 64 };

typedef struct joined {
    ql_arena *arena;
    int runs, evals;
    report_run run[MOST_RUNS];
    json_t *report[MOST_RUNS], *eval[MOST_RUNS]; /* what run[] points into, and what is still to be matched */
    const char *eval_path[MOST_RUNS];
} joined;

static void joined_close(joined *j) {
    for (int i = 0; i < j->runs; i++) json_decref(j->report[i]);
    for (int i = 0; i < j->evals; i++) json_decref(j->eval[i]);
    ql_arena_close(j->arena);
}

/* OUT and OUT/report.json are both called OUT. */
static ql_status run_name(const char *path, ql_arena *arena, char **name) {
    static const char file[] = "/report.json";
    QL_TRY(ql_arena_string(arena, path, name));
    size_t length = strlen(*name);
    if (length > strlen(file) && strcmp(*name + length - strlen(file), file) == 0) length -= strlen(file);
    while (length > 1 && (*name)[length - 1] == '/') length--;
    (*name)[length] = 0;
    return QL_OK;
}

static ql_status add(joined *j, const char *path) {
    json_t *document;
    char *name;
    QL_TRY(report_load(path, &document));
    bool is_eval = report_is_eval(document);
    int *count = is_eval ? &j->evals : &j->runs;
    ql_status status = *count < MOST_RUNS ? QL_OK : ql_fail(QL_USAGE, "more than %d runs", MOST_RUNS);
    if (status == QL_OK) status = is_eval ? report_check_eval(document, path) : report_check(document, path);
    if (status == QL_OK) status = run_name(path, j->arena, &name);
    if (status != QL_OK) {
        json_decref(document);
        return status;
    }
    if (is_eval) j->eval[j->evals] = document, j->eval_path[j->evals++] = path;
    else {
        j->run[j->runs] = (report_run){.name = name, .report = document};
        j->report[j->runs++] = document;
    }
    return QL_OK;
}

/* The job whose bytes were evaluated says whose figures they are, wherever either lies now. */
static ql_status match(joined *j) {
    for (int e = 0; e < j->evals; e++) {
        bool found = false;
        for (int i = 0; i < j->runs; i++) {
            if (strcmp(report_text(j->eval[e], "job"), report_text(j->report[i], "job")) != 0) continue;
            if (j->run[i].eval)
                return ql_fail(QL_MISMATCH, "%s: a second evaluation of %s; give one for each run", j->eval_path[e],
                               j->run[i].name);
            j->run[i].eval = j->eval[e];
            found = true;
        }
        if (!found)
            return ql_fail(QL_MISMATCH, "%s: evaluates %s, which is none of the runs given", j->eval_path[e],
                           report_text(j->eval[e], "model"));
    }
    return QL_OK;
}

static ql_status load(const cli *args, joined *j) {
    for (int i = 0; cli_positional(args, i); i++) QL_TRY(add(j, cli_positional(args, i)));
    if (j->runs == 0) return ql_fail(QL_USAGE, "report needs a directory that quantize has made, or its report.json");
    return match(j);
}

/* ---- what comes out ------------------------------------------------------------------------------------------------------------------- */

static void print_table(const json_t *figures) {
    size_t i;
    json_t *run;
    printf("%-32s %8s %12s %12s %12s %12s\n", "run", "bits", "bytes", "perplexity", "mean KL", "rel. error");
    json_array_foreach(json_object_get(figures, "runs"), i, run) {
        char perplexity[32] = "-", kld[32] = "-";
        if (report_has(run, "perplexity")) snprintf(perplexity, 32, "%.4f", report_number(run, "perplexity"));
        if (report_has(run, "kld_mean")) snprintf(kld, 32, "%.5f", report_number(run, "kld_mean"));
        printf("%-32s %8.3f %12.0f %12s %12s %12.3e%s\n", report_text(run, "name"),
               report_number(run, "bits_per_weight"), report_number(run, "output_bytes"), perplexity, kld,
               report_number(run, "mean_relative_error"),
               json_is_true(json_object_get(run, "best_of_its_size")) ? "  best" : "");
    }
    if (!json_is_true(json_object_get(figures, "same_tokens")))
        ql_log(QL_WARNING, "the runs were evaluated on different tokens: their numbers do not compare");
}

static ql_status print_figures(const cli *args, const joined *j) {
    json_t *figures = report_figures(j->run, j->runs);
    if (!figures) return ql_fail(QL_NOMEM, "no memory for the figures");
    if (cli_has(args, "json")) {
        json_dumpf(figures, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
        putchar('\n');
    } else print_table(figures);
    json_decref(figures);
    return QL_OK;
}

static ql_status save(const cli *args, const joined *j) {
    const char *path = cli_value(args, "output");
    char *text;
    if (!path && cli_has(args, "json")) return QL_OK;
    if (!path) path = "qalib-report.html";
    QL_TRY(report_html(j->run, j->runs, j->arena, &text));
    QL_TRY(ql_file_save(path, text, strlen(text)));
    ql_log(QL_INFO, "%s: written", path);
    return QL_OK;
}

static ql_status run(const cli *args) {
    joined j = {0};
    QL_TRY(ql_arena_open(NULL, &j.arena));
    ql_status status = load(args, &j);
    if (status == QL_OK) status = save(args, &j);
    if (status == QL_OK) status = print_figures(args, &j);
    joined_close(&j);
    return status;
}

static const cli_option options[] = {
    {"output", 'o', "FILE", false, "the page (default: qalib-report.html; with --json none)"},
    {0},
};

const cli_command cmd_report = {
    .name = "report",
    .summary = "compare runs: bits per weight against KL divergence, error by layer, recipes, as a table and a page",
    .positional = "RUN...",
    .options = options,
    .details = "A run is a directory that quantize has made, or its report.json.  What eval --json has printed about "
               "one of them, given "
               "as a file among the runs, adds perplexity and KL divergence.  The page needs no network and no script.",
    .examples = "qalib report OUT\n"
                "qalib eval -m OUT --tokens eval.h5 --base MODEL --json >eval.json\n"
                "qalib report OUT OUT-awq eval.json -o compared.html",
    .run = run,
};

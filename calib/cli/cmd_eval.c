/* qalib eval: perplexity of a model directory, and its distance from the base. */
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/evaluate.h"
#include "calib/report_read.h"

static const char protocol[] = "rows: each row one window, scored from its second valid token on; mean nll in nats";

/* Which job made the model, for qalib report; null for one that none did.  A GGUF file lies beside its report. */
static json_t *job_of(const char *path) {
    char copy[PATH_MAX];
    json_t *report;
    size_t length = strlen(path);
    bool is_file = length > 5 && strcmp(path + length - 5, ".gguf") == 0;
    snprintf(copy, sizeof copy, "%s", path);
    if (report_load(is_file ? dirname(copy) : copy, &report) != QL_OK) return json_null();
    const json_t *job = json_object_get(report, "job");
    json_t *name = json_is_string(job) ? json_string(json_string_value(job)) : json_null();
    json_decref(report);
    return name;
}

static void print_json(const evaluation *e, const char *dir, const model *m, const token_file *tokens, ql_ctx *ctx) {
    json_t *j = json_pack("{s:s, s:o, s:f, s:f, s:I, s:s, s:I, s:I, s:s, s:s}", "model", dir, "job", job_of(dir),
                          "perplexity", e->perplexity, "nll", e->nll, "n_tokens", (json_int_t)e->n_tokens, "protocol",
                          protocol, "n_rows", (json_int_t)tokens->n_seq, "seq_len", (json_int_t)tokens->seq_len,
                          "tokens_sha256", tokens->sha256, "device", ql_ctx_describe(ctx));
    json_object_set_new(j, "weights", json_string(m->quantized ? layout_method(&m->scheme) : m->config.torch_dtype));
    json_object_set_new(j, "inputs",
                        json_string(!model_rounds_inputs(m) ? "16 bits"
                                    : m->scheme.input_zeros ? "token with zero point"
                                                            : activation_names[m->scheme.activations]));
    json_object_set_new(j, "forward", json_string(pass_name(m)));
    json_object_set_new(j, "kv_cache", json_string(model_rounds_cache(m) ? "fp8" : "16 bits"));
    if (e->compared) {
        json_t *delta = json_array();
        for (int i = 0; i < e->n_buckets; i++) json_array_append_new(delta, json_real(e->position_delta[i]));
        json_t *more =
            json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:{s:I, s:o}}", "base_perplexity", e->base_perplexity,
                      "base_nll", e->base_nll, "kld_mean", e->kld_mean, "kld_median", e->kld_median, "kld_p99",
                      e->kld_p99, "kld_max", e->kld_max, "top1_agreement", e->top1_agreement, "position_delta_nll",
                      "bucket", (json_int_t)e->bucket_width, "mean", delta);
        json_object_update(j, more);
        json_decref(more);
    }
    json_dumpf(j, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(j);
}

static void print_table(const evaluation *e) {
    printf("protocol       %s\n", protocol);
    printf("tokens scored  %lld\n", (long long)e->n_tokens);
    printf("perplexity     %.4f  (nll %.6f)\n", e->perplexity, e->nll);
    if (!e->compared) return;
    printf("base           %.4f  (ratio %.5f)\n", e->base_perplexity, e->perplexity / e->base_perplexity);
    printf("KL divergence  mean %.6f  median %.6f  99 %% %.6f  max %.6f\n", e->kld_mean, e->kld_median, e->kld_p99,
           e->kld_max);
    printf("top-1          %.3f %% agree\n", 100 * e->top1_agreement);
    printf("loss difference by position (nats, %lld positions each)\n ", (long long)e->bucket_width);
    for (int i = 0; i < e->n_buckets; i++) printf(" %+.4f", e->position_delta[i]);
    putchar('\n');
}

static ql_status compare(const model *m, const model *base) {
    if (m->config.vocab != base->config.vocab)
        return ql_fail(QL_MISMATCH, "vocabulary of %lld tokens, the base has %lld: not the same family",
                       (long long)m->config.vocab, (long long)base->config.vocab);
    return QL_OK;
}

/* What rounds its inputs to 8 bits takes them from FP32, and its base must not differ in more than that. */
static ql_status choose_precision(const cli *args, ql_ctx *ctx, model *m) {
    pass_setting pass;
    bool rounds = model_rounds_inputs(m) || model_rounds_cache(m), asked = cli_has(args, "precision");
    QL_TRY(cli_pass(args, ctx, &pass));
    if (rounds && asked && pass.bf16)
        return ql_fail(QL_USAGE, "--precision bf16: this model rounds its inputs to 8 bits, from FP32");
    m->precision = rounds ? QL_F32 : pass_precision(&pass);
    return QL_OK;
}

static ql_status run(const cli *args) {
    const char *dir = cli_value(args, "model"), *base_dir = cli_value(args, "base"), *path = cli_value(args, "tokens");
    model m = {0}, base = {0};
    token_file tokens;
    evaluation result;
    progress *p = NULL;
    ql_ctx *ctx = NULL;
    ql_arena *host = NULL;
    ql_status status = ql_arena_open(NULL, &host);
    if (status == QL_OK) status = tokens_read(path, host, &tokens);
    if (status == QL_OK) status = cli_open_ctx(args, &ctx);
    if (status == QL_OK) status = model_open(ctx, dir, &m);
    if (status == QL_OK && base_dir) status = model_open(ctx, base_dir, &base);
    m.weights_only = cli_has(args, "weights-only");
    if (status == QL_OK) status = choose_precision(args, ctx, &m);
    base.precision = m.precision;
    if (status == QL_OK) status = tokens_check_model(&tokens, path, dir, m.config.vocab);
    if (status == QL_OK && base_dir) status = compare(&m, &base);
    model *with = base_dir ? &base : NULL;
    if (status == QL_OK) status = progress_open(cli_progress(args), "eval", evaluate_steps(&m, with), &p);
    if (status == QL_OK) status = evaluate(ctx, &m, with, &tokens, p, &result);
    progress_close(p);
    if (status == QL_OK && cli_has(args, "json")) print_json(&result, dir, &m, &tokens, ctx);
    else if (status == QL_OK) print_table(&result);
    model_close(&base);
    model_close(&m);
    cli_close_ctx(ctx);
    ql_arena_close(host);
    return status;
}

static const cli_option options[] = {
    {"model", 'm', "DIR", true,
     "model directory: 16 or 32 bits, or quantized (codes run through the packed product); or a GGUF file"},
    {"tokens", 't', "FILE", true, "token file (qalib tokenize); its rows are the windows"},
    {"base", 'b', "DIR", false, "also compare with this model: KL divergence, top-1 agreement, loss by position"},
    {"weights-only", 0, NULL, false,
     "leave inputs, keys and values as they are where the scheme rounds them to 8 bits"},
    CLI_PRECISION_OPTION,
    {NULL, 0, NULL, false, NULL},
};

const cli_command cmd_eval = {
    .name = "eval",
    .summary = "perplexity of a model, and its distance from the base",
    .options = options,
    .details = "Every row of the token file is a window of its own and is scored from its second valid token on.",
    .examples = "qalib eval -m OUT --tokens eval.h5 --base MODEL\nqalib eval -m MODEL --tokens eval.h5 --json",
    .run = run,
};

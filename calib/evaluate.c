#include "calib/evaluate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "calib/cli/cli.h"
#include "host/mat.h"

/* Logits of this many rows at a time: 512 x 128,256 x 4 bytes = 263 MB for the largest vocabularies. */
enum { LOGIT_ROWS = 512 };

/* One model with its rows on the way through it. */
typedef struct runner {
    model *model;
    dataset data;
    forward forward;
    ql_arena *weights, *device;
    ql_mat norm, head;
} runner;

static void runner_close(runner *r) {
    forward_close(&r->forward);
    dataset_close(&r->data);
    ql_arena_close(r->weights);
    ql_arena_close(r->device);
}

static ql_status load_block(runner *r, int64_t layer, block *b) {
    QL_TRY(model_load_block(r->model, layer, r->weights, b));
    for (linear_id id = 0; id < LINEARS; id++)
        if (!ql_is_present(b->lin[id].half) && !b->lin[id].packed)
            QL_TRY(forward_take_quantized(&r->forward, id, r->weights, r->weights, &b->lin[id]));
    return QL_OK;
}

/* Rows through embedding, all blocks, and the final norm's weights ready. */
static ql_status run_blocks(ql_ctx *ctx, runner *r, const token_file *tokens, progress *p, int64_t *step) {
    QL_TRY(ql_arena_open(ctx, &r->device));
    QL_TRY(ql_arena_open(ctx, &r->weights));
    const ql_dtype precision = r->model->precision;
    const dataset_setting setting = {DATASET_WHOLE_BLOCKS, precision, ROWS_ON_DEVICE};
    QL_TRY(dataset_open(ctx, &r->model->config, tokens, (leaf_range){0, LEAVES, tokens->n_seq}, &setting, r->device,
                        &r->data));
    QL_TRY(forward_open(ctx, &r->model->config, precision, tokens->seq_len, r->data.max_rows, r->device, &r->forward));
    QL_TRY(model_plan_inputs(r->model, r->data.max_rows));
    if (model_rounds_inputs(r->model) || model_rounds_cache(r->model))
        QL_TRY(forward_open_inputs(&r->forward, r->data.max_rows, r->model->byte_workspace, r->device));
    QL_TRY(dataset_embed(&r->data, r->model, r->weights));
    for (int64_t layer = 0; layer < r->model->config.layers; layer++) {
        block b;
        char text[64];
        QL_TRY(cli_check_signal());
        snprintf(text, sizeof text, "%s model, layer %lld", r->model->quantized ? "quantized" : "dense",
                 (long long)layer);
        progress_step(p, (*step)++, text);
        ql_arena_release(r->weights, (ql_mark){0});
        QL_TRY(load_block(r, layer, &b));
        for (int64_t i = 0; i < r->data.n_batches; i++) {
            const batch *rows = &r->data.batches[i];
            QL_TRY(
                block_forward(&r->forward, &b, layer, rows, rows_room(&r->data.rows.x, rows, r->model->config.hidden)));
        }
    }
    ql_arena_release(r->weights, (ql_mark){0});
    return model_load_head(r->model, r->weights, &r->norm, &r->head);
}

static ql_status logits_of(ql_ctx *ctx, runner *r, int64_t first, int64_t rows, ql_mat out) {
    ql_mat norm = ql_rows(r->forward.add, 0, rows); /* F32 in any pass */
    QL_TRY(ql_rmsnorm(ctx, ql_rows(r->data.rows.x.all, first, rows), r->norm, (float)r->model->config.rms_eps, norm));
    return ql_gemm(ctx, norm, r->head, ql_no_mat(), out);
}

/* Per scored position, host memory. */
typedef struct scores {
    double *nll, *base_nll, *kld; /* [tokens], 0 at the last token of each row, which predicts nothing */
    uint8_t *same;
} scores;

static ql_status score_rows(ql_ctx *ctx, runner *m, runner *base, const int32_t *target, int64_t first, int64_t rows,
                            ql_arena *device, scores *s) {
    int64_t vocab = m->model->config.vocab;
    ql_mat logits, base_logits, goal, nll, kld, same;
    QL_TRY(ql_arena_mat(device, QL_F32, rows, vocab, &logits));
    QL_TRY(ql_arena_upload(device, QL_I32, 1, rows, target + first, &goal));
    QL_TRY(ql_arena_mat(device, QL_F64, 1, rows, &nll));
    QL_TRY(logits_of(ctx, m, first, rows, logits));
    QL_TRY(ql_nll(ctx, logits, goal, nll));
    QL_TRY(ql_download(ctx, s->nll + first, nll.data, ql_mat_bytes(nll)));
    if (!base) return QL_OK;
    QL_TRY(ql_arena_mat(device, QL_F32, rows, vocab, &base_logits));
    QL_TRY(ql_arena_mat(device, QL_F64, 1, rows, &kld));
    QL_TRY(ql_arena_mat(device, QL_U8, 1, rows, &same));
    QL_TRY(logits_of(ctx, base, first, rows, base_logits));
    QL_TRY(ql_nll(ctx, base_logits, goal, nll));
    QL_TRY(ql_download(ctx, s->base_nll + first, nll.data, ql_mat_bytes(nll)));
    QL_TRY(ql_kld(ctx, base_logits, logits, kld, same));
    QL_TRY(ql_download(ctx, s->kld + first, kld.data, ql_mat_bytes(kld)));
    return ql_download(ctx, s->same + first, same.data, ql_mat_bytes(same));
}

static ql_status score_all(ql_ctx *ctx, runner *m, runner *base, const token_file *tokens, ql_arena *host, progress *p,
                           int64_t *step, scores *s) {
    int32_t *target;
    size_t n = (size_t)tokens->n_tokens;
    QL_TRY(ql_take(host, n, sizeof *target, &target));
    QL_TRY(ql_take(host, n, sizeof *s->nll, &s->nll));
    QL_TRY(ql_take(host, n, sizeof *s->base_nll, &s->base_nll));
    QL_TRY(ql_take(host, n, sizeof *s->kld, &s->kld));
    QL_TRY(ql_take(host, n, sizeof *s->same, &s->same));
    for (int64_t r = 0; r < tokens->n_seq; r++)
        for (int64_t i = tokens->start[r]; i < tokens->start[r + 1]; i++)
            target[i] = i + 1 < tokens->start[r + 1] ? tokens->ids[i + 1] : -1;
    progress_step(p, (*step)++, "scores");
    int64_t panel = m->data.max_rows < LOGIT_ROWS ? m->data.max_rows : LOGIT_ROWS;
    for (int64_t first = 0; first < tokens->n_tokens; first += panel) {
        int64_t rows = tokens->n_tokens - first < panel ? tokens->n_tokens - first : panel;
        ql_mark mark = ql_arena_mark(m->weights);
        QL_TRY(cli_check_signal());
        QL_TRY(score_rows(ctx, m, base, target, first, rows, m->weights, s));
        ql_arena_release(m->weights, mark);
    }
    return QL_OK;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Nearest rank: the smallest value with at least this share of all values at or below it. */
static double quantile(const double *sorted, int64_t n, double share) {
    int64_t rank = (int64_t)ceil(share * (double)n);
    return sorted[rank < 1 ? 0 : rank - 1];
}

static void sum_positions(const token_file *tokens, const scores *s, evaluation *out) {
    double sum[POSITION_BUCKETS] = {0};
    int64_t count[POSITION_BUCKETS] = {0};
    out->bucket_width = ql_ceil_div(tokens->seq_len, POSITION_BUCKETS);
    for (int64_t r = 0; r < tokens->n_seq; r++)
        for (int64_t i = tokens->start[r]; i + 1 < tokens->start[r + 1]; i++) {
            int64_t bucket = (i - tokens->start[r]) / out->bucket_width;
            sum[bucket] += s->nll[i] - s->base_nll[i];
            count[bucket]++;
        }
    for (int b = 0; b < POSITION_BUCKETS && count[b] > 0; b++)
        out->position_delta[out->n_buckets++] = sum[b] / (double)count[b];
}

static ql_status summarize(const token_file *tokens, const scores *s, bool compared, ql_arena *host, evaluation *out) {
    double *kld, nll = 0, base_nll = 0, kld_sum = 0;
    int64_t n = 0, same = 0;
    *out = (evaluation){.compared = compared};
    QL_TRY(ql_take(host, (size_t)tokens->n_tokens, sizeof *kld, &kld));
    for (int64_t r = 0; r < tokens->n_seq; r++)
        for (int64_t i = tokens->start[r]; i + 1 < tokens->start[r + 1]; i++) {
            nll += s->nll[i], base_nll += s->base_nll[i], kld_sum += s->kld[i], same += s->same[i];
            kld[n++] = s->kld[i];
        }
    if (n == 0) return ql_fail(QL_FORMAT, "the token file has no row of two tokens or more: nothing can be scored");
    if (!isfinite(nll) || !isfinite(base_nll))
        return ql_fail(QL_FORMAT, "the loss is not finite; inspect --check-finite shows whether a weight is");
    out->n_tokens = n;
    out->nll = nll / (double)n;
    out->perplexity = exp(out->nll);
    if (!compared) return QL_OK;
    qsort(kld, (size_t)n, sizeof *kld, by_value);
    out->base_nll = base_nll / (double)n;
    out->base_perplexity = exp(out->base_nll);
    out->kld_mean = kld_sum / (double)n;
    out->kld_median = quantile(kld, n, 0.5);
    out->kld_p99 = quantile(kld, n, 0.99);
    out->kld_max = kld[n - 1];
    out->top1_agreement = (double)same / (double)n;
    sum_positions(tokens, s, out);
    return QL_OK;
}

int64_t evaluate_steps(const model *m, const model *base) {
    return m->config.layers + (base ? base->config.layers : 0) + 1;
}

ql_status evaluate(ql_ctx *ctx, model *m, model *base, const token_file *tokens, progress *p, evaluation *out) {
    runner run = {.model = m}, base_run = {.model = base};
    scores s;
    int64_t step = 0;
    ql_arena *host;
    QL_TRY(ql_arena_open(NULL, &host));
    ql_status status = run_blocks(ctx, &run, tokens, p, &step);
    if (status == QL_OK && base) status = run_blocks(ctx, &base_run, tokens, p, &step);
    if (status == QL_OK) status = score_all(ctx, &run, base ? &base_run : NULL, tokens, host, p, &step, &s);
    if (status == QL_OK) progress_step(p, step, "done");
    if (status == QL_OK) status = summarize(tokens, &s, base != NULL, host, out);
    runner_close(&run);
    runner_close(&base_run);
    ql_arena_close(host);
    return status;
}

#include "calib/layer.h"

#include <stdio.h>
#include <string.h>

#include "calib/plan.h"
#include "host/mat.h"
#include "host/values.h"

const char *const statistics_names[] = {"none", "propagated", "fp"};

ql_status engine_open(ql_ctx *ctx, const model *m, const recipe *r, statistics_mode mode, engine *e) {
    *e = (engine){.ctx = ctx, .model = m, .recipe = r, .mode = mode};
    phases_open(&e->phases, ctx);
    QL_TRY(ql_arena_open(ctx, &e->weights));
    QL_TRY(ql_arena_open(ctx, &e->scratch));
    return ql_arena_open(NULL, &e->host);
}

/* One piece, so that the sums of leaves leave no holes that the solver's matrices do not fit into, and nothing is allocated later. */
static ql_status reserve_scratch(const engine *e, const token_file *tokens) {
    const plan_request request = {
        .config = &e->model->config,
        .recipe = e->recipe,
        .n_seq = tokens->n_seq,
        .seq_len = tokens->seq_len,
        .mode = e->mode,
        .ranks = ql_comm_size(e->comm),
    };
    return e->recipe ? ql_arena_reserve(e->scratch, plan_scratch_bytes(&request)) : QL_OK;
}

ql_status engine_open_rows(engine *e, const token_file *tokens, dataset *data, ql_arena *device) {
    const recipe *r = e->recipe;
    bool with_drift = r && e->mode == STATISTICS_PROPAGATED && r->sequential && r->drift > 0;
    dataset_use use = with_drift ? DATASET_STEPS_AND_ORIGINAL : DATASET_STEPS;
    leaf_range leaves = ranks_leaves(e->comm, tokens->n_seq);
    QL_TRY(dataset_open(e->ctx, &e->model->config, tokens, leaves, use, device, data));
    e->data = data;
    QL_TRY(reserve_scratch(e, tokens));
    QL_TRY(forward_open(e->ctx, &e->model->config, tokens->seq_len, data->max_rows, device, &e->forward));
    ql_arena *table; /* in a small model the embedding is larger than any block: it leaves at once */
    QL_TRY(ql_arena_open(e->ctx, &table));
    ql_status status = dataset_embed(data, e->model, table);
    ql_arena_close(table);
    return status;
}

void engine_close(engine *e) {
    ql_arena_close(e->weights);
    ql_arena_close(e->scratch);
    ql_arena_close(e->host);
}

static int64_t attn_width(const engine *e) { return site_width(&e->model->config, SITE_ATTN_OUT); }
static int64_t mlp_width(const engine *e) { return site_width(&e->model->config, SITE_MLP_DOWN_IN); }

static void show(const engine *e, int64_t layer, const char *what) {
    char text[64];
    snprintf(text, sizeof text, "layer %lld: %s", (long long)layer, what);
    progress_step(e->progress, layer, text);
}

/* Operations of one pass of all rows through some linears. */
static double linear_flops(const engine *e, site_id site) {
    double flops = 0;
    for (linear_id id = 0; id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(&e->model->config, id, &n, &k);
        if (linear_site[id] == site) flops += 2.0 * (double)n * (double)k * (double)e->data->tokens.n_tokens;
    }
    return flops;
}

/* QK^T and PV of causal attention: half of 2 * 2 * length^2 * width. */
static double attention_flops(const engine *e) {
    double flops = 0;
    const token_file *t = &e->data->tokens;
    for (int64_t s = 0; s < t->n_seq; s++) {
        double length = (double)(t->start[s + 1] - t->start[s]);
        flops += 2.0 * length * length * (double)attn_width(e);
    }
    return flops;
}

/* Brings every batch of a stream from one point of the block to the next; `to` = SITES is the end of the block. */
static ql_status advance(engine *e, const stream *s, const block *b, int64_t layer, site_id to, capture kv[2]) {
    forward *f = &e->forward;
    if (to == SITE_ATTN_IN) return QL_OK;
    show(e, layer, "forward");
    phases_enter(&e->phases, PHASE_FORWARD, linear_flops(e, to - 1) + (to == SITE_ATTN_OUT ? attention_flops(e) : 0));
    for (int64_t i = 0; i < e->data->n_batches; i++) {
        const batch *rows = &e->data->batches[i];
        ql_mat x = stream_x(s, rows), norm = ql_rows(f->norm, 0, rows->rows);
        ql_mat attn = stream_act(s, rows, attn_width(e)), act = stream_act(s, rows, mlp_width(e));
        if (to == SITE_ATTN_OUT) {
            QL_TRY(block_attn_in(f, b, x, norm));
            QL_TRY(block_attention(f, b, layer, rows, norm, attn));
            if (kv) QL_TRY(capture_add(e->ctx, &kv[0], ql_rows(f->k, 0, rows->rows)));
            if (kv) QL_TRY(capture_add(e->ctx, &kv[1], ql_rows(f->v, 0, rows->rows)));
        } else if (to == SITE_MLP_IN) {
            QL_TRY(block_attn_out(f, b, attn, x));
        } else if (to == SITE_MLP_DOWN_IN) {
            QL_TRY(block_mlp_in(f, b, x, norm));
            QL_TRY(block_mlp(f, b, norm, act));
        } else {
            QL_TRY(block_mlp_out(f, b, act, x));
        }
    }
    return QL_OK;
}

/* What the linears of a site see of one batch.  Norms are computed into `buffer`, activations lie ready in the stream. */
static ql_status look(engine *e, const stream *s, const block *b, const batch *rows, site_id site, ql_mat buffer,
                      ql_mat *value) {
    phases_enter(&e->phases, PHASE_FORWARD, 0);
    *value = ql_rows(buffer, 0, rows->rows);
    if (site == SITE_ATTN_IN) return block_attn_in(&e->forward, b, stream_x(s, rows), *value);
    if (site == SITE_MLP_IN) return block_mlp_in(&e->forward, b, stream_x(s, rows), *value);
    *value = stream_act(s, rows, site_width(&e->model->config, site));
    return QL_OK;
}

/* o and down add to the residual stream: what counts is the stream behind them. */
static bool adds_to_stream(site_id site) { return site == SITE_ATTN_OUT || site == SITE_MLP_DOWN_IN; }

static ql_status open_drift(engine *e, site_id site, drift *d) {
    int64_t k = site_width(&e->model->config, site);
    *d = (drift){0};
    return adds_to_stream(site) ? capture_zeros(e->ctx, QL_F32, e->model->config.hidden, k, e->scratch, &d->output)
                                : capture_zeros(e->ctx, QL_F32, k, k, e->scratch, &d->input);
}

/* The same rows in the original model, and how far away they are.  Buffers of the forward pass are free at this time. */
static ql_status observe_drift(engine *e, const block *original, const batch *rows, site_id site, ql_mat value,
                               drift *d) {
    forward *f = &e->forward;
    ql_mat apart = ql_rows(adds_to_stream(site) ? f->norm : f->add, 0, rows->rows),
           other = ql_rows(f->add, 0, rows->rows);
    double k = (double)value.cols, m = (double)rows->rows;
    if (adds_to_stream(site)) {
        const linear *lin = &original->lin[site == SITE_ATTN_OUT ? LIN_O : LIN_DOWN];
        phases_enter(&e->phases, PHASE_FORWARD, 2 * m * k * (double)apart.cols);
        QL_TRY(linear_forward(f, lin, value, other));
        phases_enter(&e->phases, PHASE_STATISTICS, 2 * m * k * (double)apart.cols);
        QL_TRY(ql_convert(e->ctx, stream_x(&e->data->original, rows), apart));
        QL_TRY(ql_add(e->ctx, apart, -1, stream_x(&e->data->rows, rows)));
        QL_TRY(ql_add(e->ctx, apart, -1, other));
        return ql_cross(e->ctx, apart, value, d->output);
    }
    QL_TRY(look(e, &e->data->original, original, rows, site, f->add, &apart));
    phases_enter(&e->phases, PHASE_STATISTICS, 2 * m * k * k);
    QL_TRY(ql_add(e->ctx, apart, -1, value));
    return ql_cross(e->ctx, value, apart, d->input);
}

/* What is measured at one point, and the sums along the tree that it is made of. */
typedef struct view {
    int64_t layer;
    site_id site;
    const block *block, *original;
    capture *input;
    drift *drift; /* NULL: only the input; else from `original` */
    int trees;
    tree sum[4];
} view;

static ql_status open_tree(engine *e, view *v, ql_mat *into, bool upper) {
    return ql_is_present(*into) ? tree_open(e->ctx, into, upper, e->data->leaves, e->scratch, &v->sum[v->trees++])
                                : QL_OK;
}

/* Smallest and largest values and counts are the same in any order: they need no tree. */
static ql_status open_trees(engine *e, view *v) {
    QL_TRY(open_tree(e, v, &v->input->hessian, true));
    QL_TRY(open_tree(e, v, &v->input->sum_sq, false));
    QL_TRY(open_tree(e, v, &v->input->sum_abs, false));
    if (!v->drift) return QL_OK;
    QL_TRY(open_tree(e, v, &v->drift->input, false));
    return open_tree(e, v, &v->drift->output, false);
}

static ql_status observe_batch(engine *e, view *v, int64_t i, bool *dropped) {
    const batch *rows = &e->data->batches[i];
    double k = (double)v->input->k;
    ql_mat value;
    QL_TRY(look(e, &e->data->rows, v->block, rows, v->site, e->forward.norm, &value));
    phases_enter(&e->phases, PHASE_STATISTICS, 0);
    QL_TRY(dataset_check(e->data, i, value, v->layer, site_names[v->site], dropped));
    if (*dropped) return QL_OK;
    if (ql_is_present(v->input->hessian)) phases_enter(&e->phases, PHASE_STATISTICS, (double)value.rows * k * k);
    QL_TRY(capture_add(e->ctx, v->input, value));
    return v->drift ? observe_drift(e, v->original, rows, v->site, value, v->drift) : QL_OK;
}

/* *next: the leaf's first batch, then the one behind it. */
static ql_status observe_leaf(engine *e, view *v, int64_t leaf, int64_t *next) {
    const dataset *d = e->data;
    for (int i = 0; i < v->trees; i++) QL_TRY(tree_leaf(&v->sum[i]));
    while (*next < d->n_batches && d->batches[*next].leaf == leaf) {
        bool dropped;
        QL_TRY(observe_batch(e, v, *next, &dropped));
        if (!dropped) ++*next;
    }
    phases_enter(&e->phases, PHASE_STATISTICS, 0);
    for (int i = 0; i < v->trees; i++) QL_TRY(tree_close(&v->sum[i], leaf));
    return QL_OK;
}

/* What all ranks have seen. */
static ql_status join_view(engine *e, view *v) {
    phases_enter(&e->phases, PHASE_RANKS, 0);
    for (int i = 0; i < v->trees; i++) QL_TRY(ranks_join_tree(e->comm, &v->sum[i]));
    QL_TRY(ranks_join_extremes(e->comm, e->ctx, v->input));
    e->samples_skipped = e->data->n_skipped;
    QL_TRY(ranks_sum(e->comm, "samples skipped", &e->samples_skipped));
    if (e->samples_skipped <= e->data->skip_limit) return QL_OK;
    return ql_fail(QL_FORMAT,
                   "layer %lld, %s: activations of %lld samples are not finite; %lld of %lld may be skipped (1 %%)",
                   (long long)v->layer, site_names[v->site], (long long)e->samples_skipped,
                   (long long)e->data->skip_limit, (long long)e->data->leaves.rows);
}

/* Statistics of what the rows look like at one point.  Repeatable: nothing moves.  d: NULL, or the drift from `original` to measure. */
static ql_status observe(engine *e, const block *b, int64_t layer, site_id site, capture *c, const block *original,
                         drift *d) {
    view v = {.layer = layer, .site = site, .block = b, .original = original, .input = c, .drift = d};
    ql_mark mark = ql_arena_mark(e->scratch);
    leaf_range s = e->data->leaves;
    int64_t next = 0;
    show(e, layer, "statistics");
    QL_TRY(open_trees(e, &v));
    for (int64_t leaf = s.first; leaf < s.end; leaf++)
        if (!leaf_is_empty(leaf, s.rows)) QL_TRY(observe_leaf(e, &v, leaf, &next));
    QL_TRY(join_view(e, &v));
    ql_arena_release(e->scratch, mark);
    return QL_OK;
}

static ql_dtype hessian_precision(const engine *e) { return e->recipe && e->recipe->literature ? QL_F64 : QL_F32; }

static ql_status open_capture(engine *e, site_id site, int kinds, capture *c) {
    return capture_open(e->ctx, site_width(&e->model->config, site), kinds, hessian_precision(e), e->scratch, c);
}

/* All four points with the weights as they are; the rows end behind the block. */
static ql_status collect_block(engine *e, const block *b, int64_t layer, int kinds, capture *captures, capture kv[2]) {
    for (site_id site = 0; site < SITES; site++) {
        QL_TRY(advance(e, &e->data->rows, b, layer, site, kv));
        QL_TRY(open_capture(e, site, kinds, &captures[site]));
        QL_TRY(observe(e, b, layer, site, &captures[site], NULL, NULL));
    }
    for (int i = 0; kv && i < 2; i++) QL_TRY(ranks_join_extremes(e->comm, e->ctx, &kv[i]));
    return advance(e, &e->data->rows, b, layer, SITES, NULL);
}

ql_status layer_module_name(ql_arena *host, int64_t layer, linear_id id, char **name) {
    char text[NAME_SIZE];
    module_name(text, layer, id);
    return ql_arena_string(host, text, name);
}

static ql_status solve_linear(engine *e, block *b, int64_t layer, linear_id id, linear_job job, layer_result *result) {
    char *name;
    QL_TRY(layer_module_name(e->host, layer, id, &name));
    progress_step(e->progress, layer, name);
    job.name = name;
    QL_TRY(linear_quantize(&job, &b->lin[id], &result->module[id], &result->record[id]));
    result->quantized[id] = true;
    if (e->mode != STATISTICS_PROPAGATED) return QL_OK; /* nobody multiplies by it */
    return linear_set_quantized(&result->module[id], e->weights, &b->lin[id]);
}

/* Room for the factor of an input that several linears have. */
static ql_status open_factor(engine *e, site_id site, const module_rule *rules, const capture *input,
                             shared_factor *f) {
    int64_t k = site_width(&e->model->config, site);
    int users = 0;
    for (linear_id id = 0; id < LINEARS; id++)
        users += linear_site[id] == site && !rules[id].skip && rules[id].method == METHOD_GPTQ;
    *f = (shared_factor){0};
    if (e->recipe->literature || !input || !ql_is_present(input->hessian)) return QL_OK;
    return users > 1 ? ql_arena_mat(e->scratch, QL_F32, k, k, &f->r) : QL_OK;
}

/* The linears behind one point, or behind all of them when they share no order. */
static ql_status solve_site(engine *e, block *b, int64_t layer, site_id site, const module_rule *rules,
                            const capture *input, const drift *d, layer_result *result) {
    ql_mark mark = ql_arena_mark(e->scratch);
    shared_factor factor;
    linear_job job = {
        .ctx = e->ctx,
        .device = e->scratch,
        .host = e->host,
        .phases = &e->phases,
        .recipe = e->recipe,
        .input = input,
        .importance = e->importance,
        .drift = d,
        .n_seq = e->data ? e->data->leaves.rows - e->samples_skipped : 0,
        .comm = e->comm,
        .owner = ranks_owner(e->comm, &e->model->config, site),
        .factor = &factor,
    };
    QL_TRY(open_factor(e, site, rules, input, &factor));
    job.rule = e->recipe->base;
    if (job.rule.group == GROUP_TENSOR) {
        job.name = site_names[site];
        QL_TRY(linear_tensor_range(&job, b, site, &job.largest));
    }
    for (linear_id id = 0; id < LINEARS; id++) {
        job.rule = rules[id];
        if (linear_site[id] == site && !rules[id].skip) QL_TRY(solve_linear(e, b, layer, id, job, result));
    }
    ql_arena_release(e->scratch, mark);
    return QL_OK;
}

static ql_status solve_block(engine *e, block *b, int64_t layer, const module_rule *rules, const capture *captures,
                             layer_result *result) {
    for (site_id site = 0; site < SITES; site++)
        QL_TRY(solve_site(e, b, layer, site, rules, captures ? &captures[site] : NULL, NULL, result));
    return QL_OK;
}

/* Scales move from the inputs into the weights first, if the recipe says so; captures hold moments then. */
static ql_status smooth_and_solve(engine *e, block *b, int64_t layer, const module_rule *rules, capture *captures,
                                  layer_result *result) {
    if (captures && e->recipe->smoothing != SMOOTHING_NONE) {
        stats_site moments[SITES];
        smoothing s;
        show(e, layer, "smoothing");
        for (site_id site = 0; site < SITES; site++) {
            capture without_hessian = captures[site];
            without_hessian.hessian = ql_no_mat();
            QL_TRY(capture_download(e->ctx, &without_hessian, e->host, &moments[site]));
        }
        const smooth_job job = {.ctx = e->ctx,
                                .device = e->scratch,
                                .host = e->host,
                                .phases = &e->phases,
                                .recipe = e->recipe,
                                .config = &e->model->config,
                                .rules = rules,
                                .statistics = moments};
        QL_TRY(smooth_block(&job, b, captures, &s));
        memcpy(result->folded, s.folded, sizeof s.folded);
    }
    return solve_block(e, b, layer, rules, captures, result);
}

static ql_status forward_all(engine *e, const stream *s, const block *b, int64_t layer) {
    double flops = attention_flops(e);
    for (site_id site = 0; site < SITES; site++) flops += linear_flops(e, site);
    phases_enter(&e->phases, PHASE_FORWARD, flops);
    for (int64_t i = 0; i < e->data->n_batches; i++)
        QL_TRY(block_forward(&e->forward, b, layer, &e->data->batches[i], stream_x(s, &e->data->batches[i])));
    return QL_OK;
}

/* ---- the orders -------------------------------------------------------------------------------------------------------- */

/* The original model walks beside the one that is being made, one addition ahead: behind o and down its stream is what theirs is
 * compared with. */
static ql_status advance_original(engine *e, const block *original, int64_t layer, site_id site) {
    if (!adds_to_stream(site)) return QL_OK;
    QL_TRY(advance(e, &e->data->original, original, layer, site, NULL));
    return advance(e, &e->data->original, original, layer, site + 1, NULL);
}

static ql_status sequential_site(engine *e, block *b, const block *original, int64_t layer, site_id site,
                                 const module_rule *rules, layer_result *result) {
    capture input;
    drift apart, *d = original ? &apart : NULL;
    QL_TRY(advance(e, &e->data->rows, b, layer, site, NULL));
    if (d) QL_TRY(advance_original(e, original, layer, site));
    QL_TRY(open_capture(e, site, STATS_HESSIAN, &input));
    if (d) QL_TRY(open_drift(e, site, d));
    QL_TRY(observe(e, b, layer, site, &input, original, d));
    return solve_site(e, b, layer, site, rules, &input, d, result);
}

static ql_status sequential(engine *e, block *b, int64_t layer, const module_rule *rules, layer_result *result) {
    const block original = *b; /* its weights stay where they are when b's linears are replaced */
    bool with_drift = ql_is_present(e->data->original.x);
    for (site_id site = 0; site < SITES; site++) {
        ql_mark mark = ql_arena_mark(e->scratch);
        QL_TRY(sequential_site(e, b, with_drift ? &original : NULL, layer, site, rules, result));
        ql_arena_release(e->scratch, mark);
    }
    /* Nobody reads what the last block puts out. */
    return layer + 1 < e->model->config.layers ? advance(e, &e->data->rows, b, layer, SITES, NULL) : QL_OK;
}

static ql_status block_at_once(engine *e, block *b, int64_t layer, const module_rule *rules, layer_result *result) {
    capture captures[SITES];
    ql_mat x = e->data->rows.x, before;
    QL_TRY(ql_arena_mat(e->scratch, QL_F32, x.rows, x.cols, &before));
    QL_TRY(ql_convert(e->ctx, x, before));
    QL_TRY(collect_block(e, b, layer, STATS_HESSIAN, captures, NULL));
    QL_TRY(ql_convert(e->ctx, before, x));
    QL_TRY(solve_block(e, b, layer, rules, captures, result));
    show(e, layer, "forward");
    return layer + 1 < e->model->config.layers ? forward_all(e, &e->data->rows, b, layer) : QL_OK;
}

static ql_status upload_stats(engine *e, ql_arena *host, layer_step *step) {
    stats_layer stats;
    char *path;
    QL_TRY(stats_path(host, e->stats_dir, step->layer, &path));
    QL_TRY(stats_read(path, &e->model->config, host, &stats));
    for (site_id site = 0; site < SITES; site++) {
        stats_site *s = &stats.site[site];
        if ((e->kinds & STATS_HESSIAN) && !s->hessian)
            return ql_fail(QL_MISMATCH, "%s: holds no Hessians; collect them with calibrate --collect hessian", path);
        if ((e->kinds & STATS_MOMENTS) && !s->sum_sq)
            return ql_fail(QL_MISMATCH, "%s: holds no moments; collect them with calibrate --collect moments", path);
        if ((e->kinds & STATS_HIST) && !s->abs_hist)
            return ql_fail(QL_MISMATCH, "%s: holds no histograms; collect them with calibrate --collect hist", path);
        if (!(e->kinds & STATS_HESSIAN)) s->hessian = NULL;
        QL_TRY(capture_upload(s, e->scratch, &step->captures[site]));
    }
    if (!e->with_kv) return QL_OK;
    if (!stats.kv_width) return ql_fail(QL_MISMATCH, "%s: holds no ranges of keys and values", path);
    for (int64_t head = 0; head < stats.kv_width; head++) {
        step->kv_max[0] = fmaxf(step->kv_max[0], stats.k_abs_max[head]);
        step->kv_max[1] = fmaxf(step->kv_max[1], stats.v_abs_max[head]);
    }
    return QL_OK;
}

/* The host's copy goes back before anything is solved. */
static ql_status from_store(engine *e, layer_step *step) {
    ql_arena *host;
    phases_enter(&e->phases, PHASE_READ, 0);
    QL_TRY(ql_arena_open(NULL, &host));
    ql_status status = upload_stats(e, host, step);
    ql_arena_close(host);
    return status;
}

static ql_status load_block(engine *e, int64_t layer, block *b) {
    phases_enter(&e->phases, PHASE_READ, 0);
    ql_arena_release(e->weights, (ql_mark){0});
    return model_load_block(e->model, layer, e->weights, b);
}

/* Of K after RoPE and of V, where rows pass. */
static ql_status open_kv(engine *e, capture kv[2]) {
    int64_t width = e->model->config.kv_heads * e->model->config.head_dim;
    for (int i = 0; i < 2; i++) QL_TRY(capture_open(e->ctx, width, STATS_MOMENTS, QL_F32, e->scratch, &kv[i]));
    return QL_OK;
}

ql_status layer_begin(engine *e, int64_t layer, layer_step *step) {
    *step = (layer_step){.layer = layer, .mark = ql_arena_mark(e->scratch)};
    QL_TRY(load_block(e, layer, &step->block));
    step->with_data = engine_needs_data(e) && (e->stats_dir || (e->data && e->mode == STATISTICS_FP));
    if (!step->with_data) return QL_OK;
    if (e->stats_dir) return from_store(e, step);
    capture kv[2];
    if (e->with_kv) QL_TRY(open_kv(e, kv));
    QL_TRY(collect_block(e, &step->block, layer, e->kinds, step->captures, e->with_kv ? kv : NULL));
    for (int i = 0; e->with_kv && i < 2; i++) QL_TRY(capture_largest(e->ctx, &kv[i], &step->kv_max[i]));
    return QL_OK;
}

/* What a runtime divides keys and values by before it keeps them in E4M3. */
static ql_status scale_cache(engine *e, const layer_step *step, layer_result *result) {
    static const folded_id ids[2] = {FOLDED_K_SCALE, FOLDED_V_SCALE};
    for (int i = 0; i < 2; i++) {
        QL_TRY(ql_take(e->host, 1, sizeof(float), &result->folded[ids[i]]));
        *result->folded[ids[i]] = fmaxf(step->kv_max[i] / ql_code_limit(QL_F8_E4M3), FLT_MIN);
    }
    return QL_OK;
}

/* The step stays as it is: what one recipe does to the block, the next must not see. */
static ql_status solve_copy(engine *e, const layer_step *step, const module_rule *rules, layer_result *result) {
    block copy = step->block;
    capture captures[SITES];
    memcpy(captures, step->captures, sizeof captures);
    QL_TRY(smooth_and_solve(e, &copy, step->layer, rules, step->with_data ? captures : NULL, result));
    return e->recipe->kv_cache ? scale_cache(e, step, result) : QL_OK;
}

ql_status layer_solve(engine *e, layer_step *step, const module_rule *rules, layer_result *result) {
    ql_mark mark = ql_arena_mark(e->scratch), weights = ql_arena_mark(e->weights);
    *result = (layer_result){.layer = step->layer};
    ql_status status;
    if (step->with_data || !e->data) status = solve_copy(e, step, rules, result);
    else if (e->recipe->sequential) status = sequential(e, &step->block, step->layer, rules, result);
    else status = block_at_once(e, &step->block, step->layer, rules, result);
    ql_arena_release(e->weights, weights);
    ql_arena_release(e->scratch, mark);
    return status;
}

void layer_end(engine *e, const layer_step *step) {
    ql_arena_release(e->scratch, step->mark);
    phases_enter(&e->phases, PHASE_OTHER, 0);
}

ql_status layer_replay(engine *e, const layer_result *result) {
    block b;
    if (!e->data || result->layer + 1 == e->model->config.layers) return QL_OK;
    show(e, result->layer, "replaying");
    QL_TRY(load_block(e, result->layer, &b));
    if (ql_is_present(e->data->original.x)) QL_TRY(forward_all(e, &e->data->original, &b, result->layer));
    for (linear_id id = 0; id < LINEARS; id++)
        if (result->quantized[id] && e->mode == STATISTICS_PROPAGATED)
            QL_TRY(linear_set_quantized(&result->module[id], e->weights, &b.lin[id]));
    return forward_all(e, &e->data->rows, &b, result->layer);
}

ql_status layer_collect(engine *e, int64_t layer, int kinds, capture *captures, capture kv[2]) {
    block b;
    QL_TRY(load_block(e, layer, &b));
    if (kv) QL_TRY(open_kv(e, kv));
    return collect_block(e, &b, layer, kinds, captures, kv);
}

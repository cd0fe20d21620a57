#include "calib/layer.h"

#include <string.h>

#include "calib/layer_parts.h"
#include "calib/plan.h"
#include "host/log.h"
#include "host/mat.h"
#include "host/replay.h"
#include "host/values.h"

const char *const statistics_names[] = {"none", "propagated", "fp"};

const char *pass_name(const model *m) { return m->precision == QL_BF16 ? "bf16" : "fp32"; }

ql_status engine_open(ql_ctx *ctx, const model *m, const recipe *r, statistics_mode mode, engine *e) {
    *e = (engine){.ctx = ctx, .model = m, .recipe = r, .mode = mode};
    phases_open(&e->phases, ctx);
    QL_TRY(ql_arena_open(ctx, &e->weights));
    QL_TRY(ql_arena_open(ctx, &e->scratch));
    return ql_arena_open(NULL, &e->host);
}

/* Where the rows fit.  A processor has one memory, and so one place. */
static ql_status choose_place(engine *e, const plan_request *request) {
    ql_facts facts;
    uint64_t need;
    if (!request->gpu) return QL_OK;
    QL_TRY(ql_device_facts(e->ctx, &facts));
    uint64_t free = facts.memory_free - facts.memory_free / 50; /* libraries take some when they are first used */
    uint64_t limit = e->device_memory && e->device_memory < free ? e->device_memory : free;
    e->place = plan_place(request, limit, &need);
    if (need > limit)
        return ql_fail(QL_NOMEM,
                       "device memory: %.3f GB needed with the rows in host memory, %.3f GB are %s; use more ranks",
                       1e-9 * (double)need, 1e-9 * (double)limit, limit == e->device_memory ? "allowed" : "free");
    if (e->place != ROWS_ON_DEVICE)
        ql_log(QL_INFO, "rows wait in page-locked host memory (%s): %.4f GB of %.4f GB of device memory are needed",
               row_place_names[e->place], 1e-9 * (double)need, 1e-9 * (double)limit);
    return QL_OK;
}

/* The scratch in one piece, so that the sums of leaves leave no holes that the solver's matrices do not fit into, and nothing is
 * allocated later. */
static ql_status make_room(engine *e, const token_file *tokens) {
    recipe usual;
    recipe_defaults(&usual); /* calibration: collects as much as any recipe reads */
    const plan_request request = {
        .config = &e->model->config,
        .recipe = e->recipe ? e->recipe : &usual,
        .n_seq = tokens->n_seq,
        .seq_len = tokens->seq_len,
        .mode = e->mode,
        .bf16 = e->model->precision == QL_BF16,
        .ranks = ql_comm_size(e->comm),
        .gpu = strncmp(ql_ctx_device(e->ctx), "cuda", 4) == 0,
    };
    QL_TRY(choose_place(e, &request));
    return e->recipe ? ql_arena_reserve(e->scratch, plan_scratch_bytes(&request)) : QL_OK;
}

static dataset_use use_of(const engine *e) {
    const recipe *r = e->recipe;
    if (!r || e->mode != STATISTICS_PROPAGATED) return DATASET_STEPS;
    if (!r->sequential) return DATASET_STEPS_AND_AGAIN;
    return r->drift > 0 ? DATASET_STEPS_AND_ORIGINAL : DATASET_STEPS;
}

/* What the distance from the original model is computed in. */
static ql_status open_distance(engine *e, int64_t max_rows, ql_arena *device) {
    const int64_t hidden = e->model->config.hidden;
    QL_TRY(ql_arena_mat(device, QL_F32, max_rows, hidden, &e->apart));
    return e->model->precision == QL_BF16 ? ql_arena_mat(device, QL_BF16, max_rows, hidden, &e->apart_half) : QL_OK;
}

ql_status engine_open_rows(engine *e, const token_file *tokens, dataset *data, ql_arena *device) {
    const model_config *config = &e->model->config;
    leaf_range leaves = ranks_leaves(e->comm, tokens->n_seq);
    QL_TRY(make_room(e, tokens));
    const dataset_setting setting = {use_of(e), e->model->precision, e->place};
    QL_TRY(dataset_open(e->ctx, config, tokens, leaves, &setting, device, data));
    e->data = data;
    QL_TRY(forward_open(e->ctx, config, setting.precision, tokens->seq_len, data->max_rows, device, &e->forward));
    if (setting.use == DATASET_STEPS_AND_ORIGINAL) QL_TRY(open_distance(e, data->max_rows, device));
    ql_arena *table; /* in a small model the embedding is larger than any block: it leaves at once */
    QL_TRY(ql_arena_open(e->ctx, &table));
    ql_status status = dataset_embed(data, e->model, table);
    ql_arena_close(table);
    return status;
}

size_t engine_device_peak(const engine *e, const ql_arena *rows) {
    ql_facts facts;
    if (ql_device_facts(e->ctx, &facts) == QL_OK && facts.memory_peak > 0) return facts.memory_peak;
    return ql_arena_peak(rows) + ql_arena_peak(e->weights) + ql_arena_peak(e->scratch);
}

void engine_close(engine *e) {
    forward_close(&e->forward);
    ql_arena_close(e->weights);
    ql_arena_close(e->scratch);
    ql_arena_close(e->host);
}

static ql_dtype hessian_precision(const engine *e) { return e->recipe && e->recipe->literature ? QL_F64 : QL_F32; }

static ql_status open_capture(engine *e, site_id site, int kinds, capture *c) {
    return capture_open(e->ctx, site_width(&e->model->config, site), kinds, hessian_precision(e), e->scratch, c);
}

/* All four points with the weights as they are; the rows end behind the block. */
static ql_status collect_block(engine *e, const block *b, int64_t layer, int kinds, capture *captures, capture kv[2]) {
    for (site_id site = 0; site < SITES; site++) {
        QL_TRY(rows_advance(e, b, layer, site, kv));
        QL_TRY(open_capture(e, site, kinds, &captures[site]));
        QL_TRY(rows_observe(e, b, layer, site, &captures[site], NULL, NULL));
    }
    for (int i = 0; kv && i < 2; i++) QL_TRY(ranks_join_extremes(e->comm, e->ctx, &kv[i]));
    return rows_advance(e, b, layer, SITES, NULL);
}

ql_status layer_module_name(ql_arena *host, int64_t layer, linear_id id, char **name) {
    char text[NAME_SIZE];
    module_name(text, layer, id);
    return ql_arena_string(host, text, name);
}

/* From now on rows are multiplied by what was made. */
static ql_status take_quantized(engine *e, const qmodule *made, linear_id id, linear *lin) {
    QL_TRY(linear_set_quantized(made, e->weights, lin));
    return forward_take_quantized(&e->forward, id, e->scratch, e->weights, lin);
}

static ql_status solve_linear(engine *e, block *b, int64_t layer, linear_id id, linear_job job, layer_result *result) {
    char *name;
    QL_TRY(layer_module_name(e->host, layer, id, &name));
    progress_step(e->progress, layer, name);
    phases_linear(&e->phases, name);
    job.name = name;
    QL_TRY(linear_quantize(&job, &b->lin[id], &result->module[id], &result->record[id]));
    phases_linear(&e->phases, NULL);
    result->quantized[id] = true;
    if (e->mode != STATISTICS_PROPAGATED) return QL_OK; /* nobody multiplies by it */
    return take_quantized(e, &result->module[id], id, &b->lin[id]);
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
        layer_show(e, layer, "smoothing");
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

/* ---- the orders -------------------------------------------------------------------------------------------------------- */

static ql_status sequential_site(engine *e, block *b, const block *original, int64_t layer, site_id site,
                                 const module_rule *rules, layer_result *result) {
    capture input;
    drift apart, *d = original ? &apart : NULL;
    QL_TRY(rows_advance(e, b, layer, site, NULL));
    if (d) QL_TRY(rows_advance_original(e, original, layer, site));
    QL_TRY(open_capture(e, site, STATS_HESSIAN, &input));
    if (d) QL_TRY(rows_open_drift(e, site, d));
    QL_TRY(rows_observe(e, b, layer, site, &input, original, d));
    return solve_site(e, b, layer, site, rules, &input, d, result);
}

static ql_status sequential(engine *e, block *b, int64_t layer, const module_rule *rules, layer_result *result) {
    const block original = *b; /* its weights stay where they are when b's linears are replaced */
    bool with_drift = ql_is_present(e->data->original.x.all);
    for (site_id site = 0; site < SITES; site++) {
        ql_mark mark = ql_arena_mark(e->scratch);
        QL_TRY(sequential_site(e, b, with_drift ? &original : NULL, layer, site, rules, result));
        ql_arena_release(e->scratch, mark);
    }
    /* Nobody reads what the last block puts out. */
    return layer + 1 < e->model->config.layers ? rows_advance(e, b, layer, SITES, NULL) : QL_OK;
}

static ql_status block_at_once(engine *e, block *b, int64_t layer, const module_rule *rules, layer_result *result) {
    capture captures[SITES];
    QL_TRY(rows_save(e));
    QL_TRY(collect_block(e, b, layer, STATS_HESSIAN, captures, NULL));
    QL_TRY(rows_restore(e));
    QL_TRY(solve_block(e, b, layer, rules, captures, result));
    layer_show(e, layer, "forward");
    return layer + 1 < e->model->config.layers ? rows_forward(e, &e->data->rows, b, layer) : QL_OK;
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
    layer_show(e, result->layer, "replaying");
    QL_TRY(load_block(e, result->layer, &b));
    if (ql_is_present(e->data->original.x.all)) QL_TRY(rows_forward(e, &e->data->original, &b, result->layer));
    for (linear_id id = 0; id < LINEARS; id++)
        if (result->quantized[id] && e->mode == STATISTICS_PROPAGATED)
            QL_TRY(take_quantized(e, &result->module[id], id, &b.lin[id]));
    return rows_forward(e, &e->data->rows, &b, result->layer);
}

ql_status layer_collect(engine *e, int64_t layer, int kinds, capture *captures, capture kv[2]) {
    block b;
    QL_TRY(load_block(e, layer, &b));
    if (kv) QL_TRY(open_kv(e, kv));
    return collect_block(e, &b, layer, kinds, captures, kv);
}

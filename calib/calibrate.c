/* qalib calibrate: the forward half of a job (calib/job.h), with a store instead of a solver at the end of each block. */
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/fingerprint.h"
#include "calib/journal.h"
#include "calib/saved_rows.h"

typedef struct calibration {
    const calibrate_request *request;
    model model;
    token_file tokens;
    dataset data;
    engine engine;
    journal *journal; /* rank 0's */
    int64_t done;     /* layers */
    bool finished;
    progress *progress;
    char source[65], job[65]; /* fingerprints of the model, and of all */
    ql_arena *host, *device;
} calibration;

static void calibration_close(calibration *c) {
    progress_close(c->progress);
    journal_close(c->journal);
    dataset_close(&c->data);
    engine_close(&c->engine);
    ql_arena_close(c->device);
    model_close(&c->model);
    ql_arena_close(c->host);
}

static bool leads(const calibration *c) { return ql_comm_rank(c->request->comm) == 0; }

static ql_status open_journal(ql_ctx *ctx, calibration *c) {
    json_t *fingerprint;
    QL_TRY(fingerprint_calibrate(ctx, &c->model, &c->tokens, c->request, &fingerprint));
    ql_status status = fingerprint_source(fingerprint, c->source);
    if (status == QL_OK) status = fingerprint_job(fingerprint, c->job);
    journal_mode mode = c->request->resume ? JOURNAL_RESUME : JOURNAL_NEW;
    if (status == QL_OK) status = fingerprint_agree(c->request->comm, fingerprint, c->host);
    if (status == QL_OK && leads(c))
        status = journal_open(c->request->work_dir, mode, fingerprint, c->model.config.layers, &c->journal);
    json_decref(fingerprint);
    QL_TRY(status);
    int64_t state[2] = {leads(c) ? journal_done(c->journal) : 0, leads(c) && journal_finished(c->journal)};
    QL_TRY(ql_comm_broadcast(c->request->comm, "layers done", 0, state, sizeof state));
    c->done = state[0];
    c->finished = state[1];
    return ranks_record(c->request->comm, c->request->work_dir, c->host);
}

static ql_status calibration_open(ql_ctx *ctx, calibration *c) {
    const calibrate_request *r = c->request;
    engine *e = &c->engine;
    QL_TRY(ql_arena_open(NULL, &c->host));
    QL_TRY(ql_arena_open(ctx, &c->device));
    QL_TRY(tokens_read(r->tokens_path, c->host, &c->tokens));
    QL_TRY(model_open_original(ctx, r->model_dir, "calibrate with", &c->model));
    c->model.precision = pass_precision(&r->pass);
    QL_TRY(tokens_check_model(&c->tokens, r->tokens_path, r->model_dir, c->model.config.vocab));
    QL_TRY(open_journal(ctx, c));
    QL_TRY(engine_open(ctx, &c->model, NULL, STATISTICS_FP, e));
    e->comm = r->comm;
    e->device_memory = r->pass.device_memory;
    QL_TRY(model_read_ahead(&c->model, r->comm));
    return engine_open_rows(e, &c->tokens, &c->data, c->device);
}

/* K after RoPE and V, per head: what FP8 key/value caches are scaled by. */
static ql_status take_kv(ql_ctx *ctx, const capture kv[2], const model_config *config, ql_arena *host,
                         stats_layer *stats) {
    float **const to[2] = {&stats->k_abs_max, &stats->v_abs_max};
    stats->kv_width = config->kv_heads;
    for (int i = 0; i < 2; i++) {
        stats_site columns;
        QL_TRY(capture_download(ctx, &kv[i], host, &columns));
        QL_TRY(ql_take(host, (size_t)config->kv_heads, sizeof(float), to[i]));
        for (int64_t c = 0; c < columns.k; c++) {
            float *largest = &(*to[i])[c / config->head_dim];
            float magnitude = columns.max[c] > -columns.min[c] ? columns.max[c] : -columns.min[c];
            if (magnitude > *largest) *largest = magnitude;
        }
    }
    return QL_OK;
}

/* What all ranks have seen stands on each: one writes it. */
static ql_status write_layer(calibration *c, int64_t layer, const capture captures[SITES], const capture kv[2]) {
    engine *e = &c->engine;
    stats_layer stats = {.layer = layer, .n_tokens = (uint64_t)c->tokens.n_tokens, .n_seq = (uint64_t)c->tokens.n_seq};
    char *path;
    memcpy(stats.fingerprint, c->source, sizeof stats.fingerprint);
    phases_enter(&e->phases, PHASE_WRITE, 0);
    for (site_id site = 0; site < SITES; site++)
        QL_TRY(capture_download(e->ctx, &captures[site], e->host, &stats.site[site]));
    QL_TRY(take_kv(e->ctx, kv, &c->model.config, e->host, &stats));
    QL_TRY(stats_path(e->host, c->request->work_dir, layer, &path));
    QL_TRY(stats_write(path, &stats));
    return journal_commit(c->journal, layer, NULL);
}

static ql_status collect_layer(calibration *c, int64_t layer) {
    capture captures[SITES], kv[2];
    char *text;
    QL_TRY(ql_arena_format(c->engine.host, &text, "layer=%lld\n", (long long)layer));
    QL_TRY(ql_comm_agree(c->request->comm, "a layer", text)); /* ranks that have come apart must not go on */
    QL_TRY(layer_collect(&c->engine, layer, c->request->kinds, captures, kv));
    return leads(c) ? write_layer(c, layer, captures, kv) : QL_OK;
}

static ql_status run_layers(calibration *c) {
    engine *e = &c->engine;
    int64_t begin;
    saved_rows saved;
    if (c->finished) return QL_OK;
    QL_TRY(saved_rows_open(e, c->request->work_dir, c->job, c->request->pass.save_every, c->host, &saved));
    QL_TRY(saved_rows_load(&saved, c->done, &begin));
    for (int64_t layer = begin; layer < c->model.config.layers; layer++) {
        ql_mark mark = ql_arena_mark(e->scratch);
        QL_TRY(cli_check_signal());
        progress_step(c->progress, layer, layer < c->done ? "replaying" : "reading");
        phases_block(&e->phases, layer);
        ql_arena_release(e->host, (ql_mark){0});
        if (layer < c->done) {
            const layer_result untouched = {.layer = layer};
            QL_TRY(layer_replay(e, &untouched));
        } else {
            QL_TRY(collect_layer(c, layer));
        }
        ql_arena_release(e->scratch, mark);
        if (layer + 1 < c->model.config.layers) QL_TRY(saved_rows_step(&saved, layer + 1));
    }
    saved_rows_remove(&saved);
    phases_block(&e->phases, -1);
    progress_step(c->progress, c->model.config.layers, "done");
    return leads(c) ? journal_finish(c->journal, NULL) : QL_OK;
}

ql_status calibrate_run(ql_ctx *ctx, const calibrate_request *request, json_t **report) {
    calibration c = {.request = request};
    ql_status status = calibration_open(ctx, &c);
    progress_style style = leads(&c) ? request->progress : PROGRESS_NONE;
    *report = NULL;
    if (status == QL_OK) status = progress_open(style, "calibrate", c.model.config.layers, &c.progress);
    c.engine.progress = c.progress;
    progress_watch(c.progress, &c.engine.phases);
    if (status == QL_OK) status = run_layers(&c);
    if (status == QL_OK && leads(&c))
        *report = json_pack("{s:I, s:I, s:I, s:I, s:s, s:s, s:s}", "layers", (json_int_t)c.model.config.layers,
                            "n_tokens", (json_int_t)c.tokens.n_tokens, "n_seq", (json_int_t)c.tokens.n_seq,
                            "samples_skipped", (json_int_t)c.engine.samples_skipped, "statistics", "fp",
                            "source_fingerprint", c.source, "device", ql_ctx_describe(ctx));
    calibration_close(&c);
    return status;
}

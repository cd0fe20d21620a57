/* qalib calibrate: the forward half of a job (calib/job.h), with a store instead of a solver at the end of each block. */
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/fingerprint.h"
#include "calib/journal.h"

typedef struct calibration {
    const calibrate_request *request;
    model model;
    token_file tokens;
    dataset data;
    engine engine;
    journal *journal;
    progress *progress;
    char source[65]; /* fingerprint of the model */
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

static ql_status open_journal(ql_ctx *ctx, calibration *c) {
    json_t *fingerprint;
    QL_TRY(fingerprint_calibrate(ctx, &c->model, &c->tokens, c->request, &fingerprint));
    ql_status status = fingerprint_source(fingerprint, c->source);
    journal_mode mode = c->request->resume ? JOURNAL_RESUME : JOURNAL_NEW;
    if (status == QL_OK)
        status = journal_open(c->request->work_dir, mode, fingerprint, c->model.config.layers, &c->journal);
    json_decref(fingerprint);
    return status;
}

static ql_status calibration_open(ql_ctx *ctx, calibration *c) {
    const calibrate_request *r = c->request;
    engine *e = &c->engine;
    QL_TRY(ql_arena_open(NULL, &c->host));
    QL_TRY(ql_arena_open(ctx, &c->device));
    QL_TRY(tokens_read(r->tokens_path, c->host, &c->tokens));
    QL_TRY(model_open(ctx, r->model_dir, &c->model));
    if (c->model.quantized)
        return ql_fail(QL_MISMATCH,
                       "%s: is quantized already (quantization_config in config.json); calibrate the original",
                       c->request->model_dir);
    QL_TRY(tokens_check_model(&c->tokens, r->tokens_path, r->model_dir, c->model.config.vocab));
    QL_TRY(open_journal(ctx, c));
    QL_TRY(engine_open(ctx, &c->model, NULL, STATISTICS_FP, e));
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

static ql_status collect_layer(calibration *c, int64_t layer) {
    engine *e = &c->engine;
    capture captures[SITES], kv[2];
    stats_layer stats = {.layer = layer, .n_tokens = (uint64_t)c->tokens.n_tokens, .n_seq = (uint64_t)c->tokens.n_seq};
    char *path;
    memcpy(stats.fingerprint, c->source, sizeof stats.fingerprint);
    QL_TRY(layer_collect(e, layer, c->request->kinds, captures, kv));
    phases_enter(&e->phases, PHASE_WRITE, 0);
    for (site_id site = 0; site < SITES; site++)
        QL_TRY(capture_download(e->ctx, &captures[site], e->host, &stats.site[site]));
    QL_TRY(take_kv(e->ctx, kv, &c->model.config, e->host, &stats));
    QL_TRY(stats_path(e->host, c->request->work_dir, layer, &path));
    return stats_write(path, &stats);
}

static ql_status run_layers(calibration *c) {
    engine *e = &c->engine;
    int64_t done = journal_done(c->journal);
    if (journal_finished(c->journal)) return QL_OK;
    for (int64_t layer = 0; layer < c->model.config.layers; layer++) {
        ql_mark mark = ql_arena_mark(e->scratch);
        QL_TRY(cli_check_signal());
        progress_step(c->progress, layer, layer < done ? "replaying" : "reading");
        ql_arena_release(e->host, (ql_mark){0});
        if (layer < done) {
            const layer_result untouched = {.layer = layer};
            QL_TRY(layer_replay(e, &untouched));
        } else {
            QL_TRY(collect_layer(c, layer));
            QL_TRY(journal_commit(c->journal, layer, NULL));
        }
        ql_arena_release(e->scratch, mark);
    }
    progress_step(c->progress, c->model.config.layers, "done");
    return journal_finish(c->journal, NULL);
}

ql_status calibrate_run(ql_ctx *ctx, const calibrate_request *request, json_t **report) {
    calibration c = {.request = request};
    ql_status status = calibration_open(ctx, &c);
    if (status == QL_OK) status = progress_open(request->progress, "calibrate", c.model.config.layers, &c.progress);
    c.engine.progress = c.progress;
    if (status == QL_OK) status = run_layers(&c);
    if (status == QL_OK)
        *report = json_pack("{s:I, s:I, s:I, s:s, s:s, s:s}", "layers", (json_int_t)c.model.config.layers, "n_tokens",
                            (json_int_t)c.tokens.n_tokens, "n_seq", (json_int_t)c.tokens.n_seq, "statistics", "fp",
                            "source_fingerprint", c.source, "device", ql_ctx_describe(ctx));
    calibration_close(&c);
    return status;
}

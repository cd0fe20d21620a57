#include "calib/job.h"

#include "calib/cli/cli.h"
#include "calib/part.h"
#include "calib/saved_rows.h"
#include "host/log.h"

/* Everything that lives as long as the job; one cleanup, whatever happened. */
typedef struct job {
    const quantize_request *request; /* the first: what all of them share */
    int count;
    part *parts; /* [count] */
    model model;
    token_file tokens;
    dataset data;
    engine engine;
    progress *progress;
    ql_arena *host, *device; /* job lifetime */
} job;

static void job_close(job *j) {
    progress_close(j->progress);
    for (int i = 0; j->parts && i < j->count; i++) part_close(&j->parts[i]);
    dataset_close(&j->data);
    engine_close(&j->engine);
    ql_arena_close(j->device);
    model_close(&j->model);
    ql_arena_close(j->host);
}

static ql_status read_tokens(job *j) {
    const quantize_request *r = j->request;
    if (!r->tokens_path) return QL_OK;
    QL_TRY(tokens_read(r->tokens_path, j->host, &j->tokens));
    return tokens_check_model(&j->tokens, r->tokens_path, r->model_dir, j->model.config.vocab);
}

static ql_status open_parts(ql_ctx *ctx, job *j, const quantize_request requests[]) {
    part *parts;
    QL_TRY(ql_take(j->host, (size_t)j->count, sizeof *parts, &parts));
    j->parts = parts;
    for (int i = 0; i < j->count; i++) {
        QL_TRY(
            part_open(ctx, &requests[i], &j->model, j->request->tokens_path ? &j->tokens : NULL, j->host, &parts[i]));
        parts[i].engine = &j->engine;
    }
    return QL_OK;
}

static ql_status open_engine(ql_ctx *ctx, job *j) {
    const quantize_request *r = j->request;
    QL_TRY(ql_arena_open(ctx, &j->device));
    QL_TRY(engine_open(ctx, &j->model, &r->recipe, r->mode, &j->engine));
    QL_TRY(model_read_ahead(&j->model, r->comm));
    j->engine.comm = r->comm;
    j->engine.device_memory = r->pass.device_memory;
    ql_arena *const arenas[PHASES_WATCHED] = {j->device, j->engine.weights, j->engine.scratch, j->engine.host};
    for (int i = 0; i < PHASES_WATCHED; i++) phases_watch(&j->engine.phases, arenas[i]);
    j->engine.stats_dir = r->stats_dir;
    for (int i = 0; i < j->count; i++) {
        const recipe *wanted = &j->parts[i].request->recipe;
        j->engine.kinds |= recipe_statistics(wanted);
        j->engine.with_kv = j->engine.with_kv || wanted->kv_cache;
    }
    bool with_rows = r->tokens_path && !r->stats_dir &&
                     engine_needs_data(&j->engine); /* rounding to nearest reads nothing of its rows */
    return with_rows ? engine_open_rows(&j->engine, &j->tokens, &j->data, j->device) : QL_OK;
}

/* ---- layers --------------------------------------------------------------------------------------------------------------- */

/* Parts that have still to make a layer. */
static bool has_to_make(const part *p, int64_t layer) { return !part_is_complete(p) && part_done(p) <= layer; }

static int64_t first_layer_to_make(const job *j) {
    int64_t first = j->model.config.layers;
    for (int i = 0; i < j->count; i++)
        if (!part_is_complete(&j->parts[i]) && part_done(&j->parts[i]) < first) first = part_done(&j->parts[i]);
    return first;
}

/* Every part has the layer: the rows alone go through it.  Where they go through what was made, there is one part. */
static ql_status replay_layer(job *j, int64_t layer) {
    layer_result result = {.layer = layer};
    if (j->engine.mode == STATISTICS_PROPAGATED) QL_TRY(part_load(&j->parts[0], layer, j->engine.host, &result));
    return layer_replay(&j->engine, &result);
}

/* Ranks that have come apart must not go on beside each other. */
static ql_status agree(job *j, int64_t layer) {
    char *text;
    QL_TRY(ql_arena_format(j->engine.host, &text, "layer=%lld\n", (long long)layer));
    for (int i = 0; i < j->count; i++)
        QL_TRY(ql_arena_format(j->engine.host, &text, "%sjob %d=%s\ndone %d=%lld\n", text, i, j->parts[i].fingerprint,
                               i, (long long)part_done(&j->parts[i])));
    return ql_comm_agree(j->request->comm, "a layer", text);
}

static ql_status make_layer(job *j, int64_t layer) {
    engine *e = &j->engine;
    layer_step step;
    QL_TRY(agree(j, layer));
    QL_TRY(layer_begin(e, layer, &step));
    for (int i = 0; i < j->count; i++) {
        part *p = &j->parts[i];
        layer_result result;
        if (!has_to_make(p, layer)) continue;
        ql_mark mark = ql_arena_mark(e->host);
        e->recipe = &p->request->recipe;
        e->importance = p->importance;
        QL_TRY(layer_solve(e, &step, part_rules(p, layer), &result));
        QL_TRY(part_commit(p, &result));
        ql_arena_release(e->host, mark);
    }
    layer_end(e, &step);
    return QL_OK;
}

static ql_status run_layers(job *j) {
    int64_t first = first_layer_to_make(j), begin;
    saved_rows saved;
    QL_TRY(saved_rows_open(&j->engine, j->request->work_dir, j->parts[0].fingerprint, j->request->pass.save_every,
                           j->host, &saved));
    QL_TRY(saved_rows_load(&saved, first, &begin));
    for (int64_t layer = begin; layer < j->model.config.layers; layer++) {
        QL_TRY(cli_check_signal());
        progress_step(j->progress, layer, layer < first ? "replaying" : "reading");
        phases_block(&j->engine.phases, layer);
        ql_arena_release(j->engine.host, (ql_mark){0});
        QL_TRY(layer < first ? replay_layer(j, layer) : make_layer(j, layer));
        if (layer + 1 < j->model.config.layers) QL_TRY(saved_rows_step(&saved, layer + 1));
    }
    saved_rows_remove(&saved);
    return QL_OK;
}

/* ---- the whole -------------------------------------------------------------------------------------------------------------- */

/* Writing needs memory of its own: what the layers worked in goes back first.  Returns the most that it was. */
static size_t free_rows(job *j) {
    engine *e = &j->engine;
    size_t peak = engine_device_peak(e, j->device);
    phases_watch_none(&e->phases);
    phases_block(&e->phases, -1);
    dataset_close(&j->data);
    ql_arena_close(j->device);
    ql_arena_close(e->weights);
    ql_arena_close(e->scratch);
    j->device = e->weights = e->scratch = NULL;
    return peak;
}

static ql_status write_outputs(job *j) {
    size_t device_peak = free_rows(j);
    if (ql_comm_rank(j->request->comm) > 0) return QL_OK;
    progress_step(j->progress, j->model.config.layers, "writing");
    for (int i = 0; i < j->count; i++)
        if (!part_is_complete(&j->parts[i])) QL_TRY(part_write(&j->parts[i], j->engine.samples_skipped, device_peak));
    return QL_OK;
}

static ql_status run(ql_ctx *ctx, job *j, const quantize_request requests[]) {
    bool complete = true;
    QL_TRY(ql_arena_open(NULL, &j->host));
    QL_TRY(model_open_original(ctx, j->request->model_dir, "quantize", &j->model));
    j->model.precision = pass_precision(&j->request->pass);
    QL_TRY(read_tokens(j));
    QL_TRY(open_parts(ctx, j, requests));
    for (int i = 0; i < j->count; i++) complete = complete && part_is_complete(&j->parts[i]);
    if (complete) return QL_OK;
    QL_TRY(ranks_record(j->request->comm, j->request->work_dir, j->host));
    QL_TRY(open_engine(ctx, j));
    progress_style style = ql_comm_rank(j->request->comm) == 0 ? j->request->progress : PROGRESS_NONE;
    QL_TRY(progress_open(style, "quantize", j->model.config.layers + 1, &j->progress));
    j->engine.progress = j->progress;
    progress_watch(j->progress, &j->engine.phases);
    QL_TRY(run_layers(j));
    QL_TRY(write_outputs(j));
    progress_step(j->progress, j->model.config.layers + 1, "done");
    return QL_OK;
}

ql_status quantize_run(ql_ctx *ctx, const quantize_request requests[], int count, json_t *reports[]) {
    job j = {.request = requests, .count = count};
    ql_status status = run(ctx, &j, requests);
    for (int i = 0; i < count; i++) {
        reports[i] = j.parts && status == QL_OK ? j.parts[i].report : NULL;
        if (j.parts && status != QL_OK) json_decref(j.parts[i].report);
    }
    job_close(&j);
    return status;
}

#include "calib/job.h"

#include <string.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "calib/fingerprint.h"
#include "calib/journal.h"
#include "calib/modules.h"
#include "calib/output.h"
#include "calib/report.h"
#include "calib/scheme.h"
#include "calib/verify.h"
#include "formats/json.h"
#include "host/log.h"
#include "host/mat.h"

const char *const output_format_names[] = {"gptq", "gptq_v2", "dense", NULL};

/* Everything that lives as long as the job; one cleanup, whatever happened. */
typedef struct job {
    const quantize_request *request;
    model model;
    token_file tokens;
    dataset data;
    engine engine;
    journal *journal;
    module_table modules;
    char fingerprint[65];
    size_t device_peak; /* of the layers' work */
    bool free_zero;     /* some zero point is 0: the file must be v2 */
    progress *progress;
    ql_arena *host, *device; /* job lifetime */
} job;

static void job_close(job *j) {
    progress_close(j->progress);
    journal_close(j->journal);
    dataset_close(&j->data);
    engine_close(&j->engine);
    ql_arena_close(j->device);
    model_close(&j->model);
    ql_arena_close(j->host);
}

static ql_status open_model(ql_ctx *ctx, job *j) {
    QL_TRY(model_open(ctx, j->request->model_dir, &j->model));
    if (j->model.quantized)
        return ql_fail(QL_MISMATCH,
                       "%s: is quantized already (quantization_config in config.json); quantize the original",
                       j->request->model_dir);
    return modules_resolve(&j->request->recipe, &j->model.config, j->host, &j->modules);
}

static ql_status open_engine(ql_ctx *ctx, job *j) {
    const quantize_request *r = j->request;
    QL_TRY(ql_arena_open(ctx, &j->device));
    QL_TRY(engine_open(ctx, &j->model, &r->recipe, r->mode, &j->engine));
    j->engine.stats_dir = r->stats_dir;
    return r->tokens_path ? engine_open_rows(&j->engine, &j->tokens, &j->data, j->device) : QL_OK;
}

static ql_status read_tokens(job *j) {
    const quantize_request *r = j->request;
    if (!r->tokens_path) return QL_OK;
    QL_TRY(tokens_read(r->tokens_path, j->host, &j->tokens));
    return tokens_check_model(&j->tokens, r->tokens_path, r->model_dir, j->model.config.vocab);
}

/* Before any work: the output directory must be empty, or this job's own (output_open looks closely later). */
static ql_status check_output(const job *j) {
    bool empty;
    QL_TRY(ql_dir_is_empty(j->request->out_dir, &empty));
    if (empty || j->request->resume) return QL_OK;
    return ql_fail(QL_DISK,
                   "%s: is not empty; choose another directory, or go on with an interrupted job with --resume",
                   j->request->out_dir);
}

static ql_status open_journal(ql_ctx *ctx, job *j) {
    json_t *fingerprint;
    QL_TRY(fingerprint_quantize(ctx, &j->model, j->request->tokens_path ? &j->tokens : NULL, j->request, &fingerprint));
    journal_mode mode = j->request->resume ? JOURNAL_RESUME : JOURNAL_NEW;
    ql_status status = fingerprint_job(fingerprint, j->fingerprint);
    if (status == QL_OK)
        status = journal_open(j->request->work_dir, mode, fingerprint, j->model.config.layers, &j->journal);
    json_decref(fingerprint);
    return status;
}

static const module_rule *rules_of(const job *j, int64_t layer) { return modules_rule(&j->modules, layer, 0); }

/* A committed layer whose file no longer is what was committed is made again, and so are all behind it. */
static ql_status check_committed(job *j) {
    for (int64_t layer = 0; layer < journal_done(j->journal); layer++) {
        if (journal_check_layer(j->journal, layer) == QL_OK) continue;
        ql_log(QL_WARNING, "%s; layers from %lld on are made again", ql_last_error(), (long long)layer);
        return journal_truncate(j->journal, layer);
    }
    return QL_OK;
}

static ql_status load_committed(job *j, int64_t layer, ql_arena *host, layer_result *result) {
    char *path;
    QL_TRY(journal_layer_path(j->journal, layer, host, &path));
    return layer_load(path, &j->engine, layer, rules_of(j, layer), host, result);
}

static ql_status commit(job *j, const layer_result *result) {
    char *path;
    phases_enter(&j->engine.phases, PHASE_WRITE, 0);
    QL_TRY(journal_layer_path(j->journal, result->layer, j->engine.host, &path));
    QL_TRY(layer_save(path, result, &j->model.config, j->engine.host));
    json_t *record = report_layer(result, rules_of(j, result->layer), &j->model.config);
    ql_status status =
        record ? journal_commit(j->journal, result->layer, record) : ql_fail(QL_NOMEM, "no memory for a record");
    json_decref(record);
    return status;
}

static ql_status run_layers(job *j) {
    engine *e = &j->engine;
    int64_t done = journal_done(j->journal);
    for (int64_t layer = 0; layer < j->model.config.layers; layer++) {
        layer_result result;
        QL_TRY(cli_check_signal());
        progress_step(j->progress, layer, layer < done ? "replaying" : "reading");
        ql_arena_release(e->host, (ql_mark){0});
        if (layer < done) {
            QL_TRY(load_committed(j, layer, e->host, &result));
            QL_TRY(layer_replay(e, &result));
        } else {
            QL_TRY(layer_quantize(e, layer, rules_of(j, layer), &result));
            QL_TRY(commit(j, &result));
        }
    }
    return QL_OK;
}

/* A zero point of 0 cannot be stored by GPTQ v1; only the literature's free ones can be 0. */
static bool has_zero_point_0(const layer_result *result) {
    for (linear_id id = 0; id < LINEARS; id++) {
        const qmodule *q = &result->module[id];
        if (result->quantized[id] && memchr(q->zero, 0, (size_t)(q->n * ql_groups(q->k, q->group)))) return true;
    }
    return false;
}

static ql_status find_free_zeros(job *j) {
    for (int64_t layer = 0; j->request->recipe.literature && !j->free_zero && layer < j->model.config.layers; layer++) {
        layer_result result;
        ql_arena_release(j->engine.host, (ql_mark){0});
        QL_TRY(load_committed(j, layer, j->engine.host, &result));
        j->free_zero = has_zero_point_0(&result);
    }
    if (j->free_zero && j->request->format == OUTPUT_GPTQ)
        ql_log(QL_WARNING, "zero points of 0 occur, which GPTQ v1 cannot hold: the output is v2 (gptq_v2), which older "
                           "loaders misread");
    return QL_OK;
}

static ql_status write_layers(job *j, output *out) {
    for (int64_t layer = 0; layer < j->model.config.layers; layer++) {
        layer_result result;
        QL_TRY(cli_check_signal());
        ql_arena_release(j->engine.host, (ql_mark){0});
        QL_TRY(load_committed(j, layer, j->engine.host, &result));
        QL_TRY(output_layer(out, layer, result.module, result.folded));
    }
    return QL_OK;
}

static ql_status describe_calibration(const job *j, ql_arena *arena, char **text) {
    const quantize_request *r = j->request;
    if (r->stats_dir) return ql_arena_format(arena, text, "Statistics fp, from a store (qalib calibrate).");
    if (!r->tokens_path) return ql_arena_format(arena, text, "None: rounded to nearest.");
    return ql_arena_format(arena, text, "%lld rows of %lld tokens (SHA-256 of the token file %.16s...), statistics %s.",
                           (long long)j->tokens.n_seq, (long long)j->tokens.seq_len, j->tokens.sha256,
                           statistics_names[r->mode]);
}

static double bits_per_weight(const job *j, uint64_t output_bytes) {
    double weights = 0;
    for (int64_t i = 0; i < checkpoint_count(j->model.ck); i++) {
        const st_tensor *t = checkpoint_at(j->model.ck, i);
        size_t size = ql_dtype_size(t->dtype);
        if (size) weights += (double)t->size / (double)size;
    }
    return weights > 0 ? 8.0 * (double)output_bytes / weights : 0;
}

/* Of the quantized modules alone, from their shapes, as the file stores them: scales, zero points and indices included. */
static double quantized_bits(job *j) {
    double bytes = 0, weights = 0;
    ql_mark mark = ql_arena_mark(j->host);
    for (int64_t i = 0; i < j->modules.layers * LINEARS; i++) {
        const module_rule *rule = &j->modules.rules[i];
        qmodule q = {.name = "", .bits = rule->bits};
        layout_tensors tensors;
        linear_shape(&j->model.config, (linear_id)(i % LINEARS), &q.n, &q.k);
        q.group = rule->group < 0 ? q.k : rule->group;
        if (rule->skip || layout_gptq_encode(&q, 1, j->host, &tensors) != QL_OK) continue;
        weights += (double)q.n * (double)q.k;
        for (int t = 0; t < tensors.count; t++) bytes += (double)tensors.tensor[t].size;
        ql_arena_release(j->host, mark);
    }
    return weights > 0 ? 8 * bytes / weights : 0;
}

static json_t *make_report(job *j, uint64_t output_bytes) {
    const quantize_request *r = j->request;
    json_t *layers = json_array(), *totals, *skipped = json_array();
    for (int64_t layer = 0; layer < j->model.config.layers; layer++)
        json_array_append(layers, (json_t *)(uintptr_t)journal_record(j->journal, layer));
    for (int64_t i = 0; i < j->modules.n_skipped; i++)
        json_array_append_new(skipped, json_string(j->modules.skipped[i]));
    totals = report_totals(layers);
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:I, s:I, s:f, s:f, s:I, s:o}", "version",
                     1, "job", j->fingerprint, "model", r->model_dir, "format", output_format_names[r->format],
                     "statistics", statistics_names[r->mode], "samples", (json_int_t)j->tokens.n_seq, "tokens",
                     (json_int_t)j->tokens.n_tokens, "recipe", recipe_json(&r->recipe), "layers", layers, "totals",
                     totals, "kept_in_16_bits", skipped, "source_bytes", (json_int_t)checkpoint_bytes(j->model.ck),
                     "output_bytes", (json_int_t)output_bytes, "bits_per_weight", bits_per_weight(j, output_bytes),
                     "bits_per_quantized_weight", quantized_bits(j), "samples_skipped", (json_int_t)j->data.n_skipped,
                     "environment", report_environment(j->engine.ctx, &j->engine.phases, j->device_peak));
}

/* Writing needs memory of its own: what the layers worked in goes back first. */
static void free_rows(job *j) {
    engine *e = &j->engine;
    j->device_peak = ql_arena_peak(j->device) + ql_arena_peak(e->weights) + ql_arena_peak(e->scratch);
    dataset_close(&j->data);
    ql_arena_close(j->device);
    ql_arena_close(e->weights);
    ql_arena_close(e->scratch);
    j->device = e->weights = e->scratch = NULL;
}

static ql_status write_output(job *j, json_t **report) {
    output *out = NULL;
    layout_scheme scheme;
    output_texts texts = {0};
    phases_enter(&j->engine.phases, PHASE_WRITE, 0);
    progress_step(j->progress, j->model.config.layers, "writing");
    free_rows(j);
    QL_TRY(find_free_zeros(j));
    int version = j->request->format == OUTPUT_GPTQ_V2 || j->free_zero ? 2 : 1;
    QL_TRY(scheme_make(&j->request->recipe, &j->modules, version, j->host, &scheme));
    const output_request request = {
        .scheme = j->request->format == OUTPUT_DENSE ? NULL : &scheme,
        .shard_size = j->request->shard_size,
        .job = j->fingerprint,
    };
    char *yaml, *calibration;
    QL_TRY(recipe_yaml(&j->request->recipe, j->host, &yaml));
    QL_TRY(describe_calibration(j, j->host, &calibration));
    texts.recipe_yaml = yaml;
    texts.calibration = calibration;
    ql_status status = output_open(j->request->out_dir, j->model.ck, &j->model.config, &request, &out);
    if (status == QL_OK) status = write_layers(j, out);
    if (status == QL_OK) {
        *report = make_report(j, output_tensor_bytes(out));
        texts.report = *report;
        status = *report ? output_finish(out, &texts) : ql_fail(QL_NOMEM, "no memory for the report");
    }
    output_close(out);
    return status;
}

/* The layers' files have served; the journal stays, so that --resume finds a finished job. */
static ql_status finish(job *j, const json_t *report) {
    QL_TRY(journal_finish(j->journal, report));
    for (int64_t layer = 0; layer < j->model.config.layers; layer++) {
        char *path;
        QL_TRY(journal_layer_path(j->journal, layer, j->host, &path));
        unlink(path);
    }
    return QL_OK;
}

/* An earlier run has finished: its report, after a look at its files. */
static ql_status check_finished(job *j, json_t **report) {
    char *path;
    verify_result found;
    QL_TRY(verify_directory(j->request->out_dir, NULL, j->host, &found));
    if (found.findings > 0)
        return ql_fail(QL_FORMAT,
                       "%s: the job had finished, but its output is damaged: %s; remove it and %s to make it again",
                       j->request->out_dir, found.finding[0], j->request->work_dir);
    QL_TRY(ql_arena_format(j->host, &path, "%s/report.json", j->request->out_dir));
    return ql_json_load(path, SIZE_MAX >> 1, report);
}

/* Killed between the last file of the output and the last line of the journal: a complete output says itself whose it is. */
static ql_status find_complete(job *j, json_t **report) {
    char *path;
    json_t *found;
    if (!j->request->resume || journal_done(j->journal) < j->model.config.layers) return QL_OK;
    QL_TRY(ql_arena_format(j->host, &path, "%s/.qalib-incomplete", j->request->out_dir));
    bool complete = !ql_path_exists(path);
    QL_TRY(ql_arena_format(j->host, &path, "%s/report.json", j->request->out_dir));
    if (!complete || !ql_path_exists(path)) return QL_OK;
    QL_TRY(ql_json_load(path, SIZE_MAX >> 1, &found));
    const char *made_by = json_string_value(json_object_get(found, "job"));
    complete = made_by && strcmp(made_by, j->fingerprint) == 0;
    json_decref(found);
    return complete ? check_finished(j, report) : QL_OK;
}

static ql_status run(ql_ctx *ctx, job *j, json_t **report) {
    QL_TRY(ql_arena_open(NULL, &j->host));
    QL_TRY(open_model(ctx, j));
    QL_TRY(read_tokens(j));
    QL_TRY(check_output(j));
    QL_TRY(open_journal(ctx, j));
    if (journal_finished(j->journal)) return check_finished(j, report);
    QL_TRY(find_complete(j, report));
    if (*report) return finish(j, *report);
    QL_TRY(check_committed(j));
    QL_TRY(open_engine(ctx, j));
    QL_TRY(progress_open(j->request->progress, "quantize", j->model.config.layers + 1, &j->progress));
    j->engine.progress = j->progress;
    QL_TRY(run_layers(j));
    QL_TRY(write_output(j, report));
    QL_TRY(finish(j, *report));
    progress_step(j->progress, j->model.config.layers + 1, "done");
    return QL_OK;
}

ql_status quantize_run(ql_ctx *ctx, const quantize_request *request, json_t **report) {
    job j = {.request = request};
    *report = NULL;
    ql_status status = run(ctx, &j, report);
    job_close(&j);
    return status;
}

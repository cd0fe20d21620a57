#include "calib/part.h"

#include <string.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "calib/fingerprint.h"
#include "calib/output.h"
#include "calib/part_gguf.h"
#include "calib/report.h"
#include "calib/verify.h"
#include "formats/json.h"
#include "host/log.h"
#include "host/mat.h"

void part_close(part *p) { journal_close(p->journal); }

/* ---- before the work ------------------------------------------------------------------------------------------------------ */

/* Before any work: the output directory must be empty, or this job's own (output_open looks closely later). */
static ql_status check_output(const part *p) {
    bool empty;
    QL_TRY(ql_dir_is_empty(p->request->out_dir, &empty));
    if (empty || p->request->resume) return QL_OK;
    return ql_fail(QL_DISK,
                   "%s: is not empty; choose another directory, or go on with an interrupted job with --resume",
                   p->request->out_dir);
}

/* Rank 0 keeps the journal. */
static ql_status open_journal(ql_ctx *ctx, part *p) {
    json_t *fingerprint;
    QL_TRY(fingerprint_quantize(ctx, p->model, p->tokens, p->request, &fingerprint));
    journal_mode mode = p->request->resume ? JOURNAL_RESUME : JOURNAL_NEW;
    ql_status status = fingerprint_job(fingerprint, p->fingerprint);
    if (status == QL_OK) status = fingerprint_agree(p->request->comm, fingerprint, p->host);
    if (status == QL_OK && ql_comm_rank(p->request->comm) == 0)
        status = journal_open(p->request->work_dir, mode, fingerprint, p->model->config.layers, &p->journal);
    json_decref(fingerprint);
    return status;
}

/* A committed layer whose file no longer is what was committed is made again, and so are all behind it. */
static ql_status check_committed(part *p) {
    for (int64_t layer = 0; layer < journal_done(p->journal); layer++) {
        if (journal_check_layer(p->journal, layer) == QL_OK) continue;
        ql_log(QL_WARNING, "%s; layers from %lld on are made again", ql_last_error(), (long long)layer);
        return journal_truncate(p->journal, layer);
    }
    return QL_OK;
}

/* The layers' files have served; the journal stays, so that --resume finds a finished job. */
static ql_status finish(part *p) {
    QL_TRY(journal_finish(p->journal, p->report));
    for (int64_t layer = 0; layer < p->model->config.layers; layer++) {
        char *path;
        QL_TRY(journal_layer_path(p->request->work_dir, layer, p->host, &path));
        unlink(path);
    }
    return QL_OK;
}

/* An earlier run has finished: its report, after a look at its files. */
static ql_status check_finished(part *p) {
    char *path;
    verify_result found;
    if (!ql_path_exists(p->request->out_dir))
        return ql_fail(QL_MISSING, "%s: the job had finished, but its output is gone; remove %s to make it again",
                       p->request->out_dir, p->request->work_dir);
    QL_TRY(verify_directory(p->request->out_dir, NULL, p->host, &found));
    if (found.findings > 0)
        return ql_fail(QL_FORMAT,
                       "%s: the job had finished, but its output is damaged: %s; remove it and %s to make it again",
                       p->request->out_dir, found.finding[0], p->request->work_dir);
    QL_TRY(ql_arena_format(p->host, &path, "%s/report.json", p->request->out_dir));
    return ql_json_load(path, SIZE_MAX >> 1, &p->report);
}

/* Killed between the last file of the output and the last line of the journal: a complete output says itself whose it is. */
static ql_status find_complete(part *p) {
    char *path;
    json_t *found;
    if (!p->request->resume || journal_done(p->journal) < p->model->config.layers) return QL_OK;
    QL_TRY(ql_arena_format(p->host, &path, "%s/.qalib-incomplete", p->request->out_dir));
    bool complete = !ql_path_exists(path);
    QL_TRY(ql_arena_format(p->host, &path, "%s/report.json", p->request->out_dir));
    if (!complete || !ql_path_exists(path)) return QL_OK;
    QL_TRY(ql_json_load(path, SIZE_MAX >> 1, &found));
    const char *made_by = json_string_value(json_object_get(found, "job"));
    complete = made_by && strcmp(made_by, p->fingerprint) == 0;
    json_decref(found);
    return complete ? check_finished(p) : QL_OK;
}

static ql_status resolve(part *p) {
    const quantize_request *r = p->request;
    QL_TRY(scheme_check_format(&r->recipe, r->format));
    if (r->format == OUTPUT_GGUF) return part_gguf_open(p);
    QL_TRY(modules_resolve(&r->recipe, output_layout(r->format), &p->model->config, p->host, &p->modules));
    return scheme_make(&r->recipe, r->format, &p->modules, p->host, &p->scheme);
}

/* What rank 0 has found. */
static ql_status look(part *p) {
    if (journal_finished(p->journal)) return check_finished(p);
    QL_TRY(find_complete(p));
    return p->report ? finish(p) : check_committed(p);
}

ql_status part_open(ql_ctx *ctx, const quantize_request *request, const model *m, const token_file *tokens,
                    ql_arena *host, part *p) {
    bool leads = ql_comm_rank(request->comm) == 0;
    *p = (part){.request = request, .model = m, .tokens = tokens, .host = host};
    QL_TRY(resolve(p));
    if (leads) QL_TRY(check_output(p));
    QL_TRY(open_journal(ctx, p));
    if (leads) QL_TRY(look(p));
    int64_t state[2] = {leads ? journal_done(p->journal) : 0, p->report != NULL};
    QL_TRY(ql_comm_broadcast(request->comm, "layers done", 0, state, sizeof state));
    p->done = state[0];
    p->complete = state[1];
    return QL_OK;
}

/* ---- layers --------------------------------------------------------------------------------------------------------------- */

ql_status part_load(part *p, int64_t layer, ql_arena *host, layer_result *result) {
    char *path;
    QL_TRY(journal_layer_path(p->request->work_dir, layer, host, &path));
    ql_status status = layer_load(path, p->engine, layer, part_rules(p, layer), host, result);
    return status == QL_MISSING ? QL_DISK : status; /* it was there when the job began: no input */
}

static ql_status commit(part *p, const layer_result *result) {
    char *path;
    QL_TRY(journal_layer_path(p->request->work_dir, result->layer, p->engine->host, &path));
    QL_TRY(layer_save(path, result, &p->model->config, p->engine->host));
    json_t *record = report_layer(result, part_rules(p, result->layer), &p->model->config);
    ql_status status =
        record ? journal_commit(p->journal, result->layer, record) : ql_fail(QL_NOMEM, "no memory for a record");
    json_decref(record);
    return status;
}

ql_status part_commit(part *p, const layer_result *result) {
    phases_enter(&p->engine->phases, PHASE_WRITE, 0);
    p->done = result->layer + 1;
    return p->journal ? commit(p, result) : QL_OK;
}

/* ---- the output ----------------------------------------------------------------------------------------------------------- */

/* A zero point of 0 cannot be stored by GPTQ v1; only the literature's free ones can be 0. */
static bool has_zero_point_0(const layer_result *result) {
    for (linear_id id = 0; id < LINEARS; id++) {
        const qmodule *q = &result->module[id];
        if (result->quantized[id] && memchr(q->zero, 0, (size_t)(q->n * ql_groups(q->k, q->group)))) return true;
    }
    return false;
}

static ql_status find_free_zeros(part *p) {
    bool found = false;
    if (!p->request->recipe.literature || p->request->format != OUTPUT_GPTQ) return QL_OK;
    for (int64_t layer = 0; !found && layer < p->model->config.layers; layer++) {
        layer_result result;
        ql_arena_release(p->engine->host, (ql_mark){0});
        QL_TRY(part_load(p, layer, p->engine->host, &result));
        found = has_zero_point_0(&result);
    }
    if (!found) return QL_OK;
    p->scheme.version = 2;
    ql_log(QL_WARNING, "zero points of 0 occur, which GPTQ v1 cannot hold: the output is v2 (gptq_v2), which older "
                       "loaders misread");
    return QL_OK;
}

static ql_status write_layers(part *p, output *out) {
    for (int64_t layer = 0; layer < p->model->config.layers; layer++) {
        layer_result result;
        QL_TRY(cli_check_signal());
        ql_arena_release(p->engine->host, (ql_mark){0});
        QL_TRY(part_load(p, layer, p->engine->host, &result));
        QL_TRY(output_layer(out, layer, result.module, result.folded));
    }
    return QL_OK;
}

static ql_status describe_calibration(const part *p, ql_arena *arena, char **text) {
    const quantize_request *r = p->request;
    if (p->importance) return ql_arena_format(arena, text, "Importance of the inputs from an imatrix file.");
    if (r->format == OUTPUT_GGUF && !p->important) return ql_arena_format(arena, text, "None.");
    if (r->stats_dir && !r->tokens_path)
        return ql_arena_format(arena, text, "Statistics fp, from a store (qalib calibrate).");
    if (!r->tokens_path) return ql_arena_format(arena, text, "None: rounded to nearest.");
    return ql_arena_format(arena, text, "%lld rows of %lld tokens (SHA-256 of the token file %.16s...), statistics %s.",
                           (long long)p->tokens->n_seq, (long long)p->tokens->seq_len, p->tokens->sha256,
                           statistics_names[r->mode]);
}

static double bits_per_weight(const part *p, uint64_t output_bytes) {
    double weights = 0;
    for (int64_t i = 0; i < checkpoint_count(p->model->ck); i++) {
        const st_tensor *t = checkpoint_at(p->model->ck, i);
        size_t size = ql_dtype_size(t->dtype);
        if (size) weights += (double)t->size / (double)size;
    }
    return weights > 0 ? 8.0 * (double)output_bytes / weights : 0;
}

/* Of the quantized modules alone, from their shapes, as the file stores them: scales, zero points and indices included. */
static double quantized_bits(part *p) {
    double bytes = 0, weights = 0;
    if (p->request->format == OUTPUT_GGUF) return part_gguf_bits(p);
    ql_mark mark = ql_arena_mark(p->host);
    for (int64_t i = 0; i < p->modules.layers * LINEARS; i++) {
        const module_rule *rule = &p->modules.rules[i];
        qmodule q = {.name = "", .type = rule->type, .bits = rule->bits};
        layout_tensors tensors;
        linear_shape(&p->model->config, (linear_id)(i % LINEARS), &q.n, &q.k);
        q.group = rule->group < 0 ? q.k : rule->group;
        if (rule->skip || layout_encode(&p->scheme, &q, p->host, &tensors) != QL_OK) continue;
        weights += (double)q.n * (double)q.k;
        for (int t = 0; t < tensors.count; t++) bytes += (double)tensors.tensor[t].size;
        ql_arena_release(p->host, mark);
    }
    return weights > 0 ? 8 * bytes / weights : 0;
}

static json_t *make_report(part *p, uint64_t output_bytes, int64_t samples_skipped, size_t device_peak) {
    const quantize_request *r = p->request;
    json_t *layers = json_array(), *totals, *skipped = json_array();
    for (int64_t layer = 0; layer < p->model->config.layers; layer++)
        json_array_append(layers, (json_t *)(uintptr_t)journal_record(p->journal, layer));
    for (int64_t i = 0; i < p->modules.n_skipped; i++)
        json_array_append_new(skipped, json_string(p->modules.skipped[i]));
    totals = report_totals(layers);
    json_t *report = json_pack(
        "{s:i, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:I, s:I, s:f, s:f, s:I, s:o}", "version", 1,
        "job", p->fingerprint, "model", r->model_dir, "format", output_format_names[r->format], "statistics",
        statistics_names[r->mode], "forward", pass_name(p->model), "samples",
        (json_int_t)(p->tokens ? p->tokens->n_seq : 0), "tokens", (json_int_t)(p->tokens ? p->tokens->n_tokens : 0),
        "recipe", recipe_json(&r->recipe), "layers", layers, "totals", totals, "kept_in_16_bits", skipped,
        "source_bytes", (json_int_t)checkpoint_bytes(p->model->ck), "output_bytes", (json_int_t)output_bytes,
        "bits_per_weight", bits_per_weight(p, output_bytes), "bits_per_quantized_weight", quantized_bits(p),
        "samples_skipped", (json_int_t)samples_skipped, "environment", report_environment(p->engine, device_peak));
    if (report && r->format == OUTPUT_GGUF)
        json_object_set_new(report, "importance",
                            json_string(!p->important   ? "none"
                                        : p->importance ? "imatrix"
                                                        : statistics_names[r->mode]));
    return report;
}

ql_status part_write(part *p, int64_t samples_skipped, size_t device_peak) {
    output *out = NULL;
    output_texts texts = {0};
    phases_enter(&p->engine->phases, PHASE_WRITE, 0);
    QL_TRY(find_free_zeros(p));
    bool dense = p->request->format == OUTPUT_DENSE, gguf = p->request->format == OUTPUT_GGUF;
    const output_request request = {
        .scheme = dense || gguf ? NULL : &p->scheme,
        .gguf = gguf ? &p->gguf : NULL,
        .shard_size = p->request->shard_size,
        .job = p->fingerprint,
    };
    char *yaml, *calibration;
    QL_TRY(recipe_yaml(&p->request->recipe, p->host, &yaml));
    QL_TRY(describe_calibration(p, p->host, &calibration));
    texts.recipe_yaml = yaml;
    texts.calibration = calibration;
    if (gguf) texts.mix = gguf_mix_name(p->gguf.mix);
    ql_status status = output_open(p->request->out_dir, p->model->ck, &p->model->config, &request, &out);
    if (status == QL_OK) status = gguf ? part_gguf_write(p, out) : write_layers(p, out);
    if (status == QL_OK) {
        p->report = make_report(p, output_tensor_bytes(out), samples_skipped, device_peak);
        texts.report = p->report;
        status = p->report ? output_finish(out, &texts) : ql_fail(QL_NOMEM, "no memory for the report");
    }
    output_close(out);
    if (status == QL_OK) status = finish(p);
    p->complete = status == QL_OK;
    return status;
}

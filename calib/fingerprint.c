#include "calib/fingerprint.h"

#include <string.h>

#include "formats/json.h"

/* Raised whenever the same inputs give other bytes. */
enum { ALGORITHM_VERSION = 2 };

static ql_status hash_file(const char *dir, const char *name, char text[65]) {
    unsigned char digest[32];
    ql_arena *arena;
    char *path;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = ql_arena_format(arena, &path, "%s/%s", dir, name);
    if (status == QL_OK) status = ql_file_sha256(path, digest);
    if (status == QL_OK) ql_hex(digest, sizeof digest, text);
    ql_arena_close(arena);
    return status;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static ql_status model_part(const model *m, json_t **out) {
    char config[65], header[65];
    QL_TRY(hash_file(checkpoint_dir(m->ck), "config.json", config));
    json_t *files = json_object();
    for (int64_t i = 0; i < checkpoint_file_count(m->ck); i++) {
        const st_file *file = checkpoint_file(m->ck, i);
        ql_hex(file->header_sha256, sizeof file->header_sha256, header);
        json_object_set_new(
            files, base_name(file->path),
            json_pack("{s:I, s:s}", "size", (json_int_t)ql_source_size(file->source), "header_sha256", header));
    }
    *out = json_pack("{s:s, s:o}", "config_sha256", config, "files", files);
    return *out ? QL_OK : ql_fail(QL_NOMEM, "no memory for the fingerprint");
}

/* What every job depends on.  The processor stands here because another one may round a sum differently. */
static ql_status common_part(ql_ctx *ctx, const model *m, const token_file *tokens, const char *job, json_t **out) {
    json_t *source;
    QL_TRY(model_part(m, &source));
    *out = json_pack("{s:s, s:s, s:i, s:o, s:s, s:s, s:s}", "job", job, "qalib", QL_VERSION, "algorithm",
                     ALGORITHM_VERSION, "model", source, "tokens_sha256", tokens ? tokens->sha256 : "", "device",
                     ql_ctx_describe(ctx), "forward", pass_name(m));
    return *out ? QL_OK : ql_fail(QL_NOMEM, "no memory for the fingerprint");
}

static ql_status add(json_t *fingerprint, const char *key, json_t *value) {
    if (json_object_set_new(fingerprint, key, value) == 0) return QL_OK;
    json_decref(fingerprint);
    return ql_fail(QL_NOMEM, "no memory for the fingerprint");
}

/* A store is known by its first layer's file: all of its layers carry the same fingerprint; one that was made of the job's own rows, by
 * these. */
static ql_status stats_part(const quantize_request *request, char text[65]) {
    text[0] = 0;
    bool foreign = request->stats_dir && !request->tokens_path;
    return foreign ? hash_file(request->stats_dir, "layer-0000.h5", text) : QL_OK;
}

static ql_status importance_part(const quantize_request *request, char text[65]) {
    unsigned char digest[32];
    text[0] = 0;
    if (!request->imatrix_path) return QL_OK;
    QL_TRY(ql_file_sha256(request->imatrix_path, digest));
    ql_hex(digest, sizeof digest, text);
    return QL_OK;
}

ql_status fingerprint_quantize(ql_ctx *ctx, const model *m, const token_file *tokens, const quantize_request *request,
                               json_t **out) {
    char stats[65], importance[65];
    QL_TRY(stats_part(request, stats));
    QL_TRY(importance_part(request, importance));
    QL_TRY(common_part(ctx, m, tokens, "quantize", out));
    QL_TRY(add(*out, "recipe", recipe_json(&request->recipe)));
    QL_TRY(add(*out, "statistics", json_string(statistics_names[request->mode])));
    QL_TRY(add(*out, "stats_sha256", json_string(stats)));
    QL_TRY(add(*out, "format", json_string(output_format_names[request->format])));
    if (importance[0]) QL_TRY(add(*out, "imatrix_sha256", json_string(importance)));
    return add(*out, "shard_size", json_integer((json_int_t)request->shard_size));
}

ql_status fingerprint_calibrate(ql_ctx *ctx, const model *m, const token_file *tokens, const calibrate_request *request,
                                json_t **out) {
    QL_TRY(common_part(ctx, m, tokens, "calibrate", out));
    return add(*out, "collect", json_integer(request->kinds));
}

static ql_status hash_document(const json_t *document, char text[65]) {
    unsigned char digest[32];
    ql_arena *arena;
    char *canonical;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = ql_json_canonical(document, arena, &canonical);
    if (status == QL_OK) ql_sha256(canonical, strlen(canonical), digest);
    if (status == QL_OK) ql_hex(digest, sizeof digest, text);
    ql_arena_close(arena);
    return status;
}

ql_status fingerprint_job(const json_t *fingerprint, char text[65]) { return hash_document(fingerprint, text); }

ql_status fingerprint_source(const json_t *fingerprint, char text[65]) {
    return hash_document(json_object_get(fingerprint, "model"), text);
}

/* Every field on a line of its own, so that ranks that differ can say in what. */
ql_status fingerprint_agree(ql_comm *comm, const json_t *fingerprint, ql_arena *host) {
    char *text;
    const char *key;
    json_t *value;
    QL_TRY(ql_arena_string(host, "", &text));
    json_object_foreach((json_t *)(uintptr_t)fingerprint, key, value) {
        char *canonical;
        QL_TRY(ql_json_canonical(value, host, &canonical));
        QL_TRY(ql_arena_format(host, &text, "%s%s=%s\n", text, key, canonical));
    }
    return ql_comm_agree(comm, "this job", text);
}

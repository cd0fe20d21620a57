#include "calib/verify.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "calib/output_parts.h"
#include "calib/verify_parts.h"
#include "formats/json.h"

#define SUMS "SHA256SUMS"
#define INDEX "model.safetensors.index.json"

enum { SUMS_LIMIT = 16 << 20, INDEX_LIMIT = 256 << 20, NAME_LENGTH = 255 };

/* ---- findings ------------------------------------------------------------------------------------------------------------------ */

ql_status verify_note(verifier *v, const char *format, ...) {
    char text[1024], *copy;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (v->result->findings++ >= VERIFY_SHOWN) return QL_OK;
    QL_TRY(ql_arena_string(v->arena, text, &copy));
    v->result->finding[v->result->findings - 1] = copy;
    return QL_OK;
}

ql_status verify_absorb(verifier *v, ql_status status) {
    bool is_data = status == QL_FORMAT || status == QL_MISSING || status == QL_MISMATCH || status == QL_NUMERIC;
    return is_data ? verify_note(v, "%s", ql_last_error()) : status;
}

/* ---- files and hashes ---------------------------------------------------------------------------------------------------------- */

static bool ends_with(const char *text, const char *suffix) {
    size_t length = strlen(text), tail = strlen(suffix);
    return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

/* Names of the files in the directory, sorted. */
typedef struct listing {
    const char **names;
    bool *listed; /* in SHA256SUMS */
    size_t count;
} listing;

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static ql_status list_directory(verifier *v, listing *out) {
    struct dirent **entries;
    int count = scandir(v->dir, &entries, NULL, NULL);
    if (count < 0) return ql_fail_errno("%s", v->dir);
    *out = (listing){0};
    ql_status status = ql_take(v->arena, (size_t)count, sizeof *out->names, &out->names);
    if (status == QL_OK) status = ql_take(v->arena, (size_t)count, sizeof *out->listed, &out->listed);
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        bool is_self = strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
        if (status == QL_OK && !is_self) status = ql_arena_string(v->arena, name, (char **)&out->names[out->count]);
        if (status == QL_OK && !is_self) out->count++;
        free(entries[i]);
    }
    free(entries);
    if (status == QL_OK) qsort(out->names, out->count, sizeof *out->names, by_text);
    return status;
}

static ql_status check_sum(verifier *v, listing *files, const char *hex, const char *name) {
    const char **found = bsearch(&name, files->names, files->count, sizeof *files->names, by_text);
    if (!found) return verify_note(v, "%s/%s: is missing, " SUMS " lists it", v->dir, name);
    files->listed[found - files->names] = true;
    char *path, actual[65];
    unsigned char sha256[32];
    QL_TRY(ql_arena_format(v->arena, &path, "%s/%s", v->dir, name));
    ql_status status = ql_file_sha256(path, sha256);
    if (status != QL_OK) return verify_absorb(v, status);
    ql_hex(sha256, 32, actual);
    v->result->files++;
    if (strcmp(actual, hex) == 0) return QL_OK;
    return verify_note(v, "%s: its SHA-256 is not that of " SUMS, path);
}

/* Lines as sha256sum writes them: 64 hexadecimal digits, two spaces (or space and star), the name. */
static ql_status check_sums(verifier *v, listing *files) {
    char *path, *text;
    size_t size;
    QL_TRY(ql_arena_format(v->arena, &path, "%s/" SUMS, v->dir));
    ql_status status = ql_file_load(path, SUMS_LIMIT, v->arena, &text, &size);
    if (status != QL_OK) return verify_absorb(v, status);
    if (memchr(text, 0, size)) return verify_note(v, "%s: is no text", path);
    int number = 0;
    for (char *line = text, *next; *line; line = next) {
        number++;
        next = line + strcspn(line, "\n");
        if (*next) *next++ = 0;
        bool well_formed = strspn(line, "0123456789abcdef") == 64 && line[64] == ' ' &&
                           (line[65] == ' ' || line[65] == '*') && line[66] && !strchr(line + 66, '/');
        if (!well_formed) {
            QL_TRY(verify_note(v, "%s: line %d is no checksum", path, number));
            continue;
        }
        line[64] = 0;
        QL_TRY(check_sum(v, files, line, line + 66));
    }
    return QL_OK;
}

static bool is_weight_file(const char *name) {
    return ends_with(name, ".safetensors") || ends_with(name, ".safetensors.index.json") || ends_with(name, ".bin") ||
           ends_with(name, ".gguf");
}

static ql_status check_files(verifier *v) {
    listing files;
    const char *sums = SUMS;
    QL_TRY(list_directory(v, &files));
    v->result->hashed = bsearch(&sums, files.names, files.count, sizeof *files.names, by_text) != NULL;
    if (v->result->hashed) QL_TRY(check_sums(v, &files));
    for (size_t i = 0; i < files.count; i++) {
        const char *name = files.names[i];
        if (strcmp(name, OUTPUT_MARKER) == 0)
            QL_TRY(verify_note(v, "%s: is incomplete, its job did not finish", v->dir));
        else if (ends_with(name, ".tmp")) QL_TRY(verify_note(v, "%s/%s: left by an interrupted write", v->dir, name));
        else if (!v->result->hashed || files.listed[i] || strcmp(name, SUMS) == 0) continue;
        else if (is_weight_file(name))
            QL_TRY(verify_note(v, "%s/%s: a stray file that loaders may read", v->dir, name));
        else if (v->result->extras++ < VERIFY_SHOWN) v->result->extra[v->result->extras - 1] = name;
    }
    return QL_OK;
}

/* ---- structure ------------------------------------------------------------------------------------------------------------------- */

/* exllamav2 and others load every *.safetensors of the folder. */
static ql_status check_stray_shards(verifier *v) {
    listing files;
    QL_TRY(list_directory(v, &files));
    for (size_t i = 0; i < files.count; i++) {
        if (!ends_with(files.names[i], ".safetensors")) continue;
        bool known = false;
        for (int64_t f = 0; f < checkpoint_file_count(v->ck) && !known; f++) {
            const char *path = checkpoint_file(v->ck, f)->path, *slash = strrchr(path, '/');
            known = strcmp(slash ? slash + 1 : path, files.names[i]) == 0;
        }
        if (!known)
            QL_TRY(
                verify_note(v, "%s/%s: the index does not name it, but some loaders read it", v->dir, files.names[i]));
    }
    return QL_OK;
}

static ql_status check_total_size(verifier *v) {
    char *path;
    json_t *index;
    QL_TRY(ql_arena_format(v->arena, &path, "%s/" INDEX, v->dir));
    if (!ql_path_exists(path)) return QL_OK;
    QL_TRY(ql_json_load(path, INDEX_LIMIT, &index));
    const json_t *total = json_object_get(json_object_get(index, "metadata"), "total_size");
    ql_status status = QL_OK;
    if (!json_is_integer(total) || (uint64_t)json_integer_value(total) != checkpoint_bytes(v->ck))
        status = verify_note(v, "%s: total_size is %lld, the tensors have %llu bytes", path,
                             (long long)json_integer_value(total), (unsigned long long)checkpoint_bytes(v->ck));
    json_decref(index);
    return status;
}

static bool is_float(ql_dtype dtype) { return dtype == QL_F16 || dtype == QL_BF16 || dtype == QL_F32; }

static ql_status compare_tensor(verifier *v, const st_tensor *want, const st_tensor *found) {
    bool same_shape = found->rank == want->rank, is_text = ends_with(want->name, ".quant_state.bitsandbytes__nf4");
    for (int d = 0; same_shape && !is_text && d < want->rank; d++) same_shape = found->shape[d] == want->shape[d];
    if (!same_shape)
        return verify_note(v, "%s: \"%s\" has not the shape [%lld%s%.0lld] that config.json implies", v->dir,
                           want->name, (long long)want->shape[0], want->rank == 2 ? ", " : "",
                           want->rank == 2 ? (long long)want->shape[1] : 0);
    if (is_float(want->dtype) ? is_float(found->dtype) : found->dtype == want->dtype) return QL_OK;
    return verify_note(v, "%s: \"%s\" is %s, must be %s", v->dir, want->name, found->dtype_name, want->dtype_name);
}

/* Old AutoGPTQ files carry zero biases for models without any, old Llama ones their rotary frequencies: harmless. */
static ql_status check_extra(verifier *v, const st_tensor *tensor) {
    if (ends_with(tensor->name, ".rotary_emb.inv_freq")) return QL_OK;
    if (v->scheme && ends_with(tensor->name, ".bias") && tensor->rank == 1) {
        unsigned char *data;
        QL_TRY(ql_take(v->arena, tensor->size, 1, &data));
        QL_TRY(checkpoint_read(v->ck, tensor, data));
        uint64_t i = 0;
        while (i < tensor->size && data[i] == 0) i++;
        if (i == tensor->size) return QL_OK;
    }
    return verify_note(v, "%s: \"%s\" is not part of this model", v->dir, tensor->name);
}

static int by_tensor_name(const void *a, const void *b) {
    return strcmp(((const plan_item *)a)->tensor.name, ((const plan_item *)b)->tensor.name);
}

/* The names that config.json and the scheme imply, and those that are there; both sorted. */
static ql_status check_tensors(verifier *v) {
    output_plan plan;
    QL_TRY(output_plan_make(v->config, v->scheme, QL_F16, UINT64_MAX / 2, v->arena, &plan));
    qsort(plan.items, (size_t)plan.count, sizeof *plan.items, by_tensor_name);
    int64_t w = 0, f = 0, count = checkpoint_count(v->ck);
    v->result->tensors = count;
    while (w < plan.count || f < count) {
        const st_tensor *want = w < plan.count ? &plan.items[w].tensor : NULL,
                        *found = f < count ? checkpoint_at(v->ck, f) : NULL;
        int order = !want ? 1 : !found ? -1 : strcmp(want->name, found->name);
        bool may_miss =
            order < 0 && ends_with(want->name, ".g_idx"); /* files of other tools; decoding knows whether it may */
        if (order == 0) QL_TRY(compare_tensor(v, want, found));
        else if (order > 0) QL_TRY(check_extra(v, found));
        else if (!may_miss) QL_TRY(verify_note(v, "%s: \"%s\" is missing", v->dir, want->name));
        w += order <= 0;
        f += order >= 0;
    }
    return QL_OK;
}

static ql_status check_structure(verifier *v, model_config *config, layout_scheme *scheme) {
    QL_TRY(check_stray_shards(v));
    QL_TRY(verify_absorb(v, check_total_size(v)));
    QL_TRY(model_config_parse(checkpoint_config(v->ck), v->dir, v->arena, config));
    v->config = config;
    char *side;
    QL_TRY(ql_arena_format(v->arena, &side, "%s/quantize_config.json", v->dir));
    if (config->is_quantized || ql_path_exists(side)) {
        QL_TRY(layout_read(v->ck, scheme));
        v->scheme = scheme;
        v->result->quantized = true;
    }
    return check_tensors(v);
}

ql_status verify_directory(const char *dir, const char *base, ql_arena *arena, verify_result *result) {
    *result = (verify_result){0};
    verifier v = {.dir = dir, .arena = arena, .result = result};
    checkpoint *ck = NULL, *base_ck = NULL;
    model_config config;
    layout_scheme scheme;
    char *gguf;
    QL_TRY(gguf_model_file(dir, arena, &gguf));
    if (!gguf || strcmp(gguf, dir) != 0) QL_TRY(check_files(&v));
    if (gguf) return verify_gguf(&v, gguf, base);
    ql_status status = checkpoint_open(dir, &ck);
    v.ck = ck;
    if (status == QL_OK) status = check_structure(&v, &config, &scheme);
    bool readable = status == QL_OK;
    status = verify_absorb(&v, status);
    if (status == QL_OK && base) status = checkpoint_open(base, &base_ck);
    v.base = base_ck;
    if (status == QL_OK && base) status = verify_absorb(&v, verify_find_smoothing(&v));
    if (status == QL_OK && readable) status = verify_weights(&v);
    checkpoint_close(base_ck);
    checkpoint_close(ck);
    return status;
}

#include "calib/inspect.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "calib/inspect_parts.h"
#include "formats/gguf.h"
#include "formats/layout.h"
#include "formats/stats.h"
#include "formats/tokens.h"
#include "host/num.h"

/* Tensors from one safetensors file or from a whole checkpoint. */
typedef struct listing {
    const inspect_request *request;
    ql_arena *arena;
    checkpoint *ck; /* or */
    st_file *file;
} listing;

static int64_t tensor_count(const listing *l) { return l->ck ? checkpoint_count(l->ck) : l->file->count; }
static const st_tensor *tensor_at(const listing *l, int64_t i) {
    return l->ck ? checkpoint_at(l->ck, i) : &l->file->tensors[i];
}

static double elements(const st_tensor *t) {
    double count = 1;
    for (int i = 0; i < t->rank; i++) count *= (double)t->shape[i];
    return count;
}

static ql_status no_memory(void) { return ql_fail(QL_NOMEM, "no memory for the listing"); }

/* A new value into an object; the value may be NULL when memory ran out. */
static ql_status put(json_t *object, const char *key, json_t *value) {
    return json_object_set_new(object, key, value) == 0 ? QL_OK : no_memory();
}
static ql_status append(json_t *array, json_t *value) {
    return json_array_append_new(array, value) == 0 ? QL_OK : no_memory();
}

/* ---- values ---------------------------------------------------------------------------------------------------------------- */

static bool is_float(ql_dtype dtype) {
    return dtype == QL_F64 || dtype == QL_F32 || dtype == QL_F16 || dtype == QL_BF16;
}

static double value_at(const void *data, ql_dtype dtype, uint64_t i) {
    switch (dtype) {
    case QL_F64: return ((const double *)data)[i];
    case QL_F32: return ((const float *)data)[i];
    case QL_F16: return ql_f16_to_f32(((const uint16_t *)data)[i]);
    default: return ql_bf16_to_f32(((const uint16_t *)data)[i]);
    }
}

/* [3, 17] from the 17th value of the row 3. */
static ql_status not_finite(const listing *l, const st_tensor *t, uint64_t index) {
    char position[160] = "";
    uint64_t rest = index, place[ST_MAX_RANK];
    for (int i = t->rank; i-- > 0; rest /= (uint64_t)t->shape[i]) place[i] = rest % (uint64_t)t->shape[i];
    for (int i = 0; i < t->rank; i++)
        snprintf(position + strlen(position), sizeof position - strlen(position), "%s%llu", i ? ", " : "",
                 (unsigned long long)place[i]);
    return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is not finite at [%s] (element %llu); the file is damaged",
                   l->request->path, t->name, position, (unsigned long long)index);
}

/* Reads a tensor whole; one after the other, in memory that is given back. */
static ql_status survey(const listing *l, const st_tensor *t, json_t *entry) {
    void *data;
    double least = INFINITY, greatest = -INFINITY, mean = 0, squares = 0;
    uint64_t bad = 0, size = ql_dtype_size(t->dtype), count = size ? t->size / size : 0;
    if (!is_float(t->dtype) || count == 0) return QL_OK;
    QL_TRY(ql_take(l->arena, t->size, 1, &data));
    QL_TRY(l->ck ? checkpoint_read(l->ck, t, data) : st_read(l->file, t, data));
    for (uint64_t i = 0; i < count; i++) {
        double x = value_at(data, t->dtype, i), step = x - mean;
        if (!isfinite(x)) {
            if (l->request->check_finite) return not_finite(l, t, i);
            bad++;
            continue;
        }
        least = x < least ? x : least;
        greatest = x > greatest ? x : greatest;
        mean += step / (double)(i + 1 - bad);
        squares += step * (x - mean);
    }
    if (!l->request->stats) return QL_OK;
    double finite = (double)(count - bad);
    QL_TRY(put(entry, "min", finite > 0 ? json_real(least) : json_null()));
    QL_TRY(put(entry, "max", finite > 0 ? json_real(greatest) : json_null()));
    QL_TRY(put(entry, "mean", json_real(mean)));
    QL_TRY(put(entry, "std", json_real(finite > 0 ? sqrt(squares / finite) : 0)));
    return put(entry, "not_finite", json_integer((json_int_t)bad));
}

/* ---- tensors --------------------------------------------------------------------------------------------------------------- */

static ql_status add_tensor(const listing *l, const st_tensor *t, json_t *tensors) {
    json_t *entry = json_pack("{s:s, s:s, s:[], s:I}", "name", t->name, "dtype", t->dtype_name, "shape", "bytes",
                              (json_int_t)t->size);
    QL_TRY(append(tensors, entry));
    for (int i = 0; i < t->rank; i++) QL_TRY(append(json_object_get(entry, "shape"), json_integer(t->shape[i])));
    if (!l->request->stats && !l->request->check_finite) return QL_OK;
    ql_mark mark = ql_arena_mark(l->arena);
    ql_status status = survey(l, t, entry);
    ql_arena_release(l->arena, mark);
    return status;
}

static void add_to(json_t *object, const char *key, double value) {
    json_int_t old = json_integer_value(json_object_get(object, key));
    json_object_set_new(object, key, json_integer(old + (json_int_t)value));
}

/* "BF16": {tensors, elements, bytes} */
static ql_status count_dtype(const st_tensor *t, json_t *dtypes) {
    json_t *entry = json_object_get(dtypes, t->dtype_name);
    if (!entry) {
        entry = json_pack("{s:i, s:i, s:i}", "tensors", 0, "elements", 0, "bytes", 0);
        QL_TRY(put(dtypes, t->dtype_name, entry));
    }
    add_to(entry, "tensors", 1);
    add_to(entry, "elements", elements(t));
    add_to(entry, "bytes", (double)t->size);
    return QL_OK;
}

static ql_status list_tensors(const listing *l, json_t *document) {
    json_t *dtypes = json_object();
    QL_TRY(put(document, "dtypes", dtypes));
    json_t *tensors = json_array();
    QL_TRY(put(document, "tensors", tensors));
    for (int64_t i = 0; i < tensor_count(l); i++) {
        QL_TRY(count_dtype(tensor_at(l, i), dtypes));
        QL_TRY(add_tensor(l, tensor_at(l, i), tensors));
    }
    return QL_OK;
}

/* ---- a model directory ------------------------------------------------------------------------------------------------------- */

static double model_parameters(const model_config *config) {
    int64_t shape[2], count = model_tensor(config, 0, NULL, shape);
    double parameters = 0;
    for (int64_t i = 0; i < count; i++) {
        char name[NAME_SIZE];
        model_tensor(config, i, name, shape);
        parameters += (double)shape[0] * (double)(shape[1] ? shape[1] : 1);
    }
    return parameters;
}

/* Bytes per weight of the quantized modules alone: scales, zero points and indices included. */
static double quantized_bits(const checkpoint *ck, const model_config *config, const layout_scheme *scheme,
                             int64_t *modules) {
    double bytes = 0, weights = 0;
    *modules = 0;
    for (int64_t i = 0; i < config->layers * LINEARS; i++) {
        char module[NAME_SIZE], name[NAME_SIZE + 64];
        int64_t n, k;
        module_name(module, i / LINEARS, (linear_id)(i % LINEARS));
        if (!layout_has(ck, scheme, module)) continue;
        linear_shape(config, (linear_id)(i % LINEARS), &n, &k);
        weights += (double)n * (double)k;
        ++*modules;
        for (const char *const *suffix = layout_suffixes(scheme); *suffix; suffix++) {
            snprintf(name, sizeof name, "%s.%s", module, *suffix);
            const st_tensor *t = checkpoint_find(ck, name);
            bytes += t ? (double)t->size : 0;
        }
    }
    return weights > 0 ? 8 * bytes / weights : 0;
}

/* Names of the linears that are not quantized. */
static ql_status list_kept(const checkpoint *ck, const model_config *config, const layout_scheme *scheme,
                           json_t *quantization) {
    json_t *kept = json_array();
    QL_TRY(put(quantization, "kept_in_16_bits", kept));
    for (int64_t i = 0; i < config->layers * LINEARS; i++) {
        char module[NAME_SIZE];
        module_name(module, i / LINEARS, (linear_id)(i % LINEARS));
        if (!layout_has(ck, scheme, module)) QL_TRY(append(kept, json_string(module)));
    }
    return QL_OK;
}

static ql_status describe_quantization(const listing *l, const model_config *config, json_t *document) {
    layout_scheme scheme;
    int64_t modules;
    if (!config->is_quantized) return put(document, "quantization", json_null());
    QL_TRY(layout_read(l->ck, &scheme));
    double bits = quantized_bits(l->ck, config, &scheme, &modules);
    QL_TRY(put(document, "quantization",
               json_pack("{s:s, s:i, s:i, s:I, s:b, s:b, s:s, s:I, s:f}", "method", layout_method(&scheme), "version",
                         scheme.version, "bits", scheme.bits, "group_size", (json_int_t)scheme.group, "symmetric",
                         scheme.symmetric, "desc_act", scheme.desc_act, "kv_cache", scheme.kv_cache ? "fp8" : "none",
                         "modules", (json_int_t)modules, "bits_per_quantized_weight", bits)));
    return list_kept(l->ck, config, &scheme, json_object_get(document, "quantization"));
}

static ql_status list_files(const checkpoint *ck, json_t *document) {
    json_t *files = json_array();
    QL_TRY(put(document, "files", files));
    for (int64_t i = 0; i < checkpoint_file_count(ck); i++) {
        const st_file *file = checkpoint_file(ck, i);
        const char *slash = strrchr(file->path, '/');
        QL_TRY(append(files, json_pack("{s:s, s:I, s:I}", "name", slash ? slash + 1 : file->path, "bytes",
                                       (json_int_t)ql_source_size(file->source), "tensors", (json_int_t)file->count)));
    }
    return QL_OK;
}

static ql_status describe_model(const listing *l, json_t *document) {
    model_config config;
    QL_TRY(model_config_parse(checkpoint_config(l->ck), l->request->path, l->arena, &config));
    double parameters = model_parameters(&config), bytes = (double)checkpoint_bytes(l->ck);
    QL_TRY(put(document, "architecture", json_string(config.model_type)));
    QL_TRY(put(document, "config",
               json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "vocab", (json_int_t)config.vocab, "hidden",
                         (json_int_t)config.hidden, "intermediate", (json_int_t)config.intermediate, "layers",
                         (json_int_t)config.layers, "heads", (json_int_t)config.heads, "kv_heads",
                         (json_int_t)config.kv_heads, "head_dim", (json_int_t)config.head_dim, "tied_embeddings",
                         config.tied_embeddings)));
    QL_TRY(put(document, "parameters", json_integer((json_int_t)parameters)));
    QL_TRY(put(document, "bytes", json_integer((json_int_t)bytes)));
    QL_TRY(put(document, "bits_per_weight", json_real(8 * bytes / parameters)));
    QL_TRY(describe_quantization(l, &config, document));
    QL_TRY(list_files(l->ck, document));
    return list_tensors(l, document);
}

static ql_status inspect_directory(const inspect_request *request, ql_arena *arena, json_t *document) {
    listing l = {.request = request, .arena = arena};
    QL_TRY(put(document, "kind", json_string("model")));
    QL_TRY(checkpoint_open(request->path, &l.ck));
    ql_status status = describe_model(&l, document);
    checkpoint_close(l.ck);
    return status;
}

/* ---- files ------------------------------------------------------------------------------------------------------------------- */

static ql_status inspect_safetensors(const inspect_request *request, ql_arena *arena, json_t *document) {
    st_file file;
    listing l = {.request = request, .arena = arena, .file = &file};
    QL_TRY(st_open(request->path, NULL, arena, &file));
    ql_status status = put(document, "kind", json_string("safetensors"));
    if (status == QL_OK) status = put(document, "bytes", json_integer((json_int_t)ql_source_size(file.source)));
    if (status == QL_OK)
        status = put(document, "metadata", file.metadata ? json_deep_copy(file.metadata) : json_null());
    if (status == QL_OK) status = list_tensors(&l, document);
    st_close(&file);
    return status;
}

static ql_status inspect_tokens(const inspect_request *request, ql_arena *arena, json_t *document) {
    token_file t;
    QL_TRY(tokens_read(request->path, arena, &t));
    QL_TRY(put(document, "kind", json_string("tokens")));
    QL_TRY(put(document, "rows", json_integer(t.n_seq)));
    QL_TRY(put(document, "seq_len", json_integer(t.seq_len)));
    QL_TRY(put(document, "tokens", json_integer(t.n_tokens)));
    QL_TRY(put(document, "vocab", json_integer(t.vocab)));
    QL_TRY(put(document, "tokenizer_sha256", json_string(t.tokenizer_sha256)));
    return put(document, "sha256", json_string(t.sha256));
}

/* ---- statistics ------------------------------------------------------------------------------------------------------------ */

static ql_status list_inputs(const stats_layer *stats, json_t *document) {
    json_t *inputs = json_array();
    QL_TRY(put(document, "inputs", inputs));
    for (int site = 0; site < SITES; site++) {
        const stats_site *s = &stats->site[site];
        QL_TRY(append(inputs, json_pack("{s:s, s:I, s:I, s:b, s:b, s:b}", "name", site_names[site], "k",
                                        (json_int_t)s->k, "count", (json_int_t)s->count, "hessian", s->hessian != NULL,
                                        "moments", s->sum_sq != NULL, "histogram", s->abs_hist != NULL)));
    }
    return QL_OK;
}

/* The whole file is read, and with it checked. */
static ql_status describe_statistics(const char *path, ql_arena *arena, json_t *document) {
    stats_layer stats;
    struct stat info;
    if (stat(path, &info) != 0) return ql_fail_errno("%s", path);
    QL_TRY(stats_read(path, NULL, arena, &stats));
    QL_TRY(put(document, "bytes", json_integer((json_int_t)info.st_size)));
    QL_TRY(put(document, "layer", json_integer(stats.layer)));
    QL_TRY(put(document, "n_seq", json_integer((json_int_t)stats.n_seq)));
    QL_TRY(put(document, "n_tokens", json_integer((json_int_t)stats.n_tokens)));
    QL_TRY(put(document, "source_fingerprint", json_string(stats.fingerprint)));
    QL_TRY(put(document, "kv_heads", json_integer(stats.kv_width)));
    return list_inputs(&stats, document);
}

static ql_status is_store(const char *dir, ql_arena *arena, bool *store) {
    char *first, *config;
    QL_TRY(stats_path(arena, dir, 0, &first));
    QL_TRY(ql_arena_format(arena, &config, "%s/config.json", dir));
    *store = ql_path_exists(first) && !ql_path_exists(config);
    return QL_OK;
}

static ql_status inspect_store(const inspect_request *request, ql_arena *arena, json_t *document) {
    json_t *files = json_array();
    int64_t layer = 0;
    QL_TRY(put(document, "kind", json_string("statistics store")));
    QL_TRY(put(document, "files", files));
    for (;; layer++) {
        char *path;
        ql_mark mark = ql_arena_mark(arena);
        QL_TRY(stats_path(arena, request->path, layer, &path));
        if (!ql_path_exists(path)) break;
        json_t *entry = json_pack("{s:s}", "name", strrchr(path, '/') + 1);
        QL_TRY(append(files, entry));
        QL_TRY(describe_statistics(path, arena, entry));
        ql_arena_release(arena, mark);
    }
    return put(document, "layers", json_integer(layer));
}

/* Two formats share the signature: what is no token file is read as statistics, whose reader explains what is neither. */
static ql_status inspect_hdf5(const inspect_request *request, ql_arena *arena, json_t *document) {
    if (inspect_tokens(request, arena, document) == QL_OK) return QL_OK;
    QL_TRY(put(document, "kind", json_string("statistics")));
    return describe_statistics(request->path, arena, document);
}

static ql_status has_hdf5_signature(const char *path, bool *is_hdf5) {
    static const unsigned char signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    unsigned char start[8] = {0};
    ql_source *source;
    QL_TRY(ql_source_open(path, NULL, &source));
    ql_status status = QL_OK;
    if (ql_source_size(source) >= sizeof start) status = ql_source_read(source, start, sizeof start, 0);
    ql_source_close(source);
    *is_hdf5 = memcmp(start, signature, sizeof signature) == 0;
    return status;
}

static ql_status inspect_any(const inspect_request *request, ql_arena *arena, json_t *document) {
    struct stat info;
    bool is_hdf5, store;
    char *gguf;
    if (stat(request->path, &info) != 0) return ql_fail_errno("%s", request->path);
    QL_TRY(gguf_model_file(request->path, arena, &gguf));
    if (gguf) return inspect_gguf(gguf, arena, document);
    if (S_ISDIR(info.st_mode)) {
        QL_TRY(is_store(request->path, arena, &store));
        return store ? inspect_store(request, arena, document) : inspect_directory(request, arena, document);
    }
    QL_TRY(has_hdf5_signature(request->path, &is_hdf5));
    return is_hdf5 ? inspect_hdf5(request, arena, document) : inspect_safetensors(request, arena, document);
}

ql_status inspect_path(const inspect_request *request, json_t **document) {
    ql_arena *arena;
    *document = NULL;
    QL_TRY(ql_arena_open(NULL, &arena));
    json_t *made = json_pack("{s:s}", "path", request->path);
    ql_status status = made ? inspect_any(request, arena, made) : no_memory();
    if (status == QL_OK) *document = made;
    else json_decref(made);
    ql_arena_close(arena);
    return status;
}

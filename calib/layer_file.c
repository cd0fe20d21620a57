/* The committed form of a layer (calib/layer.h). */
#include <stdio.h>
#include <string.h>

#include "calib/layer.h"
#include "host/mat.h"

enum { CODES, SCALE, ZERO, G_IDX, INPUT_SCALE, ABSMAX, NESTED, PARTS, MAX_TENSORS = PARTS * LINEARS + FOLDED };
static const char *const part_names[PARTS] = {"codes", "scale", "zero", "g_idx", "input_scale", "absmax", "nested"};

/* Shape and type of one part of a module, and where its data are. */
static st_tensor describe(const qmodule *q, int part, const char *name) {
    int64_t groups = ql_groups(q->k, q->group);
    st_tensor t = {.name = name, .rank = 2, .shape = {q->n, groups}};
    if (q->type == CODE_NF4 && part == SCALE) t.rank = 1, t.shape[0] = qmodule_scales(q);
    if (q->type == CODE_BLOCKS) {
        t.dtype = QL_U8, t.shape[1] = gguf_row_bytes(q->stored, q->k), t.dtype_name = ql_dtype_name(t.dtype);
        return t;
    }
    switch (part) {
    case CODES: t.dtype = QL_I32, t.shape[1] = ql_packed_words(q->k, q->bits); break;
    case SCALE: t.dtype = QL_F32; break;
    case ZERO: t.dtype = QL_U8; break;
    case G_IDX: t.dtype = QL_I32, t.rank = 1, t.shape[0] = q->k; break;
    case ABSMAX: t.dtype = QL_U8, t.rank = 1, t.shape[0] = qmodule_scales(q); break;
    case NESTED: t.dtype = QL_F32, t.rank = 1, t.shape[0] = ql_ceil_div(qmodule_scales(q), 256) + 1; break;
    default: t.dtype = QL_F32, t.rank = 1, t.shape[0] = 1;
    }
    t.dtype_name = ql_dtype_name(t.dtype);
    return t;
}

static void **part_data(qmodule *q, int part) {
    void **const parts[PARTS] = {(void **)&q->codes,       (void **)&q->scale,  (void **)&q->zero,  (void **)&q->g_idx,
                                 (void **)&q->input_scale, (void **)&q->absmax, (void **)&q->nested};
    return parts[part];
}

/* Has every module of its kind this part?  Order of groups and input scales are a matter of the recipe. */
static bool has_part(code_type type, int part) {
    switch (part) {
    case CODES: return true;
    case SCALE: return type != CODE_BLOCKS;
    case ZERO: return type == CODE_INT;
    case ABSMAX:
    case NESTED: return type == CODE_NF4;
    default: return false;
    }
}

/* A tensor that smoothing changed or calibration added; all are vectors. */
static int64_t folded_size(const model_config *config, folded_id id) {
    int64_t n, k;
    if (folded_is_added(id)) return 1;
    if (id == FOLDED_NORM_IN || id == FOLDED_NORM_MLP) return config->hidden;
    linear_shape(config, id == FOLDED_V_BIAS ? LIN_V : LIN_UP, &n, &k);
    return n;
}

static st_tensor describe_folded(const model_config *config, folded_id id) {
    return (st_tensor){.name = folded_names[id],
                       .dtype = QL_F32,
                       .dtype_name = ql_dtype_name(QL_F32),
                       .rank = 1,
                       .shape = {folded_size(config, id)}};
}

ql_status layer_save(const char *path, const layer_result *result, const model_config *config, ql_arena *host) {
    st_tensor tensors[MAX_TENSORS];
    struct {
        const char *name;
        const void *data;
    } sources[MAX_TENSORS];
    int count = 0;
    for (folded_id id = 0; id < FOLDED; id++) {
        if (!result->folded[id]) continue;
        tensors[count] = describe_folded(config, id);
        sources[count].name = tensors[count].name;
        sources[count++].data = result->folded[id];
    }
    for (linear_id id = 0; id < LINEARS; id++) {
        qmodule q = result->module[id];
        for (int part = 0; result->quantized[id] && part < PARTS; part++) {
            const void *data = *part_data(&q, part);
            char *name;
            if (!data) continue;
            QL_TRY(ql_arena_format(host, &name, "%s.%s", q.name, part_names[part]));
            tensors[count] = describe(&q, part, name);
            sources[count].name = name;
            sources[count++].data = data;
        }
    }
    st_writer *writer;
    QL_TRY(st_writer_open(path, tensors, count, NULL, &writer)); /* sorts the tensors */
    ql_status status = QL_OK;
    for (int i = 0; status == QL_OK && i < count; i++)
        for (int s = 0; s < count; s++)
            if (tensors[i].name == sources[s].name) status = st_writer_put(writer, &tensors[i], sources[s].data);
    if (status == QL_OK) return st_writer_commit(writer, NULL);
    st_writer_abort(writer);
    return status;
}

ql_status layer_file_size(const model_config *config, int64_t layer, const module_rule *rules, const recipe *r,
                          bool dynamic, ql_arena *host, uint64_t *size) {
    bool smoothed = r->smoothing != SMOOTHING_NONE;
    st_tensor tensors[MAX_TENSORS];
    int count = 0;
    for (folded_id id = 0; id < FOLDED; id++)
        if (folded_is_added(id) ? r->kv_cache : smoothed) tensors[count++] = describe_folded(config, id);
    for (linear_id id = 0; id < LINEARS; id++) {
        qmodule q = {.type = rules[id].type, .bits = rules[id].bits, .stored = rules[id].stored};
        char module[NAME_SIZE], *name;
        if (rules[id].skip) continue;
        module_name(module, layer, id);
        linear_shape(config, id, &q.n, &q.k);
        q.group = rules[id].group < 0 ? q.k : rules[id].group;
        bool with_g_idx = dynamic && rules[id].method == METHOD_GPTQ && q.group < q.k;
        for (int part = 0; part < PARTS; part++) {
            bool with_input_scale = r->activations == ACTIVATIONS_STATIC;
            bool present = part == G_IDX ? with_g_idx : part == INPUT_SCALE ? with_input_scale : has_part(q.type, part);
            if (!present) continue;
            QL_TRY(ql_arena_format(host, &name, "%s.%s", module, part_names[part]));
            tensors[count++] = describe(&q, part, name);
        }
    }
    return st_file_size(tensors, count, NULL, size);
}

static const st_tensor *find(const st_file *file, const char *module, const char *part) {
    char name[NAME_SIZE + 8];
    snprintf(name, sizeof name, "%s.%s", module, part);
    for (int64_t i = 0; i < file->count; i++)
        if (strcmp(file->tensors[i].name, name) == 0) return &file->tensors[i];
    return NULL;
}

static ql_status load_module(const st_file *file, qmodule *q, ql_arena *host) {
    for (int part = 0; part < PARTS; part++) {
        const st_tensor *t = find(file, q->name, part_names[part]), expected = describe(q, part, q->name);
        if (!t && !has_part(q->type, part)) continue;
        if (!t || t->dtype != expected.dtype || t->rank != expected.rank || t->shape[0] != expected.shape[0] ||
            (t->rank == 2 && t->shape[1] != expected.shape[1]))
            return ql_fail(
                QL_FORMAT,
                "%s: \"%s.%s\" is missing or has another shape; remove the file to have the layer made again",
                file->path, q->name, part_names[part]);
        QL_TRY(ql_take(host, t->size, 1, part_data(q, part)));
        QL_TRY(st_read(file, t, *part_data(q, part)));
    }
    return QL_OK;
}

static ql_status load_folded(const st_file *file, const model_config *config, ql_arena *host, layer_result *result) {
    for (int64_t i = 0; i < file->count; i++)
        for (folded_id id = 0; id < FOLDED; id++) {
            const st_tensor *t = &file->tensors[i];
            if (strcmp(t->name, folded_names[id]) != 0) continue;
            if (t->dtype != QL_F32 || t->rank != 1 || t->shape[0] != folded_size(config, id))
                return ql_fail(QL_FORMAT, "%s: \"%s\" has another shape; remove the file to have the layer made again",
                               file->path, t->name);
            QL_TRY(ql_take(host, (size_t)t->shape[0], sizeof(float), &result->folded[id]));
            QL_TRY(st_read(file, t, result->folded[id]));
        }
    return QL_OK;
}

ql_status layer_load(const char *path, const engine *e, int64_t layer, const module_rule *rules, ql_arena *host,
                     layer_result *result) {
    st_file file;
    *result = (layer_result){.layer = layer};
    QL_TRY(st_open(path, NULL, host, &file));
    ql_status status = QL_OK;
    for (linear_id id = 0; status == QL_OK && id < LINEARS; id++) {
        char *name;
        qmodule *q = &result->module[id];
        if (rules[id].skip) continue;
        status = layer_module_name(host, layer, id, &name);
        *q = (qmodule){.name = name, .type = rules[id].type, .bits = rules[id].bits, .stored = rules[id].stored};
        linear_shape(&e->model->config, id, &q->n, &q->k);
        q->group = rules[id].group < 0 ? q->k : rules[id].group;
        if (status == QL_OK) status = load_module(&file, q, host);
        result->quantized[id] = true;
    }
    if (status == QL_OK) status = load_folded(&file, &e->model->config, host, result);
    st_close(&file);
    return status;
}

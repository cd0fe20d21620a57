#include "calib/model.h"

#include <stdio.h>
#include <string.h>

#include "calib/ahead.h"
#include "formats/gguf.h"
#include "formats/json_scan.h"
#include "host/mat.h"

ql_status model_open(ql_ctx *ctx, const char *dir, model *out) {
    *out = (model){.ctx = ctx, .precision = QL_F32};
    if (!scan_is_text(dir, strlen(dir)))
        return ql_fail(QL_USAGE, "%s: is not UTF-8, as the reports that name the model are; rename it, or link to it",
                       dir);
    QL_TRY(ql_arena_open(NULL, &out->host));
    ql_status status = checkpoint_open(dir, &out->ck);
    if (status == QL_OK) status = model_config_parse(checkpoint_config(out->ck), dir, out->host, &out->config);
    out->quantized = out->config.is_quantized;
    if (status == QL_OK && out->quantized) status = layout_read(out->ck, &out->scheme);
    if (status != QL_OK) model_close(out);
    return status;
}

ql_status model_refuse_gguf(const char *path, const char *what) {
    ql_arena *arena;
    char *file = NULL;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = gguf_model_file(path, arena, &file);
    if (status == QL_OK && file)
        status = ql_fail(QL_MISMATCH,
                         "%s: is a GGUF file; %s the checkpoint that it was made from (config.json and safetensors)",
                         file, what);
    ql_arena_close(arena);
    return status;
}

ql_status model_open_original(ql_ctx *ctx, const char *dir, const char *what, model *out) {
    *out = (model){0};
    QL_TRY(model_refuse_gguf(dir, what));
    QL_TRY(model_open(ctx, dir, out));
    if (!out->quantized) return QL_OK;
    model_close(out);
    return ql_fail(QL_MISMATCH, "%s: is quantized already (quantization_config in config.json); %s the original", dir,
                   what);
}

void model_close(model *m) {
    ahead_close(m->ahead);
    for (linear_id id = 0; id < LINEARS; id++) ql_plan_free(m->byte_plan[id]);
    checkpoint_close(m->ck);
    ql_arena_close(m->host);
    *m = (model){0};
}

static ql_status check_shape(const model *m, const st_tensor *t, int64_t rows, int64_t cols, bool vector) {
    bool fits =
        vector ? t->rank == 1 && t->shape[0] == cols : t->rank == 2 && t->shape[0] == rows && t->shape[1] == cols;
    if (!fits)
        return ql_fail(QL_FORMAT, "%s: tensor \"%s\" does not have the shape that config.json implies ([%lld, %lld])",
                       checkpoint_dir(m->ck), t->name, (long long)rows, (long long)cols);
    if (t->dtype != QL_F32 && t->dtype != QL_F16 && t->dtype != QL_BF16)
        return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is %s; expected F32, F16 or BF16", checkpoint_dir(m->ck), t->name,
                       t->dtype_name);
    return QL_OK;
}

static ql_status check_finite(const model *m, const st_tensor *t, ql_mat mat) {
    int64_t index;
    QL_TRY(ql_find_nonfinite(m->ctx, mat, &index));
    if (index < 0) return QL_OK;
    return ql_fail(QL_FORMAT,
                   "%s: tensor \"%s\" is not finite at row %lld, column %lld; the file is damaged, download it again",
                   checkpoint_dir(m->ck), t->name, (long long)(index / mat.cols), (long long)(index % mat.cols));
}

/* An arena of its own: the largest tensor is the embedding, and nothing else on the host ever needs as much. */
static ql_status upload_tensor(const model *m, const st_tensor *t, ql_mat raw) {
    ql_arena *host;
    void *bytes;
    QL_TRY(ql_arena_open(NULL, &host));
    ql_status status = ql_take(host, t->size, 1, &bytes);
    if (status == QL_OK) status = m->ahead ? ahead_read(m->ahead, t, bytes) : checkpoint_read(m->ck, t, bytes);
    if (status == QL_OK) status = ql_upload(m->ctx, raw.data, bytes, t->size);
    ql_arena_close(host);
    return status;
}

ql_status model_find_tensor(const model *m, const block_tensor *wanted, const st_tensor **tensor) {
    *tensor = checkpoint_find(m->ck, wanted->name);
    if (!*tensor) return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is missing", checkpoint_dir(m->ck), wanted->name);
    return check_shape(m, *tensor, wanted->rows, wanted->cols, wanted->vector);
}

/* The bytes go to the device as they are, if they are not there, and are converted there. */
static ql_status load_tensor(const model *m, const block_tensor *wanted, ql_arena *device) {
    const st_tensor *t;
    QL_TRY(model_find_tensor(m, wanted, &t));
    bool halved = wanted->half && m->precision == QL_BF16, is_half = halved && t->dtype == QL_BF16;
    QL_TRY(ql_arena_mat(device, halved ? t->dtype : QL_F32, wanted->rows, wanted->cols, wanted->to));
    if (is_half) *wanted->half = *wanted->to;
    else if (halved) QL_TRY(ql_arena_mat(device, QL_BF16, wanted->rows, wanted->cols, wanted->half));
    ql_mark mark = ql_arena_mark(device);
    void *read = m->ahead ? ahead_find(m->ahead, t) : NULL;
    ql_mat raw = ql_mat_of(read, t->dtype, wanted->rows, wanted->cols);
    ql_status status = read ? QL_OK : ql_arena_mat(device, t->dtype, wanted->rows, wanted->cols, &raw);
    if (status == QL_OK && !read) status = upload_tensor(m, t, raw);
    if (status == QL_OK) status = ql_convert(m->ctx, raw, *wanted->to);
    if (status == QL_OK && halved && !is_half) status = ql_convert(m->ctx, raw, *wanted->half);
    if (status == QL_OK) status = check_finite(m, t, *wanted->to);
    ql_arena_release(device, mark);
    return status;
}

static ql_status load_matrix(const model *m, const char *name, int64_t rows, int64_t cols, ql_arena *device,
                             ql_mat *out) {
    block_tensor wanted = {.rows = rows, .cols = cols, .to = out};
    snprintf(wanted.name, sizeof wanted.name, "%s", name);
    return load_tensor(m, &wanted, device);
}

static ql_status load_vector(const model *m, const char *name, int64_t size, ql_arena *device, ql_mat *out) {
    block_tensor wanted = {.rows = 1, .cols = size, .vector = true, .to = out};
    snprintf(wanted.name, sizeof wanted.name, "%s", name);
    return load_tensor(m, &wanted, device);
}

ql_status weights_widen(ql_ctx *ctx, ql_mat w, ql_arena *device, ql_mat *out) {
    *out = w;
    if (w.dtype == QL_F32) return QL_OK;
    QL_TRY(ql_arena_mat(device, QL_F32, w.rows, w.cols, out));
    return ql_convert(ctx, w, *out);
}

/* No product takes these codes with inputs in 16 bits: the decoded weights stand for them. */
static ql_status set_decoded(const qmodule *q, ql_arena *device, linear *lin) {
    float *w = ql_malloc((size_t)(q->n * q->k) * sizeof *w);
    if (!w) return ql_fail(QL_NOMEM, "%s: no memory for its decoded weights", q->name);
    qmodule_dequantize(q, w);
    lin->q = (ql_qweight){0};
    ql_status status = ql_arena_upload(device, QL_F32, q->n, q->k, w, &lin->w);
    ql_mfree(w);
    return status;
}

ql_status linear_set_quantized(const qmodule *q, ql_arena *device, linear *lin) {
    if (q->type != CODE_INT) return set_decoded(q, device, lin);
    int64_t groups = ql_groups(q->k, q->group);
    ql_qweight *to = &lin->q;
    *to = (ql_qweight){.n = q->n, .k = q->k, .grid = {.bits = q->bits, .group = q->group}};
    lin->w = lin->half = ql_no_mat();
    QL_TRY(ql_arena_upload(device, QL_I32, q->n, ql_packed_words(q->k, q->bits), q->codes, &to->codes));
    QL_TRY(ql_arena_upload(device, QL_F32, q->n, groups, q->scale, &to->grid.scale));
    QL_TRY(ql_arena_upload(device, QL_U8, q->n, groups, q->zero, &to->grid.zero));
    return q->g_idx ? ql_arena_upload(device, QL_I32, 1, q->k, q->g_idx, &to->grid.g_idx) : QL_OK;
}

static bool is_packed(const model *m, int64_t layer, linear_id id, char module[NAME_SIZE]) {
    module_name(module, layer, id);
    return m->quantized && layout_has(m->ck, &m->scheme, module);
}

static ql_status load_packed(const model *m, const char *module, linear_id id, ql_arena *device, linear *lin) {
    int64_t n, k;
    qmodule q;
    linear_shape(&m->config, id, &n, &k);
    ql_mark mark = ql_arena_mark(m->host);
    ql_status status = layout_decode(m->ck, &m->scheme, module, n, k, m->host, &q);
    if (status == QL_OK) status = linear_set_inputs(m, &q, device, lin);
    if (status == QL_OK) status = linear_set_bytes(m, id, &q, device, lin);
    if (status == QL_OK && !lin->packed) status = linear_set_quantized(&q, device, lin);
    ql_arena_release(m->host, mark);
    return status;
}

static ql_status load_cache_scales(const model *m, int64_t layer, ql_arena *device, block *out) {
    static const char *const names[2] = {"k_scale", "v_scale"};
    for (int i = 0; i < 2; i++) {
        char name[NAME_SIZE];
        float scale;
        snprintf(name, sizeof name, "model.layers.%lld.self_attn.%s", (long long)layer, names[i]);
        QL_TRY(load_vector(m, name, 1, device, &out->kv_scale[i]));
        QL_TRY(ql_download(m->ctx, &scale, out->kv_scale[i].data, sizeof scale));
        if (!(scale > 0)) return ql_fail(QL_FORMAT, "%s: \"%s\" is %g", checkpoint_dir(m->ck), name, (double)scale);
    }
    return QL_OK;
}

static void list_linear(const model *m, int64_t layer, linear_id id, linear *lin, block_tensor *list, int *count) {
    char module[NAME_SIZE];
    int64_t n, k;
    bool packed = is_packed(m, layer, id, module);
    linear_shape(&m->config, id, &n, &k);
    if (linear_has_bias(&m->config, id)) {
        list[*count] = (block_tensor){.rows = 1, .cols = n, .vector = true, .to = &lin->bias};
        snprintf(list[*count].name, sizeof list->name, "%s.bias", module);
        ++*count;
    }
    if (packed) return;
    list[*count] = (block_tensor){.rows = n, .cols = k, .to = &lin->w, .half = &lin->half};
    snprintf(list[*count].name, sizeof list->name, "%s.weight", module);
    ++*count;
}

int model_list_block(const model *m, int64_t layer, block *b, block_tensor list[BLOCK_TENSORS]) {
    const model_config *c = &m->config;
    const struct {
        const char *suffix;
        int64_t size;
        ql_mat *to;
    } norms[] = {
        {"input_layernorm", c->hidden, &b->norm_in},
        {"post_attention_layernorm", c->hidden, &b->norm_mlp},
        {"self_attn.q_norm", c->head_dim, &b->q_norm},
        {"self_attn.k_norm", c->head_dim, &b->k_norm},
    };
    int count = 0;
    for (; count < (c->qk_norm ? 4 : 2); count++) {
        list[count] = (block_tensor){.rows = 1, .cols = norms[count].size, .vector = true, .to = norms[count].to};
        snprintf(list[count].name, sizeof list->name, "model.layers.%lld.%s.weight", (long long)layer,
                 norms[count].suffix);
    }
    for (linear_id id = 0; id < LINEARS; id++) list_linear(m, layer, id, &b->lin[id], list, &count);
    return count;
}

ql_status model_read_ahead(model *m, ql_comm *comm) { return ahead_open(m, comm, &m->ahead); }

static ql_status load_block(const model *m, int64_t layer, ql_arena *device, block *out) {
    block_tensor list[BLOCK_TENSORS];
    char module[NAME_SIZE];
    int count = model_list_block(m, layer, out, list);
    for (int i = 0; i < count; i++) QL_TRY(load_tensor(m, &list[i], device));
    for (linear_id id = 0; id < LINEARS; id++)
        if (is_packed(m, layer, id, module)) QL_TRY(load_packed(m, module, id, device, &out->lin[id]));
    return m->quantized && m->scheme.kv_cache ? load_cache_scales(m, layer, device, out) : QL_OK;
}

ql_status model_load_block(const model *m, int64_t layer, ql_arena *device, block *out) {
    *out = (block){0};
    if (m->ahead) QL_TRY(ahead_finish(m->ahead, layer));
    QL_TRY(load_block(m, layer, device, out));
    if (!m->ahead) return QL_OK;
    QL_TRY(ql_sync(m->ctx)); /* what was read has been converted */
    if (layer + 1 < m->config.layers) return ahead_start(m->ahead, layer + 1);
    ahead_rest(m->ahead);
    return QL_OK;
}

ql_status model_load_embedding(const model *m, ql_arena *device, ql_mat *table) {
    return load_matrix(m, "model.embed_tokens.weight", m->config.vocab, m->config.hidden, device, table);
}

ql_status model_load_head(const model *m, ql_arena *device, ql_mat *norm, ql_mat *head) {
    QL_TRY(load_vector(m, "model.norm.weight", m->config.hidden, device, norm));
    if (m->config.tied_embeddings) return model_load_embedding(m, device, head);
    return load_matrix(m, "lm_head.weight", m->config.vocab, m->config.hidden, device, head);
}

#include "calib/block.h"

#include <math.h>

#include "host/mat.h"

static ql_status upload_table(ql_ctx *ctx, const float *table, ql_mat to) {
    return ql_upload(ctx, to.data, table, ql_mat_bytes(to));
}

static ql_status upload_rope(forward *f, int64_t seq_len, ql_arena *device) {
    int64_t half = f->config->head_dim / 2;
    QL_TRY(ql_arena_mat(device, QL_F32, seq_len, half, &f->cos));
    QL_TRY(ql_arena_mat(device, QL_F32, seq_len, half, &f->sin));
    ql_arena *host;
    QL_TRY(ql_arena_open(NULL, &host));
    float *cos_table, *sin_table;
    ql_status status = ql_take(host, (size_t)(seq_len * half), sizeof(float), &cos_table);
    if (status == QL_OK) status = ql_take(host, (size_t)(seq_len * half), sizeof(float), &sin_table);
    if (status == QL_OK) status = rope_tables(f->config, seq_len, seq_len, cos_table, sin_table);
    if (status == QL_OK) status = upload_table(f->ctx, cos_table, f->cos);
    if (status == QL_OK) status = upload_table(f->ctx, sin_table, f->sin);
    ql_arena_close(host);
    return status;
}

ql_status forward_open(ql_ctx *ctx, const model_config *config, ql_dtype precision, int64_t seq_len, int64_t max_rows,
                       ql_arena *device, forward *out) {
    *out = (forward){.ctx = ctx, .config = config, .precision = precision, .max_rows = max_rows, .device = device};
    int64_t q_width = config->heads * config->head_dim, kv_width = config->kv_heads * config->head_dim;
    const struct {
        ql_mat *mat;
        int64_t width;
    } buffers[] = {
        {&out->norm, config->hidden},
        {&out->q, q_width},
        {&out->k, kv_width},
        {&out->v, kv_width},
        {&out->attn, q_width},
        {&out->gate, config->intermediate},
        {&out->up, config->intermediate},
    };
    QL_TRY(upload_rope(out, seq_len, device));
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        QL_TRY(ql_arena_mat(device, precision, max_rows, buffers[i].width, buffers[i].mat));
    return ql_arena_mat(device, QL_F32, max_rows, config->hidden, &out->add);
}

void forward_close(forward *f) {
    for (linear_id id = 0; id < LINEARS; id++) ql_plan_free(f->plan[id]);
}

ql_status forward_open_inputs(forward *f, int64_t max_rows, size_t workspace, ql_arena *device) {
    const model_config *c = f->config;
    int64_t widest = c->hidden > c->intermediate ? c->hidden : c->intermediate;
    if (c->heads * c->head_dim > widest) widest = c->heads * c->head_dim;
    QL_TRY(ql_arena_mat(device, QL_F32, max_rows, widest, &f->rounded));
    QL_TRY(ql_arena_mat(device, QL_U8, max_rows, widest, &f->codes));
    QL_TRY(ql_arena_mat(device, QL_F32, max_rows, ql_groups(widest, FP8_BLOCK), &f->scale));
    QL_TRY(ql_arena_mat(device, QL_I32, 1, max_rows, &f->zero));
    return ql_arena_take(device, workspace + 256, 1, &f->workspace);
}

/* What o and down give is added to the residual stream, which stays in FP32. */
static ql_dtype result_type(const forward *f, linear_id id) {
    return id == LIN_O || id == LIN_DOWN ? QL_F32 : f->precision;
}

static ql_status widen_workspace(forward *f, size_t bytes) {
    if (bytes <= f->workspace_bytes) return QL_OK;
    f->workspace_bytes = bytes;
    return ql_arena_take(f->device, bytes, 1, &f->workspace);
}

/* lin->half from the codes, or from the weights that were decoded already.  The two arenas may be one. */
static ql_status decode_half(forward *f, ql_arena *scratch, ql_arena *device, linear *lin) {
    bool coded = ql_is_present(lin->q.codes);
    const ql_qweight *q = &lin->q;
    ql_mat codes, values = lin->w;
    QL_TRY(ql_arena_mat(device, QL_BF16, coded ? q->n : values.rows, coded ? q->k : values.cols, &lin->half));
    ql_mark mark = ql_arena_mark(scratch);
    if (coded) {
        QL_TRY(ql_arena_mat(scratch, QL_U8, q->n, q->k, &codes));
        QL_TRY(ql_arena_mat(scratch, QL_F32, q->n, q->k, &values));
        QL_TRY(ql_unpack(f->ctx, q->codes, q->grid.bits, codes));
        QL_TRY(ql_dequantize(f->ctx, codes, &q->grid, values));
    }
    QL_TRY(ql_convert(f->ctx, values, lin->half));
    ql_arena_release(scratch, mark);
    return QL_OK;
}

ql_status forward_take_quantized(forward *f, linear_id id, ql_arena *scratch, ql_arena *device, linear *lin) {
    if (f->precision != QL_BF16) return QL_OK;
    if (!ql_is_present(lin->q.codes)) return decode_half(f, scratch, device, lin);
    ql_status status =
        linear_pack(f->ctx, QL_BF16, result_type(f, id), f->max_rows, scratch, device, lin, &f->plan[id]);
    if (status == QL_UNSUPPORTED) return decode_half(f, scratch, device, lin);
    QL_TRY(status);
    return widen_workspace(f, ql_plan_workspace(lin->plan));
}

/* The inputs as the runtime rounds them: codes and scale in the buffers of f. */
static ql_status round_inputs(forward *f, const linear *lin, ql_mat x, ql_values *v) {
    *v = lin->inputs;
    bool found = !ql_is_present(v->scale);
    v->codes = ql_mat_of(f->codes.data, v->codes.dtype, x.rows, x.cols);
    if (found && v->mode == QL_SCALE_ROW) v->scale = ql_mat_of(f->scale.data, QL_F32, 1, x.rows);
    else if (found) v->scale = ql_mat_of(f->scale.data, QL_F32, x.rows, ql_groups(x.cols, v->group));
    if (v->codes.dtype == QL_U8) v->zero = ql_cols(f->zero, 0, x.rows);
    return found ? ql_quantize_dynamic(f->ctx, x, v) : ql_quantize_static(f->ctx, x, v);
}

static ql_status rounded_forward(forward *f, const linear *lin, ql_mat x, ql_mat y) {
    ql_values v;
    QL_TRY(round_inputs(f, lin, x, &v));
    if (lin->packed) {
        const ql_arguments arguments = {
            .x = v.codes, .x_scale = v.scale, .x_zero = v.zero, .weight = lin->packed, .bias = lin->bias, .y = y};
        return ql_execute(lin->plan, &arguments, f->workspace, ql_ctx_stream(f->ctx));
    }
    ql_mat values = ql_mat_of(f->rounded.data, QL_F32, x.rows, x.cols);
    QL_TRY(ql_dequantize_values(f->ctx, &v, values));
    return ql_is_present(lin->q.codes) ? ql_qgemm(f->ctx, values, &lin->q, lin->bias, y)
                                       : ql_gemm(f->ctx, values, lin->w, lin->bias, y);
}

/* Keys or values as they come back from a cache of E4M3. */
static ql_status round_cached(forward *f, ql_mat scale, ql_mat x) {
    if (!ql_is_present(scale) || !ql_is_present(f->rounded)) return QL_OK;
    const ql_values v = {
        .mode = QL_SCALE_TENSOR, .codes = ql_mat_of(f->codes.data, QL_F8_E4M3, x.rows, x.cols), .scale = scale};
    QL_TRY(ql_quantize_static(f->ctx, x, &v));
    return ql_dequantize_values(f->ctx, &v, x);
}

static ql_status packed_forward(forward *f, const linear *lin, ql_mat x, ql_mat y) {
    ql_mat half = x.dtype == QL_F32 ? ql_cols(ql_rows(f->half, 0, x.rows), 0, x.cols) : x;
    const ql_arguments arguments = {.x = half, .weight = lin->packed, .bias = lin->bias, .y = y};
    if (x.dtype == QL_F32) QL_TRY(ql_convert(f->ctx, x, half));
    return ql_execute(lin->plan, &arguments, f->workspace, ql_ctx_stream(f->ctx));
}

ql_status linear_forward(forward *f, const linear *lin, ql_mat x, ql_mat y) {
    if (lin->inputs.mode != QL_SCALE_NONE && ql_is_present(f->rounded)) return rounded_forward(f, lin, x, y);
    if (lin->packed) return packed_forward(f, lin, x, y);
    if (f->precision == QL_BF16) return ql_gemm(f->ctx, x, lin->half, lin->bias, y);
    if (ql_is_present(lin->q.codes)) return ql_qgemm(f->ctx, x, &lin->q, lin->bias, y);
    return ql_gemm(f->ctx, x, lin->w, lin->bias, y);
}

ql_status block_attn_in(forward *f, const block *b, ql_mat x, ql_mat norm) {
    return ql_rmsnorm(f->ctx, x, b->norm_in, (float)f->config->rms_eps, norm);
}

ql_status block_attention(forward *f, const block *b, int64_t layer, const batch *rows, ql_mat norm, ql_mat attn) {
    const model_config *c = f->config;
    const kv_cache *cache = rows->cache;
    float eps = (float)c->rms_eps;
    ql_mat q = ql_rows(f->q, 0, rows->rows);
    ql_mat k = cache ? ql_rows(cache->k[layer], cache->used, rows->rows) : ql_rows(f->k, 0, rows->rows);
    ql_mat v = cache ? ql_rows(cache->v[layer], cache->used, rows->rows) : ql_rows(f->v, 0, rows->rows);
    QL_TRY(linear_forward(f, &b->lin[LIN_Q], norm, q));
    QL_TRY(linear_forward(f, &b->lin[LIN_K], norm, k));
    QL_TRY(linear_forward(f, &b->lin[LIN_V], norm, v));
    if (ql_is_present(b->q_norm)) QL_TRY(ql_rmsnorm(f->ctx, q, b->q_norm, eps, q));
    if (ql_is_present(b->k_norm)) QL_TRY(ql_rmsnorm(f->ctx, k, b->k_norm, eps, k));
    QL_TRY(ql_rope(f->ctx, q, c->heads, rows->position, f->cos, f->sin));
    QL_TRY(ql_rope(f->ctx, k, c->kv_heads, rows->position, f->cos, f->sin));
    QL_TRY(round_cached(f, b->kv_scale[0], k));
    QL_TRY(round_cached(f, b->kv_scale[1], v));
    const ql_attention_shape shape = {
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .window = c->sliding_window && c->layer_is_sliding[layer] ? c->sliding_window : 0,
        .scale = (float)(1.0 / sqrt((double)c->head_dim)),
    };
    if (!cache) return ql_attention(f->ctx, q, k, v, &shape, rows->start, rows->n_seq, attn);
    int64_t keys = cache->used + rows->rows;
    return ql_attention_cached(f->ctx, q, ql_rows(cache->k[layer], 0, keys), ql_rows(cache->v[layer], 0, keys), &shape,
                               attn);
}

/* x += lin(y) */
static ql_status add_linear(forward *f, const linear *lin, ql_mat y, ql_mat x) {
    ql_mat add = ql_rows(f->add, 0, x.rows);
    QL_TRY(linear_forward(f, lin, y, add));
    return ql_add(f->ctx, x, 1, add);
}

ql_status block_attn_out(forward *f, const block *b, ql_mat attn, ql_mat x) {
    return add_linear(f, &b->lin[LIN_O], attn, x);
}

ql_status block_mlp_in(forward *f, const block *b, ql_mat x, ql_mat norm) {
    return ql_rmsnorm(f->ctx, x, b->norm_mlp, (float)f->config->rms_eps, norm);
}

ql_status block_mlp(forward *f, const block *b, ql_mat norm, ql_mat act) {
    ql_mat up = ql_rows(f->up, 0, norm.rows);
    QL_TRY(linear_forward(f, &b->lin[LIN_GATE], norm, act));
    QL_TRY(linear_forward(f, &b->lin[LIN_UP], norm, up));
    return ql_swiglu(f->ctx, act, up, act);
}

ql_status block_mlp_out(forward *f, const block *b, ql_mat act, ql_mat x) {
    return add_linear(f, &b->lin[LIN_DOWN], act, x);
}

ql_status block_attention_half(forward *f, const block *b, int64_t layer, const batch *rows, ql_mat x) {
    ql_mat norm = ql_rows(f->norm, 0, rows->rows), attn = ql_rows(f->attn, 0, rows->rows);
    QL_TRY(block_attn_in(f, b, x, norm));
    QL_TRY(block_attention(f, b, layer, rows, norm, attn));
    return block_attn_out(f, b, attn, x);
}

ql_status block_mlp_half(forward *f, const block *b, const batch *rows, ql_mat x) {
    ql_mat norm = ql_rows(f->norm, 0, rows->rows), act = ql_rows(f->gate, 0, rows->rows);
    QL_TRY(block_mlp_in(f, b, x, norm));
    QL_TRY(block_mlp(f, b, norm, act));
    return block_mlp_out(f, b, act, x);
}

ql_status block_forward(forward *f, const block *b, int64_t layer, const batch *rows, ql_mat x) {
    QL_TRY(block_attention_half(f, b, layer, rows, x));
    return block_mlp_half(f, b, rows, x);
}

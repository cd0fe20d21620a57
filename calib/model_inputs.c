/* Linears whose inputs a runtime rounds to 8 bits: how, and the products of bytes that it multiplies them with. */
#include "calib/model.h"
#include "calib/model_parts.h"
#include "host/mat.h"

/* E4M3 in blocks goes with inputs in groups of as many; everything else with one scale per token or for all. */
static bool in_blocks(const model *m) { return m->scheme.type == CODE_E4M3 && m->scheme.group == FP8_BLOCK; }
static ql_dtype byte_type(const model *m) { return m->scheme.type == CODE_E4M3 ? QL_F8_E4M3 : QL_I8; }

static ql_dtype input_type(const model *m) { return m->scheme.input_zeros ? QL_U8 : byte_type(m); }

ql_status model_plan_inputs(model *m, int64_t max_rows) {
    bool fixed = m->scheme.activations == ACTIVATIONS_STATIC;
    for (linear_id id = 0; id < LINEARS && model_rounds_inputs(m); id++) {
        ql_product p = {
            .m_max = max_rows,
            .x = input_type(m),
            .x_zero = m->scheme.input_zeros,
            .w = byte_type(m),
            .y = QL_F32,
            .x_scale = fixed          ? QL_SCALE_TENSOR
                       : in_blocks(m) ? QL_SCALE_BLOCK
                                      : QL_SCALE_ROW,
            .w_scale = in_blocks(m) ? QL_SCALE_BLOCK : QL_SCALE_ROW,
            .bias = linear_has_bias(&m->config, id),
        };
        linear_shape(&m->config, id, &p.n, &p.k);
        ql_plan_free(m->byte_plan[id]);
        ql_status status = ql_plan_make(m->ctx, &p, &m->byte_plan[id]);
        if (status == QL_UNSUPPORTED) m->byte_plan[id] = NULL;
        else QL_TRY(status);
        size_t workspace = m->byte_plan[id] ? ql_plan_workspace(m->byte_plan[id]) : 0;
        if (workspace > m->byte_workspace) m->byte_workspace = workspace;
    }
    return QL_OK;
}

/* Does the plan of the whole checkpoint fit this module?  Codes of integers must be symmetric: bytes have no zero point. */
static bool fits(const model *m, const qmodule *q) {
    if (q->type != m->scheme.type || q->bits != 8) return false;
    if (in_blocks(m)) return q->group == (q->k < FP8_BLOCK ? q->k : FP8_BLOCK);
    if (q->group < q->k) return false;
    for (int64_t n = 0; q->type == CODE_INT && n < q->n; n++)
        if (q->zero[n] != 128) return false;
    return true;
}

/* A code of 8 bits is a byte of the stream; integers count from the middle. */
static ql_status upload_values(const model *m, const qmodule *q, ql_arena *device, ql_mat *values) {
    const uint8_t *codes = (const uint8_t *)q->codes;
    if (q->type == CODE_E4M3) return ql_arena_upload(device, QL_F8_E4M3, q->n, q->k, codes, values);
    uint8_t *bytes;
    QL_TRY(ql_take(m->host, (size_t)(q->n * q->k), 1, &bytes));
    for (int64_t i = 0; i < q->n * q->k; i++) bytes[i] = codes[i] ^ 0x80;
    return ql_arena_upload(device, QL_I8, q->n, q->k, bytes, values);
}

/* Canonical scales stand once for each row; the product wants them once for 128. */
static ql_status upload_scales(const model *m, const qmodule *q, ql_arena *device, ql_mat *scale) {
    if (!in_blocks(m)) return ql_arena_upload(device, QL_F32, 1, q->n, q->scale, scale);
    int64_t rows = ql_ceil_div(q->n, FP8_BLOCK), groups = ql_groups(q->k, q->group);
    float *blocks;
    QL_TRY(ql_take(m->host, (size_t)(rows * groups), sizeof *blocks, &blocks));
    for (int64_t i = 0; i < rows * groups; i++) blocks[i] = q->scale[i / groups * FP8_BLOCK * groups + i % groups];
    return ql_arena_upload(device, QL_F32, rows, groups, blocks, scale);
}

ql_status linear_set_bytes(const model *m, linear_id id, const qmodule *q, ql_arena *device, linear *lin) {
    ql_plan *plan = m->byte_plan[id];
    ql_weight weight = {0};
    if (!plan || !fits(m, q)) return QL_OK;
    QL_TRY(ql_arena_take(device, ql_plan_packed(plan), 1, &lin->packed));
    ql_mark mark = ql_arena_mark(device);
    QL_TRY(upload_values(m, q, device, &weight.values));
    QL_TRY(upload_scales(m, q, device, &weight.scale));
    QL_TRY(ql_pack_weight(m->ctx, plan, &weight, lin->packed));
    ql_arena_release(device, mark);
    lin->plan = plan;
    return QL_OK;
}

ql_status linear_set_inputs(const model *m, const qmodule *q, ql_arena *device, linear *lin) {
    ql_values *v = &lin->inputs;
    if (m->scheme.activations == ACTIVATIONS_16) return QL_OK;
    v->codes.dtype = input_type(m);
    v->group = FP8_BLOCK;
    v->mode = m->scheme.activations == ACTIVATIONS_STATIC ? QL_SCALE_TENSOR
              : in_blocks(m)                              ? QL_SCALE_GROUP
                                                          : QL_SCALE_ROW;
    if (v->mode != QL_SCALE_TENSOR) return QL_OK;
    if (!q->input_scale) return ql_fail(QL_FORMAT, "%s: its static input_scale is missing", q->name);
    return ql_arena_upload(device, QL_F32, 1, 1, q->input_scale, &v->scale);
}

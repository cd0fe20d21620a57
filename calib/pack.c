/* A quantized linear in the form that the kernel suite multiplies by: packed once, read often. */
#include "calib/model.h"
#include "host/mat.h"
#include "host/product.h"

static ql_product product_of(const linear *lin, ql_dtype x, ql_dtype y, int64_t m_max) {
    const ql_qweight *q = &lin->q;
    return (ql_product){
        .n = q->n,
        .k = q->k,
        .m_max = m_max,
        .x = x,
        .w = QL_U8,
        .y = y,
        .bits = q->grid.bits,
        .w_scale = QL_SCALE_GROUP,
        .group = q->grid.group,
        .scale = QL_F16,
        .zero_points = 1,
        .ordered = ql_is_present(q->grid.g_idx),
        .bias = ql_is_present(lin->bias),
    };
}

/* Of linears with one shape in one pass. */
static bool is_alike(const ql_product *a, const ql_product *b) {
    return a->bits == b->bits && a->group == b->group && a->ordered == b->ordered;
}

static ql_status find_plan(ql_ctx *ctx, const ql_product *product, ql_plan **plan) {
    if (*plan && is_alike(&(*plan)->product, product)) return QL_OK;
    ql_plan_free(*plan);
    *plan = NULL;
    return ql_plan_make(ctx, product, plan);
}

static ql_status pack_codes(ql_ctx *ctx, const ql_plan *plan, ql_arena *scratch, const linear *lin, void *packed) {
    const ql_qweight *q = &lin->q;
    ql_weight weight = {.scale = q->grid.scale, .zero = q->grid.zero, .order = q->grid.g_idx};
    ql_mark mark = ql_arena_mark(scratch);
    QL_TRY(ql_arena_mat(scratch, QL_U8, q->n, q->k, &weight.values));
    QL_TRY(ql_unpack(ctx, q->codes, q->grid.bits, weight.values));
    QL_TRY(ql_pack_weight(ctx, plan, &weight, packed));
    ql_arena_release(scratch, mark);
    return QL_OK;
}

ql_status linear_pack(ql_ctx *ctx, ql_dtype x, ql_dtype y, int64_t m_max, ql_arena *scratch, ql_arena *device,
                      linear *lin, ql_plan **plan) {
    const ql_product product = product_of(lin, x, y, m_max);
    void *packed;
    QL_TRY(find_plan(ctx, &product, plan));
    QL_TRY(ql_arena_take(device, ql_plan_packed(*plan), 1, &packed));
    QL_TRY(pack_codes(ctx, *plan, scratch, lin, packed));
    lin->plan = *plan;
    lin->packed = packed;
    return QL_OK;
}

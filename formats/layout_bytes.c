/* Codes in bytes, with scales per tensor, row or block: what compressed-tensors and the fp8 files have in common. */
#include <string.h>

#include "formats/layout_parts.h"
#include "host/mat.h"
#include "host/num.h"

enum { WEIGHT, SCALE, INPUT_SCALE };

/* Rows and columns of weights that share a scale, and the scales [rows][cols]. */
typedef struct scale_grid {
    int64_t n, k, rows, cols;
} scale_grid;

static scale_grid grid_of(const layout_scheme *scheme, const qmodule *q) {
    if (scheme->group == GROUP_TENSOR) return (scale_grid){q->n, q->k, 1, 1};
    if (scheme->group == GROUP_ROW) return (scale_grid){1, q->k, q->n, 1};
    return (scale_grid){FP8_BLOCK, FP8_BLOCK, ql_ceil_div(q->n, FP8_BLOCK), ql_ceil_div(q->k, FP8_BLOCK)};
}

static int describe(const layout_scheme *scheme, const qmodule *q, st_tensor tensor[]) {
    scale_grid grid = grid_of(scheme, q);
    tensor[WEIGHT] = layout_tensor(q->type == CODE_E4M3 ? QL_F8_E4M3 : QL_I8, q->n, q->k);
    tensor[SCALE] =
        scheme->group == GROUP_TENSOR ? layout_tensor(QL_F32, 1, 0) : layout_tensor(QL_F32, grid.rows, grid.cols);
    tensor[INPUT_SCALE] = layout_tensor(QL_F32, 1, 0);
    return scheme->activations == ACTIVATIONS_STATIC ? INPUT_SCALE + 1 : SCALE + 1;
}

/* A scale of the file stands for several rows here: they must agree on it. */
static ql_status put_scales(const layout_scheme *scheme, const qmodule *q, float *scales) {
    scale_grid grid = grid_of(scheme, q);
    int64_t groups = ql_groups(q->k, q->group);
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t g = 0; g < groups; g++) {
            float scale = q->scale[n * groups + g], *shared = &scales[n / grid.n * grid.cols + g];
            if (n % grid.n == 0) *shared = scale;
            if (!(scale > 0 && isfinite(scale)) || *shared != scale)
                return ql_fail(QL_MISMATCH, "%s: output %lld, group %lld has the scale %g, its %s %g", q->name,
                               (long long)n, (long long)g, (double)scale, grid.n == q->n ? "tensor" : "block",
                               (double)*shared);
        }
    return QL_OK;
}

/* A NaN in one weight is a NaN in every output: no cast of ours makes one, and no file of ours may hold one. */
static ql_status check_fp8(ql_status status, const qmodule *q) {
    const uint8_t *bytes = (const uint8_t *)q->codes;
    int64_t stride = 4 * ql_packed_words(q->k, 8);
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t k = 0; k < q->k; k++)
            if ((bytes[n * stride + k] & 0x7f) == 0x7f)
                return ql_fail(status, "%s.weight: [%lld, %lld] is NaN", q->name, (long long)n, (long long)k);
    return QL_OK;
}

ql_status layout_bytes_encode(const layout_scheme *scheme, const char *const suffixes[], const qmodule *q,
                              ql_arena *arena, layout_tensors *out) {
    *out = (layout_tensors){0};
    out->count = describe(scheme, q, out->tensor);
    if (q->g_idx) return ql_fail(QL_MISMATCH, "%s: has groups of its own, codes in bytes cannot", q->name);
    QL_TRY(layout_begin(q, suffixes, arena, out));
    if (!q->codes) return QL_OK;
    const uint8_t *codes = (const uint8_t *)q->codes;
    uint8_t *weight = out->data[WEIGHT], flip = q->type == CODE_INT ? 0x80 : 0; /* code - 128 in two's complement */
    for (int64_t i = 0; i < q->n * q->k; i++) weight[i] = codes[i] ^ flip;      /* K % 4 == 0: rows have no padding */
    if (q->type == CODE_INT) QL_TRY(layout_check_symmetric(q));
    else QL_TRY(check_fp8(QL_INTERNAL, q));
    if (out->count > INPUT_SCALE) {
        if (!q->input_scale || !(*q->input_scale > 0 && isfinite(*q->input_scale)))
            return ql_fail(QL_MISMATCH, "%s: static activations need an input scale", q->name);
        memcpy(out->data[INPUT_SCALE], q->input_scale, sizeof *q->input_scale);
    }
    return put_scales(scheme, q, out->data[SCALE]);
}

/* One number as [1], [1, 1] or a scalar: writers differ. */
static bool is_single(const st_tensor *tensor) {
    for (int d = 0; d < tensor->rank; d++)
        if (tensor->shape[d] != 1) return false;
    return tensor->rank <= 2 && ql_dtype_size(tensor->dtype) > 0;
}

static ql_status find_bytes(const checkpoint *ck, const layout_scheme *scheme, const char *const suffixes[],
                            const qmodule *q, const st_tensor *found[], int *count) {
    st_tensor want[INPUT_SCALE + 1];
    *count = describe(scheme, q, want);
    for (int t = 0; t < *count; t++) {
        found[t] = layout_find(ck, q->name, suffixes[t]);
        bool single = want[t].rank == 1 && found[t] && is_single(found[t]);
        if (single) want[t].rank = found[t]->rank, want[t].shape[1] = 1;
        if (!single || found[t]->rank) QL_TRY(layout_check_tensor(q, suffixes[t], &want[t], found[t], ""));
    }
    return QL_OK;
}

static ql_status get_scales(const checkpoint *ck, const layout_scheme *scheme, const st_tensor *tensor,
                            const char *suffix, ql_arena *arena, qmodule *q) {
    float *values;
    scale_grid grid = grid_of(scheme, q);
    int64_t groups = ql_groups(q->k, q->group);
    QL_TRY(layout_read_floats(ck, tensor, arena, &values));
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t g = 0; g < groups; g++) {
            float scale = values[n / grid.n * grid.cols + g];
            QL_TRY(layout_check_scale(q, suffix, n, g, scale));
            q->scale[n * groups + g] = scale;
        }
    return QL_OK;
}

ql_status layout_bytes_decode(const checkpoint *ck, const layout_scheme *scheme, const char *const suffixes[],
                              ql_arena *arena, qmodule *q) {
    const st_tensor *found[INPUT_SCALE + 1];
    int count;
    QL_TRY(find_bytes(ck, scheme, suffixes, q, found, &count));
    if (q->k % 4) return ql_fail(QL_FORMAT, "%s: K = %lld is not a multiple of 4", q->name, (long long)q->k);
    QL_TRY(layout_take(arena, q));
    ql_mark scratch = ql_arena_mark(arena);
    QL_TRY(checkpoint_read(ck, found[WEIGHT], q->codes));
    uint8_t *codes = (uint8_t *)q->codes;
    for (int64_t i = 0; q->type == CODE_INT && i < q->n * q->k; i++) codes[i] ^= 0x80;
    memset(q->zero, 0x80, (size_t)(q->n * ql_groups(q->k, q->group)));
    if (q->type == CODE_E4M3) QL_TRY(check_fp8(QL_FORMAT, q));
    QL_TRY(get_scales(ck, scheme, found[SCALE], suffixes[SCALE], arena, q));
    ql_arena_release(arena, scratch);
    if (count == INPUT_SCALE) return QL_OK;
    QL_TRY(layout_read_floats(ck, found[INPUT_SCALE], arena, &q->input_scale));
    return layout_check_scale(q, suffixes[INPUT_SCALE], 0, 0, *q->input_scale);
}

/* Weights to codes on given grids, and back (CPU).  One row per thread at a time. */
#include "host/mat.h"
#include "host/num.h"
#include "host/ops.h"

static int64_t group_of(const ql_grid *grid, int64_t column) {
    return ql_is_present(grid->g_idx) ? ((const int32_t *)grid->g_idx.data)[column] : column / grid->group;
}

ql_status ql_cpu_quantize(ql_ctx *ctx, ql_mat w, const ql_grid *grid, ql_mat codes) {
    int maxq = (1 << grid->bits) - 1;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < w.rows; r++) {
        const float *from = (const float *)w.data + r * w.ld,
                    *scale = (const float *)grid->scale.data + r * grid->scale.ld;
        const uint8_t *zero = (const uint8_t *)grid->zero.data + r * grid->zero.ld;
        uint8_t *to = (uint8_t *)codes.data + r * codes.ld;
        for (int64_t c = 0; c < w.cols; c++) {
            int64_t g = group_of(grid, c);
            to[c] = (uint8_t)ql_encode(from[c], scale[g], zero[g], maxq);
        }
    }
    return QL_OK;
}

ql_status ql_cpu_dequantize(ql_ctx *ctx, ql_mat codes, const ql_grid *grid, ql_mat w) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < w.rows; r++) {
        const uint8_t *from = (const uint8_t *)codes.data + r * codes.ld;
        const float *scale = (const float *)grid->scale.data + r * grid->scale.ld;
        const uint8_t *zero = (const uint8_t *)grid->zero.data + r * grid->zero.ld;
        float *to = (float *)w.data + r * w.ld;
        for (int64_t c = 0; c < w.cols; c++) {
            int64_t g = group_of(grid, c);
            to[c] = ql_decode(from[c], scale[g], zero[g]);
        }
    }
    return QL_OK;
}

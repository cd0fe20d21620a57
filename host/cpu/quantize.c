/* Rounding to a fixed grid and back.   w [n][k] F32, codes [n][k] U8
 * Rows are shared by the threads; within a row, a run of columns of one group has constant scale and zero point and is one loop
 * that compilers vectorize.
 */
#include "host/cpu/groups.h"
#include "host/num.h"
#include "host/ops.h"

static void quantize_row(const float *w, const float *scale, const uint8_t *zero, const ql_grid *grid, int64_t k,
                         uint8_t *codes) {
    int maxq = (1 << grid->bits) - 1;
    for (int64_t i = 0; i < k;) {
        int64_t end = ql_group_end(grid, i, k), group = ql_group_of(grid, i);
        const float s = scale[group];
        const int z = zero[group];
        for (; i < end; i++) codes[i] = (uint8_t)ql_encode(w[i], s, z, maxq);
    }
}

static void dequantize_row(const uint8_t *codes, const float *scale, const uint8_t *zero, const ql_grid *grid,
                           int64_t k, float *w) {
    for (int64_t i = 0; i < k;) {
        int64_t end = ql_group_end(grid, i, k), group = ql_group_of(grid, i);
        const float s = scale[group];
        const int z = zero[group];
        for (; i < end; i++) w[i] = ql_decode(codes[i], s, z);
    }
}

ql_status ql_cpu_quantize(ql_ctx *ctx, ql_mat w, const ql_grid *grid, ql_mat codes) {
    QL_TRY(ql_cpu_check_groups("quantize", grid, w.cols));
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < w.rows; r++)
        quantize_row((const float *)w.data + r * w.ld, (const float *)grid->scale.data + r * grid->scale.ld,
                     (const uint8_t *)grid->zero.data + r * grid->zero.ld, grid, w.cols,
                     (uint8_t *)codes.data + r * codes.ld);
    return QL_OK;
}

ql_status ql_cpu_dequantize(ql_ctx *ctx, ql_mat codes, const ql_grid *grid, ql_mat w) {
    QL_TRY(ql_cpu_check_groups("dequantize", grid, w.cols));
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < w.rows; r++)
        dequantize_row((const uint8_t *)codes.data + r * codes.ld, (const float *)grid->scale.data + r * grid->scale.ld,
                       (const uint8_t *)grid->zero.data + r * grid->zero.ld, grid, w.cols, (float *)w.data + r * w.ld);
    return QL_OK;
}

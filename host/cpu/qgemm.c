/* y = x w^T + bias with a quantized weight.
 * A panel of rows of w is expanded to F32 by all threads together, then multiplied by ql_cpu_gemm_panel.  A panel is a whole number of
 * gemm tiles, so the result has the bits of dequantize followed by gemm.
 */
#include <omp.h>

#include "host/cpu/gemm.h"
#include "host/cpu/groups.h"
#include "host/cpu/stream.h"
#include "host/num.h"
#include "host/ops.h"

/* Rows of w per panel: two tiles of gemm.c.  At k = 4096 the panel takes 16 MiB; with twice as many rows the fresh pages cost more
 * than the product of a single token.  Measured: perf/LOG.md, "qgemm panel". */
enum { PANEL_ROWS = 1024 };

static void expand_row(const ql_qweight *w, int64_t row, uint8_t *codes, float *out) {
    const ql_grid *grid = &w->grid;
    const float *scale = (const float *)grid->scale.data + row * grid->scale.ld;
    const uint8_t *zero = (const uint8_t *)grid->zero.data + row * grid->zero.ld;
    ql_unpack_row((const int32_t *)w->codes.data + row * w->codes.ld, grid->bits, w->k, codes);
    if (ql_is_present(grid->g_idx)) {
        const int32_t *g_idx = grid->g_idx.data;
        for (int64_t i = 0; i < w->k; i++) out[i] = ql_decode(codes[i], scale[g_idx[i]], zero[g_idx[i]]);
        return;
    }
    for (int64_t g = 0, i = 0; i < w->k; g++) {
        int64_t end = w->k - i > grid->group ? i + grid->group : w->k;
        for (; i < end; i++) out[i] = ql_decode(codes[i], scale[g], zero[g]);
    }
}

ql_status ql_cpu_qgemm(ql_ctx *ctx, ql_mat x, const ql_qweight *w, ql_mat bias, ql_mat y) {
    QL_TRY(ql_cpu_check_groups("qgemm", &w->grid, w->k));
    int64_t rows = w->n < PANEL_ROWS ? w->n : PANEL_ROWS;
    size_t floats = (size_t)(rows * w->k) * sizeof(float), bytes = (size_t)(w->k * ctx->threads);
    float *panel = ql_malloc(floats + bytes); /* the panel, then one row of codes per thread */
    if (!panel) return ql_fail(QL_NOMEM, "qgemm: no memory for a panel of %zu bytes", floats + bytes);
    ql_status status = QL_OK;
    for (int64_t first = 0; first < w->n && status == QL_OK; first += rows) {
        int64_t count = w->n - first < rows ? w->n - first : rows;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
        for (int64_t r = 0; r < count; r++) {
            uint8_t *codes = (uint8_t *)panel + floats + (int64_t)omp_get_thread_num() * w->k;
            expand_row(w, first + r, codes, panel + r * w->k);
        }
        ql_mat panel_bias = ql_is_present(bias) ? ql_cols(bias, first, count) : bias;
        status = ql_cpu_gemm_panel(ctx, x, ql_mat_of(panel, QL_F32, count, w->k), panel_bias, ql_cols(y, first, count),
                                   w->n);
    }
    ql_mfree(panel);
    return status;
}

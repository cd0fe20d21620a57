/* Following the full-precision model (CPU): how the inputs of a layer in the quantized model drift from those in the original, and the
 * weight that answers to the drift.   The formulas stand in calib/drift.h. */
#include <omp.h>
#include <stdbool.h>

#include "host/cpu/blas.h"
#include "host/mat.h"
#include "host/mem.h"
#include "host/ops.h"

/* As in hessian.c: large tiles are faster, but those of a narrow layer have to feed several threads. */
enum { TILE = 256, NARROW = 512, NARROW_TILE = 128, PANEL = 64, WIDENED = 512 };

/* c += y^T x, in fixed tiles that the threads share.  Row-major c is column-major c^T += x^T y. */
static void add_cross(ql_ctx *ctx, ql_mat y, ql_mat x, ql_mat c) {
    const int64_t tile = c.rows > NARROW ? TILE : NARROW_TILE;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(ctx->threads)
    for (int64_t i = 0; i < c.rows; i += tile)
        for (int64_t j = 0; j < c.cols; j += TILE) {
            const int cols = (int)ql_at_most(TILE, c.cols - j), rows = (int)ql_at_most(tile, c.rows - i),
                      depth = (int)x.rows;
            const int ldx = (int)x.ld, ldy = (int)y.ld, ldc = (int)c.ld;
            const float one = 1;
            sgemm_("N", "T", &cols, &rows, &depth, &one, (float *)x.data + j, &ldx, (float *)y.data + i, &ldy, &one,
                   (float *)c.data + i * c.ld + j, &ldc);
        }
}

/* BF16 is widened, WIDENED tokens of both at a time. */
static ql_status add_cross_widened(ql_ctx *ctx, ql_mat y, ql_mat x, ql_mat c, float *floats) {
    for (int64_t first = 0; first < x.rows; first += WIDENED) {
        const int64_t rows = ql_at_most(WIDENED, x.rows - first);
        ql_mat wide_y = ql_mat_of(floats, QL_F32, rows, y.cols),
               wide_x = ql_mat_of(floats + rows * y.cols, QL_F32, rows, x.cols);
        QL_TRY(ql_cpu_convert(ctx, ql_rows(y, first, rows), wide_y));
        QL_TRY(ql_cpu_convert(ctx, ql_rows(x, first, rows), wide_x));
        add_cross(ctx, wide_y, wide_x, c);
    }
    return QL_OK;
}

ql_status ql_cpu_cross(ql_ctx *ctx, ql_mat y, ql_mat x, ql_mat c) {
    if (x.dtype == QL_F32) {
        add_cross(ctx, y, x, c);
        return QL_OK;
    }
    size_t bytes = (size_t)(ql_at_most(WIDENED, x.rows) * (y.cols + x.cols)) * sizeof(float);
    float *floats = ql_malloc(bytes);
    if (!floats) return ql_fail(QL_NOMEM, "cross: no memory for a panel of %zu bytes", bytes);
    ql_status status = add_cross_widened(ctx, y, x, c, floats);
    ql_mfree(floats);
    return status;
}

/* Columns of some rows into the factor's order, and back. */
static void permute(const float *from, float *to, int64_t k, const int32_t *order, bool back) {
    for (int64_t p = 0; p < k; p++) {
        int64_t column = order ? order[p] : p;
        if (back) to[column] = from[p];
        else to[p] = from[column];
    }
}

/* Row by row: z (R R^T) = b, first y R^T = b, then z R = y.  Column-major, the row-major R is the lower triangle R^T. */
static void solve_panel(ql_mat b, ql_mat r, const int32_t *order, ql_mat x, float *work) {
    const int k = (int)b.cols, rows = (int)b.rows, ldr = (int)r.ld;
    const float one = 1;
    for (int64_t i = 0; i < rows; i++) permute((float *)b.data + i * b.ld, work + i * k, k, order, false);
    strsm_("L", "L", "T", "N", &k, &rows, &one, r.data, &ldr, work, &k);
    strsm_("L", "L", "N", "N", &k, &rows, &one, r.data, &ldr, work, &k);
    for (int64_t i = 0; i < rows; i++) permute(work + i * k, (float *)x.data + i * x.ld, k, order, true);
}

ql_status ql_cpu_solve(ql_ctx *ctx, ql_mat b, ql_mat r, ql_mat order, ql_mat x) {
    float *work = ql_malloc((size_t)(ctx->threads * PANEL * b.cols) * sizeof *work);
    if (!work)
        return ql_fail(QL_NOMEM, "solve: no memory for %d panels of %lld columns", ctx->threads, (long long)b.cols);
#pragma omp parallel for schedule(dynamic) num_threads(ctx->threads)
    for (int64_t first = 0; first < b.rows; first += PANEL) {
        int64_t rows = ql_at_most(PANEL, b.rows - first);
        solve_panel(ql_rows(b, first, rows), r, order.data, ql_rows(x, first, rows),
                    work + (int64_t)omp_get_thread_num() * PANEL * b.cols);
    }
    ql_mfree(work);
    return QL_OK;
}

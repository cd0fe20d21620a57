/* y = x w^T + bias.   x [m][k], w [n][k], y [m][n], all F32.
 * y is cut into fixed tiles that the threads share; a tile is one single-threaded BLAS call over the whole of k, so neither the
 * shapes that BLAS sees nor the order of its sums depend on the number of threads.
 */
#include "host/cpu/blas.h"
#include "host/cpu/gemm.h"
#include "host/mat.h"
#include "host/ops.h"

/* Large enough that packing both operands ((m + n) k copies for m n k products) costs a few per cent; a small product is cut finer,
 * because it too has to feed some threads.  Measured: perf/LOG.md, "gemm tiles", "leaves". */
enum { TILE = 512, LEAST_TILE = 128, ENOUGH = 4 };

typedef struct tile_shape {
    int64_t rows, cols;
} tile_shape;

static tile_shape choose_tile(int64_t m, int64_t n) {
    tile_shape t = {ql_at_most(TILE, m), ql_at_most(TILE, n)};
    while (ql_ceil_div(m, t.rows) * ql_ceil_div(n, t.cols) < ENOUGH && (t.rows > LEAST_TILE || t.cols > LEAST_TILE)) {
        if (t.rows > t.cols) t.rows = ql_ceil_div(t.rows, 2);
        else t.cols = ql_ceil_div(t.cols, 2);
    }
    return t;
}

static void fill_with_bias(ql_mat y, const float *bias) {
    for (int64_t r = 0; r < y.rows; r++) {
        float *row = (float *)y.data + r * y.ld;
        for (int64_t c = 0; c < y.cols; c++) row[c] = bias[c];
    }
}

/* Row-major y = x w^T is column-major y^T = w x^T, where w lies transposed. */
static void tile_product(ql_mat x, ql_mat w, ql_mat bias, ql_mat y) {
    const int n = (int)w.rows, m = (int)x.rows, k = (int)x.cols, ldw = (int)w.ld, ldx = (int)x.ld, ldy = (int)y.ld;
    const float one = 1, beta = ql_is_present(bias) ? 1 : 0;
    if (ql_is_present(bias)) fill_with_bias(y, bias.data);
    sgemm_("T", "N", &n, &m, &k, &one, w.data, &ldw, x.data, &ldx, &beta, y.data, &ldy);
}

ql_status ql_cpu_gemm_panel(ql_ctx *ctx, ql_mat x, ql_mat w, ql_mat bias, ql_mat y, int64_t n) {
    const tile_shape tile = choose_tile(y.rows, n);
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(ctx->threads)
    for (int64_t c = 0; c < y.cols; c += tile.cols)
        for (int64_t r = 0; r < y.rows; r += tile.rows) {
            int64_t rows = ql_at_most(tile.rows, y.rows - r), cols = ql_at_most(tile.cols, y.cols - c);
            ql_mat tile_bias = ql_is_present(bias) ? ql_cols(bias, c, cols) : bias;
            tile_product(ql_rows(x, r, rows), ql_rows(w, c, cols), tile_bias, ql_cols(ql_rows(y, r, rows), c, cols));
        }
    return QL_OK;
}

ql_status ql_cpu_gemm(ql_ctx *ctx, ql_mat x, ql_mat w, ql_mat bias, ql_mat y) {
    return ql_cpu_gemm_panel(ctx, x, w, bias, y, y.cols);
}

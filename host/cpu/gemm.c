/* y = x w^T + bias.   x [m][k], w [n][k], y [m][n], F32, or x and w BF16 and y either.
 * y is cut into fixed tiles that the threads share; a tile is one single-threaded BLAS call over the whole of k, so neither the
 * shapes that BLAS sees nor the order of its sums depend on the number of threads.  BF16 operands of a tile are widened DEPTH
 * inputs at a time, each with a BLAS call that adds to the tile.
 */
#include <omp.h>

#include "host/cpu/blas.h"
#include "host/cpu/gemm.h"
#include "host/mat.h"
#include "host/mem.h"
#include "host/num.h"
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

/* y = x w^T + beta y.   Row-major y = x w^T is column-major y^T = w x^T, where w lies transposed. */
static void multiply(ql_mat x, ql_mat w, float beta, ql_mat y) {
    const int n = (int)w.rows, m = (int)x.rows, k = (int)x.cols, ldw = (int)w.ld, ldx = (int)x.ld, ldy = (int)y.ld;
    const float one = 1;
    sgemm_("T", "N", &n, &m, &k, &one, w.data, &ldw, x.data, &ldx, &beta, y.data, &ldy);
}

static void tile_product(ql_mat x, ql_mat w, ql_mat bias, ql_mat y) {
    if (ql_is_present(bias)) fill_with_bias(y, bias.data);
    multiply(x, w, ql_is_present(bias) ? 1 : 0, y);
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

/* ---- BF16 ------------------------------------------------------------------------------------------------------------------ */

enum {
    DEPTH = 1024
}; /* two operands of 2 MiB and 1 MiB of sums per thread; widening takes 2 DEPTH / TILE of the products' loads */

static void widen(ql_mat from, float *to) {
    for (int64_t r = 0; r < from.rows; r++, to += from.cols) {
        const uint16_t *row = (const uint16_t *)from.data + r * from.ld;
        for (int64_t c = 0; c < from.cols; c++) to[c] = ql_bf16_to_f32(row[c]);
    }
}

static void round_rows(const float *from, ql_mat to) {
    for (int64_t r = 0; r < to.rows; r++, from += to.cols) {
        uint16_t *row = (uint16_t *)to.data + r * to.ld;
        for (int64_t c = 0; c < to.cols; c++) row[c] = ql_f32_to_bf16(from[c]);
    }
}

/* work: x, w and, where y is BF16, the sums. */
static void tile_product_bf16(ql_mat x, ql_mat w, ql_mat bias, ql_mat y, float *work) {
    ql_mat sums = y.dtype == QL_F32 ? y : ql_mat_of(work + (x.rows + w.rows) * DEPTH, QL_F32, y.rows, y.cols);
    if (ql_is_present(bias)) fill_with_bias(sums, bias.data);
    for (int64_t first = 0; first < x.cols; first += DEPTH) {
        const int64_t depth = ql_at_most(DEPTH, x.cols - first);
        ql_mat wide_x = ql_mat_of(work, QL_F32, x.rows, depth),
               wide_w = ql_mat_of(work + x.rows * depth, QL_F32, w.rows, depth);
        widen(ql_cols(x, first, depth), wide_x.data);
        widen(ql_cols(w, first, depth), wide_w.data);
        multiply(wide_x, wide_w, first || ql_is_present(bias) ? 1 : 0, sums);
    }
    if (y.dtype == QL_BF16) round_rows(sums.data, y);
}

static ql_status gemm_bf16(ql_ctx *ctx, ql_mat x, ql_mat w, ql_mat bias, ql_mat y) {
    const tile_shape tile = choose_tile(y.rows, y.cols);
    const int64_t size = (tile.rows + tile.cols) * DEPTH + tile.rows * tile.cols;
    const size_t bytes = (size_t)(ctx->threads * size) * sizeof(float);
    float *work = ql_malloc(bytes);
    if (!work) return ql_fail(QL_NOMEM, "gemm: no memory for %zu bytes of tiles", bytes);
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(ctx->threads)
    for (int64_t c = 0; c < y.cols; c += tile.cols)
        for (int64_t r = 0; r < y.rows; r += tile.rows) {
            int64_t rows = ql_at_most(tile.rows, y.rows - r), cols = ql_at_most(tile.cols, y.cols - c);
            ql_mat tile_bias = ql_is_present(bias) ? ql_cols(bias, c, cols) : bias;
            tile_product_bf16(ql_rows(x, r, rows), ql_rows(w, c, cols), tile_bias,
                              ql_cols(ql_rows(y, r, rows), c, cols), work + omp_get_thread_num() * size);
        }
    ql_mfree(work);
    return QL_OK;
}

ql_status ql_cpu_gemm(ql_ctx *ctx, ql_mat x, ql_mat w, ql_mat bias, ql_mat y) {
    return x.dtype == QL_BF16 ? gemm_bf16(ctx, x, w, bias, y) : ql_cpu_gemm_panel(ctx, x, w, bias, y, y.cols);
}

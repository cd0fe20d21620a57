/* Statistics of the inputs of a linear layer.
 *
 * H += X^T X, upper triangle.   X [m][k], H [r][k], the first rows.  H is cut into fixed square tiles that the threads share; a tile is one
 * single-threaded BLAS call over all tokens.  Tiles begin at the diagonal and are counted from there, and their size depends on the distance to
 * the last column: a stripe of H, which begins at a tile, has the tiles of the whole.  Row-major C += A^T B is column-major C^T += B^T A.
 * X of another type than H is converted first, a panel of tokens at a time.
 */
#include <omp.h>

#include "host/cpu/blas.h"
#include "host/cpu/value.h"
#include "host/mem.h"
#include "host/ops.h"

/* 128 costs a tenth of the rate of 256, but one tile of 256 would leave a narrow layer to one thread.  perf/LOG.md, "hessian tiles". */
enum { TILE = 256, NARROW = 512, NARROW_TILE = 128 };

_Static_assert(QL_HESSIAN_STEP % TILE == 0 && TILE % NARROW_TILE == 0, "a stripe begins at a tile");

static int64_t tile_of(int64_t distance) { return distance > NARROW ? TILE : NARROW_TILE; }

/* a, b: the columns of X that a tile of H multiplies; h: the tile.  On the diagonal both are the same. */
static void tile_f32(ql_mat a, ql_mat b, ql_mat h) {
    const int rows = (int)h.rows, cols = (int)h.cols, m = (int)a.rows, ldx = (int)a.ld, ldh = (int)h.ld;
    const float one = 1;
    if (a.data == b.data) ssyrk_("L", "N", &rows, &m, &one, a.data, &ldx, &one, h.data, &ldh);
    else sgemm_("N", "T", &cols, &rows, &m, &one, b.data, &ldx, a.data, &ldx, &one, h.data, &ldh);
}

static void tile_f64(ql_mat a, ql_mat b, ql_mat h) {
    const int rows = (int)h.rows, cols = (int)h.cols, m = (int)a.rows, ldx = (int)a.ld, ldh = (int)h.ld;
    const double one = 1;
    if (a.data == b.data) dsyrk_("L", "N", &rows, &m, &one, a.data, &ldx, &one, h.data, &ldh);
    else dgemm_("N", "T", &cols, &rows, &m, &one, b.data, &ldx, a.data, &ldx, &one, h.data, &ldh);
}

/* Tiles row .. of h: a square on the diagonal, then others to its right. */
static void add_products(ql_ctx *ctx, ql_mat x, ql_mat h) {
#pragma omp parallel num_threads(ctx->threads)
    for (int64_t row = 0, rows; row < h.rows; row += rows) {
        const int64_t tile = tile_of(h.cols - row);
        rows = ql_at_most(tile, h.rows - row);
        const int64_t tiles = 1 + ql_ceil_div(h.cols - row - rows, tile);
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t col = i ? row + rows + (i - 1) * tile : row, cols = i ? ql_at_most(tile, h.cols - col) : rows;
            const ql_mat a = ql_cols(x, row, rows), b = ql_cols(x, col, cols),
                         c = ql_cols(ql_rows(h, row, rows), col, cols);
            if (h.dtype == QL_F64) tile_f64(a, b, c);
            else tile_f32(a, b, c);
        }
    }
}

/* Tokens that are converted at a time: 4 MiB of doubles per 1024 inputs. */
enum { PANEL_ROWS = 512 };

ql_status ql_cpu_hessian(ql_ctx *ctx, ql_mat x, ql_mat h) {
    if (x.dtype == h.dtype) {
        add_products(ctx, x, h);
        return QL_OK;
    }
    int64_t rows = ql_at_most(PANEL_ROWS, x.rows);
    size_t bytes = (size_t)(rows * x.cols) * ql_dtype_size(h.dtype);
    ql_mat panel = ql_mat_of(ql_malloc(bytes), h.dtype, rows, x.cols);
    if (!panel.data) return ql_fail(QL_NOMEM, "hessian: no memory for a panel of %zu bytes", bytes);
    ql_status status = QL_OK;
    for (int64_t first = 0; first < x.rows && status == QL_OK; first += rows) {
        panel.rows = ql_at_most(rows, x.rows - first);
        status = ql_cpu_convert(ctx, ql_rows(x, first, panel.rows), panel);
        add_products(ctx, panel, h);
    }
    ql_mfree(panel.data);
    return status;
}

/* ---- moments: a thread owns a run of columns and walks all rows, so every sum has one order -------------------------------- */

enum { RUN = 64 }; /* columns per run: a row of it is four cache lines, its sums 1.5 KiB */

static inline void row_moments(const void *row, const ql_dtype dtype, int64_t count, double *sum_sq, double *sum_abs,
                               float *min, float *max) {
#pragma omp simd
    for (int64_t c = 0; c < count; c++) {
        float single = ql_value(row, dtype, c);
        double value = single;
        sum_sq[c] += value * value;
        sum_abs[c] += fabs(value);
        min[c] = single < min[c] ? single : min[c];
        max[c] = single > max[c] ? single : max[c];
    }
}

static void run_moments(ql_mat x, double *sum_sq, double *sum_abs, float *min, float *max) {
    for (int64_t r = 0; r < x.rows; r++)
        QL_BY_TYPE(x.dtype, row_moments, ql_rows(x, r, 1).data, x.cols, sum_sq, sum_abs, min, max);
}

ql_status ql_cpu_moments(ql_ctx *ctx, ql_mat x, ql_mat sum_sq, ql_mat sum_abs, ql_mat min, ql_mat max) {
#pragma omp parallel for schedule(dynamic) num_threads(ctx->threads)
    for (int64_t first = 0; first < x.cols; first += RUN)
        run_moments(ql_cols(x, first, ql_at_most(RUN, x.cols - first)), (double *)sum_sq.data + first,
                    (double *)sum_abs.data + first, (float *)min.data + first, (float *)max.data + first);
    return QL_OK;
}

/* ---- abs_hist: one histogram per thread; counts are integers, so the order of merging does not matter ---------------------- */

enum { BINS = 32768 };

/* The bits first, run by run: that loop vectorizes, the one with the counters cannot. */
static inline void count_row(const void *row, const ql_dtype dtype, int64_t cols, uint64_t *count) {
    uint16_t bits[RUN];
    for (int64_t first = 0; first < cols; first += RUN) {
        int64_t run = ql_at_most(RUN, cols - first);
        for (int64_t c = 0; c < run; c++) bits[c] = ql_f32_to_bf16(fabsf(ql_value(row, dtype, first + c)));
        for (int64_t c = 0; c < run; c++) count[bits[c]]++;
    }
}

ql_status ql_cpu_abs_hist(ql_ctx *ctx, ql_mat x, ql_mat count) {
    size_t bytes = (size_t)ctx->threads * BINS * sizeof(uint64_t);
    uint64_t *counts = ql_malloc(bytes), *total = count.data;
    if (!counts) return ql_fail(QL_NOMEM, "abs_hist: no memory for %zu bytes of counts", bytes);
    memset(counts, 0, bytes);
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++)
        QL_BY_TYPE(x.dtype, count_row, ql_rows(x, r, 1).data, x.cols, counts + (size_t)omp_get_thread_num() * BINS);
    for (int t = 0; t < ctx->threads; t++)
        for (int b = 0; b < BINS; b++) total[b] += counts[(size_t)t * BINS + b];
    ql_mfree(counts);
    return QL_OK;
}

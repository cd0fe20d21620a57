/* P (H + shift I) P^T = R R^T, R upper triangular, P the order of the columns.   h, r [k][k]
 *
 * A Cholesky factorization that begins in the last corner, tile by tile, in place:
 *
 *   [A B]   [X Y] [X^T    ]      Z Z^T = C                       the tile on the diagonal
 *   [  C] = [  Z] [Y^T Z^T]      Y     = B Z^-T                  the tiles above it
 *                                A    -= Y Y^T                   what remains, then the same with A
 *
 * The threads share the tiles, each one single-threaded BLAS call of fixed shape: the bits do not depend on their number.
 */
#include <math.h>

#include "host/cpu/blas.h"
#include "host/cpu/groups.h"
#include "host/mat.h"
#include "host/ops.h"

/* TILE: 512 is 3 % faster at k = 4096 and 20 % slower at 768.  FOLD: two pieces of this height and width stay in the first-level
 * cache even where rows lie a power of two apart.  Measured: perf/LOG.md, "solver". */
enum { TILE = 256, FOLD = 16 };

/* ---- r = P (H + shift I) P^T, upper triangle ------------------------------------------------------------------------------ */

/* Only the upper triangle of h is valid, and a permuted row would have to read it down the columns, one value per cache line.  So
 * row p takes what row order[p] of h has, on both sides of the diagonal; the rest has arrived at the mirrored place, and fold
 * brings it over. */
static void gather_row(ql_mat h, ql_mat order, int64_t p, float *row) {
    int64_t a = ql_column_at(order, p);
    const float *from = (const float *)h.data + a * h.ld;
    for (int64_t q = 0; q < h.cols; q++) {
        int64_t b = ql_column_at(order, q);
        row[q] = b >= a ? from[b] : 0.0f;
    }
}

static void fold(ql_mat order, ql_mat r, int64_t rows, int64_t cols) {
    float *data = r.data;
    for (int64_t p = rows; p < ql_at_most(rows + FOLD, r.rows); p++)
        for (int64_t q = cols > p ? cols : p + 1; q < ql_at_most(cols + FOLD, r.cols); q++) {
            float *above = data + p * r.ld + q, *below = data + q * r.ld + p;
            if (ql_column_at(order, p) > ql_column_at(order, q)) *above = *below;
            *below = 0;
        }
}

static void gather(ql_ctx *ctx, ql_mat h, ql_mat order, double shift, ql_mat r) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t p = 0; p < r.rows; p++) {
        float *row = (float *)r.data + p * r.ld;
        gather_row(h, order, p, row);
        row[p] = (float)(row[p] + shift);
    }
#pragma omp parallel for schedule(dynamic) num_threads(ctx->threads)
    for (int64_t rows = 0; rows < r.rows; rows += FOLD)
        for (int64_t cols = rows; cols < r.cols; cols += FOLD) fold(order, r, rows, cols);
}

/* ---- tiles ---------------------------------------------------------------------------------------------------------------- */

/* Z Z^T = C.  With all indices reversed this is the ordinary L L^T, of a copy: element (p, q) goes to (size-1-q, size-1-p), which
 * stays above the diagonal.  There, row-major upper is LAPACK's column-major lower.  Returns the first position, from the end,
 * whose pivot is not a positive number; 0 if all are. */
static int64_t factor_tile(float *c, int64_t ld, int64_t size, float *copy) {
    const int n = (int)size;
    int info;
    for (int64_t p = 0; p < size; p++)
        for (int64_t q = p; q < size; q++) copy[(size - 1 - q) * size + size - 1 - p] = c[p * ld + q];
    spotrf_("L", &n, copy, &n, &info);
    for (int64_t p = 0; info == 0 && p < size; p++)
        if (!(copy[p * size + p] > 0.0f) || !isfinite(copy[p * size + p])) info = (int)p + 1;
    for (int64_t p = 0; info == 0 && p < size; p++)
        for (int64_t q = p; q < size; q++) c[p * ld + q] = copy[(size - 1 - q) * size + size - 1 - p];
    return info;
}

/* Y Z^T = B in place.  Column-major: Z B^T is solved from the left, and Z lies transposed. */
static void solve_tile(const float *z, float *b, int64_t rows, int64_t size, int64_t ld) {
    const int m = (int)size, n = (int)rows, ldr = (int)ld;
    const float one = 1;
    strsm_("L", "L", "T", "N", &m, &n, &one, z, &ldr, b, &ldr);
}

/* A -= Y Y'^T for the tile whose rows go with Y and whose columns with Y'; on the diagonal its upper triangle alone. */
static void update_tile(const float *y, const float *other, float *a, int64_t rows, int64_t cols, int64_t depth,
                        int64_t ld) {
    const int m = (int)cols, n = (int)rows, k = (int)depth, ldr = (int)ld;
    const float minus = -1, one = 1;
    if (y == other) ssyrk_("L", "T", &n, &k, &minus, y, &ldr, &one, a, &ldr);
    else sgemm_("T", "N", &m, &n, &k, &minus, other, &ldr, y, &ldr, &one, a, &ldr);
}

/* Everything that follows from the diagonal tile at `corner`. */
static void reduce(ql_ctx *ctx, ql_mat r, int64_t corner, int64_t size) {
    float *data = r.data, *panel = data + corner;
#pragma omp parallel for schedule(dynamic) num_threads(ctx->threads)
    for (int64_t i = 0; i < corner; i += TILE) solve_tile(panel + corner * r.ld, panel + i * r.ld, TILE, size, r.ld);
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(ctx->threads)
    for (int64_t i = 0; i < corner; i += TILE)
        for (int64_t j = 0; j < corner; j += TILE)
            if (i <= j) update_tile(panel + i * r.ld, panel + j * r.ld, data + i * r.ld + j, TILE, TILE, size, r.ld);
}

static ql_status factor(ql_ctx *ctx, ql_mat h, ql_mat order, double shift, ql_mat r, ql_arena *scratch) {
    float *copy;
    QL_TRY(ql_cpu_check_order("factor", order, r.cols, scratch));
    QL_TRY(ql_take(scratch, TILE * TILE, sizeof *copy, &copy));
    gather(ctx, h, order, shift, r);
    for (int64_t corner = (r.cols - 1) / TILE * TILE; corner >= 0; corner -= TILE) {
        int64_t size = ql_at_most(TILE, r.cols - corner);
        int64_t bad = factor_tile((float *)r.data + corner * r.ld + corner, r.ld, size, copy);
        if (bad > 0)
            return ql_fail(QL_NUMERIC,
                           "factor: with %g on its diagonal the matrix is not positive definite at column %lld", shift,
                           (long long)ql_column_at(order, corner + size - bad));
        reduce(ctx, r, corner, size);
    }
    return QL_OK;
}

ql_status ql_cpu_factor(ql_ctx *ctx, ql_mat h, ql_mat order, double shift, ql_mat r) {
    ql_arena *scratch;
    QL_TRY(ql_arena_open(NULL, &scratch));
    ql_status status = factor(ctx, h, order, shift, r, scratch);
    ql_arena_close(scratch);
    return status;
}

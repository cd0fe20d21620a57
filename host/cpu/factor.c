/* R upper triangular with P (H + shift I) P^T = R R^T (CPU).
 *
 * Reversing the order of all indices turns R into a lower triangle: B[i][j] = (P H' P^T)[k-1-i][k-1-j] = L L^T, and R is L read
 * backwards, as one flat array.  The Cholesky factorization of B goes tile by tile; threads share the tiles below and to the
 * right, each one single-threaded BLAS call of fixed shape, so the bits do not depend on their number. */
#include "host/cpu/blas.h"
#include "host/mat.h"
#include "host/ops.h"
#include "host/status.h"

enum { TILE = 256 };

static int64_t at_most(int64_t limit, int64_t left) { return left < limit ? left : limit; }

/* Lower triangle of B into r, zeros above. */
static void reverse_into(const ql_ctx *ctx, ql_mat h, const int32_t *order, float shift, ql_mat r) {
    int64_t k = h.rows;
#pragma omp parallel for schedule(dynamic, 16) num_threads(ctx->threads)
    for (int64_t i = 0; i < k; i++) {
        float *row = (float *)r.data + i * r.ld;
        int64_t a = order ? order[k - 1 - i] : k - 1 - i;
        for (int64_t j = 0; j <= i; j++) {
            int64_t b = order ? order[k - 1 - j] : k - 1 - j;
            row[j] = ((const float *)h.data)[a < b ? a * h.ld + b : b * h.ld + a];
        }
        row[i] += shift;
        for (int64_t j = i + 1; j < k; j++) row[j] = 0;
    }
}

/* A row-major lower triangle is a column-major upper one: L = U^T. */
static int factor_tile(float *a, int64_t size, int64_t ld) {
    const int n = (int)size, lda = (int)ld;
    int info;
    spotrf_("U", &n, a, &lda, &info);
    return info;
}

/* Rows below a factored tile: X L^T = A, or U^T X^T = A^T. */
static void solve_tile(const float *l, float *a, int64_t rows, int64_t size, int64_t ld) {
    const int m = (int)size, n = (int)rows, lda = (int)ld;
    const float one = 1;
    strsm_("L", "U", "T", "N", &m, &n, &one, l, &lda, a, &lda);
}

/* C -= A B^T for one tile of the trailing matrix, A [rows][depth], B [cols][depth]. */
static void update_tile(const float *a, const float *b, float *c, int64_t rows, int64_t cols, int64_t depth,
                        int64_t ld) {
    const int m = (int)cols, n = (int)rows, k = (int)depth, lda = (int)ld;
    const float minus = -1, one = 1;
    sgemm_("T", "N", &m, &n, &k, &minus, b, &lda, a, &lda, &one, c, &lda);
}

static ql_status cholesky(const ql_ctx *ctx, float *a, int64_t k, int64_t ld) {
    for (int64_t t = 0; t < k; t += TILE) {
        int64_t size = at_most(TILE, k - t), rest = t + size;
        int info = factor_tile(a + t * ld + t, size, ld);
        if (info != 0)
            return ql_fail(QL_NUMERIC, "the Hessian is not positive definite: pivot %lld of %lld is not positive",
                           (long long)(t + info), (long long)k);
#pragma omp parallel for schedule(dynamic) num_threads(ctx->threads)
        for (int64_t i = rest; i < k; i += TILE)
            solve_tile(a + t * ld + t, a + i * ld + t, at_most(TILE, k - i), size, ld);
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(ctx->threads)
        for (int64_t i = rest; i < k; i += TILE)
            for (int64_t j = rest; j < k; j += TILE)
                if (j <= i)
                    update_tile(a + i * ld + t, a + j * ld + t, a + i * ld + j, at_most(TILE, k - i),
                                at_most(TILE, k - j), size, ld);
    }
    return QL_OK;
}

/* Element (i, j) changes places with (k-1-i, k-1-j).  The tiles on the diagonal wrote above it: back to zero. */
static void reverse(const ql_ctx *ctx, ql_mat r) {
    int64_t k = r.rows;
    float *data = r.data;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t i = 0; i < (k + 1) / 2; i++)
        for (int64_t j = 0; j < (2 * i + 1 == k ? k / 2 : k); j++) {
            float *x = data + i * r.ld + j, *y = data + (k - 1 - i) * r.ld + (k - 1 - j), kept = *x;
            *x = *y;
            *y = kept;
        }
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < i; j++) data[i * r.ld + j] = 0;
}

ql_status ql_cpu_factor(ql_ctx *ctx, ql_mat h, ql_mat order, double shift, ql_mat r) {
    reverse_into(ctx, h, order.data, (float)shift, r);
    QL_TRY(cholesky(ctx, r.data, r.rows, r.ld));
    reverse(ctx, r);
    return QL_OK;
}

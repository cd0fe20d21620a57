/* Measures: how far a result is from what it stands for.
 *
 * nll, kld: rows are independent; exponentials and sums in double.
 * loss: tr(E H E^T) = sum over i <= j of c E[:, i] . H[i][j] E[:, j], c = 1 on the diagonal and 2 above it, E = w - q.  Rows of E
 * are cut into fixed panels and columns into blocks, which the threads share; for every block of columns one product gives the part
 * above the diagonal block, a second one the diagonal block itself.
 */
#include <omp.h>

#include "host/cpu/blas.h"
#include "host/cpu/exp.h"
#include "host/mat.h"
#include "host/mem.h"
#include "host/ops.h"

/* ---- nll, kld -------------------------------------------------------------------------------------------------------------- */

static float row_max(const float *x, int64_t v) {
    float max = x[0];
#pragma omp simd reduction(max : max)
    for (int64_t i = 0; i < v; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static int64_t first_of(const float *x, int64_t v, float value) {
    for (int64_t i = 0; i < v; i++)
        if (x[i] == value) return i;
    return -1; /* only a row of NaN has no maximum */
}

static double log_sum_exp(const float *x, int64_t v, double max) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < v; i++) sum += ql_exp_f64(x[i] - max);
    return max + log(sum);
}

ql_status ql_cpu_nll(ql_ctx *ctx, ql_mat logits, ql_mat target, ql_mat nll) {
    const int32_t *id = target.data;
    double *out = nll.data;
    for (int64_t r = 0; r < logits.rows; r++)
        if (id[r] >= logits.cols)
            return ql_fail(QL_INVALID, "nll: target[%lld] is %d, there are %lld logits", (long long)r, (int)id[r],
                           (long long)logits.cols);
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < logits.rows; r++) {
        const float *row = (const float *)logits.data + r * logits.ld;
        out[r] = id[r] < 0 ? 0 : log_sum_exp(row, logits.cols, row_max(row, logits.cols)) - row[id[r]];
    }
    return QL_OK;
}

/* With both rows shifted by their own log-sum-exp, what remains is the sum of p (log p - log q), where p = 0 adds nothing even if
 * log q is infinite.  In one loop the compiler turns "p is 0" into a branch on the range of exp and vectorizes nothing. */
static double divergence(const float *base, double base_norm, const float *logits, double norm, int64_t v) {
    enum { RUN = 256 };
    double sum = 0, p[RUN];
    for (int64_t first = 0; first < v; first += RUN) {
        int64_t run = v - first < RUN ? v - first : RUN;
        for (int64_t i = 0; i < run; i++) p[i] = ql_exp_f64(base[first + i] - base_norm);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < run; i++) {
            double term = p[i] * ((base[first + i] - base_norm) - (logits[first + i] - norm));
            sum += p[i] == 0 ? 0 : term;
        }
    }
    return sum;
}

ql_status ql_cpu_kld(ql_ctx *ctx, ql_mat base, ql_mat logits, ql_mat kld, ql_mat same) {
    int64_t v = base.cols;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < base.rows; r++) {
        const float *b = (const float *)base.data + r * base.ld, *l = (const float *)logits.data + r * logits.ld;
        float b_max = row_max(b, v), l_max = row_max(l, v);
        ((double *)kld.data)[r] = divergence(b, log_sum_exp(b, v, b_max), l, log_sum_exp(l, v, l_max), v);
        ((uint8_t *)same.data)[r] = first_of(b, v, b_max) == first_of(l, v, l_max);
    }
    return QL_OK;
}

/* ---- loss -------------------------------------------------------------------------------------------------------------------- */

/* 128 rows of E per panel, blocks of 256 columns: the products stay large.  Narrow layers are cut finer: a task is one panel and one
 * block, so 128 rows alone already feed some threads. */
enum { ROWS = 128, COLS = 256, NARROW = 512, NARROW_COLS = 128 };

static int64_t block_of(int64_t k) { return k > NARROW ? COLS : NARROW_COLS; }

static double value_at(ql_mat a, int64_t r, int64_t c) {
    int64_t i = r * a.ld + c;
    return a.dtype == QL_F64 ? ((const double *)a.data)[i] : (double)((const float *)a.data)[i];
}

static void put_at(ql_mat a, int64_t r, int64_t c, double value) {
    int64_t i = r * a.ld + c;
    if (a.dtype == QL_F64) ((double *)a.data)[i] = value;
    else ((float *)a.data)[i] = (float)value;
}

/* E = w - q, or w itself where q is absent, in the type of E. */
static void form_error(ql_mat w, ql_mat q, ql_mat e) {
    for (int64_t r = 0; r < e.rows; r++)
        for (int64_t c = 0; c < e.cols; c++)
            put_at(e, r, c, value_at(w, r, c) - (ql_is_present(q) ? value_at(q, r, c) : 0));
}

/* Row-major t = a b + beta t is column-major t^T = b^T a^T + beta t^T. */
static void multiply(ql_mat a, ql_mat b, double beta, ql_mat t) {
    const int n = (int)b.cols, m = (int)a.rows, k = (int)a.cols, lda = (int)a.ld, ldb = (int)b.ld, ldt = (int)t.ld;
    const double one = 1;
    const float one_f32 = 1, beta_f32 = (float)beta;
    if (t.dtype == QL_F64) dgemm_("N", "N", &n, &m, &k, &one, b.data, &ldb, a.data, &lda, &beta, t.data, &ldt);
    else sgemm_("N", "N", &n, &m, &k, &one_f32, b.data, &ldb, a.data, &lda, &beta_f32, t.data, &ldt);
}

static double dot(ql_mat a, ql_mat b) {
    double sum = 0;
    for (int64_t r = 0; r < a.rows; r++)
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < a.cols; c++) sum += value_at(a, r, c) * value_at(b, r, c);
    return sum;
}

/* Upper triangle of a diagonal block of H, its diagonal halved: with D + D^T the block itself. */
static void half_block(ql_mat h, ql_mat d) {
    for (int64_t r = 0; r < d.rows; r++)
        for (int64_t c = 0; c < d.cols; c++)
            put_at(d, r, c, c < r ? 0 : c == r ? value_at(h, r, c) / 2 : value_at(h, r, c));
}

/* Where one thread works: its panels of E and W, the product, and the diagonal block. */
typedef struct workspace {
    ql_mat e, w, t, d; /* [ROWS][k] twice, [ROWS][COLS], [COLS][COLS] */
} workspace;

static size_t workspace_values(int64_t k) { return (size_t)(2 * ROWS * k + ROWS * COLS + COLS * COLS); }

static workspace workspace_at(char *data, ql_dtype dtype, int64_t k) {
    size_t panel = (size_t)(ROWS * k) * ql_dtype_size(dtype), product = ROWS * COLS * ql_dtype_size(dtype);
    return (workspace){ql_mat_of(data, dtype, ROWS, k), ql_mat_of(data + panel, dtype, ROWS, k),
                       ql_mat_of(data + 2 * panel, dtype, ROWS, COLS),
                       ql_mat_of(data + 2 * panel + product, dtype, COLS, COLS)};
}

/* What the columns [col, col + cols) add to tr(E H E^T). */
static double quadratic_form(ql_mat e, ql_mat h, int64_t col, int64_t cols, workspace s) {
    if (!ql_is_present(h)) return dot(ql_cols(e, col, cols), ql_cols(e, col, cols));
    ql_mat own = ql_cols(e, col, cols), t = ql_rows(ql_cols(s.t, 0, cols), 0, e.rows),
           d = ql_rows(ql_cols(s.d, 0, cols), 0, cols);
    ql_mat above = ql_cols(ql_rows(h, 0, col), col, cols), diagonal = ql_cols(ql_rows(h, col, cols), col, cols);
    half_block(diagonal, d);
    multiply(ql_cols(e, 0, col), above, 0, t);
    multiply(own, d, 1, t);
    return 2 * dot(t, own);
}

ql_status ql_cpu_loss(ql_ctx *ctx, ql_mat w, ql_mat q, ql_mat h, double *loss, double *norm) {
    ql_dtype dtype = ql_is_present(h) ? h.dtype : QL_F32;
    int64_t panels = ql_ceil_div(w.rows, ROWS), width = block_of(w.cols), blocks = ql_ceil_div(w.cols, width);
    size_t share = workspace_values(w.cols) * ql_dtype_size(dtype);
    size_t bytes = (size_t)ctx->threads * share + (size_t)(panels * blocks) * 2 * sizeof(double);
    double *sums = ql_malloc(bytes); /* [panels][blocks][2], then the workspaces */
    if (!sums) return ql_fail(QL_NOMEM, "loss: no memory for %zu bytes of workspace", bytes);
    char *spaces = (char *)(sums + 2 * panels * blocks);
#pragma omp parallel num_threads(ctx->threads)
    {
        workspace s = workspace_at(spaces + (size_t)omp_get_thread_num() * share, dtype, w.cols);
        int64_t formed = -1;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t p = 0; p < panels; p++)
            for (int64_t b = 0; b < blocks; b++) {
                int64_t rows = ql_at_most(ROWS, w.rows - p * ROWS), cols = ql_at_most(width, w.cols - b * width);
                ql_mat e = ql_rows(s.e, 0, rows), copy = ql_rows(s.w, 0, rows);
                if (formed != p) form_error(ql_rows(w, p * ROWS, rows), ql_rows(q, p * ROWS, rows), e);
                if (formed != p) form_error(ql_rows(w, p * ROWS, rows), ql_no_mat(), copy);
                formed = p;
                sums[2 * (p * blocks + b)] = quadratic_form(e, h, b * width, cols, s);
                sums[2 * (p * blocks + b) + 1] = quadratic_form(copy, h, b * width, cols, s);
            }
    }
    *loss = *norm = 0;
    for (int64_t i = 0; i < panels * blocks; i++) *loss += sums[2 * i], *norm += sums[2 * i + 1];
    ql_mfree(sums);
    return QL_OK;
}

#include "tests/ref_gptq.h"

#include <math.h>

#include "tests/ref.h"

static double *new_array(int64_t count) {
    double *data = calloc((size_t)count + 1, sizeof *data);
    if (!data) abort();
    return data;
}

/* a = a^-1, Gauss-Jordan with row pivots. */
static void invert(double *a, int64_t k) {
    double *b = new_array(k * k);
    for (int64_t i = 0; i < k; i++) b[i * k + i] = 1;
    for (int64_t c = 0; c < k; c++) {
        int64_t pivot = c;
        for (int64_t r = c + 1; r < k; r++)
            if (fabs(a[r * k + c]) > fabs(a[pivot * k + c])) pivot = r;
        for (int64_t j = 0; j < k; j++) {
            double x = a[c * k + j], y = b[c * k + j];
            a[c * k + j] = a[pivot * k + j], a[pivot * k + j] = x;
            b[c * k + j] = b[pivot * k + j], b[pivot * k + j] = y;
        }
        double inverse = 1 / a[c * k + c];
        for (int64_t j = 0; j < k; j++) a[c * k + j] *= inverse, b[c * k + j] *= inverse;
        for (int64_t r = 0; r < k; r++) {
            double factor = a[r * k + c];
            if (r == c || factor == 0) continue;
            for (int64_t j = 0; j < k; j++)
                a[r * k + j] -= factor * a[c * k + j], b[r * k + j] -= factor * b[c * k + j];
        }
    }
    memcpy(a, b, (size_t)(k * k) * sizeof *a);
    free(b);
}

/* a = U with U^T U = a, U upper triangular. */
static void cholesky(double *a, int64_t k) {
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = i; j < k; j++) {
            double sum = a[i * k + j];
            for (int64_t l = 0; l < i; l++) sum -= a[l * k + i] * a[l * k + j];
            a[i * k + j] = i == j ? sqrt(sum) : sum / a[i * k + i];
        }
}

static int64_t column_at(const ref_gptq_job *job, int64_t p) {
    return ql_is_present(job->position) ? (int64_t)ref_at(job->position, 0, p) : p;
}

/* U of H + shift I, rows and columns in the order of the positions; `h` full, in the order of the columns. */
static double *inverse_factor(const ref_gptq_job *job, const double *h, double shift) {
    int64_t k = job->w.cols;
    double *u = new_array(k * k);
    for (int64_t p = 0; p < k; p++)
        for (int64_t q = 0; q < k; q++)
            u[p * k + q] = h[column_at(job, p) * k + column_at(job, q)] + (p == q ? shift : 0);
    invert(u, k);
    cholesky(u, k);
    return u;
}

static double *full_hessian(const ref_gptq_job *job, double scale) {
    int64_t k = job->w.cols;
    double *h = new_array(k * k);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) h[i * k + j] = scale * ref_at(job->h, i < j ? i : j, i < j ? j : i);
    return h;
}

/* Rounds the value of a position, feeds the error back into all later ones. */
static void round_and_feed_back(ref_gptq_job *job, const double *u, int64_t row, int64_t p, int64_t group, double *w) {
    int64_t k = job->w.cols, column = column_at(job, p);
    double scale = ref_at(job->grid.scale, row, group), zero = ref_at(job->grid.zero, row, group);
    double quotient = w[p] / scale, code = fmin(fmax(rint(quotient) + zero, 0), (1 << job->bits) - 1);
    double error = (w[p] - scale * (code - zero)) / u[p * k + p];
    ref_put(job->codes, row, column, code);
    ref_put(job->margin, row, column, fabs(fabs(quotient - floor(quotient)) - 0.5));
    for (int64_t q = p; q < k; q++) w[q] -= error * u[p * k + q];
}

void ref_gptq(ref_gptq_job *job, double shift) {
    int64_t k = job->w.cols;
    double *h = full_hessian(job, 1), *u = inverse_factor(job, h, shift), *w = new_array(k);
    for (int64_t row = 0; row < job->w.rows; row++) {
        for (int64_t p = 0; p < k; p++) w[p] = ref_at(job->w, row, column_at(job, p));
        for (int64_t p = 0; p < k; p++) {
            int64_t column = column_at(job, p);
            int64_t group =
                ql_is_present(job->grid.g_idx) ? (int64_t)ref_at(job->grid.g_idx, 0, column) : column / job->group;
            round_and_feed_back(job, u, row, p, group, w);
        }
    }
    free(h), free(u), free(w);
}

/* ---- the paper's code ---------------------------------------------------------------------------------------------------- */

/* Positions by descending diagonal, equal ones in their order. */
static void sort_positions(ref_gptq_job *job, const double *h) {
    int64_t k = job->w.cols;
    for (int64_t i = 0; i < k; i++) {
        int64_t rank = 0;
        for (int64_t j = 0; j < k; j++) {
            double a = h[j * k + j], b = h[i * k + i];
            rank += job->order == QL_ORDER_NONE ? j < i : a > b || (a == b && j < i);
        }
        ref_put(job->position, 0, rank, (double)i);
    }
}

static void find_grid(ref_gptq_job *job, int64_t row, int64_t group, const double *w, int64_t count) {
    double min = 0, max = 0, maxq = (1 << job->bits) - 1;
    for (int64_t i = 0; i < count; i++) min = fmin(min, w[i]), max = fmax(max, w[i]);
    if (job->symmetric) {
        max = fmax(fabs(min), max);
        if (min < 0) min = -max;
    }
    if (min == 0 && max == 0) min = -1, max = 1;
    double scale = (max - min) / maxq;
    ref_put(job->grid.scale, row, group, scale);
    ref_put(job->grid.zero, row, group, job->symmetric ? (maxq + 1) / 2 : rint(-min / scale));
}

static void find_grids_beforehand(ref_gptq_job *job, int64_t row, const double *w) {
    for (int64_t first = 0; first < job->w.cols; first += job->group)
        find_grid(job, row, first / job->group, w + first, fmin((double)(job->w.cols - first), (double)job->group));
}

static void literature_row(ref_gptq_job *job, const double *u, const double *diagonal, int64_t row) {
    int64_t k = job->w.cols;
    int per_row = job->group >= k, fixed = per_row || job->order == QL_ORDER_STATIC;
    double *original = new_array(k), *w = new_array(k), *outer = new_array(k);
    for (int64_t i = 0; i < k; i++) original[i] = ref_at(job->w, row, i);
    if (per_row) find_grids_beforehand(job, row, original);
    for (int64_t i = 0; i < k; i++)
        if (diagonal[i] == 0) original[i] = 0;
    if (fixed && !per_row) find_grids_beforehand(job, row, original);
    for (int64_t p = 0; p < k; p++) w[p] = original[column_at(job, p)];
    for (int64_t p = 0; p < k; p++) {
        if (p % 128 == 0) memcpy(outer, w, (size_t)k * sizeof *w);
        int64_t group = (job->order == QL_ORDER_STATIC ? column_at(job, p) : p) / job->group;
        if (!fixed && p % job->group == 0)
            find_grid(job, row, group, outer + p, fmin((double)(k - p), (double)job->group));
        round_and_feed_back(job, u, row, p, group, w);
    }
    free(original), free(w), free(outer);
}

void ref_literature(ref_gptq_job *job) {
    int64_t k = job->w.cols;
    double *h = full_hessian(job, job->scale), *diagonal = new_array(k), mean = 0;
    for (int64_t i = 0; i < k; i++) {
        diagonal[i] = h[i * k + i];
        if (diagonal[i] == 0) h[i * k + i] = 1;
        mean += h[i * k + i] / (double)k;
    }
    sort_positions(job, h);
    double *u = inverse_factor(job, h, 0.01 * mean);
    for (int64_t row = 0; row < job->w.rows; row++) literature_row(job, u, diagonal, row);
    for (int64_t p = 0; ql_is_present(job->grid.g_idx) && p < k; p++) {
        int64_t column = column_at(job, p);
        ref_put(job->grid.g_idx, 0, column, (double)((job->order == QL_ORDER_DYNAMIC ? p : column) / job->group));
    }
    free(h), free(diagonal), free(u);
}

void assert_codes_agree(const ref_gptq_job *job, ql_mat codes, double tie, double share) {
    int64_t n = job->w.rows, k = job->w.cols, parted = 0;
    for (int64_t row = 0; row < n; row++)
        for (int64_t p = 0; p < k; p++) {
            int64_t c = column_at(job, p);
            double actual = ref_at(codes, row, c), truth = ref_at(job->codes, row, c),
                   margin = ref_at(job->margin, row, c);
            if (actual == truth) continue;
            if (margin > tie)
                fail_msg("row %lld, column %lld: code %g, expected %g, %.2g from a tie", (long long)row, (long long)c,
                         actual, truth, margin);
            parted++;
            break;
        }
    if ((double)parted > share * (double)n)
        fail_msg("%lld of %lld rows part at a tie, at most %g of them should", (long long)parted, (long long)n, share);
}

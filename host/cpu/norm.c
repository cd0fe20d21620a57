/* RMS norm and rotary embedding: rows are independent, threads share them. */
#include "host/mat.h"
#include "host/ops.h"
#include "host/status.h"

#include <math.h>

/* y = x / sqrt(mean(x^2) + eps) * weight over d values; the sum in double, so that d does not enter the error. */
static void norm_run(const float *x, const float *weight, float eps, int64_t d, float *y) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < d; i++) sum += (double)x[i] * x[i];
    float inverse = (float)(1 / sqrt(sum / (double)d + eps));
    for (int64_t i = 0; i < d; i++) y[i] = x[i] * inverse * weight[i];
}

ql_status ql_cpu_rmsnorm(ql_ctx *ctx, ql_mat x, ql_mat weight, float eps, ql_mat y) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c += weight.cols)
            norm_run((const float *)x.data + r * x.ld + c, weight.data, eps, weight.cols,
                     (float *)y.data + r * y.ld + c);
    return QL_OK;
}

/* (a, b) turns by the angle of its position; a is the first half of a head, b the second. */
static void rotate_head(float *a, int64_t half, const float *cos, const float *sin) {
    float *b = a + half;
    for (int64_t i = 0; i < half; i++) {
        float turned = a[i] * cos[i] - b[i] * sin[i];
        b[i] = b[i] * cos[i] + a[i] * sin[i];
        a[i] = turned;
    }
}

ql_status ql_cpu_rope(ql_ctx *ctx, ql_mat x, int64_t heads, ql_mat position, ql_mat cos, ql_mat sin) {
    const int32_t *at = position.data;
    for (int64_t r = 0; r < x.rows; r++)
        if (at[r] < 0 || at[r] >= cos.rows)
            return ql_fail(QL_INVALID, "rope: position[%lld] is %d, the table has %lld", (long long)r, (int)at[r],
                           (long long)cos.rows);
    int64_t d = x.cols / heads;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t h = 0; h < heads; h++)
            rotate_head((float *)x.data + r * x.ld + h * d, d / 2, (const float *)cos.data + at[r] * cos.ld,
                        (const float *)sin.data + at[r] * sin.ld);
    return QL_OK;
}

/* RMS norm and rotary embedding: rows are independent, threads share them. */
#include "host/cpu/value.h"
#include "host/ops.h"
#include "host/status.h"

#include <math.h>

/* y = x / sqrt(mean(x^2) + eps) * weight over d values; the sum in double, so that d does not enter the error. */
static inline void norm_run(const void *x, const ql_dtype dtype, const float *weight, float eps, int64_t d, void *y,
                            const ql_dtype y_dtype) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < d; i++) sum += (double)ql_value(x, dtype, i) * ql_value(x, dtype, i);
    float inverse = (float)(1 / sqrt(sum / (double)d + eps));
    for (int64_t i = 0; i < d; i++) ql_put_value(y, y_dtype, i, ql_value(x, dtype, i) * inverse * weight[i]);
}

ql_status ql_cpu_rmsnorm(ql_ctx *ctx, ql_mat x, ql_mat weight, float eps, ql_mat y) {
    int64_t d = weight.cols;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c += d) {
            void *from = ql_cols(ql_rows(x, r, 1), c, d).data, *to = ql_cols(ql_rows(y, r, 1), c, d).data;
            if (y.dtype == QL_BF16) QL_BY_TYPE(x.dtype, norm_run, from, weight.data, eps, d, to, QL_BF16);
            else QL_BY_TYPE(x.dtype, norm_run, from, weight.data, eps, d, to, QL_F32);
        }
    return QL_OK;
}

/* (a, b) turns by the angle of its position; a is the first half of a head, b the second. */
static inline void rotate_head(void *head, const ql_dtype dtype, int64_t half, const float *cos, const float *sin) {
    for (int64_t i = 0; i < half; i++) {
        float a = ql_value(head, dtype, i), b = ql_value(head, dtype, half + i);
        ql_put_value(head, dtype, half + i, b * cos[i] + a * sin[i]);
        ql_put_value(head, dtype, i, a * cos[i] - b * sin[i]);
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
            QL_BY_TYPE(x.dtype, rotate_head, ql_cols(ql_rows(x, r, 1), h * d, d).data, d / 2,
                       (const float *)cos.data + at[r] * cos.ld, (const float *)sin.data + at[r] * sin.ld);
    return QL_OK;
}

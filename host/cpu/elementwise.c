/* Operations without sums: threads share rows. */
#include "host/cpu/exp.h"
#include "host/cpu/value.h"
#include "host/ops.h"
#include "host/status.h"

ql_status ql_cpu_embed(ql_ctx *ctx, ql_mat table, ql_mat ids, ql_mat x) {
    const int32_t *id = ids.data;
    for (int64_t r = 0; r < x.rows; r++)
        if (id[r] < 0 || id[r] >= table.rows)
            return ql_fail(QL_INVALID, "embed: ids[%lld] is %d, the table has %lld rows", (long long)r, (int)id[r],
                           (long long)table.rows);
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++)
        memcpy(ql_rows(x, r, 1).data, ql_rows(table, id[r], 1).data, (size_t)x.cols * ql_dtype_size(x.dtype));
    return QL_OK;
}

static inline void swiglu_row(const void *gate, const ql_dtype dtype, const void *up, int64_t cols, void *y) {
#pragma omp simd
    for (int64_t i = 0; i < cols; i++) {
        float g = ql_value(gate, dtype, i);
        ql_put_value(y, dtype, i, g / (1.0f + ql_exp_f32(-g)) * ql_value(up, dtype, i));
    }
}

ql_status ql_cpu_swiglu(ql_ctx *ctx, ql_mat gate, ql_mat up, ql_mat y) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < y.rows; r++)
        QL_BY_TYPE(y.dtype, swiglu_row, ql_rows(gate, r, 1).data, ql_rows(up, r, 1).data, y.cols,
                   ql_rows(y, r, 1).data);
    return QL_OK;
}

static inline void add_row(void *sum, const ql_dtype dtype, float alpha, const void *term, const ql_dtype term_dtype,
                           int64_t cols) {
    for (int64_t i = 0; i < cols; i++)
        ql_put_value(sum, dtype, i, ql_value(sum, dtype, i) + alpha * ql_value(term, term_dtype, i));
}

static void add_row_f64(double *sum, float alpha, const double *term, int64_t cols) {
    for (int64_t i = 0; i < cols; i++) sum[i] += alpha * term[i];
}

ql_status ql_cpu_add(ql_ctx *ctx, ql_mat x, float alpha, ql_mat y) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++) {
        void *sum = ql_rows(x, r, 1).data, *term = ql_rows(y, r, 1).data;
        if (x.dtype == QL_F64) add_row_f64(sum, alpha, term, x.cols);
        else if (y.dtype == QL_F32) add_row(sum, QL_F32, alpha, term, QL_F32, x.cols);
        else QL_BY_TYPE(x.dtype, add_row, sum, alpha, term, QL_BF16, x.cols);
    }
    return QL_OK;
}

/* ---- convert: every value of every format is exact in double, so a conversion is one load and one rounding --------------- */

enum { RUN = 512 }; /* values at a time: 4 KiB of doubles stay in the first-level cache */

static void load_run(const void *src, ql_dtype dtype, int64_t first, int64_t count, double *values) {
    const uint16_t *half = (const uint16_t *)src + first;
    switch (dtype) {
    case QL_F64: memcpy(values, (const double *)src + first, (size_t)count * sizeof *values); break;
    case QL_F32:
        for (int64_t i = 0; i < count; i++) values[i] = ((const float *)src)[first + i];
        break;
    case QL_F16:
        for (int64_t i = 0; i < count; i++) values[i] = ql_f16_to_f32(half[i]);
        break;
    default:
        for (int64_t i = 0; i < count; i++) values[i] = ql_bf16_to_f32(half[i]);
    }
}

static void store_run(const double *values, int64_t count, void *dst, ql_dtype dtype, int64_t first) {
    uint16_t *half = (uint16_t *)dst + first;
    switch (dtype) {
    case QL_F64: memcpy((double *)dst + first, values, (size_t)count * sizeof *values); break;
    case QL_F32:
        for (int64_t i = 0; i < count; i++) ((float *)dst)[first + i] = (float)values[i];
        break;
    case QL_F16:
        for (int64_t i = 0; i < count; i++) half[i] = ql_f32_to_f16(ql_f64_to_odd(values[i]));
        break;
    default:
        for (int64_t i = 0; i < count; i++) half[i] = ql_f32_to_bf16(ql_f64_to_odd(values[i]));
    }
}

ql_status ql_cpu_convert(ql_ctx *ctx, ql_mat src, ql_mat dst) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < src.rows; r++) {
        const void *from = ql_rows(src, r, 1).data;
        void *to = ql_rows(dst, r, 1).data;
        double values[RUN];
        for (int64_t first = 0; first < src.cols; first += RUN) {
            int64_t count = src.cols - first < RUN ? src.cols - first : RUN;
            load_run(from, src.dtype, first, count, values);
            store_run(values, count, to, dst.dtype, first);
        }
    }
    return QL_OK;
}

/* ---- find_nonfinite: the exponent is all ones ------------------------------------------------------------------------------ */

static int is_nonfinite(const void *row, ql_dtype dtype, int64_t i) {
    switch (dtype) {
    case QL_F64: return (((const uint64_t *)row)[i] & 0x7ff0000000000000u) == 0x7ff0000000000000u;
    case QL_F32: return (((const uint32_t *)row)[i] & 0x7f800000u) == 0x7f800000u;
    case QL_F16: return (((const uint16_t *)row)[i] & 0x7c00u) == 0x7c00u;
    default: return (((const uint16_t *)row)[i] & 0x7f80u) == 0x7f80u;
    }
}

/* Inlined per type, so that the count vectorizes: nearly all rows are clean. */
static inline int64_t count_nonfinite(const void *row, const ql_dtype dtype, int64_t cols) {
    int64_t count = 0;
    for (int64_t i = 0; i < cols; i++) count += is_nonfinite(row, dtype, i);
    return count;
}

static int row_is_clean(const void *row, ql_dtype dtype, int64_t cols) {
    switch (dtype) {
    case QL_F64: return count_nonfinite(row, QL_F64, cols) == 0;
    case QL_F32: return count_nonfinite(row, QL_F32, cols) == 0;
    case QL_F16: return count_nonfinite(row, QL_F16, cols) == 0;
    default: return count_nonfinite(row, QL_BF16, cols) == 0;
    }
}

ql_status ql_cpu_find_nonfinite(ql_ctx *ctx, ql_mat x, int64_t *index) {
    int64_t row = x.rows;
#pragma omp parallel for schedule(static) reduction(min : row) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++)
        if (r < row && !row_is_clean(ql_rows(x, r, 1).data, x.dtype, x.cols)) row = r;
    if (row == x.rows) return QL_OK; /* *index is -1 */
    int64_t col = 0;
    while (!is_nonfinite(ql_rows(x, row, 1).data, x.dtype, col)) col++;
    *index = row * x.cols + col;
    return QL_OK;
}

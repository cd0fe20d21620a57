/* RMS norm and rotary embedding.   x, y [m][heads * d]
 *
 * The norm has one block per run of d values, a row or a head, and adds the squares in double in a fixed order; in place works,
 * since every thread rereads what it alone writes.  The rotation has one block per row.   Twin: host/cpu/norm.c. */
#include "cuda/device.cuh"

enum { WARPS = 8 };

/* ---- y = x / sqrt(mean(x^2) + eps) * weight --------------------------------------------------------------------------------- */

static __global__ void rmsnorm_kernel(ql_mat x, ql_mat weight, float eps, ql_mat y) {
    __shared__ double sums[WARPS];
    int64_t d = weight.cols, runs = x.cols / d, row = blockIdx.x / runs, run = blockIdx.x % runs;
    const float *w = row_of<float>(weight, 0);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < d; i += WARPS * WARP) {
        double value = value_at(x, row, run * d + i);
        sum = fma(value, value, sum);
    }
    float factor = (float)(1 / sqrt(block_sum<WARPS>(sum, sums) / (double)d + eps));
    for (int64_t i = threadIdx.x; i < d; i += WARPS * WARP)
        put_value(y, row, run * d + i, value_at(x, row, run * d + i) * factor * w[i]);
}

ql_status ql_cuda_rmsnorm(ql_ctx *ctx, ql_mat x, ql_mat weight, float eps, ql_mat y) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, rmsnorm_kernel, x.rows * (x.cols / weight.cols), WARPS * WARP, x, weight, eps, y);
    return QL_OK;
}

/* ---- rotary embedding: element i of a head turns with element i + d/2 -------------------------------------------------- */

static __global__ void rope_kernel(ql_mat x, ql_mat position, ql_mat cos, ql_mat sin) {
    int64_t half = cos.cols, pairs = x.cols / 2, at = row_of<int32_t>(position, 0)[blockIdx.x];
    const float *c = row_of<float>(cos, at), *s = row_of<float>(sin, at);
    for (int64_t p = threadIdx.x; p < pairs; p += WARPS * WARP) {
        int64_t i = p % half, a = p / half * 2 * half + i, b = a + half;
        float first = value_at(x, blockIdx.x, a), second = value_at(x, blockIdx.x, b);
        put_value(x, blockIdx.x, a, first * c[i] - second * s[i]);
        put_value(x, blockIdx.x, b, second * c[i] + first * s[i]);
    }
}

ql_status ql_cuda_rope(ql_ctx *ctx, ql_mat x, int64_t heads, ql_mat position, ql_mat cos, ql_mat sin) {
    (void)heads; /* x.cols / (2 cos.cols), checked at the door */
    ql_cuda *gpu;
    int64_t at;
    int32_t value;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_find_outside(gpu, position, 0, cos.rows, &at, &value));
    if (at >= 0)
        return ql_fail(QL_INVALID, "rope: position[%lld] is %d, the table has %lld", (long long)at, (int)value,
                       (long long)cos.rows);
    LAUNCH(gpu, rope_kernel, x.rows, WARPS * WARP, x, position, cos, sin);
    return QL_OK;
}

/* y = x / sqrt(mean(x^2) + eps) * weight over runs of d values: a row, or each head of a row.
 *
 * One block per run; its sum of squares is added in a fixed order.  In place works: every thread rereads what it alone writes.
 * Twin: host/cpu/norm.c. */
#include "cuda/device.cuh"

enum { WARPS = 8 };

static __global__ void rmsnorm_kernel(ql_mat x, ql_mat weight, float eps, ql_mat y) {
    __shared__ float sums[WARPS];
    int64_t d = weight.cols, runs = x.cols / d, row = blockIdx.x / runs, run = blockIdx.x % runs;
    const float *from = row_of<float>(x, row) + run * d, *w = row_of<float>(weight, 0);
    float *to = row_of<float>(y, row) + run * d;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < d; i += WARPS * WARP) sum = fmaf(from[i], from[i], sum);
    float factor = 1.0f / sqrtf(block_sum<WARPS>(sum, sums) / (float)d + eps);
    for (int64_t i = threadIdx.x; i < d; i += WARPS * WARP) to[i] = from[i] * factor * w[i];
}

ql_status ql_cuda_rmsnorm(ql_ctx *ctx, ql_mat x, ql_mat weight, float eps, ql_mat y) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, rmsnorm_kernel, x.rows * (x.cols / weight.cols), WARPS * WARP, x, weight, eps, y);
    return QL_OK;
}

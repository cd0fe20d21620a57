/* NF4 and back.   w [n][k] F32, absmax [1][B] F32, codes [n][k] U8; B blocks of 64 weights, row by row, across the ends of rows.
 *
 * A warp owns a block: every lane two of its weights, 32 apart, so that loads and stores of a warp lie side by side.
 * Twin: host/cpu/nf4.c. */
#include "cuda/device.cuh"
#include "host/nf4.h"

enum { WARPS = 8 };
static_assert((int)QL_NF4_BLOCK == 2 * (int)WARP, "two weights per lane");

static __global__ void nf4_kernel(ql_mat w, ql_mat absmax, ql_mat codes) {
    int64_t block = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP, count = w.rows * w.cols;
    if (block >= absmax.cols) return;
    int64_t i = block * QL_NF4_BLOCK + threadIdx.x % WARP, j = i + WARP;
    float x = i < count ? row_of<float>(w, i / w.cols)[i % w.cols] : 0.0f;
    float y = j < count ? row_of<float>(w, j / w.cols)[j % w.cols] : 0.0f;
    float most = fmaxf(fabsf(x), fabsf(y));
    for (int step = WARP / 2; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    if (i < count) row_of<uint8_t>(codes, i / w.cols)[i % w.cols] = (uint8_t)ql_nf4_code(x, most);
    if (j < count) row_of<uint8_t>(codes, j / w.cols)[j % w.cols] = (uint8_t)ql_nf4_code(y, most);
    if (threadIdx.x % WARP == 0) ((float *)absmax.data)[block] = most;
}

static __global__ void nf4_value_kernel(ql_mat codes, ql_mat absmax, ql_mat w) {
    int64_t row = blockIdx.x;
    for (int64_t c = threadIdx.x; c < w.cols; c += blockDim.x)
        row_of<float>(w, row)[c] = ql_nf4_value(row_of<uint8_t>(codes, row)[c] & 15) *
                                   ((const float *)absmax.data)[(row * w.cols + c) / QL_NF4_BLOCK];
}

ql_status ql_cuda_nf4_quantize(ql_ctx *ctx, ql_mat w, ql_mat absmax, ql_mat codes) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, nf4_kernel, ql_ceil_div(absmax.cols, WARPS), WARPS * WARP, w, absmax, codes);
    return QL_OK;
}

ql_status ql_cuda_nf4_dequantize(ql_ctx *ctx, ql_mat codes, ql_mat absmax, ql_mat w) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, nf4_value_kernel, w.rows, 256, codes, absmax, w);
    return QL_OK;
}

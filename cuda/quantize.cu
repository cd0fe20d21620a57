/* Rounding to a fixed grid and back.   w [n][k] F32, codes [n][k] U8
 *
 * One block per row.  The rounding itself is ql_encode and ql_decode of host/num.h, so codes and weights are those of the CPU,
 * bit for bit.   Twin: host/cpu/quantize.c. */
#include "cuda/device.cuh"

enum { THREADS = 256 };

static __global__ void quantize_kernel(ql_mat w, ql_grid grid, ql_mat codes) {
    const float *from = row_of<float>(w, blockIdx.x), *scale = row_of<float>(grid.scale, blockIdx.x);
    const uint8_t *zero = row_of<uint8_t>(grid.zero, blockIdx.x);
    uint8_t *to = row_of<uint8_t>(codes, blockIdx.x);
    for (int64_t j = threadIdx.x; j < w.cols; j += THREADS) {
        int64_t g = group_of(&grid, j);
        to[j] = (uint8_t)ql_encode(from[j], scale[g], zero[g], (1 << grid.bits) - 1);
    }
}

ql_status ql_cuda_quantize(ql_ctx *ctx, ql_mat w, const ql_grid *grid, ql_mat codes) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_check_groups(gpu, "quantize", grid, w.cols));
    LAUNCH(gpu, quantize_kernel, w.rows, THREADS, w, *grid, codes);
    return QL_OK;
}

static __global__ void dequantize_kernel(ql_mat codes, ql_grid grid, ql_mat w) {
    const uint8_t *from = row_of<uint8_t>(codes, blockIdx.x), *zero = row_of<uint8_t>(grid.zero, blockIdx.x);
    const float *scale = row_of<float>(grid.scale, blockIdx.x);
    float *to = row_of<float>(w, blockIdx.x);
    for (int64_t j = threadIdx.x; j < w.cols; j += THREADS) {
        int64_t g = group_of(&grid, j);
        to[j] = ql_decode(from[j], scale[g], zero[g]);
    }
}

ql_status ql_cuda_dequantize(ql_ctx *ctx, ql_mat codes, const ql_grid *grid, ql_mat w) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_check_groups(gpu, "dequantize", grid, w.cols));
    LAUNCH(gpu, dequantize_kernel, w.rows, THREADS, codes, *grid, w);
    return QL_OK;
}

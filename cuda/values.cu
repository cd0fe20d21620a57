/* Values of one byte: scales from the values, rounding, and back.   x [rows][cols] F32, F16 or BF16
 *
 * A team of threads owns a tile: a warp for groups, a block for rows and for blocks of 128 x 128.  It reads the tile twice, for
 * its range and for its codes; the second time from the cache.  One scale for all takes three kernels: the ranges of rows meet in
 * a maximum of integers, which has the order of the positive floats and no order of arrival.
 * The arithmetic is that of host/values.h, so scales and codes are those of the CPU, bit for bit.   Twin: host/cpu/values.c. */
#include "cuda/device.cuh"
#include "host/values.h"

enum { THREADS = 256, WARPS = THREADS / WARP };

static __device__ __forceinline__ ql_extent warp_range(ql_extent range) {
    for (int step = WARP / 2; step; step /= 2)
        range = ql_extent_join(
            range, {__shfl_xor_sync(0xffffffffu, range.up, step), __shfl_xor_sync(0xffffffffu, range.down, step)});
    return range;
}

/* Of a warp or of a block; every thread gets it. */
template <int TEAM> static __device__ __forceinline__ ql_extent team_range(ql_extent range, ql_extent *shared) {
    range = warp_range(range);
    if (TEAM == WARP) return range;
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = range;
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++) range = ql_extent_join(range, shared[warp]);
    return range;
}

static __device__ __forceinline__ const char *value_row(ql_mat x, int64_t row) {
    return (const char *)x.data + row * x.ld * (x.dtype == QL_F32 ? 4 : 2);
}

static __device__ __forceinline__ void put_scale(const ql_values *values, int64_t i, int64_t j, float scale,
                                                 int32_t zero) {
    ((float *)values->scale.data)[ql_tile_index(values->mode, values->scale, i, j)] = scale;
    if (values->zero.data) ((int32_t *)values->zero.data)[ql_tile_index(values->mode, values->zero, i, j)] = zero;
}

/* Tiles of one row, or of several rows where the team is a block. */
template <int TEAM> static __global__ void fit_kernel(ql_mat x, ql_values values, ql_tiling tiling, int64_t tiles) {
    __shared__ ql_extent ranges[WARPS];
    int64_t tile = (int64_t)blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM;
    if (tile >= tiles) return; /* whole warps; a block has a tile */
    int64_t i = tile / tiling.across, j = tile % tiling.across;
    int64_t row = i * tiling.rows, col = j * tiling.cols;
    int64_t last_row = row + tiling.rows < x.rows ? row + tiling.rows : x.rows;
    int64_t last_col = col + tiling.cols < x.cols ? col + tiling.cols : x.cols;

    ql_extent range = {0, 0};
    for (int64_t r = row; r < last_row; r++)
        for (int64_t c = col + threadIdx.x % TEAM; c < last_col; c += TEAM)
            range = ql_extent_with(range, ql_value_at(value_row(x, r), x.dtype, c));
    int32_t zero;
    float scale = ql_extent_scale(team_range<TEAM>(range, ranges), values.codes.dtype, &zero);
    if (threadIdx.x % TEAM == 0) put_scale(&values, i, j, scale, zero);
    for (int64_t r = row; r < last_row; r++)
        for (int64_t c = col + threadIdx.x % TEAM; c < last_col; c += TEAM)
            row_of<uint8_t>(values.codes, r)[c] =
                ql_value_to_code(ql_value_at(value_row(x, r), x.dtype, c), scale, zero, values.codes.dtype);
}

/* bits[0] and bits[1]: the largest `up` and `down`. */
static __global__ void tensor_range_kernel(ql_mat x, unsigned *bits) {
    __shared__ ql_extent ranges[WARPS];
    ql_extent range = {0, 0};
    for (int64_t c = threadIdx.x; c < x.cols; c += THREADS)
        range = ql_extent_with(range, ql_value_at(value_row(x, blockIdx.x), x.dtype, c));
    range = team_range<THREADS>(range, ranges);
    if (threadIdx.x) return;
    atomicMax(&bits[0], ql_f32_bits(range.up));
    atomicMax(&bits[1], ql_f32_bits(range.down));
}

static __global__ void tensor_scale_kernel(const unsigned *bits, ql_values values) {
    int32_t zero;
    if (threadIdx.x) return;
    float scale = ql_extent_scale({ql_bits_f32(bits[0]), ql_bits_f32(bits[1])}, values.codes.dtype, &zero);
    put_scale(&values, 0, 0, scale, zero);
}

/* Scale and zero point of a column of the block's row.  Columns are below 2^31, and a short division is four times faster. */
static __device__ __forceinline__ float scale_at(const ql_values *values, ql_tiling tiling, int64_t col,
                                                 int32_t *zero) {
    int64_t i = blockIdx.x / (uint32_t)tiling.rows, j = (uint32_t)col / (uint32_t)tiling.cols;
    *zero =
        values->zero.data ? ((const int32_t *)values->zero.data)[ql_tile_index(values->mode, values->zero, i, j)] : 0;
    return ((const float *)values->scale.data)[ql_tile_index(values->mode, values->scale, i, j)];
}

static __global__ void round_kernel(ql_mat x, ql_values values, ql_tiling tiling) {
    const char *from = value_row(x, blockIdx.x);
    for (int64_t c = threadIdx.x; c < x.cols; c += THREADS) {
        int32_t zero;
        float scale = scale_at(&values, tiling, c, &zero);
        row_of<uint8_t>(values.codes, blockIdx.x)[c] =
            ql_value_to_code(ql_value_at(from, x.dtype, c), scale, zero, values.codes.dtype);
    }
}

static __global__ void expand_kernel(ql_values values, ql_tiling tiling, ql_mat x) {
    const uint8_t *from = row_of<uint8_t>(values.codes, blockIdx.x);
    char *to = (char *)value_row(x, blockIdx.x);
    for (int64_t c = threadIdx.x; c < x.cols; c += THREADS) {
        int32_t zero;
        double scale = scale_at(&values, tiling, c, &zero);
        ql_put_value(to, x.dtype, c, scale * ql_code_to_value(from[c], zero, values.codes.dtype));
    }
}

static ql_status fit_tensor(ql_cuda *gpu, ql_mat x, const ql_values *values) {
    unsigned *bits;
    QL_TRY(ql_cuda_scratch(gpu, 2 * sizeof *bits, (void **)&bits));
    CUDA_TRY(cudaMemsetAsync(bits, 0, 2 * sizeof *bits, gpu->stream));
    LAUNCH(gpu, tensor_range_kernel, x.rows, THREADS, x, bits);
    LAUNCH(gpu, tensor_scale_kernel, 1, WARP, bits, *values);
    return QL_OK;
}

ql_status ql_cuda_quantize_dynamic(ql_ctx *ctx, ql_mat x, const ql_values *values) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    if (values->mode == QL_SCALE_TENSOR) {
        QL_TRY(fit_tensor(gpu, x, values));
        return ql_cuda_quantize_static(ctx, x, values);
    }
    ql_tiling tiling = ql_tiling_of(values->mode, values->group, x.rows, x.cols);
    int64_t tiles = ql_ceil_div(x.rows, tiling.rows) * tiling.across;
    if (values->mode == QL_SCALE_GROUP)
        LAUNCH(gpu, fit_kernel<WARP>, ql_ceil_div(tiles, WARPS), THREADS, x, *values, tiling, tiles);
    else LAUNCH(gpu, fit_kernel<THREADS>, tiles, THREADS, x, *values, tiling, tiles);
    return QL_OK;
}

ql_status ql_cuda_quantize_static(ql_ctx *ctx, ql_mat x, const ql_values *values) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    ql_tiling tiling = ql_tiling_of(values->mode, values->group, x.rows, x.cols);
    LAUNCH(gpu, round_kernel, x.rows, THREADS, x, *values, tiling);
    return QL_OK;
}

ql_status ql_cuda_dequantize_values(ql_ctx *ctx, const ql_values *values, ql_mat x) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    ql_tiling tiling = ql_tiling_of(values->mode, values->group, x.rows, x.cols);
    LAUNCH(gpu, expand_kernel, x.rows, THREADS, *values, tiling, x);
    return QL_OK;
}

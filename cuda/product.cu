/* Planning on the GPU: which kernels there are, and what a packed weight is made with.
 *
 * The table stands first: the kernels in the order in which they are preferred.  ql_product_any comes last and takes everything.
 * Packing has one thread per unit of 32 codes (host/tiles.h), so no two threads write one word.
 * Twin: host/cpu/product_pack.c. */
#include "cuda/product.cuh"

static const struct {
    const ql_kernel *kernels;
    int count;
} families[] = {
    {&ql_product_dense, 1},
    {&ql_dense, 1},
    {&ql_dense_f32, 1},
    {ql_fp8_kernels, QL_FP8_KERNELS},
    {ql_int8_kernels, QL_INT8_KERNELS},
    {&ql_codes_dense, 1},
    {ql_w3a16_kernels, 1}, /* up to 16 tokens */
    {&ql_w3a16_sm90, 1},
    {ql_w3a16_kernels + 1, QL_W3A16_KERNELS - 1},
    {ql_w4a16_kernels, 3}, /* up to 32 tokens */
    {ql_w4a16_sm90_kernels, QL_WIDE_KERNELS},
    {ql_w4a16_kernels + 3, QL_W4A16_KERNELS - 3},
    {ql_w4a8_kernels, 1}, /* up to 16 tokens */
    {ql_w4a8_sm90_kernels, QL_WIDE_KERNELS},
    {ql_w4a8_kernels + 1, QL_W4A8_KERNELS - 1},
    {&ql_product_any, 1},
};

ql_status ql_cuda_plan(ql_ctx *ctx, ql_plan *plan) {
    ql_cuda *gpu;
    cudaDeviceProp properties;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    CUDA_TRY(cudaGetDeviceProperties(&properties, gpu->device));
    plan->arch = 10 * properties.major + properties.minor;
    plan->workers = properties.multiProcessorCount;
    plan->device = gpu->device;
    for (const auto &family : families)
        for (int i = 0; i < family.count; i++) ql_plan_offer(plan, &family.kernels[i]);
    return QL_OK;
}

ql_status ql_cuda_enter(const ql_plan *plan, void *stream) {
    if (!stream)
        return ql_fail(QL_INVALID, "execute: stream is NULL, the default stream; expected ql_ctx_stream or another");
    CUDA_TRY(cudaSetDevice(plan->device));
    return QL_OK;
}

/* ---- what cannot be packed ------------------------------------------------------------------------------------------------- */

enum { THREADS = 256 };

static __global__ void find_large_kernel(ql_mat codes, int bits, unsigned long long *first) {
    const uint8_t *row = row_of<uint8_t>(codes, blockIdx.x);
    for (int64_t i = threadIdx.x; i < codes.cols; i += THREADS)
        if (row[i] >> bits) {
            atomicMin(first, (unsigned long long)(blockIdx.x * codes.cols + i));
            return;
        }
}

static __device__ uint16_t narrow(float scale, ql_dtype dtype) {
    return dtype == QL_F16 ? ql_f32_to_f16(scale) : ql_f32_to_bf16(scale);
}

static __device__ float wide(uint16_t half, ql_dtype dtype) {
    return dtype == QL_F16 ? ql_f16_to_f32(half) : ql_bf16_to_f32(half);
}

static __global__ void find_inexact_kernel(ql_mat scale, ql_dtype dtype, unsigned long long *first) {
    const float *row = row_of<float>(scale, blockIdx.x);
    for (int64_t g = threadIdx.x; g < scale.cols; g += THREADS)
        if (wide(narrow(row[g], dtype), dtype) != row[g]) {
            atomicMin(first, (unsigned long long)(blockIdx.x * scale.cols + g));
            return;
        }
}

static ql_status check_codes(ql_ctx *ctx, ql_cuda *gpu, ql_mat codes, int bits) {
    unsigned long long *first;
    int64_t index;
    QL_TRY(ql_cuda_scratch(gpu, sizeof *first, (void **)&first));
    CUDA_TRY(cudaMemsetAsync(first, 0xff, sizeof *first, gpu->stream));
    LAUNCH(gpu, find_large_kernel, codes.rows, THREADS, codes, bits, first);
    QL_TRY(ql_cuda_download(ctx, &index, first, sizeof index));
    if (index < 0) return QL_OK;
    return ql_fail(QL_INVALID, "weight: values: the code of row %lld, column %lld is not below 2^%d",
                   (long long)(index / codes.cols), (long long)(index % codes.cols), bits);
}

static ql_status check_scales(ql_ctx *ctx, ql_cuda *gpu, ql_mat scale, ql_dtype dtype) {
    unsigned long long *first;
    int64_t index;
    float value;
    QL_TRY(ql_cuda_scratch(gpu, sizeof *first, (void **)&first));
    CUDA_TRY(cudaMemsetAsync(first, 0xff, sizeof *first, gpu->stream));
    LAUNCH(gpu, find_inexact_kernel, scale.rows, THREADS, scale, dtype, first);
    QL_TRY(ql_cuda_download(ctx, &index, first, sizeof index));
    if (index < 0) return QL_OK;
    int64_t row = index / scale.cols, g = index % scale.cols;
    QL_TRY(ql_cuda_download(ctx, &value, (const float *)scale.data + row * scale.ld + g, sizeof value));
    return ql_fail(QL_INVALID, "weight: scale: %.9g of row %lld, group %lld is not a %s", (double)value, (long long)row,
                   (long long)g, ql_dtype_name(dtype));
}

/* ---- packing --------------------------------------------------------------------------------------------------------------------- */

/* One block per tile, one thread per unit. */
static __global__ void pack_codes_kernel(ql_packed p, ql_mat codes, const int32_t *order, uint32_t *words) {
    int64_t across = ql_tiles_along(p.k), n0 = blockIdx.x / across * QL_TILE, k0 = blockIdx.x % across * QL_TILE;
    int unit = (int)threadIdx.x;
    uint8_t mine[QL_UNIT_CODES];
    __shared__ uint32_t packed[QL_TILE_UNITS][8]; /* indexed by a width that the compiler does not know: no registers */
    for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
        int64_t r = n0 + ql_unit_row(unit, slot), c = k0 + ql_unit_col(unit, slot);
        mine[slot] = r < p.n && c < p.k ? row_of<uint8_t>(codes, r)[order ? order[c] : c] : 0;
    }
    ql_unit_pack(mine, (int)p.bits, packed[unit]);
    for (int w = 0; w < (int)p.bits; w++) words[ql_unit_word(blockIdx.x, unit, (int)p.bits) + w] = packed[unit][w];
}

static __global__ void unpack_codes_kernel(ql_packed p, const uint32_t *words, const int32_t *order, ql_mat codes) {
    int64_t across = ql_tiles_along(p.k), n0 = blockIdx.x / across * QL_TILE, k0 = blockIdx.x % across * QL_TILE;
    int unit = (int)threadIdx.x;
    const uint32_t *mine = words + ql_unit_word(blockIdx.x, unit, (int)p.bits);
    for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
        int64_t r = n0 + ql_unit_row(unit, slot), c = k0 + ql_unit_col(unit, slot);
        if (r < p.n && c < p.k)
            row_of<uint8_t>(codes, r)[order ? order[c] : c] = (uint8_t)ql_unit_code(mine, (int)p.bits, slot);
    }
}

/* One block per output. */
static __global__ void pack_grid_kernel(ql_packed p, ql_mat scale, ql_mat zero, char *packed) {
    int64_t row = blockIdx.x, groups = ql_packed_groups(&p);
    for (int64_t g = threadIdx.x; g < groups; g += THREADS) {
        int64_t at = ql_packed_at(&p, row, g);
        if (p.scale_mode == QL_SCALE_GROUP)
            ((uint16_t *)(packed + p.scale))[at] = narrow(row_of<float>(scale, row)[g], (ql_dtype)p.scale_dtype);
        if (p.zero) ((uint8_t *)packed + p.zero)[at] = row_of<uint8_t>(zero, row)[g];
    }
}

static __global__ void unpack_grid_kernel(ql_packed p, const char *packed, ql_mat scale, ql_mat zero) {
    int64_t row = blockIdx.x, groups = ql_packed_groups(&p);
    for (int64_t g = threadIdx.x; g < groups; g += THREADS) {
        if (p.scale_mode == QL_SCALE_GROUP) row_of<float>(scale, row)[g] = group_scale(&p, packed, row, g);
        if (p.zero) row_of<uint8_t>(zero, row)[g] = section<uint8_t>(packed, p.zero)[ql_packed_at(&p, row, g)];
    }
}

static __global__ void sum_rows_kernel(ql_mat values, int32_t *sums) {
    __shared__ int32_t shared[THREADS / WARP];
    const int8_t *row = row_of<int8_t>(values, blockIdx.x);
    int32_t sum = 0;
    for (int64_t i = threadIdx.x; i < values.cols; i += THREADS) sum += row[i];
    sum = block_sum<THREADS / WARP>(sum, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/* Rows of F32 or of values as they are, to or from a dense section. */
static ql_status copy_rows(ql_cuda *gpu, void *to, int64_t to_ld, const void *from, int64_t from_ld, ql_mat shape) {
    size_t size = ql_dtype_size(shape.dtype);
    CUDA_TRY(cudaMemcpy2DAsync(to, (size_t)to_ld * size, from, (size_t)from_ld * size, (size_t)shape.cols * size,
                               (size_t)shape.rows, cudaMemcpyDeviceToDevice, gpu->stream));
    return QL_OK;
}

static const int32_t *order_of(const ql_packed *p, const void *packed) {
    return p->order ? section<int32_t>(packed, p->order) : NULL;
}

static int64_t tiles_of(const ql_packed *p) { return ql_tiles_along(p->n) * ql_tiles_along(p->k); }

ql_status ql_cuda_pack_weight(ql_ctx *ctx, const ql_plan *plan, const ql_weight *weight, void *packed) {
    const ql_packed *p = &plan->packed;
    char *base = (char *)packed;
    ql_mat values = weight->values, scale = weight->scale;
    bool grouped = p->scale_mode == QL_SCALE_GROUP;
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    if (p->bits) QL_TRY(check_codes(ctx, gpu, values, (int)p->bits));
    if (grouped) QL_TRY(check_scales(ctx, gpu, scale, (ql_dtype)p->scale_dtype));
    CUDA_TRY(cudaMemsetAsync(base, 0, (size_t)(p->order ? p->order : p->bytes), gpu->stream));
    if (p->layout == QL_LAYOUT_ROWS) QL_TRY(copy_rows(gpu, base + p->values, p->k, values.data, values.ld, values));
    else
        LAUNCH(gpu, pack_codes_kernel, tiles_of(p), QL_TILE_UNITS, *p, values, order_of(p, packed),
               (uint32_t *)(base + p->values));
    if (p->scale && !grouped) QL_TRY(copy_rows(gpu, base + p->scale, scale.cols, scale.data, scale.ld, scale));
    if (grouped || p->zero) LAUNCH(gpu, pack_grid_kernel, p->n, THREADS, *p, scale, weight->zero, base);
    if (p->sums) LAUNCH(gpu, sum_rows_kernel, p->n, THREADS, values, (int32_t *)(base + p->sums));
    return QL_OK;
}

ql_status ql_cuda_unpack_weight(ql_ctx *ctx, const ql_plan *plan, const void *packed, const ql_weight *weight) {
    const ql_packed *p = &plan->packed;
    const char *base = (const char *)packed;
    ql_mat values = weight->values, scale = weight->scale;
    bool grouped = p->scale_mode == QL_SCALE_GROUP;
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    if (p->layout == QL_LAYOUT_ROWS) QL_TRY(copy_rows(gpu, values.data, values.ld, base + p->values, p->k, values));
    else
        LAUNCH(gpu, unpack_codes_kernel, tiles_of(p), QL_TILE_UNITS, *p, section<uint32_t>(packed, p->values),
               order_of(p, packed), values);
    if (p->scale && !grouped) QL_TRY(copy_rows(gpu, scale.data, scale.ld, base + p->scale, scale.cols, scale));
    if (grouped || p->zero) LAUNCH(gpu, unpack_grid_kernel, p->n, THREADS, *p, base, scale, weight->zero);
    return ql_cuda_sync(ctx);
}

/* ---- the checksum -------------------------------------------------------------------------------------------------------------- */

static __global__ void checksum_kernel(const uint64_t *words, int64_t count, unsigned long long *sum) {
    __shared__ unsigned long long shared[THREADS / WARP];
    const int64_t first = sizeof(ql_packed) / sizeof *words, step = (int64_t)gridDim.x * THREADS;
    unsigned long long total = 0;
    for (int64_t i = first + (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step)
        total += ql_packed_mix(words[i], (uint64_t)i);
    total = block_sum<THREADS / WARP>(total, shared);
    if (threadIdx.x == 0) atomicAdd(sum, total); /* integers: the order does not matter */
}

ql_status ql_cuda_checksum(ql_ctx *ctx, const void *packed, size_t bytes, uint64_t *sum) {
    const int64_t count = (int64_t)(bytes / sizeof *sum);
    unsigned long long *total;
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_scratch(gpu, sizeof *total, (void **)&total));
    CUDA_TRY(cudaMemsetAsync(total, 0, sizeof *total, gpu->stream));
    int64_t blocks = ql_ceil_div(count, THREADS * 16); /* 16 words per thread, up to what fills any GPU */
    LAUNCH(gpu, checksum_kernel, blocks < 2048 ? blocks : 2048, THREADS, (const uint64_t *)packed, count, total);
    return ql_cuda_download(ctx, sum, total, sizeof *sum);
}

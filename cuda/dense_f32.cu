/* Dense products in FP32.   y[m][n] = x[m][k] W[n][k]^T + bias[n], x and W F32, F16 or BF16, each as it comes
 *
 * For F32 with rows that have the same bits in every batch, and for operands of two types, which no tensor core multiplies.  Every value
 * is widened to FP32, exactly, and a sum is one chain of fused steps in the order of K: the accuracy of cuBLASLt's FP32, and bits that
 * hang on k alone.  Rejected: six products of BF16 parts, which keep as many bits and are 2.5 times as fast on paper where tokens are many;
 * W would have to be split in every call or lie there in three parts, and few tokens, which wait for W, would lose.
 *
 * A block makes TOKENS x OUTPUTS sums, thread (x, y) of 16 x 16 those of tokens y, y + 16, .. and outputs x, x + 16, ..  cp.async brings
 * STEP inputs of each row, as they are, into a ring in shared memory; four at a time are widened in registers.
 * Twins: host/cpu/product.c, cuda/product_any.cu, whose bits are the same. */
#include "cuda/product.cuh"

/* PITCH: 16 values of four bytes, and 16 bytes more: a piece of eight neighbouring rows lies in all banks. */
enum { STEP = 16, PITCH = STEP * 4 + 16, SIDE = 16, THREADS = SIDE * SIDE };

template <int TOKENS_, int OUTPUTS_, int RING_> struct wide_tile {
    enum { TOKENS = TOKENS_, OUTPUTS = OUTPUTS_, RING = RING_, ROWS = TOKENS + OUTPUTS, STAGE = ROWS * PITCH };
    enum { SHARED = RING * STAGE };
};

typedef struct dense_job {
    ql_product product;
    ql_packed packed;
    ql_arguments arguments;
} dense_job;

static __device__ __forceinline__ int size_of(ql_dtype dtype) { return dtype == QL_F32 ? 4 : 2; }

/* 16 bytes of a row of which `bytes` exist, zeros behind them; rows that do not begin on multiples of 16 bytes two bytes at a time. */
static __device__ __forceinline__ void copy_piece(char *to, const char *from, int bytes, bool aligned) {
    if (aligned) return ptx_copy(to, from, bytes);
#pragma unroll 1
    for (int i = 0; i < 16; i += 2) *(uint16_t *)(to + i) = i < bytes ? *(const uint16_t *)(from + i) : (uint16_t)0;
}

/* STEP inputs from input k0 of `rows` rows of an operand, of which those below `count` exist. */
static __device__ __forceinline__ void load_rows(ql_mat from, int64_t first, int rows, int64_t k0, char *to) {
    const int size = size_of(from.dtype), per_row = STEP * size / 16;
    const int64_t pitch = from.ld * size, end = from.cols * size;
    const bool aligned = ((uint64_t)(uintptr_t)from.data | (uint64_t)pitch) % 16 == 0;
    for (int i = threadIdx.x; i < rows * per_row; i += THREADS) {
        const int row = i / per_row, piece = i % per_row * 16;
        const int64_t byte = k0 * size + piece, left = first + row < from.rows ? end - byte : 0;
        const char *source = (const char *)from.data;
        copy_piece(to + row * PITCH + piece, left > 0 ? source + (first + row) * pitch + byte : source,
                   left <= 0   ? 0
                   : left < 16 ? (int)left
                               : 16,
                   aligned);
    }
}

/* Four neighbours of a row in shared memory, from the i-th on. */
static __device__ __forceinline__ float4 four_at(ql_dtype dtype, const char *row, int i) {
    if (dtype == QL_F32) return *(const float4 *)(row + i * 4);
    const uint2 halves = *(const uint2 *)(row + i * 2);
    if (dtype == QL_BF16)
        return {ql_bits_f32(halves.x << 16), ql_bits_f32(halves.x & 0xffff0000u), ql_bits_f32(halves.y << 16),
                ql_bits_f32(halves.y & 0xffff0000u)};
    return {ptx_f16_to_f32((uint16_t)halves.x), ptx_f16_to_f32((uint16_t)(halves.x >> 16)),
            ptx_f16_to_f32((uint16_t)halves.y), ptx_f16_to_f32((uint16_t)(halves.y >> 16))};
}

/* The steps of four inputs, in their order. */
static __device__ __forceinline__ float add_four(float sum, float4 a, float4 b) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

template <typename TILE>
static __device__ __forceinline__ void multiply_stage(ql_dtype x_type, ql_dtype w_type, const char *stage,
                                                      float (&sum)[TILE::TOKENS / SIDE][TILE::OUTPUTS / SIDE]) {
    const char *x = stage + threadIdx.x / SIDE * PITCH, *w = stage + (TILE::TOKENS + threadIdx.x % SIDE) * PITCH;
#pragma unroll
    for (int k = 0; k < STEP; k += 4) {
        float4 of_x[TILE::TOKENS / SIDE];
#pragma unroll
        for (int t = 0; t < TILE::TOKENS / SIDE; t++) of_x[t] = four_at(x_type, x + t * SIDE * PITCH, k);
#pragma unroll
        for (int o = 0; o < TILE::OUTPUTS / SIDE; o++) {
            const float4 of_w = four_at(w_type, w + o * SIDE * PITCH, k);
#pragma unroll
            for (int t = 0; t < TILE::TOKENS / SIDE; t++) sum[t][o] = add_four(sum[t][o], of_x[t], of_w);
        }
    }
}

/* SINGLE: both operands are F32, and the compiler knows. */
template <bool SINGLE, typename TILE> static __global__ void __launch_bounds__(THREADS) wide_kernel(dense_job j) {
    DYNAMIC_SHARED(memory);
    char *ring = (char *)memory;
    const ql_arguments *a = &j.arguments;
    const int64_t k = j.product.k, steps = (k + STEP - 1) / STEP,
                  down = (j.product.n + TILE::OUTPUTS - 1) / TILE::OUTPUTS;
    const int64_t m0 = blockIdx.x / down * TILE::TOKENS, n0 = blockIdx.x % down * TILE::OUTPUTS;
    const ql_mat w = {(void *)section<char>(a->weight, j.packed.values), j.product.w, j.product.n, k, k};
    const ql_dtype x_type = SINGLE ? QL_F32 : a->x.dtype, w_type = SINGLE ? QL_F32 : w.dtype;
    float sum[TILE::TOKENS / SIDE][TILE::OUTPUTS / SIDE] = {};
    auto load = [&](int64_t step, int to) {
        if (step < steps) {
            load_rows(a->x, m0, TILE::TOKENS, step * STEP, ring + to * TILE::STAGE);
            load_rows(w, n0, TILE::OUTPUTS, step * STEP, ring + to * TILE::STAGE + TILE::TOKENS * PITCH);
        }
        ptx_commit_copies(); /* an empty group too: they are counted */
    };
    for (int s = 0; s < TILE::RING - 1; s++) load(s, s);
    int stage = 0, next = TILE::RING - 1;
    for (int64_t step = 0; step < steps; step++) {
        ptx_wait_copies<TILE::RING - 2>();
        __syncthreads(); /* all copies of `stage` have arrived, and all warps have left `next` */
        load(step + TILE::RING - 1, next);
        multiply_stage<TILE>(x_type, w_type, ring + stage * TILE::STAGE, sum);
        next = stage, stage = stage + 1 == TILE::RING ? 0 : stage + 1;
    }
#pragma unroll
    for (int o = 0; o < TILE::OUTPUTS / SIDE; o++) {
        const int64_t n = n0 + threadIdx.x % SIDE + o * SIDE;
        const float bias = a->bias.data && n < j.product.n ? ((const float *)a->bias.data)[n] : 0.0f;
#pragma unroll
        for (int t = 0; t < TILE::TOKENS / SIDE; t++) {
            const int64_t m = m0 + threadIdx.x / SIDE + t * SIDE;
            if (m < a->x.rows && n < j.product.n) store_value(a->y, m, n, ql_product_value(sum[t][o], 1, 1, bias));
        }
    }
}

static ql_status takes(const ql_product *p, int arch) {
    if (p->w != QL_F32 && p->w != QL_F16 && p->w != QL_BF16)
        return ql_fail(QL_UNSUPPORTED, "dense_f32: w is %s, expected F32, F16 or BF16", ql_dtype_name(p->w));
    return arch >= 80
               ? QL_OK
               : ql_fail(QL_UNSUPPORTED, "dense_f32: needs compute capability 8.0, this GPU has %.1f", arch / 10.0);
}

template <bool SINGLE, typename TILE> static ql_status launch(const dense_job *job, cudaStream_t stream) {
    const int64_t blocks =
        ql_ceil_div(job->arguments.x.rows, TILE::TOKENS) * ql_ceil_div(job->product.n, TILE::OUTPUTS);
    auto wide_products = wide_kernel<SINGLE, TILE>;
    LAUNCH_SHARED(stream, wide_products, blocks, THREADS, TILE::SHARED, *job);
    return QL_OK;
}

typedef wide_tile<16, 32, 8> few;    /* 30 KiB: six blocks of an SM stream W */
typedef wide_tile<128, 128, 3> many; /* 60 KiB, 64 sums per thread */

static ql_status run(const ql_plan *plan, const ql_arguments *a, void *, void *on) {
    const dense_job job = {plan->product, plan->packed, *a};
    const bool single = plan->product.x == QL_F32 && plan->product.w == QL_F32;
    cudaStream_t stream = (cudaStream_t)on;
    if (a->x.rows <= few::TOKENS) return single ? launch<true, few>(&job, stream) : launch<false, few>(&job, stream);
    return single ? launch<true, many>(&job, stream) : launch<false, many>(&job, stream);
}

const ql_kernel ql_dense_f32 = {"dense_f32.sm80", takes, 1, INT64_MAX, NULL, run};

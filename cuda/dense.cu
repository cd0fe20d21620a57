/* Dense products of halves whose rows have the same bits in every batch.   y[m][n] = x[m][k] W[n][k]^T + bias[n], x and W BF16 or F16
 *
 * cuBLASLt is faster where it serves (cuda/product_dense.cu), but promises nothing about a row in another batch, and writes no F16 from
 * BF16.  Here a sum is made of QL_SEGMENTS segments of K, each a chain of tensor core products in the order of K, added in their
 * order in FP32: so few tokens can give every segment to other warps and many tokens can walk them one after the other, and the
 * bits are the same.
 *   up to 16 tokens   a block makes 32 outputs; of its eight warps two share each segment, so that W streams from four places at a time.
 *   up to 64, more    the tiles of cuda/bytes.cuh, 64 x 64 and 128 x 128.  K is never split over blocks: their number would hang on m.
 * Rows that do not begin on multiples of 16 bytes, as with k % 8 != 0, are copied value by value: slower, and the same bits.
 * Twins: host/cpu/product.c, cuda/product_any.cu.  Other types: cuda/dense_f32.cu. */
#include "cuda/bytes.cuh"

template <bool BF16> struct half_type {
    typedef float SUM;
    enum { SHIFT = 0, WIDTH = 2 };
    struct operand {
        uint32_t word[4];
    };
    static __device__ __forceinline__ float unit(const ql_product *) { return 1; }
    static __device__ __forceinline__ operand prepare_w(const uint32_t (&bytes)[4], const ql_product *) {
        return {{bytes[0], bytes[1], bytes[2], bytes[3]}};
    }
    static __device__ __forceinline__ operand prepare_x(const uint32_t (&bytes)[4], const ql_product *p) {
        return prepare_w(bytes, p);
    }
    static __device__ __forceinline__ void multiply(float (&sum)[4], const operand &a, const operand &b, int half) {
        const uint32_t words[2] = {b.word[2 * half], b.word[2 * half + 1]};
        if (BF16) ptx_mma_bf16(sum, a.word, words);
        else ptx_mma_f16(sum, a.word, words);
    }
};

/* ---- few tokens ------------------------------------------------------------------------------------------------------------ */

enum { FEW_OUTPUTS = 32, FEW_TOKENS = 16, FEW_ROWS = FEW_OUTPUTS + FEW_TOKENS, FEW_RING = 4 };
enum { FEW_PART = FEW_ROWS * K_BYTES, FEW_STAGE = QL_SEGMENTS * FEW_PART, FEW_SHARED = FEW_RING * FEW_STAGE };
enum { FEW_PITCH = FEW_OUTPUTS + 4, FEW_SUMS = FEW_TOKENS * FEW_PITCH };
static_assert(FEW_SHARED <= 99 << 10, "what a block may have on every GPU since sm_80");
static_assert(QL_SEGMENTS * 2 == BYTE_WARPS, "two warps of 16 outputs per segment");
static_assert(QL_SEGMENTS * FEW_SUMS * 4 <= FEW_SHARED, "the sums of all segments fit into the ring");

/* Step `step` of every segment that has so many. */
template <typename TYPE>
static __device__ __forceinline__ void load_segments(const byte_job *j, tile_place place, int64_t step,
                                                     uint8_t *stage) {
    for (int i = threadIdx.x; i < QL_SEGMENTS * FEW_ROWS * 8; i += BYTE_THREADS) {
        const int segment = i / (FEW_ROWS * 8), row = i / 8 % FEW_ROWS;
        const int64_t at = ql_segment_begin(place.last, segment) + step;
        if (at < ql_segment_begin(place.last, segment + 1))
            load_chunk<TYPE>(j, place, FEW_OUTPUTS, at, row, i % 8, stage + segment * FEW_PART);
    }
}

/* The segments' sums [QL_SEGMENTS][FEW_TOKENS][FEW_PITCH], added in their order, to y. */
static __device__ __forceinline__ void store_segments(const byte_job *j, tile_place place, const float *sums) {
    for (int i = threadIdx.x; i < FEW_OUTPUTS * FEW_TOKENS; i += BYTE_THREADS) {
        const int64_t token = place.token + i / FEW_OUTPUTS, output = place.output + i % FEW_OUTPUTS;
        const float *from = sums + i / FEW_OUTPUTS * FEW_PITCH + i % FEW_OUTPUTS;
        float total = 0;
        for (int s = 0; s < QL_SEGMENTS; s++) total += from[s * FEW_SUMS];
        if (token < j->m && output < j->n) finish(j, token, output, total);
    }
}

template <typename TYPE> static __global__ void __launch_bounds__(BYTE_THREADS) few_kernel(byte_job j) {
    DYNAMIC_SHARED(ring);
    const tile_place place = place_of(blockIdx.x, &j, FEW_OUTPUTS, FEW_TOKENS);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, segment = warp / 2, output = warp % 2 * 16;
    const int64_t mine = ql_segment_begin(place.last, segment + 1) - ql_segment_begin(place.last, segment);
    const int64_t longest = pieces(place.last, QL_SEGMENTS);
    float sum[1][FEW_TOKENS / 8][4] = {};

    for (int s = 0; s < FEW_RING - 1; s++) {
        load_segments<TYPE>(&j, place, s, ring + s * FEW_STAGE);
        ptx_commit_copies(); /* an empty group too: they are counted */
    }
    int stage = 0, next = FEW_RING - 1;
    for (int64_t step = 0; step < longest; step++) {
        ptx_wait_copies<FEW_RING - 2>();
        __syncthreads(); /* all copies of `stage` have arrived, and all warps have left `next` */
        load_segments<TYPE>(&j, place, step + FEW_RING - 1, ring + next * FEW_STAGE);
        ptx_commit_copies();
        if (step < mine)
            multiply_rows<TYPE>(&j, ring + stage * FEW_STAGE + segment * FEW_PART, output, FEW_OUTPUTS, sum);
        next = stage, stage = stage + 1 == FEW_RING ? 0 : stage + 1;
    }
    ptx_wait_copies<0>();
    __syncthreads();
    float *sums = (float *)ring + segment * FEW_SUMS;
#pragma unroll
    for (int t = 0; t < FEW_TOKENS / 8; t++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            sums[(t * 8 + lane % 4 * 2 + e % 2) * FEW_PITCH + output + e / 2 * 8 + lane / 4] = sum[0][t][e];
    __syncthreads();
    store_segments(&j, place, (const float *)ring);
}

/* ---- the kernel of the table --------------------------------------------------------------------------------------------------- */

static ql_status takes(const ql_product *p, int arch) {
    if (p->x != p->w || (p->w != QL_F16 && p->w != QL_BF16))
        return ql_fail(QL_UNSUPPORTED, "dense: x is %s and w %s, expected F16 or BF16 for both", ql_dtype_name(p->x),
                       ql_dtype_name(p->w));
    return arch >= 80 ? QL_OK
                      : ql_fail(QL_UNSUPPORTED, "dense: needs compute capability 8.0, this GPU has %.1f", arch / 10.0);
}

template <typename TYPE> static ql_status launch(const byte_job *job, cudaStream_t stream) {
    if (job->m > 64) return byte_family<TYPE, SEGMENTS, 2, 8, 3>::launch(job, stream);
    if (job->m > FEW_TOKENS) return byte_family<TYPE, SEGMENTS, 1, 4, 4>::launch(job, stream);
    auto few_products = few_kernel<TYPE>;
    LAUNCH_SHARED(stream, few_products, pieces(job->n, FEW_OUTPUTS), BYTE_THREADS, FEW_SHARED, *job);
    return QL_OK;
}

static ql_status run(const ql_plan *plan, const ql_arguments *a, void *, void *stream) {
    byte_job job = byte_job_of(plan, a, NULL, 1);
    job.k *= 2, job.x_ld *= 2; /* bytes */
    return plan->product.x == QL_BF16 ? launch<half_type<true>>(&job, (cudaStream_t)stream)
                                      : launch<half_type<false>>(&job, (cudaStream_t)stream);
}

const ql_kernel ql_dense = {"dense.sm80", takes, 1, INT64_MAX, NULL, run};

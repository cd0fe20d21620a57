/* Activations eight at a time, for kernels that wait for memory.
 *
 * A kernel is a template over STEP, the neighbours of a row that a thread takes together: one, or eight by 16 bytes, which needs operands
 * in eights; views need not be.
 *
 *   for (int64_t j = threadIdx.x * STEP; j < x.cols; j += THREADS * STEP) {
 *       float value[STEP];
 *       load_values(x, row, j, value);
 */
#ifndef CUDA_EIGHTS_CUH
#define CUDA_EIGHTS_CUH

#include "cuda/device.cuh"
#include "cuda/ptx.cuh"

enum { EIGHT = 8 };

static inline bool ql_cuda_in_eights(ql_mat mat) {
    return (uintptr_t)mat.data % 16 == 0 && mat.ld % EIGHT == 0 && mat.cols % EIGHT == 0;
}

template <int STEP> static __device__ __forceinline__ void load_floats(const float *from, float (&value)[STEP]) {
    static_assert(STEP == 1 || STEP == EIGHT, "one value, or eight");
    if constexpr (STEP == 1) {
        value[0] = from[0];
    } else {
        const float4 low = ((const float4 *)from)[0], high = ((const float4 *)from)[1];
        value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
        value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
    }
}

/* F32 or BF16. */
template <int STEP>
static __device__ __forceinline__ void load_values(const ql_mat &mat, int64_t row, int64_t col, float (&value)[STEP]) {
    if constexpr (STEP == 1) {
        value[0] = value_at(mat, row, col);
    } else if (mat.dtype == QL_BF16) {
        const uint4 halves = *(const uint4 *)(row_of<uint16_t>(mat, row) + col);
        const uint32_t pairs[] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
        for (int i = 0; i < STEP; i++) value[i] = ql_bf16_to_f32((uint16_t)(pairs[i / 2] >> i % 2 * 16));
    } else {
        load_floats(row_of<float>(mat, row) + col, value);
    }
}

template <int STEP>
static __device__ __forceinline__ void put_values(const ql_mat &mat, int64_t row, int64_t col,
                                                  const float (&value)[STEP]) {
    if constexpr (STEP == 1) {
        put_value(mat, row, col, value[0]);
    } else {
        uint32_t word[STEP];
        if (mat.dtype == QL_BF16) {
#pragma unroll
            for (int i = 0; i < STEP; i += 2)
                word[i / 2] = ql_f32_to_bf16(value[i]) | (uint32_t)ql_f32_to_bf16(value[i + 1]) << 16;
            ptx_store(row_of<uint16_t>(mat, row) + col, word[0], word[1], word[2], word[3]);
        } else {
#pragma unroll
            for (int i = 0; i < STEP; i++) word[i] = ql_f32_bits(value[i]);
            ptx_store(row_of<float>(mat, row) + col, word[0], word[1], word[2], word[3]);
            ptx_store(row_of<float>(mat, row) + col + 4, word[4], word[5], word[6], word[7]);
        }
    }
}

#endif

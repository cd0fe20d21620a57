/* Products on the GPU: the kernels that cuda/product.cu chooses from, and what their files share. */
#ifndef CUDA_PRODUCT_CUH
#define CUDA_PRODUCT_CUH

#include "cuda/device.cuh"
#include "cuda/ptx.cuh"
#include "host/product.h"

extern "C" {
enum { QL_FP8_KERNELS = 13, QL_INT8_KERNELS = 6, QL_W3A16_KERNELS = 2, QL_W4A16_KERNELS = 5, QL_W4A8_KERNELS = 3 };
enum { QL_WIDE_KERNELS = 2 };
extern const ql_kernel ql_fp8_kernels[QL_FP8_KERNELS];
extern const ql_kernel ql_int8_kernels[QL_INT8_KERNELS];
extern const ql_kernel ql_w3a16_kernels[QL_W3A16_KERNELS];                    /* codes of 2, 3 or 8 bits times halves */
extern const ql_kernel ql_w4a16_kernels[QL_W4A16_KERNELS];                    /* codes of 4 bits times halves or E4M3 */
extern const ql_kernel ql_w3a16_sm90, ql_w4a16_sm90_kernels[QL_WIDE_KERNELS]; /* the same on Hopper, for many tokens */
extern const ql_kernel ql_w4a8_kernels[QL_W4A8_KERNELS];                      /* codes of 4 bits times I8 */
extern const ql_kernel ql_w4a8_sm90_kernels[QL_WIDE_KERNELS];                 /* likewise */
extern const ql_kernel ql_codes_dense;   /* codes times 1024 tokens and more, where FAST allows it */
extern const ql_kernel ql_product_dense; /* through cuBLASLt */
extern const ql_kernel ql_dense;         /* F16 or BF16: the same bits in every batch */
extern const ql_kernel ql_dense_f32;     /* F32, F16 and BF16 in any pair: likewise */
extern const ql_kernel ql_product_any;   /* every product, on every GPU, slowly */
}

/* An address within a packed weight. */
template <typename T> static __host__ __device__ __forceinline__ const T *section(const void *packed, uint64_t offset) {
    return (const T *)((const char *)packed + offset);
}

/* One value as FP32. */
static __device__ __forceinline__ float widened(ql_dtype dtype, const void *row, int64_t i) {
    switch (dtype) {
    case QL_I8: return ((const int8_t *)row)[i];
    case QL_U8: return ((const uint8_t *)row)[i];
    case QL_F8_E4M3: return ql_e4m3_to_f32(((const uint8_t *)row)[i]);
    case QL_F8_E5M2: return ql_e5m2_to_f32(((const uint8_t *)row)[i]);
    case QL_F16: return ql_f16_to_f32(((const uint16_t *)row)[i]);
    case QL_BF16: return ql_bf16_to_f32(((const uint16_t *)row)[i]);
    default: return ((const float *)row)[i];
    }
}

/* The scale of output `row` and group `g`. */
static __device__ __forceinline__ float group_scale(const ql_packed *p, const void *packed, int64_t row, int64_t g) {
    uint16_t half = section<uint16_t>(packed, p->scale)[ql_packed_at(p, row, g)];
    return p->scale_dtype == QL_F16 ? ql_f16_to_f32(half) : ql_bf16_to_f32(half);
}

/* ---- the epilogue ------------------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float scale_at(ql_scale_mode mode, const float *scale, int64_t i) {
    return mode == QL_SCALE_ROW ? scale[i] : mode == QL_SCALE_TENSOR ? scale[0] : 1.0f;
}

/* The value of (m, n), from its sum. */
static __device__ __forceinline__ float ql_finished(const ql_product *product, const ql_packed *p,
                                                    const ql_arguments *a, int64_t m, int64_t n, float sum) {
    float x_scale = scale_at(product->x_scale, (const float *)a->x_scale.data, m);
    float w_scale = scale_at(product->w_scale, section<float>(a->weight, p->scale), n);
    return ql_product_value(sum, x_scale, w_scale, a->bias.data ? ((const float *)a->bias.data)[n] : 0.0f);
}

/* Rounds a value to y's type; not for I32. */
static __device__ __forceinline__ void ql_store_value(const ql_arguments *a, int64_t m, int64_t n, float value) {
    switch (a->y.dtype) {
    case QL_F32: row_of<float>(a->y, m)[n] = value; return;
    case QL_F16: row_of<uint16_t>(a->y, m)[n] = ql_f32_to_f16(value); return;
    case QL_BF16: row_of<uint16_t>(a->y, m)[n] = ql_f32_to_bf16(value); return;
    default: row_of<uint8_t>(a->y, m)[n] = ql_f32_to_e4m3(value / *(const float *)a->y_scale.data);
    }
}

/* The same for F32, F16 and BF16, in few instructions: for kernels in whose code it stands once per sum of a thread. */
static __device__ __forceinline__ void store_value(const ql_mat &y, int64_t m, int64_t n, float value) {
    int64_t at = m * y.ld + n;
    if (y.dtype == QL_F32) ((float *)y.data)[at] = value;
    else
        ((uint16_t *)y.data)[at] = (uint16_t)(y.dtype == QL_F16 ? ptx_pack_f16x2(value, 0) : ptx_pack_bf16x2(value, 0));
}

#endif

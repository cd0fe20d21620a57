/* A product of halves through cuBLASLt, beside those of cuda/device.cuh. */
#ifndef CUDA_GEMM_CUH
#define CUDA_GEMM_CUH

#include "cuda/device.cuh"

/* c = a b + beta c.   a, b BF16, c F32, row-major; products are exact, sums FP32. */
ql_status ql_cuda_half_product(ql_cuda *gpu, ql_mat a, ql_mat b, double beta, ql_mat c);

#endif

/* What the two kernels of X^T X share. */
#ifndef CUDA_SYRK_CUH
#define CUDA_SYRK_CUH

#include "cuda/device.cuh"

/* H += X^T X, upper triangle, first rows, on compute capability 9.0 (cuda/syrk_sm90.cu): rows of x begin on multiples of 16 bytes.  processors: SMs of
 * the GPU. */
ql_status ql_cuda_syrk_wide(ql_cuda *gpu, ql_mat x, ql_mat h, int processors);

#endif

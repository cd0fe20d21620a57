/* What the two kernels of attention share. */
#ifndef CUDA_ATTENTION_CUH
#define CUDA_ATTENTION_CUH

#include "cuda/device.cuh"

/* First key of a query whose own key is `last`. */
static __device__ __forceinline__ int64_t first_key(int64_t sequence, int64_t last, int64_t window) {
    return window && sequence < last - window + 1 ? last - window + 1 : sequence;
}

/* BF16 on tensor cores (cuda/flash.cu): rows that begin at multiples of 16 bytes, heads of whole 16 bytes, at most 256 values.  Neither
 * scratch nor waiting: `start` is read before it returns, and a graph can capture it. */
ql_status ql_cuda_flash(ql_cuda *gpu, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                        const int64_t *start, int64_t n_seq, ql_mat out);

#endif

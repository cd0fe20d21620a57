/* Dense products through cuBLASLt: what choosing an algorithm (product_dense.cu) and measuring it (product_measure.cu) share. */
#ifndef CUDA_PRODUCT_DENSE_CUH
#define CUDA_PRODUCT_DENSE_CUH

#include "cuda/product.cuh"

/* One product in cuBLASLt's terms: matrices of columns, D [n][m] = W [k][n]^T X [k][m]. */
typedef struct dense_call {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t w, x, y;
} dense_call;

/* m tokens with these leading dimensions; bias: a pointer to n values of y's type, or NULL. */
ql_status ql_dense_describe(dense_call *call, const ql_product *product, int64_t m, int64_t x_ld, int64_t y_ld,
                            const void *bias);

/* Up to `most` algorithms for operands whose addresses are multiples of `alignment`, the one that cuBLASLt expects to be fastest
 * first.  QL_UNSUPPORTED if there is none. */
ql_status ql_dense_ask(cublasLtHandle_t blas, dense_call *call, uint32_t alignment, int most,
                       cublasLtMatmulHeuristicResult_t *answers, int *count);

/* The planned algorithm where it is right for these addresses and leading dimensions, else another. */
ql_status ql_dense_algorithm(cublasLtHandle_t blas, dense_call *call, const cublasLtMatmulAlgo_t *planned,
                             const void *x, const void *y, cublasLtMatmulAlgo_t *algorithm);

ql_status ql_dense_multiply(cublasLtHandle_t blas, dense_call *call, const cublasLtMatmulAlgo_t *algorithm,
                            const void *w, const void *x, void *y, void *workspace, cudaStream_t stream);

/* Algorithms are chosen for m = 1, 2, 4 .. and m_max; one serves all m down to the one before. */
enum { DENSE_BUCKETS = 32 };
static inline int ql_dense_bucket(int64_t m) { return m > 1 ? 64 - __builtin_clzll((unsigned long long)(m - 1)) : 0; }
static inline int64_t ql_dense_bucket_m(int bucket, int64_t m_max) {
    return (int64_t)1 << bucket < m_max ? (int64_t)1 << bucket : m_max;
}

/* What identifies a measurement on this machine. */
ql_status ql_dense_key(int device, const ql_product *product, int64_t m, ql_choice *key);

#endif

/* What the files of the CUDA backend share: the state of a context, failures with facts, launches, dense products, and the few
 * device functions that every kernel wants.
 *
 *   ql_cuda *gpu;
 *   QL_TRY(ql_cuda_use(ctx, &gpu));                                   // first line of every operation
 *   float *tile;  QL_TRY(ql_cuda_scratch(gpu, bytes, (void **)&tile)); // at most once per operation
 *   LAUNCH(gpu, add_kernel, x.rows, 256, x, y);
 *   CUDA_TRY(cudaStreamSynchronize(gpu->stream));
 */
#ifndef CUDA_DEVICE_CUH
#define CUDA_DEVICE_CUH

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include "host/mat.h"
#include "host/mem.h"
#include "host/num.h"
#include "host/ops.h"
#include "host/status.h"

/* One dense product as cuBLASLt sees it, and its choice for it. */
typedef struct product_choice {
    struct {
        int64_t m, n, k, lda, ldb, ldc;
        uint32_t align_a, align_b, align_c;
        int32_t dtype, dtype_c, trans_a, trans_b, accumulate;
    } key;
    cublasLtMatmulAlgo_t algorithm;
} product_choice;

enum { CHOICES = 64 };                     /* shapes remembered: a block of a model has about twenty */
static const size_t WORKSPACE = 32u << 20; /* what cuBLASLt's documentation recommends for Hopper */

typedef struct ql_cuda {
    int device;
    cudaStream_t stream, beside; /* operations; uploads that nobody there waits for */
    cublasLtHandle_t blas;
    cusolverDnHandle_t solver; /* made by the first factorization: it costs memory that a forward pass does not need */
    cusolverDnParams_t solver_options;
    void *workspace; /* of cuBLASLt */
    void *scratch;   /* of the operation that runs */
    size_t scratch_bytes;
    size_t free_before, least_free; /* bytes of the device: before this context took any, and after every allocation */
    product_choice choices[CHOICES];
    int n_choices;
} ql_cuda;

/* Makes the context's GPU the current one of the calling thread. */
ql_status ql_cuda_use(ql_ctx *ctx, ql_cuda **gpu);

/* Device memory for the time of one operation; the next request may return the same bytes.  The buffer grows and stays, so that
 * a loop over layers allocates once; it is given back when an allocation would fail otherwise. */
ql_status ql_cuda_scratch(ql_cuda *gpu, size_t bytes, void **data);

/* Adds a 256-byte aligned piece to the sum of a scratch request and returns where it starts. */
static inline size_t ql_cuda_piece(size_t *total, size_t bytes) {
    size_t start = *total;
    *total += (bytes + 255) & ~(size_t)255;
    return start;
}

/* c = alpha op(a) op(b) + beta c, all F32 or all F64, or a and b BF16 and c F32 or BF16; row-major; op is the transpose where trans_* says so. */
ql_status ql_cuda_product(ql_cuda *gpu, double alpha, ql_mat a, bool trans_a, ql_mat b, bool trans_b, double beta,
                          ql_mat c);

/* H += X^T X, upper triangle, first rows.   x [m][k] BF16, h [r][k] F32; uses the scratch. */
ql_status ql_cuda_syrk(ql_cuda *gpu, ql_mat x, ql_mat h);

/* A = L L^T and L^-1 in place.   a [k][k] F32 or F64: its upper triangle by rows holds the lower one by columns, a[q][p] = A[p][q]
 * and then L[p][q], p >= q; the rest is neither read nor written.  QL_NUMERIC if A is not positive definite.  Both wait. */
ql_status ql_cuda_cholesky(ql_cuda *gpu, ql_mat a);
ql_status ql_cuda_invert_triangle(ql_cuda *gpu, ql_mat a);

/* The same factorization by our own kernels, F32; what lies below the diagonal is lost.  *bad is 0, or 1 + the first position
 * whose pivot is not a positive number; then `a` has no meaning.  Uses the scratch, and waits. */
ql_status ql_cuda_cholesky_blocks(ql_cuda *gpu, ql_mat a, int *bad);

/* a[p][q] <-> a[k-1-q][k-1-p] in the upper triangle, zero below: the triangle of the index-reversed matrix. */
ql_status ql_cuda_reverse_triangle(ql_cuda *gpu, ql_mat a);

/* The first value of an I32 row outside low .. limit-1 and its index, or index -1.  An index from a file must not become an
 * address.  Uses the scratch, and waits. */
ql_status ql_cuda_find_outside(ql_cuda *gpu, ql_mat row, int64_t low, int64_t limit, int64_t *index, int32_t *value);

/* The same for the g_idx of a grid over k inputs, as a failure of the operation `name`; an absent g_idx is in order. */
ql_status ql_cuda_check_groups(ql_cuda *gpu, const char *name, const ql_grid *grid, int64_t k);

/* A failure if a present order is no permutation of 0 .. k-1. */
ql_status ql_cuda_check_order(ql_ctx *ctx, const char *name, ql_mat order, int64_t k);

/* ---- failures ------------------------------------------------------------------------------------------------------------- */

ql_status ql_cuda_fault(cudaError_t error, const char *call);
ql_status ql_cuda_blas_fault(cublasStatus_t status, const char *call);

#define CUDA_TRY_AS(call, name)                                                                                        \
    do {                                                                                                               \
        cudaError_t cuda_try_error = (call);                                                                           \
        if (cuda_try_error != cudaSuccess) return ql_cuda_fault(cuda_try_error, name);                                 \
    } while (0)
#define CUDA_TRY(call) CUDA_TRY_AS(call, #call)

#define BLAS_TRY(call)                                                                                                 \
    do {                                                                                                               \
        cublasStatus_t blas_try_status = (call);                                                                       \
        if (blas_try_status != CUBLAS_STATUS_SUCCESS) return ql_cuda_blas_fault(blas_try_status, #call);               \
    } while (0)

#ifndef LAUNCH_KERNEL /* tests/emulated_cuda brings its own */
#define LAUNCH_KERNEL(kernel, blocks, threads, shared, stream, ...)                                                    \
    kernel<<<blocks, threads, shared, stream>>>(__VA_ARGS__)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

/* A grid is one-dimensional; an empty one is legal here, CUDA refuses it.  `shared` bytes of dynamic shared memory are what
 * DYNAMIC_SHARED(name) declares in the kernel; more than 48 KiB must be asked for. */
#define LAUNCH_SHARED(stream, kernel, blocks, threads, shared, ...)                                                    \
    do {                                                                                                               \
        int64_t launch_blocks = (blocks);                                                                              \
        size_t launch_shared = (shared);                                                                               \
        if (launch_blocks > INT32_MAX)                                                                                 \
            return ql_fail(QL_UNSUPPORTED, "%s: %lld blocks, a CUDA grid has at most %d", #kernel,                     \
                           (long long)launch_blocks, INT32_MAX);                                                       \
        if (launch_shared > 48 << 10)                                                                                  \
            CUDA_TRY_AS(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)launch_shared), \
                        #kernel);                                                                                      \
        if (launch_blocks > 0) {                                                                                       \
            LAUNCH_KERNEL(kernel, (unsigned)launch_blocks, threads, launch_shared, stream, __VA_ARGS__);               \
            CUDA_TRY_AS(cudaGetLastError(), #kernel);                                                                  \
        }                                                                                                              \
    } while (0)

#define LAUNCH_ON(stream, kernel, blocks, threads, ...) LAUNCH_SHARED(stream, kernel, blocks, threads, 0, __VA_ARGS__)
#define LAUNCH(gpu, kernel, blocks, threads, ...) LAUNCH_ON((gpu)->stream, kernel, blocks, threads, __VA_ARGS__)

/* ---- device functions -------------------------------------------------------------------------------------------------- */

enum { WARP = 32 };

template <typename T> static __device__ __forceinline__ T *row_of(ql_mat mat, int64_t row) {
    return (T *)mat.data + row * mat.ld;
}

/* Activations in F32 or BF16, for kernels that compute in F32.  The type is the same for all threads: the branch costs nothing beside
 * the access to memory. */
static __device__ __forceinline__ float value_at(const ql_mat &mat, int64_t row, int64_t col) {
    return mat.dtype == QL_BF16 ? ql_bf16_to_f32(row_of<uint16_t>(mat, row)[col]) : row_of<float>(mat, row)[col];
}
static __device__ __forceinline__ void put_value(const ql_mat &mat, int64_t row, int64_t col, float x) {
    if (mat.dtype == QL_BF16) row_of<uint16_t>(mat, row)[col] = ql_f32_to_bf16(x);
    else row_of<float>(mat, row)[col] = x;
}

static __device__ __forceinline__ int64_t group_of(const ql_grid *grid, int64_t input) {
    return grid->g_idx.data ? ((const int32_t *)grid->g_idx.data)[input] : input / grid->group;
}

/* All lanes get the sum; the order of the additions is fixed, so are the bits. */
template <typename T> static __device__ __forceinline__ T warp_sum(T x) {
    for (int step = WARP / 2; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* The same over a block of `WARPS` whole warps.  `shared` has room for one value per warp; ends with a barrier. */
template <int WARPS, typename T> static __device__ __forceinline__ T block_sum(T x, T *shared) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    T sum = 0;
    for (int warp = 0; warp < WARPS; warp++) sum += shared[warp];
    __syncthreads();
    return sum;
}

#endif

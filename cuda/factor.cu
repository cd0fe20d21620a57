/* P (H + shift I) P^T = R R^T, R upper triangular, P the order of the columns.   h, r [k][k] F32
 *
 * With J the reversal of indices, J P (H + shift I) P^T J = L L^T is an ordinary Cholesky factorization and R = J L J.
 * cuSOLVER's lower triangle by columns is the upper one by rows, so everything happens inside the upper triangle of r:
 *   gather    r[p][q] = (H + shift I) at (order[k-1-q], order[k-1-p]), p <= q
 *   factor    r[q][p] = L[p][q], p >= q, by cuda/cholesky.cu or cuSOLVER
 *   reverse   r[p][q] <-> r[k-1-q][k-1-p], which is R; the lower triangle becomes zero
 * cuSOLVER is several times slower with the other triangle.   Twin: host/cpu/factor.c. */
#include "cuda/device.cuh"

#include <stdlib.h>

enum { THREADS = 256 };

static __global__ void gather_kernel(ql_mat h, ql_mat order, double shift, ql_mat r) {
    int64_t p = blockIdx.x, k = r.cols;
    const int32_t *at = (const int32_t *)order.data;
    float *to = row_of<float>(r, p);
    int64_t a = at ? at[k - 1 - p] : k - 1 - p;
    for (int64_t q = p + threadIdx.x; q < k; q += THREADS) {
        int64_t b = at ? at[k - 1 - q] : k - 1 - q;
        float value = a < b ? row_of<float>(h, a)[b] : row_of<float>(h, b)[a];
        to[q] = p == q ? (float)((double)value + shift) : value;
    }
}

/* Of each pair of mirrored elements, the one that comes first in the order of rows swaps both. */
template <typename T> static __global__ void reverse_kernel(ql_mat a) {
    int64_t p = blockIdx.x, k = a.cols;
    T *row = row_of<T>(a, p);
    for (int64_t q = threadIdx.x; q < k; q += THREADS) {
        if (q < p) row[q] = 0;
        else if (p + q < k - 1) {
            T *mirror = row_of<T>(a, k - 1 - q) + k - 1 - p, value = row[q];
            row[q] = *mirror;
            *mirror = value;
        }
    }
}

ql_status ql_cuda_reverse_triangle(ql_cuda *gpu, ql_mat a) {
    if (a.dtype == QL_F64) LAUNCH(gpu, reverse_kernel<double>, a.rows, THREADS, a);
    else LAUNCH(gpu, reverse_kernel<float>, a.rows, THREADS, a);
    return QL_OK;
}

/* ---- cuSOLVER ------------------------------------------------------------------------------------------------------------------ */

static ql_status solver_fault(cusolverStatus_t status, const char *call) {
    ql_status kind = status == CUSOLVER_STATUS_ALLOC_FAILED    ? QL_NOMEM
                     : status == CUSOLVER_STATUS_INVALID_VALUE ? QL_INTERNAL
                                                               : QL_DEVICE;
    return ql_fail(kind, "%s: cuSOLVER status %d", call, (int)status);
}

#define SOLVER_TRY(call)                                                                                               \
    do {                                                                                                               \
        cusolverStatus_t solver_try_status = (call);                                                                   \
        if (solver_try_status != CUSOLVER_STATUS_SUCCESS) return solver_fault(solver_try_status, #call);               \
    } while (0)

static ql_status open_solver(ql_cuda *gpu) {
    if (gpu->solver) return QL_OK;
    SOLVER_TRY(cusolverDnCreate(&gpu->solver));
    SOLVER_TRY(cusolverDnCreateParams(&gpu->solver_options));
    SOLVER_TRY(cusolverDnSetStream(gpu->solver, gpu->stream));
    return QL_OK;
}

/* What a routine of cuSOLVER wants beside the matrix; its own allocation, since the operation that calls may use the scratch. */
typedef struct workspace {
    void *device, *host;
    size_t device_bytes, host_bytes;
    int *info; /* device memory */
} workspace;

static void close_workspace(workspace *work) {
    cudaFree(work->device);
    cudaFree(work->info);
    ql_mfree(work->host);
}

static ql_status open_workspace(workspace *work) {
    CUDA_TRY(cudaMalloc(&work->info, sizeof *work->info));
    CUDA_TRY(cudaMemset(work->info, 0, sizeof *work->info));
    if (work->device_bytes) CUDA_TRY(cudaMalloc(&work->device, work->device_bytes));
    work->host = ql_malloc(work->host_bytes + 1);
    return work->host ? QL_OK : ql_fail(QL_NOMEM, "no memory: %zu bytes asked for by cuSOLVER", work->host_bytes);
}

/* cuSOLVER's info tells a negative pivot; what became NaN or infinite on the way is found here. */
template <typename T> static __global__ void check_diagonal_kernel(ql_mat a, int *info) {
    for (int64_t p = threadIdx.x; p < a.cols; p += THREADS) {
        T pivot = row_of<T>(a, p)[p];
        if (!(pivot > 0) || !isfinite(pivot)) atomicCAS(info, 0, (int)p + 1);
    }
}

static ql_status read_info(ql_cuda *gpu, ql_mat a, const workspace *work) {
    int info = 0;
    CUDA_TRY(cudaMemcpyAsync(&info, work->info, sizeof info, cudaMemcpyDeviceToHost, gpu->stream));
    CUDA_TRY(cudaStreamSynchronize(gpu->stream));
    if (info == 0) return QL_OK;
    if (info < 0) return ql_fail(QL_INTERNAL, "cuSOLVER refused its argument %d", -info);
    return ql_fail(QL_NUMERIC, "a matrix of %lld x %lld is not positive definite: pivot %d from the end",
                   (long long)a.rows, (long long)a.cols, info);
}

static ql_status factor_with(ql_cuda *gpu, ql_mat a, workspace *work) {
    cudaDataType type = a.dtype == QL_F64 ? CUDA_R_64F : CUDA_R_32F;
    SOLVER_TRY(cusolverDnXpotrf_bufferSize(gpu->solver, gpu->solver_options, CUBLAS_FILL_MODE_LOWER, a.rows, type,
                                           a.data, a.ld, type, &work->device_bytes, &work->host_bytes));
    QL_TRY(open_workspace(work));
    SOLVER_TRY(cusolverDnXpotrf(gpu->solver, gpu->solver_options, CUBLAS_FILL_MODE_LOWER, a.rows, type, a.data, a.ld,
                                type, work->device, work->device_bytes, work->host, work->host_bytes, work->info));
    if (a.dtype == QL_F64) LAUNCH(gpu, check_diagonal_kernel<double>, 1, THREADS, a, work->info);
    else LAUNCH(gpu, check_diagonal_kernel<float>, 1, THREADS, a, work->info);
    return read_info(gpu, a, work);
}

ql_status ql_cuda_cholesky(ql_cuda *gpu, ql_mat a) {
    workspace work = {};
    QL_TRY(open_solver(gpu));
    ql_status status = factor_with(gpu, a, &work);
    close_workspace(&work);
    return status;
}

static ql_status invert_with(ql_cuda *gpu, ql_mat a, workspace *work) {
    cudaDataType type = a.dtype == QL_F64 ? CUDA_R_64F : CUDA_R_32F;
    SOLVER_TRY(cusolverDnXtrtri_bufferSize(gpu->solver, CUBLAS_FILL_MODE_LOWER, CUBLAS_DIAG_NON_UNIT, a.rows, type,
                                           a.data, a.ld, &work->device_bytes, &work->host_bytes));
    QL_TRY(open_workspace(work));
    SOLVER_TRY(cusolverDnXtrtri(gpu->solver, CUBLAS_FILL_MODE_LOWER, CUBLAS_DIAG_NON_UNIT, a.rows, type, a.data, a.ld,
                                work->device, work->device_bytes, work->host, work->host_bytes, work->info));
    return read_info(gpu, a, work);
}

ql_status ql_cuda_invert_triangle(ql_cuda *gpu, ql_mat a) {
    workspace work = {};
    QL_TRY(open_solver(gpu));
    ql_status status = invert_with(gpu, a, &work);
    close_workspace(&work);
    return status;
}

/* ---- the operation --------------------------------------------------------------------------------------------------------- */

/* Position p of the reversed matrix is position k - 1 - p of the order. */
static ql_status refuse(ql_ctx *ctx, ql_mat order, int64_t position, double shift) {
    int32_t column = (int32_t)position;
    if (order.data) QL_TRY(ql_cuda_download(ctx, &column, (int32_t *)order.data + position, sizeof column));
    return ql_fail(QL_NUMERIC, "factor: with %g on its diagonal the matrix is not positive definite at column %d",
                   shift, (int)column);
}

/* Here, and only here, the way is chosen: our blocks, or cuSOLVER with QALIB_FACTOR=cusolver in the environment, which is the
 * reference and the way out should a GPU do badly with the blocks, and where a block of threads has less shared memory than they
 * want (160 KiB: consumer GPUs have 99).  Double, which the literature needs, is always cuSOLVER's. */
static ql_status choose(const ql_cuda *gpu, bool *blocks) {
    const char *choice = getenv("QALIB_FACTOR");
    cudaDeviceProp properties;
    CUDA_TRY(cudaGetDeviceProperties(&properties, gpu->device));
    *blocks = properties.sharedMemPerBlockOptin >= 160 << 10 && !(choice && strcmp(choice, "cusolver") == 0);
    return QL_OK;
}

ql_status ql_cuda_factor(ql_ctx *ctx, ql_mat h, ql_mat order, double shift, ql_mat r) {
    ql_cuda *gpu;
    bool blocks = true;
    int bad = 0;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(choose(gpu, &blocks));
    QL_TRY(ql_cuda_check_order(ctx, "factor", order, r.cols));
    LAUNCH(gpu, gather_kernel, r.rows, THREADS, h, order, shift, r);
    if (blocks) QL_TRY(ql_cuda_cholesky_blocks(gpu, r, &bad));
    else QL_TRY(ql_cuda_cholesky(gpu, r));
    if (bad) return refuse(ctx, order, r.cols - bad, shift);
    return ql_cuda_reverse_triangle(gpu, r);
}

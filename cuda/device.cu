/* A GPU as a device: opening it, its memory, copies, and what its errors mean.
 *
 * A context owns one stream; operations are enqueued there and only those that return something to host memory wait.
 * Errors of a kernel that ran astray are sticky: the process cannot use the GPU again, which is why jobs run in processes. */
#include "cuda/device.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static __global__ void probe_kernel() {}

static int major(int version) { return version / 1000; }
static int minor(int version) { return version % 1000 / 10; }

/* A missing driver, an old one and a hidden GPU need different remedies, so they get different sentences. */
static ql_status no_device(cudaError_t error) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cudaGetLastError();
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (driver == 0)
        return ql_fail(QL_DEVICE,
                       "no usable NVIDIA driver was found on this machine (CUDA %d.%d needs one); use --device cpu",
                       major(runtime), minor(runtime));
    if (error == cudaErrorInsufficientDriver)
        return ql_fail(QL_DEVICE,
                       "the NVIDIA driver serves CUDA up to %d.%d, this program needs %d.%d: update the driver",
                       major(driver), minor(driver), major(runtime), minor(runtime));
    if (visible && (error == cudaSuccess || error == cudaErrorNoDevice))
        return ql_fail(QL_DEVICE, "the NVIDIA driver (CUDA %d.%d) shows no GPU; CUDA_VISIBLE_DEVICES is \"%s\"",
                       major(driver), minor(driver), visible);
    return ql_fail(QL_DEVICE, "the NVIDIA driver (CUDA %d.%d) shows no usable GPU: %s (%s)", major(driver),
                   minor(driver), cudaGetErrorString(error), cudaGetErrorName(error));
}

static ql_status choose_device(int device) {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) return no_device(error);
    if (device >= count)
        return ql_fail(QL_DEVICE, "cuda:%d does not exist: this machine shows %d GPU%s", device, count,
                       count == 1 ? "" : "s");
    CUDA_TRY(cudaSetDevice(device));
    cudaDeviceProp properties;
    CUDA_TRY(cudaGetDeviceProperties(&properties, device));
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, probe_kernel) != cudaSuccess) {
        cudaGetLastError();
        return ql_fail(QL_DEVICE, "cuda:%d is %s with compute capability %d.%d; the kernels need 8.0 or newer", device,
                       properties.name, properties.major, properties.minor);
    }
    return QL_OK;
}

static ql_status describe(ql_ctx *ctx, int device) {
    cudaDeviceProp properties;
    int driver = 0, runtime = 0;
    CUDA_TRY(cudaGetDeviceProperties(&properties, device));
    CUDA_TRY(cudaDriverGetVersion(&driver));
    CUDA_TRY(cudaRuntimeGetVersion(&runtime));
    snprintf(ctx->device, sizeof ctx->device, "cuda:%d", device);
    snprintf(ctx->description, sizeof ctx->description,
             "%.80s, compute capability %d.%d, %.1f GiB, driver for CUDA %d.%d, runtime %d.%d, cuBLASLt %zu",
             properties.name, properties.major, properties.minor, (double)properties.totalGlobalMem / (1u << 30),
             major(driver), minor(driver), major(runtime), minor(runtime), cublasLtGetVersion());
    return QL_OK;
}

/* Other processes on this GPU count too: it is meant to have one. */
static ql_status note_free(ql_cuda *gpu) {
    size_t available = 0, total = 0;
    CUDA_TRY(cudaMemGetInfo(&available, &total));
    if (available < gpu->least_free) gpu->least_free = available;
    return QL_OK;
}

static ql_status open_libraries(ql_cuda *gpu) {
    size_t total = 0;
    CUDA_TRY(cudaMemGetInfo(&gpu->free_before, &total));
    gpu->least_free = gpu->free_before;
    CUDA_TRY(cudaStreamCreateWithFlags(&gpu->stream, cudaStreamNonBlocking));
    CUDA_TRY(cudaStreamCreateWithFlags(&gpu->beside, cudaStreamNonBlocking));
    BLAS_TRY(cublasLtCreate(&gpu->blas));
    CUDA_TRY(cudaMalloc(&gpu->workspace, WORKSPACE));
    return note_free(gpu);
}

ql_status ql_cuda_open(ql_ctx *ctx, int device) {
    QL_TRY(choose_device(device));
    QL_TRY(describe(ctx, device));
    ql_cuda *gpu = (ql_cuda *)ql_malloc(sizeof *gpu);
    if (!gpu) return ql_fail(QL_NOMEM, "no memory for the state of cuda:%d", device);
    memset(gpu, 0, sizeof *gpu);
    gpu->device = device;
    ctx->state = gpu;
    if (ctx->threads == 0) ctx->threads = (int)sysconf(_SC_NPROCESSORS_ONLN);
    ql_status status = open_libraries(gpu);
    if (status != QL_OK) ql_cuda_close(ctx);
    return status;
}

/* Every step on its own, so that a context that was opened half way is closed as well; after a sticky fault they all fail. */
ql_status ql_cuda_close(ql_ctx *ctx) {
    ql_cuda *gpu = (ql_cuda *)ctx->state;
    cudaSetDevice(gpu->device);
    if (gpu->solver_options) cusolverDnDestroyParams(gpu->solver_options);
    if (gpu->solver) cusolverDnDestroy(gpu->solver);
    cudaFree(gpu->scratch);
    cudaFree(gpu->workspace);
    if (gpu->blas) cublasLtDestroy(gpu->blas);
    if (gpu->beside) cudaStreamDestroy(gpu->beside);
    if (gpu->stream) cudaStreamDestroy(gpu->stream);
    cudaGetLastError();
    ql_mfree(gpu);
    ctx->state = NULL;
    return QL_OK;
}

ql_status ql_cuda_use(ql_ctx *ctx, ql_cuda **gpu) {
    *gpu = (ql_cuda *)ctx->state;
    CUDA_TRY(cudaSetDevice((*gpu)->device));
    return QL_OK;
}

/* ---- memory ---------------------------------------------------------------------------------------------------------------- */

static ql_status drop_scratch(ql_cuda *gpu) {
    CUDA_TRY(cudaStreamSynchronize(gpu->stream));
    CUDA_TRY(cudaFree(gpu->scratch));
    gpu->scratch = NULL;
    gpu->scratch_bytes = 0;
    return QL_OK;
}

static ql_status allocate(ql_cuda *gpu, size_t bytes, void **data) {
    cudaError_t error = cudaMalloc(data, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation && gpu->scratch) {
        cudaGetLastError();
        QL_TRY(drop_scratch(gpu));
        error = cudaMalloc(data, bytes);
    }
    if (error != cudaErrorMemoryAllocation) {
        CUDA_TRY_AS(error, "cudaMalloc");
        return note_free(gpu);
    }
    size_t available = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&available, &total);
    return ql_fail(QL_NOMEM, "no memory on cuda:%d: %zu bytes needed, %zu of %zu free", gpu->device, bytes, available,
                   total);
}

ql_status ql_cuda_scratch(ql_cuda *gpu, size_t bytes, void **data) {
    if (bytes > gpu->scratch_bytes) {
        QL_TRY(drop_scratch(gpu));
        QL_TRY(allocate(gpu, bytes, &gpu->scratch));
        gpu->scratch_bytes = bytes;
    }
    *data = gpu->scratch;
    return QL_OK;
}

ql_status ql_cuda_alloc(ql_ctx *ctx, size_t bytes, void **data) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    return allocate(gpu, bytes, data);
}

/* Waits for the operations that still use the memory (cudaFree would not know of them on another thread's stream). */
ql_status ql_cuda_free(ql_ctx *ctx, void *data) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    CUDA_TRY(cudaStreamSynchronize(gpu->stream));
    CUDA_TRY(cudaFree(data));
    return QL_OK;
}

/* Both wait: the caller may reuse or read its memory at once, pageable or pinned. */
ql_status ql_cuda_upload(ql_ctx *ctx, void *device, const void *host, size_t bytes) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    CUDA_TRY(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, gpu->stream));
    return ql_cuda_sync(ctx);
}

ql_status ql_cuda_download(ql_ctx *ctx, void *host, const void *device, size_t bytes) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    CUDA_TRY(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, gpu->stream));
    return ql_cuda_sync(ctx);
}

ql_status ql_cuda_sync(ql_ctx *ctx) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    CUDA_TRY(cudaStreamSynchronize(gpu->stream));
    return QL_OK;
}

ql_status ql_cuda_pin(ql_ctx *ctx, size_t bytes, void **host) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    cudaError_t error = cudaMallocHost(host, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return ql_fail(QL_NOMEM, "no memory: %zu bytes of page-locked host memory asked for", bytes);
    }
    CUDA_TRY_AS(error, "cudaMallocHost");
    return QL_OK;
}

ql_status ql_cuda_unpin(ql_ctx *ctx, void *host) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    CUDA_TRY(cudaFreeHost(host));
    return QL_OK;
}

ql_status ql_cuda_upload_beside(ql_ctx *ctx, void *device, const void *host, size_t bytes) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    CUDA_TRY(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, gpu->beside));
    CUDA_TRY(cudaStreamSynchronize(gpu->beside));
    return QL_OK;
}

ql_status ql_cuda_stream(const ql_ctx *ctx, void **stream) {
    *stream = ((const ql_cuda *)ctx->state)->stream;
    return QL_OK;
}

ql_status ql_cuda_idle(ql_ctx *ctx, bool *idle) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    cudaError_t error = cudaStreamQuery(gpu->stream);
    *idle = error == cudaSuccess;
    if (error == cudaErrorNotReady) {
        cudaGetLastError(); /* an answer, which the next launch would take for its failure */
        return QL_OK;
    }
    CUDA_TRY_AS(error, "cudaStreamQuery");
    return QL_OK;
}

/* ---- indices ------------------------------------------------------------------------------------------------------------- */

static __global__ void find_outside_kernel(const int32_t *row, int64_t count, int64_t low, int64_t limit,
                                           unsigned long long *first) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count && (row[i] < low || row[i] >= limit)) atomicMin(first, (unsigned long long)i);
}

ql_status ql_cuda_find_outside(ql_cuda *gpu, ql_mat row, int64_t low, int64_t limit, int64_t *index, int32_t *value) {
    unsigned long long *first;
    const int32_t *values = (const int32_t *)row.data;
    QL_TRY(ql_cuda_scratch(gpu, sizeof *first, (void **)&first));
    CUDA_TRY(cudaMemsetAsync(first, 0xff, sizeof *first, gpu->stream)); /* the largest index, and -1 in *index */
    LAUNCH(gpu, find_outside_kernel, ql_ceil_div(row.cols, 256), 256, values, row.cols, low, limit, first);
    CUDA_TRY(cudaMemcpyAsync(index, first, sizeof *index, cudaMemcpyDeviceToHost, gpu->stream));
    CUDA_TRY(cudaStreamSynchronize(gpu->stream));
    if (*index >= 0) CUDA_TRY(cudaMemcpy(value, values + *index, sizeof *value, cudaMemcpyDeviceToHost));
    return QL_OK;
}

ql_status ql_cuda_check_groups(ql_cuda *gpu, const char *name, const ql_grid *grid, int64_t k) {
    int64_t at, groups = ql_groups(k, grid->group);
    int32_t value;
    if (!ql_is_present(grid->g_idx)) return QL_OK;
    QL_TRY(ql_cuda_find_outside(gpu, grid->g_idx, 0, groups, &at, &value));
    if (at < 0) return QL_OK;
    return ql_fail(QL_INVALID, "%s: g_idx[%lld] is %d, there are %lld groups", name, (long long)at, (int)value,
                   (long long)groups);
}

/* The first position whose column is out of range or came before, or -1. */
static int64_t find_repeated(const int32_t *order, int64_t k, uint8_t *seen) {
    memset(seen, 0, (size_t)k);
    for (int64_t p = 0; p < k; p++)
        if (order[p] < 0 || order[p] >= k || seen[order[p]]++) return p;
    return -1;
}

ql_status ql_cuda_check_order(ql_ctx *ctx, const char *name, ql_mat order, int64_t k) {
    if (!ql_is_present(order)) return QL_OK;
    int32_t *columns = (int32_t *)ql_malloc((size_t)k * (sizeof *columns + 1));
    if (!columns) return ql_fail(QL_NOMEM, "%s: no memory for an order of %lld columns", name, (long long)k);
    ql_status status = ql_cuda_download(ctx, columns, order.data, (size_t)k * sizeof *columns);
    int64_t at = status == QL_OK ? find_repeated(columns, k, (uint8_t *)(columns + k)) : -1;
    if (at >= 0)
        status = ql_fail(QL_INVALID, "%s: order[%lld] is %d, expected a permutation of 0 .. %lld", name, (long long)at,
                         (int)columns[at], (long long)k - 1);
    ql_mfree(columns);
    return status;
}

/* ---- failures ---------------------------------------------------------------------------------------------------------- */

static bool is_sticky(cudaError_t error) {
    switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert: return true;
    default: return false;
    }
}

ql_status ql_cuda_fault(cudaError_t error, const char *call) {
    const char *name = cudaGetErrorName(error), *text = cudaGetErrorString(error);
    cudaGetLastError(); /* an error that is not sticky must not be reported again by the next launch */
    if (error == cudaErrorMemoryAllocation) {
        size_t available = 0, total = 0;
        cudaMemGetInfo(&available, &total);
        return ql_fail(QL_NOMEM, "%s: no memory on the GPU, %zu of %zu bytes free", call, available, total);
    }
    if (is_sticky(error))
        return ql_fail(QL_INTERNAL, "%s: %s (%s): a kernel went astray, this process cannot use the GPU again", call,
                       text, name);
    return ql_fail(QL_DEVICE, "%s: %s (%s)", call, text, name);
}

ql_status ql_cuda_blas_fault(cublasStatus_t status, const char *call) {
    ql_status kind = status == CUBLAS_STATUS_ALLOC_FAILED    ? QL_NOMEM
                     : status == CUBLAS_STATUS_NOT_SUPPORTED ? QL_UNSUPPORTED
                     : status == CUBLAS_STATUS_INVALID_VALUE ? QL_INTERNAL
                                                             : QL_DEVICE;
    return ql_fail(kind, "%s: %s", call, cublasLtGetStatusName(status));
}

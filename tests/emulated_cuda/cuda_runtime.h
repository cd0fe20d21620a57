/* CUDA on the processor, for tests: the files of cuda/ compile against this folder as C++ and run thread by thread.
 *
 * What it proves: indices, tails, barriers and shuffles of every kernel, layouts of every product, and with the address sanitizer
 * that no kernel leaves its memory.  What it cannot: timing, races between blocks, the real libraries' behaviour.
 * Only what cuda/ uses is here.  Declarations follow the documentation of CUDA 13; emulator.cpp has the bodies.
 */
#ifndef EMULATED_CUDA_RUNTIME_H
#define EMULATED_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

/* ---- the language ------------------------------------------------------------------------------------------------------ */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static /* blocks run one after the other */

struct emulated_index {
    unsigned x;
};
extern emulated_index threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
/* Every lane of the warp leaves `bytes` bytes and takes those of lane `from`. */
void emulated_shuffle(const void *mine, void *other, size_t bytes, unsigned from);

template <typename T> T __shfl_sync(unsigned, T value, int lane) {
    T other;
    emulated_shuffle(&value, &other, sizeof value, (unsigned)lane % 32);
    return other;
}
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask) {
    T other;
    emulated_shuffle(&value, &other, sizeof value, threadIdx.x % 32 ^ (unsigned)mask);
    return other;
}

template <typename T> T atomicAdd(T *to, T value) {
    T old = *to;
    *to = old + value;
    return old;
}
template <typename T> T atomicMin(T *to, T value) {
    T old = *to;
    *to = value < old ? value : old;
    return old;
}
template <typename T> T atomicMax(T *to, T value) {
    T old = *to;
    *to = value > old ? value : old;
    return old;
}
inline int atomicCAS(int *to, int expected, int value) {
    int old = *to;
    if (old == expected) *to = value;
    return old;
}

/* The seam: cuda/device.cuh launches through this name. */
void emulated_launch(unsigned blocks, unsigned threads, const std::function<void()> &thread);
#define LAUNCH_KERNEL(kernel, blocks, threads, stream, ...)                                                            \
    ((void)(stream), emulated_launch(blocks, threads, [&] { kernel(__VA_ARGS__); }))

/* ---- the runtime --------------------------------------------------------------------------------------------------------- */

enum cudaError_t {
    cudaSuccess,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorECCUncorrectable = 214,
    cudaErrorIllegalAddress = 700,
    cudaErrorAssert = 710,
    cudaErrorHardwareStackError = 714,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorInvalidAddressSpace = 717,
    cudaErrorInvalidPc = 718,
    cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaStreamNonBlocking = 1 };
typedef struct emulated_stream *cudaStream_t;
struct cudaDeviceProp {
    char name[256];
    int major, minor;
    size_t totalGlobalMem;
    int multiProcessorCount;
};
struct cudaFuncAttributes {
    int binaryVersion;
};

const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
template <typename F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, F) { return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t emulated_malloc(void **data, size_t bytes);
template <typename T> cudaError_t cudaMalloc(T **data, size_t bytes) { return emulated_malloc((void **)data, bytes); }
cudaError_t cudaFree(void *data);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemset(void *to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);

#endif

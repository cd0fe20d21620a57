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
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

struct emulated_index {
    unsigned x;
};
extern emulated_index threadIdx, blockIdx, blockDim, gridDim;

enum { EMULATED_THREADS = 1024 /* of a block */, EMULATED_POISON = 0xff /* NaN as a float, -1 as an integer */ };
[[noreturn]] void emulated_stop(const char *what);
/* Gives way to the other threads; a block in which no thread makes progress is reported. */
void emulated_yield();
void emulated_progress();

void __syncthreads();
/* Barrier 1 .. 15 of `threads` threads; who only arrives does not wait. */
void emulated_meet(int id, int threads, bool wait);

/* Every lane of the warp leaves `bytes` bytes, then all read what all have left; released together as well. */
struct alignas(16) emulated_slot {
    unsigned char bytes[64];
};
const emulated_slot *emulated_gather(const void *mine, size_t bytes);
void emulated_release();
inline void __syncwarp(unsigned = 0xffffffffu) {
    emulated_gather(NULL, 0);
    emulated_release();
}

template <typename T> T __shfl_sync(unsigned, T value, int lane) {
    memcpy(&value, &emulated_gather(&value, sizeof value)[lane & 31], sizeof value);
    emulated_release();
    return value;
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return __shfl_sync(mask, value, (int)(threadIdx.x % 32) ^ bits);
}
/* Lanes whose partner would be beyond the warp keep their own value. */
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned by) {
    unsigned lane = threadIdx.x % 32;
    return __shfl_sync(mask, value, (int)(lane + by < 32 ? lane + by : lane));
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned by) {
    unsigned lane = threadIdx.x % 32;
    return __shfl_sync(mask, value, (int)(lane >= by ? lane - by : lane));
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    unsigned votes = 0;
    const emulated_slot *slots = emulated_gather(&predicate, sizeof predicate);
    for (int lane = 0; lane < 32; lane++) {
        int vote;
        memcpy(&vote, &slots[lane], sizeof vote);
        votes |= (unsigned)(vote != 0) << lane;
    }
    emulated_release();
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
inline void __threadfence() {}

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

/* ---- what goes on behind the program's back (cuda/ptx.cuh, cuda/wgmma.cuh) ------------------------------------------------- */

/* cp.async: a thread's copies, in groups; the bytes move when the thread waits for their group. */
void emulated_copy(void *to, const void *from, int bytes);
void emulated_commit_copies();
void emulated_wait_copies(int open);

/* mbarrier.  `work` that will count `bytes` at a barrier is done when a thread waits there. */
void emulated_barrier_init(uint64_t *barrier, unsigned arrivals);
void emulated_barrier_arrive(uint64_t *barrier, unsigned expected_bytes);
void emulated_barrier_wait(uint64_t *barrier, unsigned parity);
void emulated_later(uint64_t *barrier, unsigned bytes, std::function<void()> work);

/* Products of a warpgroup and boxes of a tensor map: hopper.cpp. */
struct CUtensorMap;
void emulated_product(int kind, void *d, int n, uint64_t a, uint64_t b, bool add);
void emulated_product_held(int kind, void *d, int n, const uint32_t (&a)[4], uint64_t b, bool add);
void emulated_commit_products();
void emulated_wait_products(int pending);
void emulated_end_products();
void emulated_tensor_load(void *tile, const CUtensorMap *map, int byte, int row, uint64_t *barrier);

/* After every thread and every block: nothing may still be under way. */
void emulated_end_thread();
void emulated_end_block();

/* The seam: cuda/device.cuh launches and carves its dynamic shared memory through these names.  QALIB_EMULATED_BLOCKS=reversed in
 * the environment runs the last block first: results must not depend on it. */
extern unsigned char *emulated_shared;
void emulated_launch(const void *kernel, unsigned blocks, unsigned threads, size_t shared,
                     const std::function<void()> &thread);
#define LAUNCH_KERNEL(kernel, blocks, threads, shared, stream, ...)                                                    \
    ((void)(stream), emulated_launch((const void *)(kernel), blocks, threads, shared, [&] { (kernel)(__VA_ARGS__); }))
#define DYNAMIC_SHARED(name) unsigned char *name = emulated_shared

/* ---- the runtime --------------------------------------------------------------------------------------------------------- */

enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorECCUncorrectable = 214,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorAssert = 710,
    cudaErrorHardwareStackError = 714,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorInvalidAddressSpace = 717,
    cudaErrorInvalidPc = 718,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum { cudaStreamNonBlocking = 1 };
typedef struct emulated_stream *cudaStream_t;
struct cudaDeviceProp {
    char name[256];
    int major, minor; /* 8.0, or what QALIB_EMULATED_ARCH says: 90 */
    int multiProcessorCount, l2CacheSize;
    size_t totalGlobalMem, sharedMemPerBlockOptin;
};
struct cudaFuncAttributes {
    int binaryVersion;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
template <typename F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, F) { return cudaSuccess; }
/* Without it a kernel gets at most 48 KiB of dynamic shared memory. */
cudaError_t emulated_allow_shared(const void *kernel, int bytes);
template <typename F> cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute, int bytes) {
    return emulated_allow_shared((const void *)kernel, bytes);
}
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound };
enum { cudaEnableDefault };
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **entry, unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *result);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
extern "C" void emulated_beside(int (*busy)(void));
/* Time is what the emulated libraries say that their work took, and a microsecond for each block of a kernel. */
typedef struct emulated_event *cudaEvent_t;
extern double emulated_ms;
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end);
cudaError_t emulated_malloc(void **data, size_t bytes);
template <typename T> cudaError_t cudaMalloc(T **data, size_t bytes) { return emulated_malloc((void **)data, bytes); }
cudaError_t cudaFree(void *data);
cudaError_t cudaMallocHost(void **data, size_t bytes);
cudaError_t cudaFreeHost(void *data);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream);

/* Nothing can be captured here, so whoever wants a graph makes its calls one by one. */
typedef struct emulated_graph *cudaGraph_t, *cudaGraphExec_t;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaDeviceAttr { cudaDevAttrL2CacheSize = 38 };
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemset(void *to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);

#endif

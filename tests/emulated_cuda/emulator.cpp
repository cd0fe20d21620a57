/* Runs the threads of a block as fibers, one block after the other.
 *
 * A fiber runs until a barrier or a shuffle, where it gives way to the next one until all that must arrive have arrived.  Threads
 * that have returned count as arrived at __syncthreads, as on the GPU; at a shuffle they are an error, because every shuffle in
 * cuda/ names all 32 lanes.  A block in which nobody can go on is reported, not waited for. */
#include "tests/emulated_cuda/cuda_runtime.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <map>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

emulated_index threadIdx, blockIdx, blockDim, gridDim;

enum { STACK = 64 << 10, LANES = 32, BARRIERS = 16 };

/* Who waits where: `round` grows when the last one arrives. */
typedef struct meeting {
    unsigned arrived, round;
} meeting;

/* Fibers are made once, by makecontext, and then switched by the compiler's setjmp, in a dozen instructions:
 * swapcontext enters the kernel, and the sanitizer's longjmp does, too. */
static struct {
    void *place[5];
    char *stack; /* NULL: not made yet */
    bool done;
} fibers[EMULATED_THREADS];
static void *scheduler[5];
static const void *main_stack; /* for the sanitizer */
static size_t main_size;
static const std::function<void()> *body;
static meeting block_meeting, named_meeting[BARRIERS], warp_meeting[EMULATED_THREADS / LANES];
static unsigned alive, alive_in_warp[EMULATED_THREADS / LANES], steps_without_progress;
static emulated_slot slots[EMULATED_THREADS];

void emulated_stop(const char *what) {
    fprintf(stderr, "emulated CUDA: block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, what);
    abort();
}

/* The sanitizer keeps its own books of stacks and wants to hear of every change; frames that are left without a return must not
 * be guarded by it. */
#ifdef __clang__
#define CHANGES_STACKS __attribute__((noinline, no_sanitize("address")))
#else /* gcc would tell callers which registers survive, which is not true of another fiber's */
#define CHANGES_STACKS __attribute__((noipa, no_sanitize("address")))
#endif
static void leave(void **kept, const void *stack, size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(kept, stack, size);
#else
    (void)kept, (void)stack, (void)size;
#endif
}
static void arrive(void *kept, const void **stack, size_t *size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(kept, stack, size);
#else
    (void)kept, (void)stack, (void)size;
#endif
}

static CHANGES_STACKS void jump(void **to) { __builtin_longjmp(to, 1); }

static CHANGES_STACKS void to_scheduler(unsigned self) {
    void *kept;
    leave(&kept, main_stack, main_size);
    if (__builtin_setjmp(fibers[self].place) == 0) jump(scheduler);
    arrive(kept, NULL, NULL);
}

void emulated_progress() { steps_without_progress = 0; }

void emulated_yield() {
    unsigned self = threadIdx.x;
    if (++steps_without_progress > 4 * EMULATED_THREADS)
        emulated_stop("waits at a barrier that the others never reach");
    to_scheduler(self);
}

static void open_if_complete(meeting *m, unsigned expected) {
    if (m->arrived < expected) return;
    m->arrived = 0;
    m->round++;
    steps_without_progress = 0;
}

static void meet(meeting *m, const unsigned *expected) {
    unsigned round = m->round;
    m->arrived++;
    open_if_complete(m, *expected);
    while (m->round == round) emulated_yield();
}

void __syncthreads() { meet(&block_meeting, &alive); }

void emulated_meet(int id, int threads, bool wait) {
    unsigned expected = (unsigned)threads;
    if (id < 1 || id >= BARRIERS || threads % LANES) emulated_stop("a barrier that does not exist");
    if (wait) return meet(&named_meeting[id], &expected);
    named_meeting[id].arrived++;
    open_if_complete(&named_meeting[id], expected);
}

const emulated_slot *emulated_gather(const void *mine, size_t bytes) {
    unsigned warp = threadIdx.x / LANES;
    if (bytes > sizeof slots[0]) emulated_stop("shuffles a value that is too large");
    if (bytes) memcpy(&slots[threadIdx.x], mine, bytes);
    meet(&warp_meeting[warp], &alive_in_warp[warp]);
    if (alive_in_warp[warp] != LANES) emulated_stop("shuffles with lanes that have returned");
    return &slots[warp * LANES];
}

void emulated_release() {
    unsigned warp = threadIdx.x / LANES;
    meet(&warp_meeting[warp], &alive_in_warp[warp]);
}

/* ---- threads and blocks ----------------------------------------------------------------------------------------------------- */

static void run_thread() {
    unsigned self = threadIdx.x, warp = self / LANES;
    (*body)();
    emulated_end_thread();
    fibers[self].done = true;
    alive--, alive_in_warp[warp]--;
    steps_without_progress = 0;
    if (alive) open_if_complete(&block_meeting, alive);
}

/* A fiber serves the threads of its number, block after block. */
static CHANGES_STACKS void fiber_main() {
    arrive(NULL, &main_stack, &main_size);
    for (;;) {
        run_thread();
        to_scheduler(threadIdx.x);
    }
}

static CHANGES_STACKS void make_fiber(unsigned i) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fibers[i].stack;
    context.uc_stack.ss_size = STACK;
    makecontext(&context, fiber_main, 0);
    setcontext(&context);
}

static CHANGES_STACKS void resume(unsigned i) {
    void *kept;
    bool made = fibers[i].stack != NULL;
    threadIdx.x = i;
    if (!made) fibers[i].stack = (char *)malloc(STACK);
    leave(&kept, fibers[i].stack, STACK);
    if (__builtin_setjmp(scheduler) == 0) {
        if (made) jump(fibers[i].place);
        else make_fiber(i);
    }
    arrive(kept, NULL, NULL);
}

static void run_block(unsigned threads) {
    alive = threads, block_meeting = {}, steps_without_progress = 0;
    for (meeting &m : named_meeting) m = {};
    for (unsigned i = 0; i < threads; i++) fibers[i].done = false;
    for (unsigned w = 0; w * LANES < threads; w++) warp_meeting[w] = {}, alive_in_warp[w] = LANES;
    while (alive)
        for (unsigned i = 0; i < threads; i++)
            if (!fibers[i].done) resume(i);
    emulated_end_block();
}

/* ---- launches --------------------------------------------------------------------------------------------------------------- */

unsigned char *emulated_shared;
enum {
    SHARED_BYTES = 48 << 10,
    SHARED_BYTES_ALLOWED = 227 << 10
}; /* of every kernel; of one that has asked, but for sm_86, a consumer GPU */
static int arch() {
    const char *number = getenv("QALIB_EMULATED_ARCH");
    return number ? atoi(number) : 80;
}
static size_t most_shared() { return arch() == 86 ? 99 << 10 : SHARED_BYTES_ALLOWED; }
static std::map<const void *, size_t> allowed_shared;
static cudaError_t last_error;

static cudaError_t remember(cudaError_t error) { return last_error = error; }

cudaError_t emulated_allow_shared(const void *kernel, int bytes) {
    if (bytes < 0 || (size_t)bytes > most_shared()) return remember(cudaErrorInvalidValue);
    allowed_shared[kernel] = (size_t)bytes;
    return cudaSuccess;
}

/* Exactly as large as asked for, aligned as the GPU aligns it, so that the sanitizer guards its ends; poison for every block. */
static void run_blocks(unsigned blocks, unsigned threads, size_t shared) {
    const char *order = getenv("QALIB_EMULATED_BLOCKS");
    bool reversed = order && strcmp(order, "reversed") == 0;
    for (unsigned i = 0; i < blocks; i++) {
        blockIdx.x = reversed ? blocks - 1 - i : i;
        memset(emulated_shared, EMULATED_POISON, shared);
        run_block(threads);
    }
}

void emulated_launch(const void *kernel, unsigned blocks, unsigned threads, size_t shared,
                     const std::function<void()> &thread) {
    void *memory;
    if (threads == 0 || threads % LANES || threads > EMULATED_THREADS)
        emulated_stop("a block must be 1 to 32 whole warps");
    if (shared > SHARED_BYTES && shared > allowed_shared[kernel]) {
        remember(cudaErrorInvalidValue);
        return;
    }
    if (posix_memalign(&memory, 1024, shared + 1) != 0) emulated_stop("no memory");
    emulated_shared = (unsigned char *)memory;
    body = &thread;
    gridDim.x = blocks, blockDim.x = threads;
    run_blocks(blocks, threads, shared);
    emulated_ms += 1e-3 * blocks;
    free(memory);
}

/* ---- the runtime ------------------------------------------------------------------------------------------------------ */

const char *cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaError"; }
const char *cudaGetErrorString(cudaError_t) { return "an emulated error"; }
cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
enum { PROCESSORS = 5 }; /* few and odd, so that small products are divided among them unevenly */
enum { L2_BYTES = 64 << 10 };
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
    *properties = {"emulated GPU", arch() / 10, arch() % 10, PROCESSORS, L2_BYTES, (size_t)1 << 30, most_shared()};
    return cudaSuccess;
}
/* NULL is the default stream, which nothing here may use. */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = (cudaStream_t)malloc(1);
    return *stream ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return free(stream), cudaSuccess; }
/* What is emulated is done at once; another library may have work on the stream (tests/fake_nccl). */
static int (*beside)(void);
extern "C" void emulated_beside(int (*busy)(void)) { beside = busy; }
cudaError_t cudaStreamQuery(cudaStream_t) { return beside && beside() ? remember(cudaErrorNotReady) : cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    while (beside && beside()) usleep(10);
    return cudaSuccess;
}

struct emulated_event {
    double ms;
};
double emulated_ms;
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = (cudaEvent_t)malloc(sizeof **event);
    return *event ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) { return event->ms = emulated_ms, cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    return *ms = (float)(end->ms - begin->ms), cudaSuccess;
}

/* Fresh memory is poison, and one allocation of more than 1 GiB is more than this GPU has.  Several fit: tests have several contexts. */
enum : size_t { EMULATED_MEMORY = (size_t)1 << 30 };
static std::atomic<size_t> in_use;
cudaError_t cudaMallocHost(void **data, size_t bytes) {
    if (bytes > EMULATED_MEMORY || posix_memalign(data, 256, bytes) != 0) return remember(cudaErrorMemoryAllocation);
    memset(*data, EMULATED_POISON, bytes);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *data) { return free(data), cudaSuccess; }
cudaError_t emulated_malloc(void **data, size_t bytes) {
    cudaError_t error = cudaMallocHost(data, bytes);
    if (error == cudaSuccess) in_use += malloc_usable_size(*data);
    return error;
}
cudaError_t cudaFree(void *data) { return in_use -= data ? malloc_usable_size(data) : 0, cudaFreeHost(data); }
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = EMULATED_MEMORY;
    *available = in_use < EMULATED_MEMORY ? EMULATED_MEMORY - in_use : 0;
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
    return memmove(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t) {
    for (size_t r = 0; r < height; r++) memcpy((char *)to + r * to_pitch, (const char *)from + r * from_pitch, width);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) { return memset(to, value, bytes), cudaSuccess; }
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) { return cudaMemset(to, value, bytes); }

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return remember(cudaErrorNotSupported); }
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *) { return remember(cudaErrorNotSupported); }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long) {
    return remember(cudaErrorNotSupported);
}
cudaError_t cudaGraphDestroy(cudaGraph_t) { return remember(cudaErrorNotSupported); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return remember(cudaErrorNotSupported); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return remember(cudaErrorNotSupported); }
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) { return *value = 1 << 20, cudaSuccess; }

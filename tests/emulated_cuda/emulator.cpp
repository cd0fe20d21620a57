/* Runs the threads of a block as fibers, one block after the other.
 *
 * A fiber runs until a barrier or a shuffle, where it gives way to the next one until all that must arrive have arrived.  Threads
 * that have returned count as arrived at a barrier, as on the GPU; at a shuffle they are an error, because every shuffle in cuda/
 * names all 32 lanes.  A block in which nobody can go on is reported, not waited for. */
#include "tests/emulated_cuda/cuda_runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

emulated_index threadIdx, blockIdx, blockDim, gridDim;

enum { MAX_THREADS = 1024, STACK = 64 << 10, LANES = 32, SLOT = 16 };
static const unsigned char POISON = 0xff; /* NaN as a float, -1 as an integer */

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
} fibers[MAX_THREADS];
static void *scheduler[5];
static const void *main_stack; /* for the sanitizer */
static size_t main_size;
static const std::function<void()> *body;
static meeting block_meeting, warp_meeting[MAX_THREADS / LANES];
static unsigned alive, alive_in_warp[MAX_THREADS / LANES], steps_without_progress;
static unsigned char slots[MAX_THREADS][SLOT];

[[noreturn]] static void stop(const char *what) {
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

static void yield() {
    unsigned self = threadIdx.x;
    if (++steps_without_progress > 4 * MAX_THREADS) stop("waits at a barrier that the others never reach");
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
    while (m->round == round) yield();
}

void __syncthreads() { meet(&block_meeting, &alive); }

void emulated_shuffle(const void *mine, void *other, size_t bytes, unsigned from) {
    unsigned warp = threadIdx.x / LANES;
    if (bytes > SLOT) stop("shuffles a value that is too large");
    memcpy(slots[threadIdx.x], mine, bytes);
    meet(&warp_meeting[warp], &alive_in_warp[warp]);
    if (alive_in_warp[warp] != LANES) stop("shuffles with lanes that have returned");
    memcpy(other, slots[warp * LANES + from], bytes);
    meet(&warp_meeting[warp], &alive_in_warp[warp]);
}

static void run_thread() {
    unsigned self = threadIdx.x, warp = self / LANES;
    (*body)();
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
    for (unsigned i = 0; i < threads; i++) fibers[i].done = false;
    for (unsigned w = 0; w * LANES < threads; w++) warp_meeting[w] = {}, alive_in_warp[w] = LANES;
    while (alive)
        for (unsigned i = 0; i < threads; i++)
            if (!fibers[i].done) resume(i);
}

void emulated_launch(unsigned blocks, unsigned threads, const std::function<void()> &thread) {
    body = &thread;
    gridDim.x = blocks, blockDim.x = threads;
    if (threads % LANES || threads > MAX_THREADS) stop("a block must be whole warps, at most 32");
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) run_block(threads);
}

/* ---- the runtime ------------------------------------------------------------------------------------------------------ */

static cudaError_t last_error;

static cudaError_t remember(cudaError_t error) { return last_error = error; }

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
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
    *properties = {"emulated GPU", 8, 0, (size_t)1 << 30, 4};
    return cudaSuccess;
}
/* NULL is the default stream, which nothing here may use. */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = (cudaStream_t)malloc(1);
    return *stream ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return free(stream), cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

/* Fresh memory is poison, and one allocation of more than 1 GiB is more than this GPU has. */
cudaError_t emulated_malloc(void **data, size_t bytes) {
    if (bytes > (size_t)1 << 30 || posix_memalign(data, 256, bytes) != 0) return remember(cudaErrorMemoryAllocation);
    memset(*data, POISON, bytes);
    return cudaSuccess;
}
cudaError_t cudaFree(void *data) { return free(data), cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *available = *total = (size_t)1 << 30;
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

/* H += X^T X on Hopper's tensor cores, upper triangle.   X [m][k] BF16, H [r][k] F32, the first rows
 *
 * A tile of H is 128 x 256, on or above the diagonal; blocks stay and make every gridDim-th tile.  TMA brings 64 tokens of both operands' columns
 * into a ring of stages, as they lie in X: wgmma reads both by columns of tokens.  Two warpgroups multiply, 64 x 256 each: 80
 * bytes of shared memory per clock, where tiles of 128 x 128 would read 96.  So no sums meet in memory, and every bit has one order.
 * The product of two BF16 values is exact in FP32, but tensor cores cut sums off instead of rounding them, which sums of squares
 * on the diagonal feel.  After RUN tokens, 128 products, the sums are added to H, rounding to nearest: 128 x 2^-24 = 8e-6 of a sum of equal terms
 * at most.  A second set of registers, as cuda/syrk.cu has, does not fit beside 64 x 256.
 * Not yet run: perf/results/STATUS.md.   Twins: host/cpu/hessian.c, and cuda/syrk.cu for every GPU. */
#include "cuda/syrk.cuh"
#include "cuda/wgmma.cuh"
#include "host/schedule.h"
#include "host/syrk.h"

enum { ROWS = QL_SYRK_TILE, COLS = 2 * QL_SYRK_TILE, DEPTH = 64, RUN = 2048, STAGES = 4 };
enum {
    BOX_COLS = 64,
    BOX = DEPTH * 128,
    LEFTS = ROWS / BOX_COLS,
    RIGHTS = COLS / BOX_COLS
}; /* boxes of 64 tokens x 64 columns */
enum { STAGE = (LEFTS + RIGHTS) * BOX, BARRIERS = STAGES * STAGE, BYTES = BARRIERS + STAGES * 2 * 8 };
enum { GROUP = 128, CONSUMERS = 2, THREADS = (1 + CONSUMERS) * GROUP, SUMS = COLS / 2 };
enum {
    PRODUCER_REGISTERS = 40,
    CONSUMER_REGISTERS = 232
}; /* 128 x (40 + 2 x 232) are those of 384 threads with 168 each */

#if HOPPER

/* A place in the ring: the stage, and the parity of the phase that its barriers are in. */
struct ring_place {
    int stage;
    unsigned parity;

    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

static __device__ __forceinline__ uint64_t *full_of(unsigned char *shared, int stage) {
    return (uint64_t *)(shared + BARRIERS) + 2 * stage;
}
static __device__ __forceinline__ uint64_t *empty_of(unsigned char *shared, int stage) {
    return full_of(shared, stage) + 1;
}

/* One thread; what lies outside of X arrives as zeros. */
static __device__ __forceinline__ void produce(const CUtensorMap *x_map, int steps, int down, int across, int tiles,
                                               unsigned char *shared) {
    ring_place at = {0, 1}; /* the phase before the first counts as over: the ring is empty */
    for (int tile = (int)blockIdx.x; tile < tiles; tile += (int)gridDim.x) {
        int row, col;
        ql_syrk_wide_at(tile, down, across, &row, &col);
        for (int step = 0; step < steps; step++, at.next()) {
            unsigned char *stage = shared + at.stage * STAGE;
            uint64_t *full = full_of(shared, at.stage);
            ptx_barrier_wait(empty_of(shared, at.stage), at.parity);
            ptx_barrier_expect(full, STAGE);
            for (int i = 0; i < LEFTS + RIGHTS; i++) {
                int first = i < LEFTS ? row * ROWS + i * BOX_COLS : col * COLS + (i - LEFTS) * BOX_COLS;
                tensor_load(stage + i * BOX, x_map, 2 * first, step * DEPTH, full);
            }
        }
    }
}

/* Begins the four products of a stage. */
static __device__ __forceinline__ void begin_stage(float (&sum)[SUMS], const unsigned char *stage, int group,
                                                   bool add) {
    wgmma_fence();
#pragma unroll
    for (int t = 0; t < DEPTH; t += 16)
        wgmma<BF16_BF16_T>(sum, swizzled_columns(stage + group * BOX + t * 128, BOX),
                           swizzled_columns(stage + LEFTS * BOX + t * 128, BOX), add || t > 0);
    wgmma_commit();
}

/* H += the sums of a warpgroup, whose first row and column these are.  Loads of TOGETHER values go together: each waits for memory.
 * Places count from the thread's first column: from `begin`, the diagonal, to `end`, where H ends. */
static __device__ __forceinline__ void add_to(const ql_mat &h, int64_t row, int64_t col, const float (&sum)[SUMS]) {
    enum { TOGETHER = 16 };
    const int thread = (int)threadIdx.x % GROUP;
    const int64_t first = col + ql_group_col(thread, 0);
#pragma unroll
    for (int below = 0; below < 2; below++) {
        const int64_t p = row + ql_group_row(thread, 2 * below);
        float *to = row_of<float>(h, p) + first;
        const int begin = p > first ? (int)(p - first) : 0,
                  end = p >= h.rows || first >= h.cols ? 0 : (int)(h.cols - first < COLS ? h.cols - first : COLS);
#pragma unroll
        for (int piece = 0; piece < SUMS / 2; piece += TOGETHER) {
            float value[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                const int at = (piece + i) / 2 * 8 + i % 2;
                value[i] = sum[(piece + i) / 2 * 4 + 2 * below + i % 2] + (at >= begin && at < end ? to[at] : 0);
            }
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                const int at = (piece + i) / 2 * 8 + i % 2;
                if (at >= begin && at < end) to[at] = value[i];
            }
        }
    }
}

/* A warp has left a stage. */
static __device__ __forceinline__ void leave(unsigned char *shared, int stage) {
    if (threadIdx.x % WARP == 0) ptx_barrier_arrive(empty_of(shared, stage));
}

/* A stage is left when its products are complete, which is known one stage later, or at the end of a run. */
static __device__ __forceinline__ void consume(const ql_mat &h, int steps, int down, int across, int tiles,
                                               unsigned char *shared) {
    const int group = (int)threadIdx.x / GROUP - 1;
    ring_place at = {0, 0};
    for (int tile = (int)blockIdx.x; tile < tiles; tile += (int)gridDim.x) {
        float sum[SUMS];
        int row, col;
        ql_syrk_wide_at(tile, down, across, &row, &col);
        for (int first = 0; first < steps; first += RUN / DEPTH) {
            const int end = steps - first < RUN / DEPTH ? steps : first + RUN / DEPTH;
            int last = -1;
            for (int step = first; step < end; step++, at.next()) {
                ptx_barrier_wait(full_of(shared, at.stage), at.parity);
                begin_stage(sum, shared + at.stage * STAGE, group, step > first);
                wgmma_wait<1>(sum);
                if (last >= 0) leave(shared, last);
                last = at.stage;
            }
            wgmma_wait<0>(sum);
            leave(shared, last);
            add_to(h, (int64_t)row * ROWS + group * 64, (int64_t)col * COLS, sum);
        }
    }
}

#endif

static __global__ void __launch_bounds__(THREADS, 1)
    syrk_wide_kernel(const ql_mat h, int steps, int down, int across, int tiles,
                     const __grid_constant__ CUtensorMap x_map) {
#if HOPPER
    DYNAMIC_SHARED(shared);
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx_barrier_init(full_of(shared, s), 1);
            ptx_barrier_init(empty_of(shared, s), CONSUMERS * GROUP / WARP);
        }
        ptx_fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        registers_shrink<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce(&x_map, steps, down, across, tiles, shared);
    } else {
        registers_grow<CONSUMER_REGISTERS>();
        consume(h, steps, down, across, tiles, shared);
    }
#endif
}

ql_status ql_cuda_syrk_wide(ql_cuda *gpu, ql_mat x, ql_mat h, int processors) {
    const int64_t down = ql_ceil_div(h.rows, COLS), across = ql_ceil_div(h.cols, COLS),
                  tiles = ql_syrk_wide_tiles(down, across);
    CUtensorMap x_map;
    if (tiles > INT32_MAX || x.rows > INT32_MAX - DEPTH)
        return ql_fail(QL_UNSUPPORTED,
                       "hessian: %lld inputs, %lld tokens in one call: expected fewer than 2^23 and 2^31",
                       (long long)h.cols, (long long)x.rows);
    QL_TRY(ql_cuda_tensor_map(&x_map, x.data, x.rows, 2 * x.cols, 2 * x.ld, DEPTH));
    LAUNCH_SHARED(gpu->stream, syrk_wide_kernel, tiles < processors ? tiles : processors, THREADS, BYTES, h,
                  (int)ql_ceil_div(x.rows, DEPTH), (int)down, (int)across, (int)tiles, x_map);
    return QL_OK;
}

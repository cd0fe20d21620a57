/* H += X^T X on the tensor cores, upper triangle.   X [m][k] BF16, H [r][k] F32, the first rows
 *
 * A block of threads owns one tile of 128 x 128 on or above the diagonal and walks all tokens, so no sums meet in memory and every
 * bit has one order.  X lies in rows of tokens, and both operands want it by columns of tokens: fragments are loaded transposed.
 * DEPTH tokens are a stage; copies run STAGES - 1 stages ahead.  Eight warps share the tile, 64 x 32 each.
 *
 * The product of two BF16 values is exact in FP32.  But tensor cores cut sums off toward zero instead of rounding them, and what
 * the sums of squares on the diagonal lose that way grows with their length: so after RUN tokens the sums are added, rounding to
 * nearest, to a second set of registers.  A run is 32 steps that lose at most 2^-23 of the sum so far, 2^-24 x 32 = 2e-6 of a sum of
 * equal terms; 4096 tokens at a time would lose 1.5e-5, beyond the bound of 1e-5.
 * Registers for both sets leave room for one block per SM.   Measured: perf/results/STATUS.md.   Twin: host/cpu/hessian.c.
 * Hopper has a kernel of its own, cuda/syrk_sm90.cu. */
#include "cuda/ptx.cuh"
#include "cuda/syrk.cuh"
#include "host/fragment.h"
#include "host/syrk.h"

enum { TILE = QL_SYRK_TILE, PIECES = TILE / QL_PIECE, DEPTH = 32, STAGES = 4, RUN = 512, THREADS = 256 };
enum { WARP_ROWS = 64, WARP_COLS = 32, LEFTS = WARP_ROWS / 16, RIGHTS = WARP_COLS / 16 };

typedef struct stage {
    uint16_t left[DEPTH * TILE], right[DEPTH * TILE];
} stage;

static_assert(QL_HESSIAN_STEP % (2 * TILE) == 0, "a stripe begins at a tile, here and in cuda/syrk_sm90.cu");

typedef float sums[LEFTS][2 * RIGHTS][4];

/* Tokens from `token` on, columns from `col` on; zeros outside of X. */
static __device__ __forceinline__ void load_tokens(const ql_mat &x, int64_t token, int64_t col, uint16_t *to) {
#pragma unroll
    for (int i = 0; i < DEPTH * PIECES / THREADS; i++) {
        int at = i * THREADS + threadIdx.x, t = at / PIECES, piece = at % PIECES;
        int64_t row = token + t, first = col + piece * QL_PIECE, left = row < x.rows ? x.cols - first : 0;
        int bytes = left <= 0 ? 0 : left < QL_PIECE ? 2 * (int)left : 16;
        ptx_copy(to + ql_place(t, piece, PIECES), bytes ? row_of<uint16_t>(x, row) + first : x.data, bytes);
    }
}

/* On the diagonal both operands are the same columns. */
static __device__ __forceinline__ void load_stage(const ql_mat &x, int64_t token, int64_t row, int64_t col, stage *to) {
    load_tokens(x, token, row, to->left);
    if (row != col) load_tokens(x, token, col, to->right);
}

static __device__ __forceinline__ void multiply(const uint16_t *left, const uint16_t *right, sums &c) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int left_piece = warp / 4 * (WARP_ROWS / QL_PIECE) + ql_across_piece(lane);
    int right_piece = warp % 4 * (WARP_COLS / QL_PIECE) + ql_down_piece(lane);
#pragma unroll
    for (int t = 0; t < DEPTH; t += 16) {
        uint32_t a[LEFTS][4], b[RIGHTS][4];
#pragma unroll
        for (int i = 0; i < LEFTS; i++)
            ptx_load_transposed(a[i], left + ql_place(t + ql_across_row(lane), left_piece + 2 * i, PIECES));
#pragma unroll
        for (int j = 0; j < RIGHTS; j++)
            ptx_load_transposed(b[j], right + ql_place(t + ql_down_row(lane), right_piece + 2 * j, PIECES));
#pragma unroll
        for (int i = 0; i < LEFTS; i++)
#pragma unroll
            for (int j = 0; j < 2 * RIGHTS; j++) {
                const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                ptx_mma_bf16(c[i][j], a[i], pair);
            }
    }
}

/* total += run, run = 0. */
static __device__ __forceinline__ void close_run(sums &run, sums &total) {
#pragma unroll
    for (int i = 0; i < LEFTS; i++)
#pragma unroll
        for (int j = 0; j < 2 * RIGHTS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) total[i][j][e] += run[i][j][e], run[i][j][e] = 0;
}

static __device__ __forceinline__ void add_to(const ql_mat &h, int64_t row, int64_t col, const sums &total) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    row += warp / 4 * WARP_ROWS, col += warp % 4 * WARP_COLS;
#pragma unroll
    for (int i = 0; i < LEFTS; i++)
#pragma unroll
        for (int j = 0; j < 2 * RIGHTS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int64_t p = row + 16 * i + ql_sum_row(lane, e), q = col + 8 * j + ql_sum_col(lane, e);
                if (p <= q && q < h.cols && p < h.rows) row_of<float>(h, p)[q] += total[i][j][e];
            }
}

static __global__ void __launch_bounds__(THREADS, 1) syrk_kernel(ql_mat x, ql_mat h) {
    DYNAMIC_SHARED(memory);
    stage *stages = (stage *)memory;
    int64_t row, col, steps = (x.rows + DEPTH - 1) / DEPTH;
    ql_syrk_tile_at(blockIdx.x, (h.rows + TILE - 1) / TILE, (h.cols + TILE - 1) / TILE, &row, &col);
    row *= TILE, col *= TILE;
    sums run = {}, total = {};
    for (int ahead = 0; ahead < STAGES - 1; ahead++) {
        if (ahead < steps) load_stage(x, (int64_t)ahead * DEPTH, row, col, &stages[ahead]);
        ptx_commit_copies();
    }
    for (int64_t step = 0; step < steps; step++) {
        ptx_wait_copies<STAGES - 2>();
        __syncthreads(); /* the stage has come, and everyone is done with the one before it, which is filled now */
        int64_t next = step + STAGES - 1;
        if (next < steps) load_stage(x, next * DEPTH, row, col, &stages[next % STAGES]);
        ptx_commit_copies();
        const stage *now = &stages[step % STAGES];
        multiply(now->left, row == col ? now->left : now->right, run);
        if ((step + 1) % (RUN / DEPTH) == 0) close_run(run, total);
    }
    close_run(run, total);
    add_to(h, row, col, total);
}

/* Copies that are 16 bytes wide need rows that begin so. */
static bool is_aligned(ql_mat x) { return (uintptr_t)x.data % 16 == 0 && x.ld % QL_PIECE == 0; }

static __global__ void align_kernel(ql_mat x, ql_mat to) {
    for (int64_t j = threadIdx.x; j < x.cols; j += THREADS)
        row_of<uint16_t>(to, blockIdx.x)[j] = row_of<uint16_t>(x, blockIdx.x)[j];
}

/* SMs of a GPU of compute capability 9.0, 0 of another.  Asked once per device: the answer takes longer than a small product. */
static ql_status processors_of_hopper(int device, int *processors) {
    enum { MOST_DEVICES = 64, UNKNOWN = 0, OTHER = -1 };
    static int known[MOST_DEVICES];
    int found = device < MOST_DEVICES ? __atomic_load_n(&known[device], __ATOMIC_RELAXED) : UNKNOWN;
    if (found == UNKNOWN) {
        cudaDeviceProp properties;
        CUDA_TRY(cudaGetDeviceProperties(&properties, device));
        found = properties.major == 9 && properties.minor == 0 ? properties.multiProcessorCount : OTHER;
        if (device < MOST_DEVICES) __atomic_store_n(&known[device], found, __ATOMIC_RELAXED);
    }
    *processors = found > 0 ? found : 0;
    return QL_OK;
}

ql_status ql_cuda_syrk(ql_cuda *gpu, ql_mat x, ql_mat h) {
    if (!is_aligned(x)) {
        ql_mat aligned = x;
        aligned.ld = (x.cols + QL_PIECE - 1) / QL_PIECE * QL_PIECE;
        QL_TRY(ql_cuda_scratch(gpu, (size_t)(x.rows * aligned.ld) * sizeof(uint16_t), &aligned.data));
        LAUNCH(gpu, align_kernel, x.rows, THREADS, x, aligned);
        x = aligned;
    }
    int hopper = 0;
    QL_TRY(processors_of_hopper(gpu->device, &hopper));
    if (hopper) return ql_cuda_syrk_wide(gpu, x, h, hopper);
    int64_t tiles = ql_syrk_tiles(ql_ceil_div(h.rows, TILE), ql_ceil_div(h.cols, TILE));
    LAUNCH_SHARED(gpu->stream, syrk_kernel, tiles, THREADS, STAGES * sizeof(stage), x, h);
    return QL_OK;
}

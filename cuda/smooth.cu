/* Moving the difficulty between activations and weights: scaling by rows and columns, magnitudes of columns, clipping.
 *
 * Clipping: one warp per row and group.  Lane l holds the rounding errors of columns l, l + 32, ... in registers and sums what they add
 * to e^T H_gg e, with the error of each row of H_gg handed round by a shuffle.  H comes through the caches: all rows of W want the same
 * block.
 * Twin: host/cpu/smooth.c. */
#include "cuda/device.cuh"

#include "host/grid.h"

enum { THREADS = 256, WARPS = 4, PARTS = QL_CLIP_GROUP / WARP };

static __global__ void scale_kernel(ql_mat x, const float *rows, const float *cols, ql_mat y) {
    const float *from = row_of<float>(x, blockIdx.x);
    float *to = row_of<float>(y, blockIdx.x), factor = rows ? rows[blockIdx.x] : 1.0f;
    for (int64_t j = threadIdx.x; j < x.cols; j += THREADS) {
        float value = factor * from[j];
        to[j] = cols ? value * cols[j] : value;
    }
}

ql_status ql_cuda_scale(ql_ctx *ctx, ql_mat x, ql_mat rows, ql_mat cols, ql_mat y) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, scale_kernel, x.rows, THREADS, x, (const float *)rows.data, (const float *)cols.data, y);
    return QL_OK;
}

/* ---- magnitudes: the largest of every row and group, then one thread per column -------------------------------------------- */

static __global__ void largest_kernel(ql_mat w, int64_t group, ql_mat largest) {
    int64_t task = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP, row = task / largest.cols, g = task % largest.cols;
    if (row >= w.rows) return;
    const float *from = row_of<float>(w, row);
    int64_t end = (g + 1) * group < w.cols ? (g + 1) * group : w.cols;
    float most = 0;
    for (int64_t i = g * group + threadIdx.x % WARP; i < end; i += WARP) most = fmaxf(most, fabsf(from[i]));
    for (int step = WARP / 2; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    if (threadIdx.x % WARP == 0) row_of<float>(largest, row)[g] = most;
}

static __global__ void magnitude_kernel(ql_mat w, int64_t group, ql_mat largest, float *max, float *mean) {
    int64_t column = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (column >= w.cols) return;
    float most = 0;
    double sum = 0;
    for (int64_t r = 0; r < w.rows; r++) {
        float value = row_of<float>(w, r)[column];
        most = fmaxf(most, fabsf(value));
        sum += ql_relative_magnitude(value, row_of<float>(largest, r)[column / group]);
    }
    max[column] = most;
    mean[column] = (float)(sum / (double)w.rows);
}

ql_status ql_cuda_magnitude(ql_ctx *ctx, ql_mat w, int64_t group, ql_mat max, ql_mat mean) {
    ql_cuda *gpu;
    float *scratch;
    int64_t groups = ql_groups(w.cols, group);
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_scratch(gpu, (size_t)(w.rows * groups) * sizeof *scratch, (void **)&scratch));
    ql_mat largest = ql_mat_of(scratch, QL_F32, w.rows, groups);
    LAUNCH(gpu, largest_kernel, ql_ceil_div(w.rows * groups, WARPS), WARPS * WARP, w, group, largest);
    LAUNCH(gpu, magnitude_kernel, ql_ceil_div(w.cols, THREADS), THREADS, w, group, largest, (float *)max.data,
           (float *)mean.data);
    return QL_OK;
}

/* ---- clipping ----------------------------------------------------------------------------------------------------------------- */

static __device__ ql_range range_of(const float *w, int count) {
    ql_range r = {0, 0};
    for (int i = threadIdx.x % WARP; i < count; i += WARP)
        r.lo = w[i] < r.lo ? w[i] : r.lo, r.hi = w[i] > r.hi ? w[i] : r.hi;
    for (int step = WARP / 2; step; step /= 2) {
        r.lo = fminf(r.lo, __shfl_xor_sync(0xffffffffu, r.lo, step));
        r.hi = fmaxf(r.hi, __shfl_xor_sync(0xffffffffu, r.hi, step));
    }
    return r;
}

/* What a lane adds for row a of the block.  h: its upper left corner; the upper triangle counts. */
static __device__ float row_term(const float *h, int64_t ld, int a, float error, const float e[PARTS], int count) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < PARTS; j++) {
        int b = j * WARP + threadIdx.x % WARP;
        if (b < count) sum += error * ((a < b ? h[a * ld + b] : h[b * ld + a]) * e[j]);
    }
    return sum;
}

/* e^T H_gg e of a step. */
static __device__ float clip_loss(const float *w, const float *h, int64_t ld, int count, ql_step step, int maxq) {
    float e[PARTS], sum = 0;
#pragma unroll
    for (int j = 0; j < PARTS; j++) {
        int i = j * WARP + threadIdx.x % WARP;
        e[j] = i < count ? ql_grid_error(w[i], step, maxq) : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < PARTS; j++)
        for (int lane = 0; lane < WARP && j * WARP + lane < count; lane++)
            sum += row_term(h, ld, j * WARP + lane, __shfl_sync(0xffffffffu, e[j], lane), e, count);
    return warp_sum(sum);
}

/* bad: the first row and group whose scale FP16 cannot hold. */
static __global__ void clip_kernel(ql_mat w, ql_mat h, ql_grid_rule rule, ql_grid grid, unsigned long long *bad) {
    int64_t groups = grid.scale.cols, task = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP, row = task / groups;
    if (row >= w.rows) return;
    int64_t g = task % groups, first = g * grid.group;
    int count = (int)(w.cols - first < grid.group ? w.cols - first : grid.group), maxq = (1 << grid.bits) - 1;
    const float *from = row_of<float>(w, row) + first, *block = row_of<float>(h, first) + first;
    ql_range range = range_of(from, count);
    ql_step best = {0, 0}, step;
    float least = INFINITY;
    for (int i = 0; i < 2 * QL_CLIP_SHARES; i++) {
        if (!ql_grid_candidate(rule, ql_clip_range(range, i / 2), maxq, i % 2, &step)) continue;
        float loss = clip_loss(from, block, h.ld, count, step, maxq);
        if (loss < least || i == 0) least = loss, best = step;
    }
    if (threadIdx.x % WARP) return;
    row_of<float>(grid.scale, row)[g] = best.scale;
    row_of<uint8_t>(grid.zero, row)[g] = (uint8_t)best.zero;
    if (!isfinite(best.scale)) atomicMin(bad, (unsigned long long)task);
}

ql_status ql_cuda_clip_search(ql_ctx *ctx, ql_mat w, ql_mat h, const ql_grid_rule *rule, ql_grid *grid) {
    ql_cuda *gpu;
    unsigned long long *bad;
    int64_t task, groups = grid->scale.cols;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_scratch(gpu, sizeof *bad, (void **)&bad));
    CUDA_TRY(cudaMemsetAsync(bad, 0xff, sizeof *bad, gpu->stream));
    LAUNCH(gpu, clip_kernel, ql_ceil_div(w.rows * groups, WARPS), WARPS * WARP, w, h, *rule, *grid, bad);
    QL_TRY(ql_cuda_download(ctx, &task, bad, sizeof task));
    if (task < 0) return QL_OK;
    return ql_fail(QL_NUMERIC, "clip_search: the weights of row %lld, group %lld need a scale beyond FP16",
                   (long long)(task / groups), (long long)(task % groups));
}

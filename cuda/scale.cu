/* Scale and zero point of every group.   w [n][k], importance [1][k], scale and zero [n][G]
 *
 * One warp per row and group: lane l takes columns l, l + 32, ... of the group, first for the range, then for the cost of every
 * candidate of host/grid.h, whose order of summation is that of a warp: the same bits as on the CPU.  Columns are sorted by group
 * on the host, since g_idx may scatter them.
 * Twin: host/cpu/scale.c. */
#include "cuda/device.cuh"

#include <string.h>

#include "host/hqq.h"

enum { WARPS = 8 };
static_assert((int)QL_LANES == (int)WARP, "host/grid.h sums over the lanes of a warp");

/* Group g owns column[start[g]] .. column[start[g + 1] - 1]; device memory. */
typedef struct groups {
    int64_t count;
    const int32_t *start, *column;
} groups;

/* Over the columns of a group, and 0. */
static __device__ ql_range range_of(const float *w, const int32_t *column, int size) {
    ql_range r = {0, 0};
    for (int i = threadIdx.x % WARP; i < size; i += WARP) {
        float value = w[column[i]];
        r.lo = value < r.lo ? value : r.lo, r.hi = value > r.hi ? value : r.hi;
    }
    for (int step = WARP / 2; step; step /= 2) {
        r.lo = fminf(r.lo, __shfl_xor_sync(0xffffffffu, r.lo, step));
        r.hi = fmaxf(r.hi, __shfl_xor_sync(0xffffffffu, r.hi, step));
    }
    return r;
}

/* The order of the sum is that of host/grid.h. */
static __device__ float cost_of(const float *w, const float *importance, const int32_t *column, int size, ql_step step,
                                int maxq) {
    float sum = 0;
    for (int i = threadIdx.x % WARP; i < size; i += WARP)
        sum += ql_grid_cost(w[column[i]], importance ? importance[column[i]] : 1.0f, step, maxq);
    return warp_sum(sum);
}

static __device__ ql_step best_step(ql_grid_rule rule, ql_range range, const float *w, const float *importance,
                                    const int32_t *column, int size, int maxq) {
    ql_step best = {0, 0}, step;
    float least = INFINITY;
    for (int i = 0; i < ql_grid_candidates(rule); i++) {
        if (!ql_grid_candidate(rule, range, maxq, i, &step)) continue;
        float cost = cost_of(w, importance, column, size, step, maxq);
        if (cost < least || i == 0) least = cost, best = step;
    }
    return best;
}

/* ---- HQQ ----------------------------------------------------------------------------------------------------------------------- */

static __device__ ql_hqq_sums iterate(const float *w, const int32_t *column, int size, const ql_hqq *state, int maxq) {
    ql_hqq_sums sums = {0, 0};
    for (int i = threadIdx.x % WARP; i < size; i += WARP) {
        ql_hqq_sums term = ql_hqq_term(w[column[i]], state, maxq);
        sums.error += term.error, sums.zero += term.zero;
    }
    sums.error = warp_sum(sums.error), sums.zero = warp_sum(sums.zero);
    return sums;
}

static __device__ ql_step fitted_step(const float *w, const int32_t *column, int size, ql_step step, float least,
                                      int maxq) {
    ql_step best = step;
    for (int round = 0; round < QL_HQQ_FITS; round++) {
        ql_hqq_fit sums = {0, 0};
        for (int i = threadIdx.x % WARP; i < size; i += WARP) {
            ql_hqq_fit term = ql_hqq_fit_term(w[column[i]], best, maxq);
            sums.product += term.product, sums.square += term.square;
        }
        sums.product = warp_sum(sums.product), sums.square = warp_sum(sums.square);
        if (!ql_hqq_fitted(sums, &step)) return best;
        float cost = cost_of(w, NULL, column, size, step, maxq);
        if (!(cost < least)) return best;
        least = cost, best = step;
    }
    return best;
}

static __device__ ql_step half_quadratic_step(ql_grid_rule rule, ql_range range, const float *w, const int32_t *column,
                                              int size, int maxq) {
    ql_step best = {0, 0}, step;
    float least = INFINITY;
    for (int i = 0; i < 2 * QL_HQQ_SHARES; i++) {
        if (!ql_grid_candidate(rule, range, maxq, i / 2 * 2 * QL_HQQ_STRIDE + i % 2, &step)) continue;
        if (i == 0 && (size == 0 || !isfinite(step.scale))) return step;
        ql_hqq state = ql_hqq_begin(step);
        for (int more = 1, tried = 0;;) {
            step.zero = ql_hqq_zero(&state, maxq);
            float cost = step.zero == tried ? INFINITY : cost_of(w, NULL, column, size, step, maxq);
            if (cost < least) least = cost, best = step;
            if (!more) break;
            tried = step.zero;
            more = ql_hqq_advance(&state, iterate(w, column, size, &state, maxq), (float)size);
        }
    }
    return fitted_step(w, column, size, best, least, maxq);
}

/* bad: the first row and group whose scale FP16 cannot hold. */
static __global__ void search_kernel(ql_mat w, const float *importance, groups all, ql_grid_rule rule, ql_grid grid,
                                     unsigned long long *bad) {
    int64_t task = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP, row = task / all.count, g = task % all.count;
    if (row >= w.rows) return;
    const float *from = row_of<float>(w, row);
    const int32_t *column = all.column + all.start[g];
    int size = all.start[g + 1] - all.start[g], maxq = (1 << grid.bits) - 1;
    ql_range range = range_of(from, column, size);
    ql_step step;
    if (rule.literature) step.scale = (float)ql_literature_step(range.lo, range.hi, rule.symmetric, maxq, &step.zero);
    else if (rule.half_quadratic) step = half_quadratic_step(rule, range, from, column, size, maxq);
    else step = best_step(rule, range, from, importance, column, size, maxq);
    if (threadIdx.x % WARP) return;
    row_of<float>(grid.scale, row)[g] = step.scale;
    row_of<uint8_t>(grid.zero, row)[g] = (uint8_t)step.zero;
    if (!isfinite(step.scale)) atomicMin(bad, (unsigned long long)task);
}

/* Counting sort; host memory [count + 2] and [k]. */
static void sort_columns(const int32_t *g_idx, int64_t group, int64_t k, int64_t count, int32_t *start,
                         int32_t *column) {
    int32_t *next = start + 1; /* counts, then the next free place of each group: ends as start shifted by one */
    memset(start, 0, (size_t)(count + 2) * sizeof *start);
    for (int64_t c = 0; c < k; c++) next[(g_idx ? g_idx[c] : c / group) + 1]++;
    for (int64_t g = 0; g < count; g++) next[g + 1] += next[g];
    for (int64_t c = 0; c < k; c++) column[next[g_idx ? g_idx[c] : c / group]++] = (int32_t)c;
}

/* The lists of all groups to `device`, [count + 2] and [k]; `host` has room for them and g_idx besides. */
static ql_status upload_groups(ql_ctx *ctx, const ql_grid *grid, int64_t k, int32_t *host, int32_t *device,
                               groups *all) {
    int32_t *start = host, *column = host + all->count + 2, *g_idx = ql_is_present(grid->g_idx) ? column + k : NULL;
    if (g_idx) QL_TRY(ql_cuda_download(ctx, g_idx, grid->g_idx.data, (size_t)k * sizeof *g_idx));
    sort_columns(g_idx, grid->group, k, all->count, start, column);
    all->start = device, all->column = device + all->count + 2;
    return ql_cuda_upload(ctx, device, host, (size_t)(all->count + 2 + k) * sizeof *host);
}

static ql_status check_scales(ql_ctx *ctx, const unsigned long long *bad, int64_t count) {
    int64_t task;
    QL_TRY(ql_cuda_download(ctx, &task, bad, sizeof task));
    if (task < 0) return QL_OK;
    return ql_fail(QL_NUMERIC, "grid_search: the weights of row %lld, group %lld need a scale beyond FP16",
                   (long long)(task / count), (long long)(task % count));
}

ql_status ql_cuda_grid_search(ql_ctx *ctx, ql_mat w, ql_mat importance, const ql_grid_rule *rule, ql_grid *grid) {
    ql_cuda *gpu;
    char *scratch;
    groups all = {ql_groups(w.cols, grid->group), NULL, NULL};
    size_t bytes = 0, bad_at = ql_cuda_piece(&bytes, sizeof(unsigned long long));
    size_t lists_at = ql_cuda_piece(&bytes, (size_t)(all.count + 2 + w.cols) * sizeof(int32_t));
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_check_groups(gpu, "grid_search", grid, w.cols));
    QL_TRY(ql_cuda_scratch(gpu, bytes, (void **)&scratch));
    unsigned long long *bad = (unsigned long long *)(scratch + bad_at);
    CUDA_TRY(cudaMemsetAsync(bad, 0xff, sizeof *bad, gpu->stream));
    int32_t *host = (int32_t *)ql_malloc((size_t)(all.count + 2 + 2 * w.cols) * sizeof *host);
    if (!host) return ql_fail(QL_NOMEM, "grid_search: no memory for the groups of %lld columns", (long long)w.cols);
    ql_status status = upload_groups(ctx, grid, w.cols, host, (int32_t *)(scratch + lists_at), &all);
    ql_mfree(host);
    QL_TRY(status);
    LAUNCH(gpu, search_kernel, ql_ceil_div(w.rows * all.count, WARPS), WARPS * WARP, w, (const float *)importance.data,
           all, *rule, *grid, bad);
    return check_scales(ctx, bad, all.count);
}

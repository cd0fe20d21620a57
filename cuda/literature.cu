/* GPTQ as its authors published it, in double.   w, codes [n][k], h [k][k]
 *
 * The steps are those of host/cpu/literature.c, which explains them; U = R^-1 with H = R R^T comes from the factor of the
 * index-reversed matrix and one triangular inverse.  Order and damping are chosen on the host, from the diagonal, by the CPU's own
 * arithmetic.  Then, block of 128 columns after block: the grids of the groups that begin in it, one warp per row through its
 * columns, and one product for the columns behind.  W stands in scratch by position, already permuted. */
#include "cuda/device.cuh"

#include <algorithm>

#include "host/grid.h"

enum { BLOCK = 128, PER_LANE = BLOCK / WARP, WARPS = 8, THREADS = 256 };

typedef struct problem {
    int64_t n, k, groups;
    bool symmetric;
    bool fixed;                /* all grids are known before the loop */
    bool in_order_of_position; /* groups are runs of positions (dynamic), not of columns */
    ql_mat w, u, error;        /* F64 [n][k] by position, [k][k] upper, [n][BLOCK] */
    double *scale;             /* [n][groups] */
    double *diagonal;          /* [k] of H, before dead columns are set to 1 */
    int32_t *order;            /* [k] position -> column */
    ql_grid grid;
    ql_mat codes;
} problem;

static __device__ int64_t group_at(const problem *p, int64_t position) {
    return (p->in_order_of_position ? position : p->order[position]) / p->grid.group;
}

/* ---- preparation ------------------------------------------------------------------------------------------------------------- */

static __global__ void diagonal_kernel(ql_mat h, double factor, double *diagonal) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < h.cols) diagonal[i] = factor * row_of<double>(h, i)[i];
}

/* The order, and 0.01 of the mean diagonal; dead columns count as 1. */
static double choose_order(double *diagonal, int64_t k, bool sorted, int32_t *order) {
    double mean = 0;
    for (int64_t i = 0; i < k; i++) {
        if (diagonal[i] == 0) diagonal[i] = 1;
        mean += diagonal[i];
        order[i] = (int32_t)i;
    }
    if (sorted) std::stable_sort(order, order + k, [=](int32_t a, int32_t b) { return diagonal[a] > diagonal[b]; });
    return 0.01 * (mean / (double)k);
}

static ql_status prepare_order(ql_ctx *ctx, ql_cuda *gpu, const problem *p, ql_mat h, double factor, bool sorted,
                               double *damping) {
    LAUNCH(gpu, diagonal_kernel, ql_ceil_div(p->k, THREADS), THREADS, h, factor, p->diagonal);
    double *diagonal = (double *)ql_malloc((size_t)p->k * (sizeof *diagonal + sizeof *p->order));
    if (!diagonal) return ql_fail(QL_NOMEM, "gptq_literature: no memory for %lld columns", (long long)p->k);
    int32_t *order = (int32_t *)(diagonal + p->k);
    ql_status status = ql_cuda_download(ctx, diagonal, p->diagonal, (size_t)p->k * sizeof *diagonal);
    if (status == QL_OK) {
        *damping = choose_order(diagonal, p->k, sorted, order);
        status = ql_cuda_upload(ctx, p->order, order, (size_t)p->k * sizeof *order);
    }
    ql_mfree(diagonal);
    return status;
}

/* Reversed and permuted, as ql_cuda_cholesky wants it: the upper triangle by rows. */
static __global__ void gather_kernel(problem p, ql_mat h, double factor, double damping) {
    int64_t row = blockIdx.x, a = p.order[p.k - 1 - row];
    double *to = row_of<double>(p.u, row);
    for (int64_t q = row + threadIdx.x; q < p.k; q += THREADS) {
        int64_t b = p.order[p.k - 1 - q];
        double value = factor * (a < b ? row_of<double>(h, a)[b] : row_of<double>(h, b)[a]);
        if (q == row) value = (p.diagonal[a] == 0 ? 1 : value) + damping;
        to[q] = value;
    }
}

static __global__ void load_weights_kernel(problem p, ql_mat w) {
    const float *from = row_of<float>(w, blockIdx.x);
    double *to = row_of<double>(p.w, blockIdx.x);
    for (int64_t i = threadIdx.x; i < p.k; i += THREADS) {
        int32_t column = p.order[i];
        to[i] = p.diagonal[column] == 0 ? 0 : (double)from[column];
    }
}

/* ---- grids: one warp per row and group ----------------------------------------------------------------------------------------- */

static __device__ void set_grid(const problem *p, int64_t row, int64_t group, double lo, double hi) {
    for (int step = WARP / 2; step; step /= 2) {
        lo = fmin(lo, __shfl_xor_sync(0xffffffffu, lo, step));
        hi = fmax(hi, __shfl_xor_sync(0xffffffffu, hi, step));
    }
    if (threadIdx.x % WARP) return;
    int zero;
    double scale = ql_literature_step(lo, hi, p->symmetric, (1 << p->grid.bits) - 1, &zero);
    p->scale[row * p->groups + group] = scale;
    row_of<float>(p->grid.scale, row)[group] = (float)scale;
    row_of<uint8_t>(p->grid.zero, row)[group] = (uint8_t)zero;
}

/* Before the loop, from the weights in the order of their columns.  With one group per row its grid comes from the weights before
 * dead columns are zeroed, otherwise from those after it. */
static __global__ void fixed_grids_kernel(problem p, ql_mat w) {
    int64_t task = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP, row = task / p.groups, g = task % p.groups;
    if (row >= p.n) return;
    const float *from = row_of<float>(w, row);
    double lo = 0, hi = 0;
    for (int64_t c = g * p.grid.group + threadIdx.x % WARP; c < (g + 1) * p.grid.group && c < p.k; c += WARP) {
        double value = p.groups > 1 && p.diagonal[c] == 0 ? 0 : (double)from[c];
        lo = fmin(lo, value), hi = fmax(hi, value);
    }
    set_grid(&p, row, g, lo, hi);
}

/* Groups begin, begin + group, ... from W as the previous blocks left it. */
static __global__ void found_grids_kernel(problem p, int64_t begin, int64_t count) {
    int64_t task = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP, row = task / count;
    int64_t first = begin + task % count * p.grid.group;
    if (row >= p.n) return;
    const double *from = row_of<double>(p.w, row);
    double lo = 0, hi = 0;
    for (int64_t i = first + threadIdx.x % WARP; i < first + p.grid.group && i < p.k; i += WARP)
        lo = fmin(lo, from[i]), hi = fmax(hi, from[i]);
    set_grid(&p, row, group_at(&p, first), lo, hi);
}

/* ---- the loop ------------------------------------------------------------------------------------------------------------------- */

static __global__ void solve_block_kernel(problem p, int64_t begin, int width) {
    int lane = threadIdx.x % WARP;
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= p.n) return;
    double current[PER_LANE], maxq = (double)((1 << p.grid.bits) - 1);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int c = i * WARP + lane;
        current[i] = c < width ? row_of<double>(p.w, row)[begin + c] : 0;
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        for (int owner = 0; owner < WARP; owner++) {
            int c = i * WARP + owner;
            if (c >= width) break;
            const double *u = row_of<double>(p.u, begin + c) + begin;
            double error = 0;
            if (lane == owner) {
                int64_t g = group_at(&p, begin + c);
                double scale = p.scale[row * p.groups + g], zero = row_of<uint8_t>(p.grid.zero, row)[g];
                double code = fmin(fmax(rint(current[i] / scale) + zero, 0.0), maxq);
                row_of<uint8_t>(p.codes, row)[p.order[begin + c]] = (uint8_t)code;
                error = (current[i] - scale * (code - zero)) / u[c];
                row_of<double>(p.error, row)[c] = error;
            }
            error = __shfl_sync(0xffffffffu, error, owner);
#pragma unroll
            for (int j = i; j < PER_LANE; j++) { /* columns that are done change too, nobody reads them again */
                int later = j * WARP + lane;
                if (later < width) current[j] -= error * u[later];
            }
        }
}

static ql_status solve_block(ql_cuda *gpu, const problem *p, int64_t begin) {
    int64_t width = p->k - begin < BLOCK ? p->k - begin : BLOCK, behind = begin + width, rest = p->k - behind;
    int64_t group = p->grid.group, first = ql_ceil_div(begin, group) * group;
    int64_t found = p->fixed || first >= behind ? 0 : ql_ceil_div(behind - first, group);
    LAUNCH(gpu, found_grids_kernel, ql_ceil_div(p->n * found, WARPS), WARPS * WARP, *p, first, found);
    LAUNCH(gpu, solve_block_kernel, ql_ceil_div(p->n, WARPS), WARPS * WARP, *p, begin, (int)width);
    if (rest == 0) return QL_OK;
    return ql_cuda_product(gpu, -1, ql_cols(p->error, 0, width), false,
                           ql_cols(ql_rows(p->u, begin, width), behind, rest), false, 1, ql_cols(p->w, behind, rest));
}

static __global__ void write_groups_kernel(problem p) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < p.k) ((int32_t *)p.grid.g_idx.data)[p.order[i]] = (int32_t)group_at(&p, i);
}

/* ---- all of it -------------------------------------------------------------------------------------------------------------- */

static ql_status take_scratch(ql_cuda *gpu, problem *p) {
    char *scratch;
    size_t n = (size_t)p->n, k = (size_t)p->k, bytes = 0;
    size_t w = ql_cuda_piece(&bytes, n * k * sizeof(double)), u = ql_cuda_piece(&bytes, k * k * sizeof(double));
    size_t error = ql_cuda_piece(&bytes, n * BLOCK * sizeof(double));
    size_t scale = ql_cuda_piece(&bytes, n * (size_t)p->groups * sizeof(double));
    size_t diagonal = ql_cuda_piece(&bytes, k * sizeof(double)), order = ql_cuda_piece(&bytes, k * sizeof(int32_t));
    QL_TRY(ql_cuda_scratch(gpu, bytes, (void **)&scratch));
    p->w = ql_mat_of(scratch + w, QL_F64, p->n, p->k);
    p->u = ql_mat_of(scratch + u, QL_F64, p->k, p->k);
    p->error = ql_mat_of(scratch + error, QL_F64, p->n, BLOCK);
    p->scale = (double *)(scratch + scale);
    p->diagonal = (double *)(scratch + diagonal);
    p->order = (int32_t *)(scratch + order);
    return QL_OK;
}

static ql_status prepare_factor(ql_cuda *gpu, const problem *p, ql_mat h, double factor, double damping) {
    LAUNCH(gpu, gather_kernel, p->k, THREADS, *p, h, factor, damping);
    QL_TRY(ql_cuda_cholesky(gpu, p->u));
    QL_TRY(ql_cuda_invert_triangle(gpu, p->u));
    return ql_cuda_reverse_triangle(gpu, p->u);
}

ql_status ql_cuda_gptq_literature(ql_ctx *ctx, ql_mat w, ql_mat h, double scale, int symmetric, ql_act_order order,
                                  ql_grid *grid, ql_mat codes) {
    ql_cuda *gpu;
    double damping = 0;
    problem p = {w.rows, w.cols, ql_groups(w.cols, grid->group), symmetric != 0};
    p.fixed = order == QL_ORDER_STATIC || grid->group >= w.cols;
    p.in_order_of_position = order == QL_ORDER_DYNAMIC;
    p.grid = *grid, p.codes = codes;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(take_scratch(gpu, &p));
    QL_TRY(prepare_order(ctx, gpu, &p, h, scale, order != QL_ORDER_NONE, &damping));
    QL_TRY(prepare_factor(gpu, &p, h, scale, damping));
    LAUNCH(gpu, load_weights_kernel, p.n, THREADS, p, w);
    if (p.fixed) LAUNCH(gpu, fixed_grids_kernel, ql_ceil_div(p.n * p.groups, WARPS), WARPS * WARP, p, w);
    for (int64_t begin = 0; begin < p.k; begin += BLOCK) QL_TRY(solve_block(gpu, &p, begin));
    if (ql_is_present(grid->g_idx)) LAUNCH(gpu, write_groups_kernel, ql_ceil_div(p.k, THREADS), THREADS, p);
    return QL_OK;
}

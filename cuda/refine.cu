/* Coordinate descent on codes and scales.   w, codes [n][k], H' = H + shift I,   G = (q - w) H' [n][k], half the gradient
 *
 * The algorithm is that of host/cpu/refine.c, block for block: BLOCK columns at a time one warp per row moves scales and codes and
 * keeps G inside the block exact by rank-one updates; then one product carries the block's changes to all of G.  A lane owns four
 * columns of the block: their codes, gradients, changes, scales.  Inside a block the arithmetic is the CPU's, only the products
 * and the two sums of a scale run in another order.  H' is mirrored into scratch, so that a row of it is its column. */
#include "cuda/device.cuh"

enum { BLOCK = 128, PER_LANE = BLOCK / WARP, WARPS = 8, THREADS = 256 };

typedef struct problem {
    ql_mat w, h, codes, gradient, delta; /* h mirrored; delta [n][BLOCK]: change of the weights of the block */
    ql_grid grid;
    int *changed;
} problem;

/* What a lane knows about its columns of the block. */
typedef struct lane_state {
    float gradient[PER_LANE], delta[PER_LANE], scale[PER_LANE];
    int code[PER_LANE], zero[PER_LANE];
} lane_state;

static __global__ void mirror_kernel(ql_mat h, float shift, ql_mat full) {
    int64_t i = blockIdx.x;
    for (int64_t j = threadIdx.x; j < h.cols; j += THREADS) {
        float value = i <= j ? row_of<float>(h, i)[j] : row_of<float>(h, j)[i];
        row_of<float>(full, i)[j] = i == j ? value + shift : value;
    }
}

/* delta = q - w in the block. */
static __global__ void error_kernel(problem p, int64_t first) {
    int64_t row = blockIdx.x, column = first + threadIdx.x;
    if (column >= p.w.cols) return;
    int64_t g = group_of(&p.grid, column);
    float q = ql_decode(row_of<uint8_t>(p.codes, row)[column], row_of<float>(p.grid.scale, row)[g],
                        row_of<uint8_t>(p.grid.zero, row)[g]);
    row_of<float>(p.delta, row)[threadIdx.x] = q - row_of<float>(p.w, row)[column];
}

/* The best scale of columns at .. end-1 of the block, one group: s + d, d = -(G c) / (c H' c), c = code - zero, rounded to FP16,
 * if that lowers f.  All lanes come to the same decision. */
static __device__ bool fit_scale(const problem *p, int64_t row, int64_t first, int at, int end, lane_state *s) {
    int lane = threadIdx.x % WARP;
    float image[PER_LANE] = {0}, old = 0;
    double curvature = 0, slope = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        for (int owner = 0; owner < WARP; owner++) {
            int j = i * WARP + owner;
            if (j < at || j >= end) continue;
            float c = (float)__shfl_sync(0xffffffffu, s->code[i] - s->zero[i], owner);
            old = __shfl_sync(0xffffffffu, s->scale[i], owner);
            const float *h = row_of<float>(p->h, first + j) + first;
#pragma unroll
            for (int l = 0; l < PER_LANE; l++)
                if (c != 0 && first + l * WARP + lane < p->w.cols) image[l] += c * h[l * WARP + lane];
        }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int j = i * WARP + lane;
        if (j < at || j >= end) continue;
        curvature += (double)image[i] * (s->code[i] - s->zero[i]);
        slope += (double)s->gradient[i] * (s->code[i] - s->zero[i]);
    }
    curvature = warp_sum(curvature), slope = warp_sum(slope);
    if (!(curvature > 0)) return false;
    float fitted = ql_round_f16((float)(old - slope / curvature)), step = fitted - old;
    /* 2^-14 is the smallest normal binary16: below it a scale loses its digits. */
    if (!(fitted >= 6.103515625e-5f) || !(fitted <= 65504.0f) || !(step * (2 * slope + step * curvature) < 0))
        return false;
    if (lane == 0) row_of<float>(p->grid.scale, row)[(first + at) / p->grid.group] = fitted;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int j = i * WARP + lane;
        if (j >= at && j < end) {
            s->scale[i] = fitted;
            s->delta[i] += step * (float)(s->code[i] - s->zero[i]);
        }
        s->gradient[i] += step * image[i];
    }
    return true;
}

/* Each code to its best value given all others, one column after the other. */
static __device__ bool move_codes(const problem *p, int64_t first, int size, lane_state *s) {
    int lane = threadIdx.x % WARP, maxq = (1 << p->grid.bits) - 1;
    bool moved = false;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        for (int owner = 0; owner < WARP; owner++) {
            int j = i * WARP + owner;
            if (j >= size) break;
            const float *h = row_of<float>(p->h, first + j) + first;
            float curvature = h[j], step = 0;
            if (!(curvature > 0)) continue;
            if (lane == owner) {
                float best = ql_decode(s->code[i], s->scale[i], s->zero[i]) - s->gradient[i] / curvature;
                int code = ql_encode(best, s->scale[i], s->zero[i], maxq);
                step = s->scale[i] * (float)(code - s->code[i]);
                s->code[i] = code;
                s->delta[i] += step;
            }
            step = __shfl_sync(0xffffffffu, step, owner);
            if (step == 0) continue;
            moved = true;
#pragma unroll
            for (int l = 0; l < PER_LANE; l++)
                if (l * WARP + lane < size) s->gradient[l] += step * h[l * WARP + lane];
        }
    return moved;
}

static __global__ void sweep_kernel(problem p, int64_t first, int size) {
    int lane = threadIdx.x % WARP;
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP, group = p.grid.group;
    if (row >= p.w.rows) return;
    lane_state s = {};
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int64_t column = first + i * WARP + lane;
        if (i * WARP + lane >= size) continue;
        int64_t g = group_of(&p.grid, column);
        s.gradient[i] = row_of<float>(p.gradient, row)[column];
        s.scale[i] = row_of<float>(p.grid.scale, row)[g];
        s.zero[i] = row_of<uint8_t>(p.grid.zero, row)[g];
        s.code[i] = row_of<uint8_t>(p.codes, row)[column];
    }
    bool moved = false, whole_groups = !p.grid.g_idx.data && BLOCK % group == 0;
    for (int at = 0; whole_groups && at < size; at += (int)group)
        moved |= fit_scale(&p, row, first, at, at + group < size ? (int)(at + group) : size, &s);
    moved |= move_codes(&p, first, size, &s);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        row_of<float>(p.delta, row)[i * WARP + lane] = s.delta[i];
        if (i * WARP + lane < size) row_of<uint8_t>(p.codes, row)[first + i * WARP + lane] = (uint8_t)s.code[i];
    }
    if (moved && lane == 0) *p.changed = 1; /* all writers write the same */
}

/* G += delta H'[block] (G = ... where `start`). */
static ql_status carry(ql_cuda *gpu, const problem *p, int64_t first, int64_t size, bool start) {
    return ql_cuda_product(gpu, 1, ql_cols(p->delta, 0, size), false, ql_rows(p->h, first, size), false, !start,
                           p->gradient);
}

static ql_status sweep(ql_cuda *gpu, const problem *p, bool *changed) {
    int flag;
    CUDA_TRY(cudaMemsetAsync(p->changed, 0, sizeof flag, gpu->stream));
    for (int64_t first = 0; first < p->w.cols; first += BLOCK) {
        int64_t size = p->w.cols - first < BLOCK ? p->w.cols - first : BLOCK;
        LAUNCH(gpu, sweep_kernel, ql_ceil_div(p->w.rows, WARPS), WARPS * WARP, *p, first, (int)size);
        QL_TRY(carry(gpu, p, first, size, false));
    }
    CUDA_TRY(cudaMemcpyAsync(&flag, p->changed, sizeof flag, cudaMemcpyDeviceToHost, gpu->stream));
    CUDA_TRY(cudaStreamSynchronize(gpu->stream));
    *changed = flag;
    return QL_OK;
}

static ql_status prepare(ql_cuda *gpu, ql_mat h, float shift, problem *p) {
    char *scratch;
    int64_t n = p->w.rows, k = p->w.cols;
    size_t bytes = 0, full_at = ql_cuda_piece(&bytes, (size_t)(k * k) * sizeof(float));
    size_t gradient_at = ql_cuda_piece(&bytes, (size_t)(n * k) * sizeof(float));
    size_t delta_at = ql_cuda_piece(&bytes, (size_t)(n * BLOCK) * sizeof(float));
    size_t changed_at = ql_cuda_piece(&bytes, sizeof *p->changed);
    QL_TRY(ql_cuda_scratch(gpu, bytes, (void **)&scratch));
    p->h = ql_mat_of(scratch + full_at, QL_F32, k, k);
    p->gradient = ql_mat_of(scratch + gradient_at, QL_F32, n, k);
    p->delta = ql_mat_of(scratch + delta_at, QL_F32, n, BLOCK);
    p->changed = (int *)(scratch + changed_at);
    LAUNCH(gpu, mirror_kernel, k, THREADS, h, shift, p->h);
    for (int64_t first = 0; first < k; first += BLOCK) {
        LAUNCH(gpu, error_kernel, n, BLOCK, *p, first);
        QL_TRY(carry(gpu, p, first, k - first < BLOCK ? k - first : BLOCK, first == 0));
    }
    return QL_OK;
}

ql_status ql_cuda_refine(ql_ctx *ctx, ql_mat w, ql_mat h, double shift, int sweeps, ql_grid *grid, ql_mat codes) {
    ql_cuda *gpu;
    problem p = {};
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_check_groups(gpu, "refine", grid, w.cols));
    p.w = w, p.codes = codes, p.grid = *grid;
    QL_TRY(prepare(gpu, h, (float)shift, &p));
    bool changed = true;
    for (int i = 0; i < sweeps && changed; i++) QL_TRY(sweep(gpu, &p, &changed));
    return QL_OK;
}

/* Following the full-precision model: how two streams of activations go together, and solutions with the factor of H.
 *
 * c[a][b] += y[m][a]^T x[m][b] is one dense product; in BF16 one per RUN tokens, since tensor cores cut sums off instead of rounding them
 * (cuda/syrk_sm90.cu).
 *
 * x (P (H + shift I) P^T) = b with the upper triangular R of cuda/factor.cu: first y R^T = b from the last column to the first,
 * then z R = y from the first to the last, BLOCK columns at a time.  A product with the columns that are solved takes their part
 * away from a block, then a kernel solves inside it, one warp per row and four columns per lane.  The columns stand in scratch in
 * the order of the factor.   Twin: host/cpu/drift.c. */
#include "cuda/device.cuh"

enum { BLOCK = 128, PER_LANE = BLOCK / WARP, WARPS = 8, THREADS = 256, RUN = 2048 };

ql_status ql_cuda_cross(ql_ctx *ctx, ql_mat y, ql_mat x, ql_mat c) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    const int64_t run = x.dtype == QL_BF16 && x.rows > RUN ? RUN : x.rows;
    for (int64_t row = 0; row < x.rows; row += run) {
        const int64_t rows = x.rows - row < run ? x.rows - row : run;
        QL_TRY(ql_cuda_product(gpu, 1, ql_rows(y, row, rows), true, ql_rows(x, row, rows), false, 1, c));
    }
    return QL_OK;
}

static __global__ void permute_kernel(ql_mat from, const int32_t *order, bool back, ql_mat to) {
    const float *a = row_of<float>(from, blockIdx.x);
    float *b = row_of<float>(to, blockIdx.x);
    for (int64_t p = threadIdx.x; p < from.cols; p += THREADS) {
        int64_t column = order ? order[p] : p;
        if (back) b[column] = a[p];
        else b[p] = a[column];
    }
}

/* Solves inside columns first .. first + size - 1, in place: y R^T = b BACKWARD, z R = y otherwise. */
template <bool BACKWARD> static __global__ void solve_kernel(ql_mat work, ql_mat r, int64_t first, int size) {
    int lane = threadIdx.x % WARP;
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= work.rows) return;
    float *values = row_of<float>(work, row) + first, value[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) value[i] = i * WARP + lane < size ? values[i * WARP + lane] : 0;
#pragma unroll
    for (int step = 0; step < PER_LANE; step++) {
        const int i = BACKWARD ? PER_LANE - 1 - step : step;
        for (int turn = 0; turn < WARP; turn++) {
            int owner = BACKWARD ? WARP - 1 - turn : turn, p = i * WARP + owner;
            if (p >= size) continue;
            float solved = __shfl_sync(0xffffffffu, value[i], owner) / row_of<float>(r, first + p)[first + p];
            if (lane == owner) value[i] = solved;
#pragma unroll
            for (int j = 0; j < PER_LANE; j++) {
                int c = j * WARP + lane;
                if (BACKWARD && c < p) value[j] -= solved * row_of<float>(r, first + c)[first + p];
                if (!BACKWARD && c > p && c < size) value[j] -= solved * row_of<float>(r, first + p)[first + c];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (i * WARP + lane < size) values[i * WARP + lane] = value[i];
}

static ql_status solve_backward(ql_cuda *gpu, ql_mat work, ql_mat r) {
    int64_t k = work.cols;
    for (int64_t first = (k - 1) / BLOCK * BLOCK; first >= 0; first -= BLOCK) {
        int64_t end = first + BLOCK < k ? first + BLOCK : k, rest = k - end;
        ql_mat right = ql_cols(ql_rows(r, first, end - first), end, rest);
        if (rest)
            QL_TRY(ql_cuda_product(gpu, -1, ql_cols(work, end, rest), false, right, true, 1,
                                   ql_cols(work, first, end - first)));
        LAUNCH(gpu, solve_kernel<true>, ql_ceil_div(work.rows, WARPS), WARPS * WARP, work, r, first,
               (int)(end - first));
    }
    return QL_OK;
}

static ql_status solve_forward(ql_cuda *gpu, ql_mat work, ql_mat r) {
    int64_t k = work.cols;
    for (int64_t first = 0; first < k; first += BLOCK) {
        int64_t size = k - first < BLOCK ? k - first : BLOCK;
        ql_mat above = ql_cols(ql_rows(r, 0, first), first, size);
        if (first)
            QL_TRY(
                ql_cuda_product(gpu, -1, ql_cols(work, 0, first), false, above, false, 1, ql_cols(work, first, size)));
        LAUNCH(gpu, solve_kernel<false>, ql_ceil_div(work.rows, WARPS), WARPS * WARP, work, r, first, (int)size);
    }
    return QL_OK;
}

ql_status ql_cuda_solve(ql_ctx *ctx, ql_mat b, ql_mat r, ql_mat order, ql_mat x) {
    ql_cuda *gpu;
    void *scratch;
    const int32_t *at = (const int32_t *)order.data;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_check_order(ctx, "solve", order, b.cols));
    QL_TRY(ql_cuda_scratch(gpu, (size_t)(b.rows * b.cols) * sizeof(float), &scratch));
    ql_mat work = ql_mat_of(scratch, QL_F32, b.rows, b.cols);
    LAUNCH(gpu, permute_kernel, b.rows, THREADS, b, at, false, work);
    QL_TRY(solve_backward(gpu, work, r));
    QL_TRY(solve_forward(gpu, work, r));
    LAUNCH(gpu, permute_kernel, b.rows, THREADS, work, at, true, x);
    return QL_OK;
}

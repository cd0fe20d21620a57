/* GPTQ on fixed grids.   w [n][k], r [k][k] upper triangular, codes [n][k]
 *
 *   t_p = w_p + (sum_{p' < p} e_p' R[p'][p]) / R[p][p],   code_p = encode(t_p),   e_p = w_p - decode(code_p)
 *
 * Rows are independent, columns are not.  The columns of `order` are taken BLOCK at a time: one product of all earlier errors with
 * BLOCK columns of R (most of the arithmetic), then a kernel that walks the block with one warp per row.  A lane owns four columns
 * of the block and their sums; for every column its owner rounds and the warp hears the error.  Errors stay in scratch [n][k], in
 * the order of treatment; w and codes are addressed through `order`, so nothing is permuted beforehand.
 * The products sum in another order than the CPU's, so a code next to a rounding tie may differ from its.   Twin: host/cpu/gptq.c. */
#include "cuda/device.cuh"

enum { BLOCK = 128, PER_LANE = BLOCK / WARP, WARPS = 8 };

typedef struct solver {
    ql_mat w, r, order, codes;
    ql_grid grid;
    ql_mat errors; /* [n][k], positions before `first` are valid */
    ql_mat sums;   /* [n][BLOCK]: errors R[.][first + column] */
} solver;

static __global__ void solve_block_kernel(solver s, int64_t first) {
    int lane = threadIdx.x % WARP;
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP, k = s.w.cols;
    if (row >= s.w.rows) return;
    const float *w = row_of<float>(s.w, row), *scale = row_of<float>(s.grid.scale, row);
    const int32_t *order = (const int32_t *)s.order.data;
    const uint8_t *zero = row_of<uint8_t>(s.grid.zero, row);
    float *errors = row_of<float>(s.errors, row), sum[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) sum[i] = first ? row_of<float>(s.sums, row)[i * WARP + lane] : 0;

#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        for (int owner = 0; owner < WARP; owner++) {
            int64_t p = first + i * WARP + owner;
            if (p >= k) return; /* the whole warp: p is the same for all lanes */
            const float *r = row_of<float>(s.r, p);
            float error = 0;
            if (lane == owner) {
                int64_t column = order ? order[p] : p, g = group_of(&s.grid, column);
                int code = ql_encode(w[column] + sum[i] / r[p], scale[g], zero[g], (1 << s.grid.bits) - 1);
                row_of<uint8_t>(s.codes, row)[column] = (uint8_t)code;
                error = w[column] - ql_decode(code, scale[g], zero[g]);
                errors[p] = error;
            }
            error = __shfl_sync(0xffffffffu, error, owner);
#pragma unroll
            for (int j = i; j < PER_LANE; j++) { /* sums of treated columns change too, nobody reads them again */
                int64_t later = first + j * WARP + lane;
                if (later < k) sum[j] = fmaf(error, r[later], sum[j]);
            }
        }
    }
}

ql_status ql_cuda_gptq(ql_ctx *ctx, ql_mat w, ql_mat r, ql_mat order, const ql_grid *grid, ql_mat codes) {
    ql_cuda *gpu;
    char *scratch;
    int64_t n = w.rows, k = w.cols;
    size_t bytes = 0, errors_at = ql_cuda_piece(&bytes, (size_t)(n * k) * sizeof(float));
    size_t sums_at = ql_cuda_piece(&bytes, (size_t)(n * BLOCK) * sizeof(float));
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_check_order(ctx, "gptq", order, k));
    QL_TRY(ql_cuda_check_groups(gpu, "gptq", grid, k));
    QL_TRY(ql_cuda_scratch(gpu, bytes, (void **)&scratch));
    solver s = {w, r, order, codes, *grid};
    s.errors = ql_mat_of(scratch + errors_at, QL_F32, n, k);
    s.sums = ql_mat_of(scratch + sums_at, QL_F32, n, BLOCK);
    for (int64_t first = 0; first < k; first += BLOCK) {
        int64_t size = k - first < BLOCK ? k - first : BLOCK;
        ql_mat above = ql_cols(ql_rows(r, 0, first), first, size);
        if (first)
            QL_TRY(
                ql_cuda_product(gpu, 1, ql_cols(s.errors, 0, first), false, above, false, 0, ql_cols(s.sums, 0, size)));
        LAUNCH(gpu, solve_block_kernel, ql_ceil_div(n, WARPS), WARPS * WARP, s, first);
    }
    return QL_OK;
}

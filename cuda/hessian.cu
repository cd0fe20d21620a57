/* Statistics of activations.   H += X^T X (upper triangle), moments per input, histogram of magnitudes.   X [m][k]
 *
 * BF16 activations into an F32 sum have their own kernel, cuda/syrk.cu.  Otherwise cuBLASLt multiplies, which has no symmetric
 * product, so H is made of panels of PANEL rows: a block on the diagonal, then blocks of WIDE columns to its right.  The waste is PANEL / k
 * of the work.  In double, X is converted beforehand, a slice of rows at a time.
 * Blocks go through scratch: of the one on the diagonal the lower triangle of H must not be touched, and all are products of the same shapes,
 * pitches and alignments whether H is made as a whole or in stripes of panels, so that cuBLASLt's answer, and the bits, are the same.
 * Sums have a fixed order: the same X gives the same bits.   Twin: host/cpu/hessian.c. */
#include "cuda/device.cuh"

enum { PANEL = QL_HESSIAN_STEP, WIDE = 4 * PANEL, SLICE = 4096, THREADS = 256 };

/* ---- H += X^T X -------------------------------------------------------------------------------------------------------------- */

template <typename T> static __global__ void add_block_kernel(ql_mat block, bool upper, ql_mat h) {
    const T *from = row_of<T>(block, blockIdx.x);
    T *to = row_of<T>(h, blockIdx.x);
    for (int64_t j = (upper ? blockIdx.x : 0) + threadIdx.x; j < h.cols; j += THREADS) to[j] += from[j];
}

static __global__ void widen_kernel(ql_mat x, ql_mat wide) {
    double *to = row_of<double>(wide, blockIdx.x);
    for (int64_t j = threadIdx.x; j < x.cols; j += THREADS)
        to[j] =
            x.dtype == QL_BF16 ? ql_bf16_to_f32(row_of<uint16_t>(x, blockIdx.x)[j]) : row_of<float>(x, blockIdx.x)[j];
}

/* Rows of H from `row`, as many as the left columns of X, and the columns of the right ones. */
static ql_status add_block(ql_cuda *gpu, ql_mat left, ql_mat right, ql_mat h, bool upper, void *scratch) {
    const ql_mat block = ql_mat_of(scratch, h.dtype, h.rows, h.cols);
    QL_TRY(ql_cuda_product(gpu, 1, left, true, right, false, 0, block));
    if (h.dtype == QL_F64) LAUNCH(gpu, add_block_kernel<double>, h.rows, THREADS, block, upper, h);
    else LAUNCH(gpu, add_block_kernel<float>, h.rows, THREADS, block, upper, h);
    return QL_OK;
}

/* The panel of H that starts at row and column `first`. */
static ql_status add_panel(ql_cuda *gpu, ql_mat x, ql_mat h, int64_t first, void *scratch) {
    const int64_t size = h.rows - first < PANEL ? h.rows - first : PANEL;
    const ql_mat left = ql_cols(x, first, size), panel = ql_rows(h, first, size);
    QL_TRY(add_block(gpu, left, left, ql_cols(panel, first, size), true, scratch));
    for (int64_t col = first + size; col < h.cols; col += WIDE) {
        const int64_t cols = h.cols - col < WIDE ? h.cols - col : WIDE;
        QL_TRY(add_block(gpu, left, ql_cols(x, col, cols), ql_cols(panel, col, cols), false, scratch));
    }
    return QL_OK;
}

ql_status ql_cuda_hessian(ql_ctx *ctx, ql_mat x, ql_mat h) {
    ql_cuda *gpu;
    char *scratch;
    bool wide = h.dtype == QL_F64;
    int64_t slice = wide && x.rows > SLICE ? SLICE : x.rows;
    size_t bytes = 0, block_at = ql_cuda_piece(&bytes, (size_t)PANEL * WIDE * ql_dtype_size(h.dtype));
    size_t wide_at = ql_cuda_piece(&bytes, wide ? (size_t)(slice * x.ld) * sizeof(double) : 0);
    QL_TRY(ql_cuda_use(ctx, &gpu));
    if (x.dtype == QL_BF16 && !wide) return ql_cuda_syrk(gpu, x, h);
    QL_TRY(ql_cuda_scratch(gpu, bytes, (void **)&scratch));
    for (int64_t row = 0; row < x.rows; row += slice) {
        ql_mat part = ql_rows(x, row, x.rows - row < slice ? x.rows - row : slice);
        if (wide) {
            ql_mat doubles = {scratch + wide_at, QL_F64, part.rows, part.cols, part.ld}; /* the pitch of the whole */
            LAUNCH(gpu, widen_kernel, part.rows, THREADS, part, doubles);
            part = doubles;
        }
        for (int64_t first = 0; first < h.rows; first += PANEL)
            QL_TRY(add_panel(gpu, part, h, first, scratch + block_at));
    }
    return QL_OK;
}

/* ---- moments ------------------------------------------------------------------------------------------------------------------ */

/* A block owns 32 inputs; eight threads share the rows of each and the first of them adds up, always in the same order. */
enum { SHARE = 8 };

static __global__ void moments_kernel(ql_mat x, double *sum_sq, double *sum_abs, float *min, float *max) {
    __shared__ double squares[SHARE][WARP], sums[SHARE][WARP];
    __shared__ float lows[SHARE][WARP], highs[SHARE][WARP];
    int lane = threadIdx.x % WARP, part = threadIdx.x / WARP;
    int64_t column = (int64_t)blockIdx.x * WARP + lane;
    double square = 0, sum = 0;
    float low = INFINITY, high = -INFINITY;
    for (int64_t row = part; column < x.cols && row < x.rows; row += SHARE) {
        float value = value_at(x, row, column);
        square += (double)value * value;
        sum += fabs((double)value);
        low = fminf(low, value);
        high = fmaxf(high, value);
    }
    squares[part][lane] = square, sums[part][lane] = sum, lows[part][lane] = low, highs[part][lane] = high;
    __syncthreads();
    if (part || column >= x.cols) return;
    for (int i = 1; i < SHARE; i++) {
        square += squares[i][lane];
        sum += sums[i][lane];
        low = fminf(low, lows[i][lane]);
        high = fmaxf(high, highs[i][lane]);
    }
    sum_sq[column] += square;
    sum_abs[column] += sum;
    min[column] = fminf(min[column], low);
    max[column] = fmaxf(max[column], high);
}

ql_status ql_cuda_moments(ql_ctx *ctx, ql_mat x, ql_mat sum_sq, ql_mat sum_abs, ql_mat min, ql_mat max) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, moments_kernel, ql_ceil_div(x.cols, WARP), SHARE * WARP, x, (double *)sum_sq.data,
           (double *)sum_abs.data, (float *)min.data, (float *)max.data);
    return QL_OK;
}

/* ---- histogram of magnitudes ------------------------------------------------------------------------------------------------ */

/* Integer atomics: any order gives the same counts. */
static __global__ void abs_hist_kernel(ql_mat x, unsigned long long *count) {
    for (int64_t j = threadIdx.x; j < x.cols; j += THREADS)
        atomicAdd(&count[ql_f32_to_bf16(fabsf(value_at(x, blockIdx.x, j))) & 0x7fff], 1ull);
}

ql_status ql_cuda_abs_hist(ql_ctx *ctx, ql_mat x, ql_mat count) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, abs_hist_kernel, x.rows, THREADS, x, (unsigned long long *)count.data);
    return QL_OK;
}

/* Loss of a rounded weight, loss of a token, distance of two distributions.
 *
 * All sums are in double and in a fixed order.   Twin: host/cpu/measure.c.
 *
 * tr(E H E^T) with H symmetric, stored as its upper triangle: with S the upper triangle and half the diagonal,
 * tr(E H E^T) = 2 tr(E S E^T), so PANEL columns of S at a time are copied to doubles (zero below the diagonal), multiplied by the
 * rows of E and of W, stacked, and the product summed against them.  Double costs little on GPUs made for computing, and saves
 * the cancellation: GPTQ makes E nearly orthogonal to the large directions of H. */
#include "cuda/device.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP, PANEL = 1024, SLICE = 512 };

/* ---- loss ---------------------------------------------------------------------------------------------------------------------- */

/* Rows 0 .. rows-1 become E = w - q, the next ones W. */
static __global__ void stack_kernel(ql_mat w, ql_mat q, ql_mat stack) {
    bool weight = blockIdx.x >= w.rows;
    int64_t row = weight ? blockIdx.x - w.rows : blockIdx.x;
    const float *a = row_of<float>(w, row), *b = row_of<float>(q, row);
    double *to = row_of<double>(stack, blockIdx.x);
    for (int64_t j = threadIdx.x; j < w.cols; j += THREADS) to[j] = weight ? a[j] : (double)a[j] - b[j];
}

/* Columns first .. of S. */
static __global__ void panel_kernel(ql_mat h, int64_t first, ql_mat panel) {
    int64_t i = blockIdx.x;
    double *to = row_of<double>(panel, i);
    for (int64_t c = threadIdx.x; c < panel.cols; c += THREADS) {
        int64_t j = first + c;
        double value = h.dtype == QL_F64 ? row_of<double>(h, i)[j] : row_of<float>(h, i)[j];
        to[c] = i < j ? value : i == j ? value / 2 : 0;
    }
}

/* dots[row] += sum_c product[row][c] stack[row][c]. */
static __global__ void dot_kernel(ql_mat product, ql_mat stack, double *dots) {
    __shared__ double sums[WARPS];
    const double *a = row_of<double>(product, blockIdx.x), *b = row_of<double>(stack, blockIdx.x);
    double sum = 0;
    for (int64_t c = threadIdx.x; c < product.cols; c += THREADS) sum = fma(a[c], b[c], sum);
    sum = block_sum<WARPS>(sum, sums);
    if (threadIdx.x == 0) dots[blockIdx.x] += sum;
}

/* total[0] += factor times the sum of the first half of the dots, total[1] of the second; one block. */
static __global__ void total_kernel(const double *dots, int64_t rows, double factor, double *total) {
    __shared__ double sums[WARPS];
    for (int half = 0; half < 2; half++) {
        double sum = 0;
        for (int64_t i = threadIdx.x; i < rows; i += THREADS) sum += dots[half * rows + i];
        sum = block_sum<WARPS>(sum, sums);
        if (threadIdx.x == 0) total[half] += factor * sum;
    }
}

typedef struct loss_memory {
    double *total, *dots, *stack, *panel, *product;
} loss_memory;

static ql_status loss_scratch(ql_cuda *gpu, int64_t slice, int64_t k, int64_t width, loss_memory *memory) {
    char *scratch;
    size_t bytes = 0, total = ql_cuda_piece(&bytes, 2 * sizeof(double));
    size_t dots = ql_cuda_piece(&bytes, (size_t)(2 * slice) * sizeof(double));
    size_t stack = ql_cuda_piece(&bytes, (size_t)(2 * slice * k) * sizeof(double));
    size_t panel = ql_cuda_piece(&bytes, (size_t)(k * width) * sizeof(double));
    size_t product = ql_cuda_piece(&bytes, (size_t)(2 * slice * width) * sizeof(double));
    QL_TRY(ql_cuda_scratch(gpu, bytes, (void **)&scratch));
    *memory = {(double *)(scratch + total), (double *)(scratch + dots), (double *)(scratch + stack),
               (double *)(scratch + panel), (double *)(scratch + product)};
    return QL_OK;
}

static ql_status add_slice(ql_cuda *gpu, ql_mat w, ql_mat q, ql_mat h, int64_t width, const loss_memory *memory) {
    int64_t rows = 2 * w.rows, k = w.cols;
    ql_mat stack = ql_mat_of(memory->stack, QL_F64, rows, k);
    LAUNCH(gpu, stack_kernel, rows, THREADS, w, q, stack);
    CUDA_TRY(cudaMemsetAsync(memory->dots, 0, (size_t)rows * sizeof(double), gpu->stream));
    if (!ql_is_present(h)) { /* the identity */
        LAUNCH(gpu, dot_kernel, rows, THREADS, stack, stack, memory->dots);
        LAUNCH(gpu, total_kernel, 1, THREADS, memory->dots, w.rows, 1.0, memory->total);
        return QL_OK;
    }
    for (int64_t first = 0; first < k; first += width) {
        int64_t size = k - first < width ? k - first : width, end = first + size;
        ql_mat panel = ql_mat_of(memory->panel, QL_F64, end, size),
               product = ql_mat_of(memory->product, QL_F64, rows, size);
        LAUNCH(gpu, panel_kernel, end, THREADS, h, first, panel);
        QL_TRY(ql_cuda_product(gpu, 1, ql_cols(stack, 0, end), false, panel, false, 0, product));
        LAUNCH(gpu, dot_kernel, rows, THREADS, product, ql_cols(stack, first, size), memory->dots);
    }
    LAUNCH(gpu, total_kernel, 1, THREADS, memory->dots, w.rows, 2.0, memory->total);
    return QL_OK;
}

ql_status ql_cuda_loss(ql_ctx *ctx, ql_mat w, ql_mat q, ql_mat h, double *loss, double *norm) {
    ql_cuda *gpu;
    loss_memory memory;
    double result[2];
    int64_t slice = w.rows < SLICE ? w.rows : SLICE, width = w.cols < PANEL ? w.cols : PANEL;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(loss_scratch(gpu, slice, w.cols, width, &memory));
    CUDA_TRY(cudaMemsetAsync(memory.total, 0, sizeof result, gpu->stream));
    for (int64_t row = 0; row < w.rows; row += slice) {
        int64_t rows = w.rows - row < slice ? w.rows - row : slice;
        QL_TRY(add_slice(gpu, ql_rows(w, row, rows), ql_rows(q, row, rows), h, width, &memory));
    }
    QL_TRY(ql_cuda_download(ctx, result, memory.total, sizeof result));
    *loss = result[0], *norm = result[1];
    return QL_OK;
}

/* ---- softmax --------------------------------------------------------------------------------------------------------------------- */

/* The largest value of a row and its first place. */
typedef struct top {
    float value;
    int64_t place;
} top;

static __device__ top higher(top a, top b) {
    return b.value > a.value || (b.value == a.value && b.place < a.place) ? b : a;
}

static __device__ top row_top(const float *row, int64_t count, top *shared) {
    top best = {-INFINITY, count};
    for (int64_t j = threadIdx.x; j < count; j += THREADS) best = higher(best, {row[j], j});
    for (int step = WARP / 2; step; step /= 2)
        best = higher(best,
                      {__shfl_xor_sync(0xffffffffu, best.value, step), __shfl_xor_sync(0xffffffffu, best.place, step)});
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = best;
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++) best = higher(best, shared[warp]);
    __syncthreads();
    return best;
}

/* log(sum_j exp(row[j] - top)): the logarithm of a probability is row[j] - top - this. */
static __device__ double log_total(const float *row, int64_t count, float top, double *shared) {
    double sum = 0;
    for (int64_t j = threadIdx.x; j < count; j += THREADS) sum += exp((double)row[j] - top);
    return log(block_sum<WARPS>(sum, shared));
}

static __global__ void nll_kernel(ql_mat logits, const int32_t *target, double *nll) {
    __shared__ top tops[WARPS];
    __shared__ double sums[WARPS];
    const float *row = row_of<float>(logits, blockIdx.x);
    int32_t wanted = target[blockIdx.x];
    double loss = 0;
    if (wanted >= 0) { /* the same for the whole block */
        float best = row_top(row, logits.cols, tops).value;
        loss = log_total(row, logits.cols, best, sums) + best - row[wanted];
    }
    if (threadIdx.x == 0) nll[blockIdx.x] = loss;
}

ql_status ql_cuda_nll(ql_ctx *ctx, ql_mat logits, ql_mat target, ql_mat nll) {
    ql_cuda *gpu;
    int64_t at;
    int32_t value;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_find_outside(gpu, target, INT32_MIN, logits.cols, &at, &value));
    if (at >= 0)
        return ql_fail(QL_INVALID, "nll: target[%lld] is %d, there are %lld logits", (long long)at, (int)value,
                       (long long)logits.cols);
    LAUNCH(gpu, nll_kernel, logits.rows, THREADS, logits, (const int32_t *)target.data, (double *)nll.data);
    return QL_OK;
}

static __global__ void kld_kernel(ql_mat base, ql_mat logits, double *kld, uint8_t *same) {
    __shared__ top tops[WARPS];
    __shared__ double sums[WARPS];
    const float *p = row_of<float>(base, blockIdx.x), *q = row_of<float>(logits, blockIdx.x);
    int64_t v = base.cols;
    top p_top = row_top(p, v, tops), q_top = row_top(q, v, tops);
    double p_total = log_total(p, v, p_top.value, sums), q_total = log_total(q, v, q_top.value, sums), sum = 0;
    for (int64_t j = threadIdx.x; j < v; j += THREADS) {
        double log_p = (double)p[j] - p_top.value - p_total, log_q = (double)q[j] - q_top.value - q_total;
        double share = exp(log_p);
        sum += share > 0 ? share * (log_p - log_q) : share; /* 0 log 0 = 0; NaN stays */
    }
    sum = block_sum<WARPS>(sum, sums);
    if (threadIdx.x) return;
    kld[blockIdx.x] = sum;
    same[blockIdx.x] = p_top.place == q_top.place;
}

ql_status ql_cuda_kld(ql_ctx *ctx, ql_mat base, ql_mat logits, ql_mat kld, ql_mat same) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, kld_kernel, base.rows, THREADS, base, logits, (double *)kld.data, (uint8_t *)same.data);
    return QL_OK;
}

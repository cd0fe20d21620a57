/* RMS norm and rotary embedding.   x, y [m][heads * d]
 *
 * The norm has one block per run of d values, one warp where d is a head's, and adds the squares in double in a fixed order, each thread eight
 * neighbours at a time, whether they can be loaded together or not.  In place works: a run is summed before it is written, and then every
 * thread rereads what it alone writes.
 * The rotation has one block per row.   Twin: host/cpu/norm.c. */
#include "cuda/eights.cuh"

enum { WARPS = 8, THREADS = WARPS * WARP, HEAD = 512 /* values of a run that a warp takes */ };

/* ---- y = x / sqrt(mean(x^2) + eps) * weight --------------------------------------------------------------------------------- */

/* The eight values of a thread's turn; zeros behind the run's last one. */
template <int STEP>
static __device__ __forceinline__ void load_turn(const ql_mat &x, int64_t row, int64_t col, int64_t left,
                                                 float (&value)[EIGHT]) {
    if constexpr (STEP == EIGHT) {
        load_values(x, row, col, value);
    } else {
#pragma unroll
        for (int i = 0; i < EIGHT; i++) value[i] = i < left ? value_at(x, row, col + i) : 0;
    }
}

/* SHARE threads, a warp or the block, share a run. */
template <int STEP, int SHARE>
static __global__ void __launch_bounds__(THREADS) rmsnorm_kernel(ql_mat x, ql_mat weight, float eps, ql_mat y) {
    __shared__ double sums[WARPS];
    int64_t number = (int64_t)blockIdx.x * (THREADS / SHARE) + threadIdx.x / SHARE;
    int64_t d = weight.cols, runs = x.cols / d, row = number / runs, first = number % runs * d;
    int thread = threadIdx.x % SHARE;
    double sum = 0;
    if (SHARE == WARP && row >= x.rows) return;
    for (int64_t i = thread * EIGHT; i < d; i += SHARE * EIGHT) {
        float value[EIGHT];
        load_turn<STEP>(x, row, first + i, d - i, value);
#pragma unroll
        for (int j = 0; j < EIGHT; j++) sum = fma((double)value[j], (double)value[j], sum);
    }
    sum = SHARE == WARP ? warp_sum(sum) : block_sum<WARPS>(sum, sums);
    float factor = (float)(1 / sqrt(sum / (double)d + eps));
    for (int64_t i = thread * STEP; i < d; i += SHARE * STEP) {
        float value[STEP], w[STEP];
        load_values(x, row, first + i, value);
        load_floats(row_of<float>(weight, 0) + i, w);
#pragma unroll
        for (int j = 0; j < STEP; j++) w[j] = value[j] * factor * w[j];
        put_values(y, row, first + i, w);
    }
}

template <int STEP> static ql_status normalize(ql_cuda *gpu, ql_mat x, ql_mat weight, float eps, ql_mat y) {
    auto *const of_heads = rmsnorm_kernel<STEP, WARP>, *const of_rows = rmsnorm_kernel<STEP, THREADS>;
    const int64_t runs = x.rows * (x.cols / weight.cols);
    if (weight.cols <= HEAD) LAUNCH(gpu, of_heads, ql_ceil_div(runs, WARPS), THREADS, x, weight, eps, y);
    else LAUNCH(gpu, of_rows, runs, THREADS, x, weight, eps, y);
    return QL_OK;
}

ql_status ql_cuda_rmsnorm(ql_ctx *ctx, ql_mat x, ql_mat weight, float eps, ql_mat y) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    const bool eights = ql_cuda_in_eights(x) && ql_cuda_in_eights(y) && ql_cuda_in_eights(weight);
    return eights ? normalize<EIGHT>(gpu, x, weight, eps, y) : normalize<1>(gpu, x, weight, eps, y);
}

/* ---- rotary embedding: element i of a head turns with element i + d/2 -------------------------------------------------- */

template <int STEP> static __global__ void rope_kernel(ql_mat x, ql_mat position, ql_mat cos, ql_mat sin) {
    int64_t half = cos.cols, pairs = x.cols / 2, at = row_of<int32_t>(position, 0)[blockIdx.x];
    for (int64_t p = threadIdx.x * STEP; p < pairs; p += THREADS * STEP) {
        int64_t i = p % half, a = p / half * 2 * half + i, b = a + half;
        float first[STEP], second[STEP], c[STEP], s[STEP];
        load_values(x, blockIdx.x, a, first);
        load_values(x, blockIdx.x, b, second);
        load_floats(row_of<float>(cos, at) + i, c);
        load_floats(row_of<float>(sin, at) + i, s);
#pragma unroll
        for (int j = 0; j < STEP; j++) {
            float turned = first[j] * c[j] - second[j] * s[j];
            second[j] = second[j] * c[j] + first[j] * s[j];
            first[j] = turned;
        }
        put_values(x, blockIdx.x, a, first);
        put_values(x, blockIdx.x, b, second);
    }
}

ql_status ql_cuda_rope(ql_ctx *ctx, ql_mat x, int64_t heads, ql_mat position, ql_mat cos, ql_mat sin) {
    (void)heads; /* x.cols / (2 cos.cols), checked at the door */
    ql_cuda *gpu;
    int64_t at;
    int32_t value;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_find_outside(gpu, position, 0, cos.rows, &at, &value));
    if (at >= 0)
        return ql_fail(QL_INVALID, "rope: position[%lld] is %d, the table has %lld", (long long)at, (int)value,
                       (long long)cos.rows);
    if (ql_cuda_in_eights(x) && ql_cuda_in_eights(cos) && ql_cuda_in_eights(sin))
        LAUNCH(gpu, rope_kernel<EIGHT>, x.rows, THREADS, x, position, cos, sin);
    else LAUNCH(gpu, rope_kernel<1>, x.rows, THREADS, x, position, cos, sin);
    return QL_OK;
}

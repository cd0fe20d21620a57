/* Every product on every GPU, without tensor cores: what is always right, and what faster kernels are compared with.
 *
 *   y[m][n] = x[m][k] W[n][k]^T + bias[n]
 *
 * A block makes a tile of 16 tokens x 64 outputs.  Pieces of 32 inputs of both operands are widened to FP32 in shared memory, with
 * the scales that vary along k applied; thread t sums outputs t % 64 of tokens t / 64, + 4, + 8, + 12, one product after the other, in FP32
 * with fused steps or in 32-bit integers.  The order of a sum depends on nothing but k.
 * Twin: host/cpu/product.c. */
#include "cuda/product.cuh"

enum { ROWS = 16, COLS = 64, STEP = 32, THREADS = 256, SUMS = ROWS * COLS / THREADS };

/* What a kernel may read: all by value, the plan lives in host memory. */
typedef struct any_job {
    ql_product product;
    ql_packed packed;
    ql_arguments arguments;
} any_job;

static __device__ float x_at(const any_job *j, int64_t m, int64_t k) {
    const ql_arguments *a = &j->arguments;
    int64_t input = j->packed.order ? section<int32_t>(a->weight, j->packed.order)[k] : k;
    float x = widened(a->x.dtype, a->x.data, m * a->x.ld + input);
    if (a->x_zero.data) x -= (float)row_of<int32_t>(a->x_zero, 0)[m];
    if (j->product.x_scale == QL_SCALE_BLOCK) x *= row_of<float>(a->x_scale, m)[k / 128];
    return x;
}

static __device__ float code_at(const any_job *j, int64_t n, int64_t k) {
    const ql_packed *p = &j->packed;
    const void *packed = j->arguments.weight;
    const int row = (int)(n % QL_TILE), col = (int)(k % QL_TILE), bits = (int)p->bits;
    int64_t tile = n / QL_TILE * ql_tiles_along(p->k) + k / QL_TILE, g = k / p->group;
    const uint32_t *unit = section<uint32_t>(packed, p->values) + ql_unit_word(tile, ql_unit_of(row, col), bits);
    int zero = p->zero ? section<uint8_t>(packed, p->zero)[ql_packed_at(p, n, g)] : 1 << (bits - 1);
    float scale = p->scale_mode == QL_SCALE_GROUP ? group_scale(p, packed, n, g) : 1.0f;
    return ql_decode(ql_unit_code(unit, bits, ql_slot_of(row, col)), scale, zero);
}

static __device__ float w_at(const any_job *j, int64_t n, int64_t k) {
    const ql_packed *p = &j->packed;
    const void *packed = j->arguments.weight;
    if (p->bits) return code_at(j, n, k);
    float w = widened((ql_dtype)p->dtype, section<char>(packed, p->values), n * p->k + k);
    if (p->scale_mode == QL_SCALE_BLOCK)
        w *= section<float>(packed, p->scale)[n / 128 * ((p->k + 127) / 128) + k / 128];
    return w;
}

/* Widens the piece of both operands that begins at input k0; zero beyond the ends. */
static __device__ void load_piece(const any_job *j, int64_t m0, int64_t n0, int64_t k0, float x[ROWS][STEP],
                                  float w[COLS][STEP + 1]) {
    for (int i = (int)threadIdx.x; i < (ROWS + COLS) * STEP; i += THREADS) {
        int row = i / STEP, col = i % STEP;
        int64_t k = k0 + col, m = m0 + row, n = n0 + row - ROWS;
        if (row < ROWS) x[row][col] = k < j->product.k && m < j->arguments.x.rows ? x_at(j, m, k) : 0.0f;
        else w[row - ROWS][col] = k < j->product.k && n < j->product.n ? w_at(j, n, k) : 0.0f;
    }
}

static __device__ __forceinline__ void add_product(float *sum, float x, float w) { *sum = fmaf(x, w, *sum); }
static __device__ __forceinline__ void add_product(uint32_t *sum, float x, float w) {
    *sum += (uint32_t)((int32_t)x * (int32_t)w); /* modulo 2^32, as the tensor cores */
}

static __device__ __forceinline__ float value_of(float sum) { return sum; }
static __device__ __forceinline__ float value_of(uint32_t sum) { return (float)(int32_t)sum; }
static __device__ __forceinline__ int32_t exact_of(float) { return 0; } /* y I32 has integer sums */
static __device__ __forceinline__ int32_t exact_of(uint32_t sum) { return (int32_t)sum; }

template <typename SUM> static __device__ void finish(const any_job *j, int64_t m, int64_t n, SUM sum) {
    const ql_arguments *a = &j->arguments;
    if (m >= a->x.rows || n >= j->product.n) return;
    float value = ql_finished(&j->product, &j->packed, a, m, n, value_of(sum));
    if (a->y_amax.data) atomicMax((int32_t *)a->y_amax.data, (int32_t)(ql_f32_bits(value) & 0x7fffffffu));
    if (a->y.dtype == QL_I32) row_of<int32_t>(a->y, m)[n] = exact_of(sum);
    else ql_store_value(a, m, n, value);
}

template <typename SUM> static __global__ void any_kernel(any_job j) {
    __shared__ float x[ROWS][STEP], w[COLS][STEP + 1]; /* + 1: the rows of one column lie in different banks */
    const int64_t across = (j.product.n + COLS - 1) / COLS;
    const int64_t m0 = blockIdx.x / across * ROWS, n0 = blockIdx.x % across * COLS;
    const int col = (int)threadIdx.x % COLS, row = (int)threadIdx.x / COLS;
    SUM sum[SUMS] = {};
    for (int64_t k0 = 0; k0 < j.product.k; k0 += STEP) {
        load_piece(&j, m0, n0, k0, x, w);
        __syncthreads();
        for (int i = 0; i < STEP; i++)
#pragma unroll
            for (int s = 0; s < SUMS; s++) add_product(&sum[s], x[row + s * (THREADS / COLS)][i], w[col][i]);
        __syncthreads();
    }
#pragma unroll
    for (int s = 0; s < SUMS; s++) finish(&j, m0 + row + s * (THREADS / COLS), n0 + col, sum[s]);
}

static ql_status takes(const ql_product *, int) { return QL_OK; }

static ql_status run(const ql_plan *plan, const ql_arguments *arguments, void *, void *stream) {
    any_job job = {plan->product, plan->packed, *arguments};
    int64_t blocks = ql_ceil_div(arguments->x.rows, ROWS) * ql_ceil_div(plan->product.n, COLS);
    if (ql_is_present(arguments->y_amax))
        CUDA_TRY(cudaMemsetAsync(arguments->y_amax.data, 0, sizeof(float), (cudaStream_t)stream));
    if (ql_product_is_exact(&plan->product))
        LAUNCH_ON((cudaStream_t)stream, any_kernel<uint32_t>, blocks, THREADS, job);
    else LAUNCH_ON((cudaStream_t)stream, any_kernel<float>, blocks, THREADS, job);
    return QL_OK;
}

const ql_kernel ql_product_any = {"any.sm80", takes, 1, INT64_MAX, NULL, run};

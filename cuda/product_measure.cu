/* Which of cuBLASLt's algorithms is the fastest for a dense product on this GPU: only when asked to, never on the way.
 *
 * Up to 16 candidates per power of two of m.  Operands are random (zeros draw less power and run faster); the weight has so many
 * copies, taken in turn, that it comes from memory and not from a cache, as in a model.  Near ties are unstable: cuBLASLt's own
 * first choice stays unless another one is 2 % faster. */
#include "cuda/product_dense.cuh"
#include "host/rng.h"

enum { CANDIDATES = 16, MOST_COPIES = 64, WARM_UP = 3, CALLS = 20, REPEATS = 5 };
static const float BEATEN = 0.98f;

typedef struct bench {
    ql_ctx *ctx;
    ql_cuda *gpu;
    const ql_product *product;
    char *memory, *x, *y, *w, *workspace, *bias;
    size_t w_bytes;
    int copies;
    cudaEvent_t begin, end;
} bench;

/* Uniform in [-1, 1). */
static __global__ void randomize_kernel(void *data, int64_t count, ql_dtype dtype) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        float x = (float)(2 * ql_random_uniform(1, (uint64_t)i) - 1);
        if (dtype == QL_F32) ((float *)data)[i] = x;
        else ((uint16_t *)data)[i] = dtype == QL_F16 ? ql_f32_to_f16(x) : ql_f32_to_bf16(x);
    }
}

static ql_status randomize(bench *b, void *data, size_t bytes, ql_dtype dtype) {
    int64_t count = (int64_t)(bytes / ql_dtype_size(dtype)), blocks = ql_ceil_div(count, 1024);
    LAUNCH(b->gpu, randomize_kernel, blocks < 4096 ? blocks : 4096, 256, data, count, dtype);
    return QL_OK;
}

/* Copies of the weight that together are three times the second-level cache. */
static ql_status count_copies(bench *b) {
    cudaDeviceProp properties;
    CUDA_TRY(cudaGetDeviceProperties(&properties, b->gpu->device));
    size_t copies = 3 * (size_t)properties.l2CacheSize / b->w_bytes + 1;
    b->copies = copies < MOST_COPIES ? (int)copies : MOST_COPIES;
    return QL_OK;
}

static ql_status make_operands(bench *b) {
    const ql_product *p = b->product;
    size_t total = 0, one = 0;
    ql_cuda_piece(&one, (size_t)(p->n * p->k) * ql_dtype_size(p->w));
    b->w_bytes = one;
    QL_TRY(count_copies(b));
    size_t x = ql_cuda_piece(&total, (size_t)(p->m_max * p->k) * ql_dtype_size(p->x));
    size_t y = ql_cuda_piece(&total, (size_t)(p->m_max * p->n) * ql_dtype_size(p->y));
    size_t w = ql_cuda_piece(&total, b->w_bytes * (size_t)b->copies), space = ql_cuda_piece(&total, WORKSPACE);
    size_t bias = ql_cuda_piece(&total, (size_t)p->n * ql_dtype_size(p->y));
    QL_TRY(ql_cuda_alloc(b->ctx, total, (void **)&b->memory));
    b->x = b->memory + x, b->y = b->memory + y, b->w = b->memory + w, b->workspace = b->memory + space;
    b->bias = b->memory + bias;
    QL_TRY(randomize(b, b->x, y - x, p->x));
    QL_TRY(randomize(b, b->w, space - w, p->w));
    QL_TRY(randomize(b, b->bias, total - bias, p->y));
    CUDA_TRY(cudaEventCreate(&b->begin));
    CUDA_TRY(cudaEventCreate(&b->end));
    return QL_OK;
}

static ql_status calls(bench *b, dense_call *call, const cublasLtMatmulAlgo_t *algorithm, int count) {
    for (int i = 0; i < count; i++)
        QL_TRY(ql_dense_multiply(b->gpu->blas, call, algorithm, b->w + (size_t)(i % b->copies) * b->w_bytes, b->x, b->y,
                                 b->workspace, b->gpu->stream));
    return QL_OK;
}

/* Microseconds of one call: the median of REPEATS. */
static ql_status time_of(bench *b, dense_call *call, const cublasLtMatmulAlgo_t *algorithm, float *us) {
    float times[REPEATS];
    QL_TRY(calls(b, call, algorithm, WARM_UP));
    for (int r = 0; r < REPEATS; r++) {
        float ms;
        CUDA_TRY(cudaEventRecord(b->begin, b->gpu->stream));
        QL_TRY(calls(b, call, algorithm, CALLS));
        CUDA_TRY(cudaEventRecord(b->end, b->gpu->stream));
        CUDA_TRY(cudaEventSynchronize(b->end));
        CUDA_TRY(cudaEventElapsedTime(&ms, b->begin, b->end));
        int at = r; /* insertion sort */
        for (; at > 0 && times[at - 1] > ms; at--) times[at] = times[at - 1];
        times[at] = ms;
    }
    *us = times[REPEATS / 2] * 1000 / CALLS;
    return QL_OK;
}

static ql_status measure_m(bench *b, int64_t m, ql_choice *best) {
    const ql_product *p = b->product;
    cublasLtMatmulHeuristicResult_t answers[CANDIDATES];
    dense_call call;
    int count;
    float least = 0;
    QL_TRY(ql_dense_key(b->gpu->device, p, m, best));
    QL_TRY(ql_dense_describe(&call, p, m, p->k, p->n, p->bias ? b->bias : NULL));
    QL_TRY(ql_dense_ask(b->gpu->blas, &call, 16, CANDIDATES, answers, &count));
    for (int i = 0; i < count; i++) {
        float us = 0;
        if (answers[i].state != CUBLAS_STATUS_SUCCESS || answers[i].workspaceSize > WORKSPACE) continue;
        QL_TRY(time_of(b, &call, &answers[i].algo, &us));
        if (least != 0 && us >= least * BEATEN) continue;
        least = us;
        memcpy(best->algorithm, &answers[i].algo, sizeof best->algorithm);
    }
    best->ns = (int64_t)(least * 1000);
    return QL_OK;
}

static ql_status measure_all(bench *b, ql_arena *arena, ql_choices *choices) {
    const int64_t m_max = b->product->m_max;
    ql_choice best;
    QL_TRY(make_operands(b));
    for (int bucket = 0; bucket <= ql_dense_bucket(m_max); bucket++) {
        QL_TRY(measure_m(b, ql_dense_bucket_m(bucket, m_max), &best));
        QL_TRY(ql_choices_put(choices, arena, &best));
    }
    return QL_OK;
}

ql_status ql_cuda_measure(ql_ctx *ctx, const ql_plan *plan, ql_arena *arena, ql_choices *choices) {
    bench b = {};
    b.ctx = ctx, b.product = &plan->product;
    QL_TRY(ql_cuda_use(ctx, &b.gpu));
    if (ql_plan_kernel(plan, 1) != &ql_product_dense)
        return ql_fail(QL_UNSUPPORTED, "measure: %s has nothing to choose from, only products through cuBLASLt have",
                       ql_plan_describe(plan, 1));
    ql_status status = measure_all(&b, arena, choices);
    if (b.begin) cudaEventDestroy(b.begin);
    if (b.end) cudaEventDestroy(b.end);
    if (b.memory) ql_cuda_free(ctx, b.memory);
    return status;
}

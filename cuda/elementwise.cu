/* Operations on single elements: embedding, SwiGLU, addition, conversion, search for what is not finite.
 *
 * One block per row, its threads side by side along the columns: loads coalesce, and no element needs a division to find its
 * row.  All are limited by memory, so activations are taken eight at a time where every operand is aligned; the bits are the same.
 * Twin: host/cpu/elementwise.c.  expf differs from the CPU's in the last place, everything else is bit for bit the same. */
#include "cuda/eights.cuh"

enum { THREADS = 256 };

/* ---- x[i] = table[ids[i]] ------------------------------------------------------------------------------------------------ */

template <int STEP> static __global__ void embed_kernel(ql_mat table, ql_mat ids, ql_mat x) {
    int64_t from = row_of<int32_t>(ids, 0)[blockIdx.x];
    for (int64_t j = threadIdx.x * STEP; j < x.cols; j += THREADS * STEP) {
        float value[STEP];
        load_values(table, from, j, value);
        put_values(x, blockIdx.x, j, value);
    }
}

ql_status ql_cuda_embed(ql_ctx *ctx, ql_mat table, ql_mat ids, ql_mat x) {
    ql_cuda *gpu;
    int64_t at;
    int32_t id;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_find_outside(gpu, ids, 0, table.rows, &at, &id));
    if (at >= 0)
        return ql_fail(QL_INVALID, "embed: ids[%lld] is %d, the table has %lld rows", (long long)at, (int)id,
                       (long long)table.rows);
    if (ql_cuda_in_eights(table) && ql_cuda_in_eights(x))
        LAUNCH(gpu, embed_kernel<EIGHT>, x.rows, THREADS, table, ids, x);
    else LAUNCH(gpu, embed_kernel<1>, x.rows, THREADS, table, ids, x);
    return QL_OK;
}

/* ---- y = gate / (1 + exp(-gate)) * up,   x += y -------------------------------------------------------------------------- */

template <int STEP> static __global__ void swiglu_kernel(ql_mat gate, ql_mat up, ql_mat y) {
    for (int64_t j = threadIdx.x * STEP; j < y.cols; j += THREADS * STEP) {
        float g[STEP], u[STEP];
        load_values(gate, blockIdx.x, j, g);
        load_values(up, blockIdx.x, j, u);
#pragma unroll
        for (int i = 0; i < STEP; i++) g[i] = g[i] / (1.0f + expf(-g[i])) * u[i];
        put_values(y, blockIdx.x, j, g);
    }
}

ql_status ql_cuda_swiglu(ql_ctx *ctx, ql_mat gate, ql_mat up, ql_mat y) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    if (ql_cuda_in_eights(gate) && ql_cuda_in_eights(up) && ql_cuda_in_eights(y))
        LAUNCH(gpu, swiglu_kernel<EIGHT>, y.rows, THREADS, gate, up, y);
    else LAUNCH(gpu, swiglu_kernel<1>, y.rows, THREADS, gate, up, y);
    return QL_OK;
}

static __global__ void add_f64_kernel(ql_mat x, float alpha, ql_mat y) {
    double *sum = row_of<double>(x, blockIdx.x);
    const double *term = row_of<double>(y, blockIdx.x);
    for (int64_t j = threadIdx.x; j < x.cols; j += THREADS) sum[j] += alpha * term[j];
}

template <int STEP> static __global__ void add_kernel(ql_mat x, float alpha, ql_mat y) {
    for (int64_t j = threadIdx.x * STEP; j < x.cols; j += THREADS * STEP) {
        float sum[STEP], term[STEP];
        load_values(x, blockIdx.x, j, sum);
        load_values(y, blockIdx.x, j, term);
#pragma unroll
        for (int i = 0; i < STEP; i++) sum[i] += alpha * term[i];
        put_values(x, blockIdx.x, j, sum);
    }
}

ql_status ql_cuda_add(ql_ctx *ctx, ql_mat x, float alpha, ql_mat y) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    if (x.dtype == QL_F64) LAUNCH(gpu, add_f64_kernel, x.rows, THREADS, x, alpha, y);
    else if (ql_cuda_in_eights(x) && ql_cuda_in_eights(y)) LAUNCH(gpu, add_kernel<EIGHT>, x.rows, THREADS, x, alpha, y);
    else LAUNCH(gpu, add_kernel<1>, x.rows, THREADS, x, alpha, y);
    return QL_OK;
}

/* ---- conversion ------------------------------------------------------------------------------------------------------------ */

/* The type is the same for all threads, so the branches cost nothing beside the loads, and one kernel serves 16 pairs. */
static __device__ double load_float(ql_mat mat, int64_t row, int64_t col) {
    switch (mat.dtype) {
    case QL_F64: return row_of<double>(mat, row)[col];
    case QL_F32: return row_of<float>(mat, row)[col];
    case QL_F16: return ql_f16_to_f32(row_of<uint16_t>(mat, row)[col]);
    default: return ql_bf16_to_f32(row_of<uint16_t>(mat, row)[col]);
    }
}

static __device__ void store_float(ql_mat mat, int64_t row, int64_t col, double x) {
    switch (mat.dtype) {
    case QL_F64: row_of<double>(mat, row)[col] = x; return;
    case QL_F32: row_of<float>(mat, row)[col] = (float)x; return;
    case QL_F16: row_of<uint16_t>(mat, row)[col] = ql_f32_to_f16(ql_f64_to_odd(x)); return;
    default: row_of<uint16_t>(mat, row)[col] = ql_f32_to_bf16(ql_f64_to_odd(x)); return;
    }
}

static __global__ void convert_kernel(ql_mat src, ql_mat dst) {
    for (int64_t j = threadIdx.x; j < src.cols; j += THREADS)
        store_float(dst, blockIdx.x, j, load_float(src, blockIdx.x, j));
}

/* Between F32 and BF16, eight at a time. */
static __global__ void convert_eights_kernel(ql_mat src, ql_mat dst) {
    for (int64_t j = threadIdx.x * EIGHT; j < src.cols; j += THREADS * EIGHT) {
        float value[EIGHT];
        load_values(src, blockIdx.x, j, value);
        put_values(dst, blockIdx.x, j, value);
    }
}

static bool is_activation(ql_mat mat) { return mat.dtype == QL_F32 || mat.dtype == QL_BF16; }

ql_status ql_cuda_convert(ql_ctx *ctx, ql_mat src, ql_mat dst) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    if (is_activation(src) && is_activation(dst) && ql_cuda_in_eights(src) && ql_cuda_in_eights(dst))
        LAUNCH(gpu, convert_eights_kernel, src.rows, THREADS, src, dst);
    else LAUNCH(gpu, convert_kernel, src.rows, THREADS, src, dst);
    return QL_OK;
}

/* ---- the first NaN or infinity --------------------------------------------------------------------------------------------- */

static __global__ void find_nonfinite_kernel(ql_mat x, unsigned long long *first) {
    for (int64_t j = threadIdx.x; j < x.cols; j += THREADS)
        if (!isfinite(load_float(x, blockIdx.x, j))) {
            atomicMin(first, (unsigned long long)(blockIdx.x * x.cols + j));
            return; /* this thread's later columns cannot be first */
        }
}

ql_status ql_cuda_find_nonfinite(ql_ctx *ctx, ql_mat x, int64_t *index) {
    ql_cuda *gpu;
    unsigned long long *first;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_scratch(gpu, sizeof *first, (void **)&first));
    CUDA_TRY(cudaMemsetAsync(first, 0xff, sizeof *first, gpu->stream)); /* the largest index, and -1 in *index */
    LAUNCH(gpu, find_nonfinite_kernel, x.rows, THREADS, x, first);
    return ql_cuda_download(ctx, index, first, sizeof *index);
}

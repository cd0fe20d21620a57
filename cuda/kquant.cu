/* Block formats of GGUF.   w [n][k]
 *
 * A warp owns 32 sub-blocks of 16 or 32 weights, two or four superblocks; a thread fits one of them, with its values in a column of
 * shared memory.  Then two threads per superblock fit its scales and its minimums, every thread rounds its sub-block again, and all
 * of them write bytes.  The sums of a sub-block are made one after the other, as the format demands: what is parallel is the many
 * sub-blocks.  The arithmetic is that of host/kquant.h, so bytes are those of the CPU.   Twin: host/cpu/kquant.c. */
#include "cuda/device.cuh"
#include "host/kquant.h"

enum { THREADS = 256, SUBS = QL_SUPER / 16 };

/* What a warp works on. */
struct columns {
    float x[32 * WARP], w[32 * WARP], code[32 * WARP];
    float scale[SUBS * WARP], weight[SUBS * WARP], scale_code[SUBS * WARP]; /* columns of the threads that fit scales */
    float worth[WARP];
    uint8_t bytes[32 * WARP], scale_bytes[WARP], min_bytes[WARP];
    uint16_t d[WARP], m[WARP]; /* per sub-block, or in the first of a superblock */
};

static __device__ __forceinline__ void load_column(columns *s, const float *x, const float *importance, int n) {
    for (int i = 0; i < n; i++) {
        s->x[i * WARP + threadIdx.x] = x ? x[i] : 0.0f;
        s->w[i * WARP + threadIdx.x] = x && importance ? importance[i] : 0.0f;
    }
}

/* Threads 0 and 1 of every superblock: scales and minimums.  They come back as the file has them. */
static __device__ __forceinline__ void fit_scales(columns *s, ql_block_type type, int subs, int important, float *scale,
                                                  float *min, float weight) {
    const int t = threadIdx.x, first = t / subs * subs, sub = t % subs;
    s->scale[sub * WARP + first] = *scale, s->scale[sub * WARP + first + 1] = -*min;
    s->weight[sub * WARP + first] = s->weight[sub * WARP + first + 1] = weight;
    __syncthreads();
    if (sub < 2) {
        ql_column c = {s->scale + t, s->weight + t, s->scale_code + t, subs};
        s->worth[t] = ql_fit_scales(type, c, important);
    }
    __syncthreads();
    float code = s->scale_code[sub * WARP + first], min_code = s->scale_code[sub * WARP + first + 1];
    s->scale_bytes[t] = (uint8_t)code, s->min_bytes[t] = (uint8_t)min_code;
    s->d[t] = ql_f32_to_f16(s->worth[first]), s->m[t] = ql_f32_to_f16(s->worth[first + 1]);
    *scale = ql_f16_to_f32(s->d[t]) * (code - ql_scale_middle(type));
    *min = ql_has_min(type) ? ql_f16_to_f32(s->m[t]) * min_code : 0.0f;
}

static __device__ __forceinline__ void write_blocks(const columns *s, ql_block_type type, int64_t first_weight,
                                                    int64_t k, int64_t weights_left, int weights, int bytes,
                                                    ql_mat blocks) {
    int count =
        (int)(weights_left < WARP * ql_sub_weights(type) ? weights_left : WARP * ql_sub_weights(type)) / weights;
    for (int i = threadIdx.x; i < count * bytes; i += WARP) {
        int block = i / bytes, sub = block * (weights / ql_sub_weights(type));
        ql_block_parts parts = {s->bytes + block * weights, s->scale_bytes + sub, s->min_bytes + sub, s->d[sub],
                                s->m[sub]};
        int64_t at = first_weight + (int64_t)block * weights;
        row_of<uint8_t>(blocks, at / k)[at % k / weights * bytes + i % bytes] = ql_block_byte(type, &parts, i % bytes);
    }
}

static __global__ void encode_kernel(ql_mat w, ql_mat importance, const float *row_energy, ql_block_type type,
                                     int weights, int bytes, ql_mat blocks) {
    __shared__ columns s;
    const int n = ql_sub_weights(type), important = importance.data != NULL;
    const int64_t first = (int64_t)blockIdx.x * WARP * n, at = first + threadIdx.x * n, total = w.rows * w.cols;
    const int64_t row = at / w.cols, col = at % w.cols;
    const float *x = at < total ? row_of<float>(w, row) + col : NULL;
    const float *q = important && x ? (const float *)importance.data + col : NULL;
    load_column(&s, x, q, n);

    float super = q && ql_is_super(type) ? ql_sum_of_squares(x - col % QL_SUPER, QL_SUPER) / QL_SUPER : 0.0f;
    ql_column c = {s.x + threadIdx.x, s.w + threadIdx.x, s.code + threadIdx.x, n};
    float min, weight = 0.0f;
    ql_weigh(type, c, s.w + threadIdx.x, important,
             ql_energy(type, c, q && row_energy ? row_energy[row] : 0.0f, super));
    for (int i = 0; i < n; i++) weight += AT(c.w, i);
    float scale = ql_fit(type, c, important, &min);
    if (ql_is_super(type)) {
        fit_scales(&s, type, QL_SUPER / n, important, &scale, &min, weight);
        ql_refit(type, c, scale, min);
    } else s.d[threadIdx.x] = ql_f32_to_f16(scale), s.m[threadIdx.x] = ql_f32_to_f16(min);
    for (int i = 0; i < n; i++) s.bytes[threadIdx.x * n + i] = (uint8_t)AT(c.code, i);
    __syncthreads();
    write_blocks(&s, type, first, w.cols, total - first, weights, bytes, blocks);
}

/* One thread per row: the order of the sum is the format's. */
static __global__ void row_energy_kernel(ql_mat w, float *energy) {
    int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (row < w.rows) energy[row] = ql_sum_of_squares(row_of<float>(w, row), w.cols) / (float)w.cols;
}

ql_status ql_cuda_encode_blocks(ql_ctx *ctx, ql_mat w, ql_mat importance, ql_block_type type, ql_mat blocks) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    float *energy = NULL;
    if (ql_is_present(importance) && ql_needs_row_energy(type)) {
        QL_TRY(ql_cuda_scratch(gpu, (size_t)w.rows * sizeof *energy, (void **)&energy));
        LAUNCH(gpu, row_energy_kernel, ql_ceil_div(w.rows, THREADS), THREADS, w, energy);
    }
    LAUNCH(gpu, encode_kernel, ql_ceil_div(w.rows * w.cols, WARP * ql_sub_weights(type)), WARP, w, importance, energy,
           type, (int)ql_block_weights(type), (int)ql_block_bytes(type), blocks);
    return QL_OK;
}

static __global__ void decode_kernel(ql_mat blocks, ql_block_type type, int weights, int bytes, ql_mat w) {
    const uint8_t *from = row_of<uint8_t>(blocks, blockIdx.x);
    for (int c = threadIdx.x; c < w.cols; c += THREADS)
        row_of<float>(w, blockIdx.x)[c] = ql_block_value(type, from + (int64_t)(c / weights) * bytes, c % weights);
}

ql_status ql_cuda_decode_blocks(ql_ctx *ctx, ql_mat blocks, ql_block_type type, ql_mat w) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, decode_kernel, w.rows, THREADS, blocks, type, (int)ql_block_weights(type), (int)ql_block_bytes(type),
           w);
    return QL_OK;
}

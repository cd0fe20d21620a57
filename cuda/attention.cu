/* Causal attention, within sequences and over a cache.   q, out [m][heads * d], k, v [keys][kv_heads * d]
 *
 * One warp per query row and head; over a cache, where queries are few and keys are many, one block, whose warps take every eighth
 * key each and put their parts together in shared memory.  A lane owns d/32 components of the query and of the output and walks the keys that the query
 * may see, oldest first, with the online softmax: `top` is the largest score so far, `total` and the output are relative to it.
 * Keys and values are read once per query, from L2 mostly.  Scores are FP32, their order is fixed.   Limit: d <= 256.
 * BF16 goes to the tensor cores (cuda/flash.cu), where tiles of queries share them; what cannot be copied 16 bytes at a time is
 * widened and comes back here.   Twin: host/cpu/attention.c. */
#include "cuda/attention.cuh"

enum { WARPS = 8, MAX_D = WARPS * WARP, PER_LANE = MAX_D / WARP };

/* The sequence that holds `row`: the last s with start[s] <= row, so empty sequences are skipped. */
static __device__ int64_t sequence_start(const int64_t *start, int64_t n_seq, int64_t row) {
    int64_t low = 0, high = n_seq - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (start[middle] <= row) low = middle;
        else high = middle - 1;
    }
    return start[low];
}

/* What a warp knows of one query after some keys: lane's components of sum_j w_j v_j and the sum of w_j = exp(score_j - top). */
typedef struct partial {
    float sum[PER_LANE], top, total;
} partial;

/* The keys `key`, key + step, ... below `end`, oldest first.  q, k and v are views of the head's columns. */
static __device__ __forceinline__ partial walk_keys(ql_mat q, int64_t row, ql_mat k, ql_mat v, float scale, int64_t key,
                                                    int64_t end, int step) {
    int lane = threadIdx.x % WARP, d = (int)q.cols;
    float query[PER_LANE];
    partial p = {{0}, -INFINITY, 0};
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int c = lane + i * WARP;
        query[i] = c < d ? row_of<float>(q, row)[c] : 0;
    }
    for (; key < end; key += step) {
        const float *k_row = row_of<float>(k, key), *v_row = row_of<float>(v, key);
        float dot = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            int c = lane + i * WARP;
            if (c < d) dot = fmaf(query[i], k_row[c], dot);
        }
        float score = warp_sum(dot) * scale, higher = fmaxf(p.top, score);
        float shrink = expf(p.top - higher), weight = expf(score - higher); /* exp(-inf) = 0 at the first key */
        p.total = p.total * shrink + weight;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            int c = lane + i * WARP;
            if (c < d) p.sum[i] = fmaf(weight, v_row[c], p.sum[i] * shrink);
        }
        p.top = higher;
    }
    return p;
}

/* The columns of one head. */
static __device__ __forceinline__ ql_mat head_of(ql_mat mat, int64_t head, int64_t d) {
    mat.data = (float *)mat.data + head * d;
    mat.cols = d;
    return mat;
}

static __global__ void attention_kernel(ql_mat q, ql_mat k, ql_mat v, ql_attention_shape shape, const int64_t *start,
                                        int64_t n_seq, ql_mat out) {
    int64_t task = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (task >= q.rows * shape.heads) return;
    int lane = threadIdx.x % WARP, d = (int)(q.cols / shape.heads);
    int64_t row = task / shape.heads, head = task % shape.heads, kv_head = head / (shape.heads / shape.kv_heads);
    int64_t key = first_key(sequence_start(start, n_seq, row), row, shape.window);
    partial p = walk_keys(head_of(q, head, d), row, head_of(k, kv_head, d), head_of(v, kv_head, d), shape.scale, key,
                          row + 1, 1);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int c = lane + i * WARP;
        if (c < d) row_of<float>(out, row)[head * d + c] = p.sum[i] / p.total;
    }
}

static __global__ void attention_cached_kernel(ql_mat q, ql_mat k, ql_mat v, ql_attention_shape shape, ql_mat out) {
    __shared__ float sums[WARPS][MAX_D], tops[WARPS], totals[WARPS];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, d = (int)(q.cols / shape.heads);
    int64_t row = blockIdx.x / shape.heads, head = blockIdx.x % shape.heads;
    int64_t kv_head = head / (shape.heads / shape.kv_heads), last = row + k.rows - q.rows;
    int64_t key = first_key(0, last, shape.window) + warp;
    partial p = walk_keys(head_of(q, head, d), row, head_of(k, kv_head, d), head_of(v, kv_head, d), shape.scale, key,
                          last + 1, WARPS);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) sums[warp][lane + i * WARP] = p.sum[i];
    if (lane == 0) tops[warp] = p.top, totals[warp] = p.total;
    __syncthreads();
    float top = tops[0], total = 0, value = 0;
    for (int w = 1; w < WARPS; w++) top = fmaxf(top, tops[w]);
    for (int w = 0; w < WARPS; w++) {
        float share = expf(tops[w] - top); /* 0 for a warp without keys */
        total = fmaf(share, totals[w], total);
        value = fmaf(share, sums[w][threadIdx.x], value);
    }
    if ((int)threadIdx.x < d) row_of<float>(out, row)[head * d + threadIdx.x] = value / total;
}

static ql_status check_head(int64_t d) {
    if (d <= MAX_D) return QL_OK;
    return ql_fail(QL_UNSUPPORTED, "attention: heads of %lld values, the CUDA kernel has at most %d", (long long)d,
                   MAX_D);
}

static ql_status attend(ql_ctx *ctx, ql_cuda *gpu, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                        const int64_t *start, int64_t n_seq, int64_t *starts, ql_mat out) {
    QL_TRY(ql_cuda_upload(ctx, starts, start, (size_t)(n_seq + 1) * sizeof *starts));
    LAUNCH(gpu, attention_kernel, ql_ceil_div(q.rows * shape->heads, WARPS), WARPS * WARP, q, k, v, *shape, starts,
           n_seq, out);
    return QL_OK;
}

static ql_mat single(ql_mat mat, char *scratch, size_t at) {
    return ql_mat_of(scratch + at, QL_F32, mat.rows, mat.cols);
}

/* Halves that tensor cores cannot take. */
static ql_status attend_widened(ql_ctx *ctx, ql_cuda *gpu, ql_mat q, ql_mat k, ql_mat v,
                                const ql_attention_shape *shape, const int64_t *start, int64_t n_seq, ql_mat out) {
    char *scratch;
    size_t bytes = 0, wide = (size_t)(q.rows * q.cols) * sizeof(float),
           narrow = (size_t)(k.rows * k.cols) * sizeof(float);
    size_t starts_at = ql_cuda_piece(&bytes, (size_t)(n_seq + 1) * sizeof(int64_t));
    size_t q_at = ql_cuda_piece(&bytes, wide), out_at = ql_cuda_piece(&bytes, wide);
    size_t k_at = ql_cuda_piece(&bytes, narrow), v_at = ql_cuda_piece(&bytes, narrow);
    QL_TRY(ql_cuda_scratch(gpu, bytes, (void **)&scratch));
    QL_TRY(ql_cuda_convert(ctx, q, single(q, scratch, q_at)));
    QL_TRY(ql_cuda_convert(ctx, k, single(k, scratch, k_at)));
    QL_TRY(ql_cuda_convert(ctx, v, single(v, scratch, v_at)));
    QL_TRY(attend(ctx, gpu, single(q, scratch, q_at), single(k, scratch, k_at), single(v, scratch, v_at), shape, start,
                  n_seq, (int64_t *)(scratch + starts_at), single(out, scratch, out_at)));
    return ql_cuda_convert(ctx, single(out, scratch, out_at), out);
}

static bool is_aligned(ql_mat mat) { return (uintptr_t)mat.data % 16 == 0 && mat.ld % 8 == 0; }

ql_status ql_cuda_attention(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                            const int64_t *start, int64_t n_seq, ql_mat out) {
    ql_cuda *gpu;
    int64_t *starts;
    QL_TRY(check_head(q.cols / shape->heads));
    QL_TRY(ql_cuda_use(ctx, &gpu));
    if (q.dtype == QL_BF16 && q.cols / shape->heads % 8 == 0 && is_aligned(q) && is_aligned(k) && is_aligned(v))
        return ql_cuda_flash(gpu, q, k, v, shape, start, n_seq, out);
    if (q.dtype == QL_BF16) return attend_widened(ctx, gpu, q, k, v, shape, start, n_seq, out);
    QL_TRY(ql_cuda_scratch(gpu, (size_t)(n_seq + 1) * sizeof *starts, (void **)&starts));
    return attend(ctx, gpu, q, k, v, shape, start, n_seq, starts, out);
}

ql_status ql_cuda_attention_cached(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                                   ql_mat out) {
    ql_cuda *gpu;
    QL_TRY(check_head(q.cols / shape->heads));
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, attention_cached_kernel, q.rows * shape->heads, MAX_D, q, k, v, *shape, out);
    return QL_OK;
}

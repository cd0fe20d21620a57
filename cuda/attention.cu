/* Causal attention within sequences.   q, out [m][heads * d], k, v [m][kv_heads * d]
 *
 * One warp per query row and head.  A lane owns d/32 components of the query and of the output and walks the keys that the query
 * may see, oldest first, with the online softmax: `top` is the largest score so far, `total` and the output are relative to it.
 * Keys and values are read once per query, from L2 mostly; tiles of queries would share them, and tensor cores would do the
 * products: the kernel suite's work.  Scores are FP32, their order is fixed.   Limit: d <= 256.   Twin: host/cpu/attention.c. */
#include "cuda/device.cuh"

enum { WARPS = 8, MAX_D = 256, PER_LANE = MAX_D / WARP };

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

static __global__ void attention_kernel(ql_mat q, ql_mat k, ql_mat v, ql_attention_shape shape, const int64_t *start,
                                        int64_t n_seq, ql_mat out) {
    int64_t task = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (task >= q.rows * shape.heads) return;
    int lane = threadIdx.x % WARP, d = (int)(q.cols / shape.heads);
    int64_t row = task / shape.heads, head = task % shape.heads, kv_head = head / (shape.heads / shape.kv_heads);
    int64_t key = sequence_start(start, n_seq, row);
    if (shape.window && key < row - shape.window + 1) key = row - shape.window + 1;

    float query[PER_LANE], sum[PER_LANE] = {0}, top = -INFINITY, total = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int c = lane + i * WARP;
        query[i] = c < d ? row_of<float>(q, row)[head * d + c] : 0;
    }
    for (; key <= row; key++) {
        const float *k_row = row_of<float>(k, key) + kv_head * d, *v_row = row_of<float>(v, key) + kv_head * d;
        float dot = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            int c = lane + i * WARP;
            if (c < d) dot = fmaf(query[i], k_row[c], dot);
        }
        float score = warp_sum(dot) * shape.scale, higher = fmaxf(top, score);
        float shrink = expf(top - higher), weight = expf(score - higher); /* exp(-inf) = 0 at the first key */
        total = total * shrink + weight;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            int c = lane + i * WARP;
            if (c < d) sum[i] = fmaf(weight, v_row[c], sum[i] * shrink);
        }
        top = higher;
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int c = lane + i * WARP;
        if (c < d) row_of<float>(out, row)[head * d + c] = sum[i] / total;
    }
}

ql_status ql_cuda_attention(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                            const int64_t *start, int64_t n_seq, ql_mat out) {
    int64_t d = q.cols / shape->heads;
    if (d > MAX_D)
        return ql_fail(QL_UNSUPPORTED, "attention: heads of %lld values, the CUDA kernel has at most %d", (long long)d,
                       MAX_D);
    ql_cuda *gpu;
    int64_t *starts;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_scratch(gpu, (size_t)(n_seq + 1) * sizeof *starts, (void **)&starts));
    QL_TRY(ql_cuda_upload(ctx, starts, start, (size_t)(n_seq + 1) * sizeof *starts));
    LAUNCH(gpu, attention_kernel, ql_ceil_div(q.rows * shape->heads, WARPS), WARPS * WARP, q, k, v, *shape, starts,
           n_seq, out);
    return QL_OK;
}

/* Causal attention within sequences on the tensor cores.   q, out [m][heads * d], k, v [m][kv_heads * d], all BF16
 *
 * A block of four warps owns ROWS queries of one sequence and one head, 16 per warp, and walks the keys they may see, KEYS at a
 * time (64, or 32 where shared memory is short); the next keys and values are copied while these are used.  Per tile of keys:
 *   scores   S = Q K^T, in FP32, 16 x 64 per warp in registers; times scale / ln 2, so that weights are powers of two
 *   softmax  online: `top` is the largest score of a row so far, `total` and the output are relative to it; four lanes share a row
 *   output   O = O shrink + P V; the weights P are rounded to BF16 where they lie, as the left operand of the next product
 * What a row may not see has weight 0, and keys behind the tile's last query are zeros.  Heads are padded with zeros to D = 64, 128 or
 * 256.  The error is that of P and of the output, 2^-9 each.   Twin: host/cpu/attention.c, which rounds the output alone. */
#include "cuda/attention.cuh"
#include "cuda/ptx.cuh"
#include "host/fragment.h"

enum { ROWS = 64, THREADS = 128, PER_WARP = 16 };

typedef struct block {
    int64_t sequence, row, end; /* first key of the sequence; queries row .. end - 1 */
} block;

/* Up to MOST sequences of one launch, by value: nothing is copied to the GPU beforehand, so a graph can hold the call.  Sequence s has tiles
 * tile[s] .. tile[s + 1] - 1 of 64 queries, the last one perhaps short. */
enum { MOST = 128 };
typedef struct sequences {
    int64_t start[MOST + 1];
    int tile[MOST + 1];
    int count;
} sequences;

static __device__ __forceinline__ block block_of(const sequences &s, int tile) {
    int low = 0,
        high = s.count - 1; /* the last sequence whose first tile is at most this one: empty ones are skipped */
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (s.tile[middle] <= tile) low = middle;
        else high = middle - 1;
    }
    int64_t row = s.start[low] + (int64_t)(tile - s.tile[low]) * ROWS;
    return {s.start[low], row, s.start[low + 1] - row < ROWS ? s.start[low + 1] : row + ROWS};
}

template <int D, int KEYS> struct tiles { uint16_t q[ROWS * D], k[2][KEYS * D], v[2][KEYS * D]; };

/* Per lane: two rows of 16, lane / 4 and + 8. */
template <int D> struct output { float sum[D / 8][4], top[2], total[2]; };

/* Rows first .. first + COUNT - 1 of the head's columns; zeros from row `end` and column `d` on. */
template <int D, int COUNT>
static __device__ __forceinline__ void load_rows(const ql_mat &from, int64_t first, int64_t end, int d, uint16_t *to) {
    enum { PIECES = D / QL_PIECE };
#pragma unroll 4
    for (int at = (int)threadIdx.x; at < COUNT * PIECES; at += THREADS) {
        int row = at / PIECES, piece = at % PIECES;
        bool inside = first + row < end && piece * QL_PIECE < d;
        const uint16_t *source = row_of<uint16_t>(from, inside ? first + row : 0) + (inside ? piece * QL_PIECE : 0);
        ptx_copy(to + ql_place(row, piece, PIECES), source, inside ? 16 : 0);
    }
}

/* S = Q K^T of this warp's 16 queries. */
template <int D, int KEY_TILES>
static __device__ __forceinline__ void score(const uint16_t *q, const uint16_t *k, float (&s)[KEY_TILES][4]) {
    enum { PIECES = D / QL_PIECE };
    int lane = threadIdx.x % WARP, top = (int)(threadIdx.x / WARP) * PER_WARP;
#pragma unroll
    for (int j = 0; j < KEY_TILES; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[j][i] = 0;
#pragma unroll 4
    for (int piece = 0; piece < PIECES; piece += 2) {
        uint32_t a[4], b[4];
        ptx_load_matrix(a, q + ql_place(top + ql_down_row(lane), piece + ql_down_piece(lane), PIECES));
#pragma unroll
        for (int j = 0; j < KEY_TILES; j += 2) {
            ptx_load_matrix(b, k + ql_place(8 * j + ql_across_row(lane), piece + ql_across_piece(lane), PIECES));
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
            ptx_mma_bf16(s[j], a, first);
            ptx_mma_bf16(s[j + 1], a, second);
        }
    }
}

/* Scales; keys before `first` and after `last` of a row are out of sight.  Both count from the tile's first key. */
template <int KEY_TILES>
static __device__ __forceinline__ void scale_and_hide(float scale, const int64_t (&first)[2], const int64_t (&last)[2],
                                                      float (&s)[KEY_TILES][4]) {
#pragma unroll
    for (int j = 0; j < KEY_TILES; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = 8 * j + ql_sum_col(threadIdx.x % WARP, i);
            s[j][i] = key < first[i / 2] || key > last[i / 2] ? -INFINITY : s[j][i] * scale;
        }
}

/* Scores become weights relative to the new top; the output so far shrinks to it. */
template <int D, int KEY_TILES> static __device__ __forceinline__ void softmax(float (&s)[KEY_TILES][4], output<D> &o) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = o.top[r], sum = 0;
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++) top = fmaxf(top, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        for (int step = 1; step < 4; step *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
        float base = top == -INFINITY ? 0 : top; /* a row that has seen no key yet */
        float shrink = exp2f(o.top[r] - base);
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) sum += s[j][i] = exp2f(s[j][i] - base);
        for (int step = 1; step < 4; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        o.top[r] = top, o.total[r] = fmaf(o.total[r], shrink, sum);
#pragma unroll
        for (int c = 0; c < D / 8; c++) o.sum[c][2 * r] *= shrink, o.sum[c][2 * r + 1] *= shrink;
    }
}

/* O += P V: sums of two neighbouring tiles of keys are a left operand of 16 keys. */
template <int D, int KEY_TILES>
static __device__ __forceinline__ void add_values(const float (&p)[KEY_TILES][4], const uint16_t *v, output<D> &o) {
    enum { PIECES = D / QL_PIECE };
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int j = 0; j < KEY_TILES; j += 2) {
        const uint32_t a[4] = {ptx_pack_bf16x2(p[j][0], p[j][1]), ptx_pack_bf16x2(p[j][2], p[j][3]),
                               ptx_pack_bf16x2(p[j + 1][0], p[j + 1][1]), ptx_pack_bf16x2(p[j + 1][2], p[j + 1][3])};
#pragma unroll
        for (int piece = 0; piece < PIECES; piece += 2) {
            uint32_t b[4];
            ptx_load_transposed(b, v + ql_place(8 * j + ql_down_row(lane), piece + ql_down_piece(lane), PIECES));
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
            ptx_mma_bf16(o.sum[piece], a, first);
            ptx_mma_bf16(o.sum[piece + 1], a, second);
        }
    }
}

template <int D>
static __device__ __forceinline__ void store(const output<D> &o, int64_t row, int64_t end, int d, const ql_mat &out) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int64_t at = row + ql_sum_row(lane, 2 * r);
        if (at >= end) continue;
#pragma unroll
        for (int c = 0; c < D / 8; c++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int col = 8 * c + ql_sum_col(lane, i);
                if (col < d) row_of<uint16_t>(out, at)[col] = ql_f32_to_bf16(o.sum[c][2 * r + i] / o.total[r]);
            }
    }
}

/* Block number n is head n % heads of a tile of queries, last tiles first: they see the most keys. */
template <int D, int KEYS>
static __global__ void __launch_bounds__(THREADS)
    flash_kernel(ql_mat q, ql_mat k, ql_mat v, ql_attention_shape shape, const sequences all, ql_mat out) {
    DYNAMIC_SHARED(memory);
    tiles<D, KEYS> *t = (tiles<D, KEYS> *)memory;
    int lane = threadIdx.x % WARP, d = (int)(q.cols / shape.heads);
    int64_t head = blockIdx.x % shape.heads, kv_head = head / (shape.heads / shape.kv_heads);
    const block b = block_of(all, all.tile[all.count] - 1 - (int)(blockIdx.x / shape.heads));
    q.data = (uint16_t *)q.data + head * d, out.data = (uint16_t *)out.data + head * d;
    k.data = (uint16_t *)k.data + kv_head * d, v.data = (uint16_t *)v.data + kv_head * d;
    int64_t row = b.row + (int64_t)(threadIdx.x / WARP) * PER_WARP;
    int64_t begin = first_key(b.sequence, b.row, shape.window);
    float scale = shape.scale * 1.44269504f; /* 1 / ln 2 */
    output<D> o = {{}, {-INFINITY, -INFINITY}, {}};
    load_rows<D, ROWS>(q, b.row, b.end, d, t->q);
    load_rows<D, KEYS>(k, begin, b.end, d, t->k[0]);
    load_rows<D, KEYS>(v, begin, b.end, d, t->v[0]);
    ptx_commit_copies();
    for (int64_t key = begin, turn = 0; key < b.end; key += KEYS, turn ^= 1) {
        if (key + KEYS < b.end) {
            load_rows<D, KEYS>(k, key + KEYS, b.end, d, t->k[turn ^ 1]);
            load_rows<D, KEYS>(v, key + KEYS, b.end, d, t->v[turn ^ 1]);
        }
        ptx_commit_copies();
        ptx_wait_copies<1>();
        __syncthreads();
        float s[KEYS / 8][4];
        int64_t last[2] = {row + ql_sum_row(lane, 0) - key, row + ql_sum_row(lane, 2) - key}, first[2];
        for (int r = 0; r < 2; r++) first[r] = first_key(b.sequence, last[r] + key, shape.window) - key;
        score<D>(t->q, t->k[turn], s);
        scale_and_hide(scale, first, last, s);
        softmax<D>(s, o);
        add_values<D>(s, t->v[turn], o);
        __syncthreads(); /* before these keys give way to those after the next */
    }
    store<D>(o, row, b.end, d, out);
}

/* ---- the host ------------------------------------------------------------------------------------------------------------------ */

/* The sequences first .. of the call, up to MOST of them.  Fails if they have more tiles than a grid could count. */
static ql_status gather(const int64_t *start, int64_t n_seq, int64_t first, sequences *to) {
    int64_t tiles = 0;
    to->count = (int)(n_seq - first < MOST ? n_seq - first : MOST);
    for (int s = 0; s < to->count; s++) {
        to->start[s] = start[first + s], to->tile[s] = (int)tiles;
        tiles += ql_ceil_div(start[first + s + 1] - start[first + s], ROWS);
        if (tiles > INT32_MAX)
            return ql_fail(QL_UNSUPPORTED, "attention: more than 2^31 tiles of 64 queries in one call");
    }
    to->start[to->count] = start[first + to->count], to->tile[to->count] = (int)tiles;
    return QL_OK;
}

template <int D, int KEYS>
static ql_status launch(ql_cuda *gpu, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                        const sequences *all, ql_mat out) {
    auto *const flash = flash_kernel<D, KEYS>;
    LAUNCH_SHARED(gpu->stream, flash, all->tile[all->count] * shape->heads, THREADS, (sizeof(tiles<D, KEYS>)), q, k, v,
                  *shape, *all, out);
    return QL_OK;
}

/* Heads of 256 take 160 KiB with 64 keys at a time, which only data-center GPUs give a block; 96 KiB with 32. */
static ql_status run(ql_cuda *gpu, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape, const sequences *all,
                     ql_mat out) {
    const int64_t d = q.cols / shape->heads;
    if (d <= 64) return launch<64, 64>(gpu, q, k, v, shape, all, out);
    if (d <= 128) return launch<128, 64>(gpu, q, k, v, shape, all, out);
    cudaDeviceProp properties;
    CUDA_TRY(cudaGetDeviceProperties(&properties, gpu->device));
    if (properties.sharedMemPerBlockOptin >= sizeof(tiles<256, 64>))
        return launch<256, 64>(gpu, q, k, v, shape, all, out);
    return launch<256, 32>(gpu, q, k, v, shape, all, out);
}

ql_status ql_cuda_flash(ql_cuda *gpu, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                        const int64_t *start, int64_t n_seq, ql_mat out) {
    for (int64_t first = 0; first < n_seq; first += MOST) {
        sequences all;
        QL_TRY(gather(start, n_seq, first, &all));
        QL_TRY(run(gpu, q, k, v, shape, &all, out));
    }
    return QL_OK;
}

/* Causal attention.  The work is cut into blocks of query rows of one sequence and one head; a block computes its scores against
 * all keys that its last row sees, softmax row by row, and the product with the values.  Blocks are independent and fixed, so
 * results do not depend on the threads; scores never exceed [BLOCK_ROWS][keys] per thread.
 */
#include <omp.h>

#include "host/cpu/blas.h"
#include "host/cpu/exp.h"
#include "host/mat.h"
#include "host/mem.h"
#include "host/ops.h"

/* Rows of a block see up to BLOCK_ROWS - 1 keys too many, which 64 keeps small for sequences of a few hundred tokens, while
 * the products stay large enough for BLAS.  Measured: perf/LOG.md, "attention blocks". */
enum { BLOCK_ROWS = 64 };

typedef struct block {
    int64_t sequence, row, rows; /* first key of the sequence; first query of the block; queries in it */
    int64_t past;                /* the key of query `row` is row + past: more than 0 with a cache */
} block;

/* One behind the last key that a query sees, and the first one. */
static int64_t end_key(const block *b, int64_t row) { return row + b->past + 1; }
static int64_t first_key(const block *b, int64_t row, int64_t window) {
    int64_t first = end_key(b, row) - window;
    return window && first > b->sequence ? first : b->sequence;
}

/* Turns scores of the keys [begin, end) into exp(score - max), zeroes the others, and returns the sum. */
static float softmax_row(float *scores, int64_t keys, int64_t begin, int64_t end) {
    float max = -INFINITY, sum = 0;
#pragma omp simd reduction(max : max)
    for (int64_t i = begin; i < end; i++) max = scores[i] > max ? scores[i] : max;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; i++) sum += scores[i] = ql_exp_f32(scores[i] - max);
    for (int64_t i = 0; i < begin; i++) scores[i] = 0;
    for (int64_t i = end; i < keys; i++) scores[i] = 0;
    return sum;
}

/* One block of one head: q, out [m][d], k, v [keys][d] are views of that head's columns. */
static void attend(const block *b, ql_mat q, ql_mat k, ql_mat v, float scale, int64_t window, float *scores,
                   ql_mat out) {
    int64_t from = first_key(b, b->row, window), to = end_key(b, b->row + b->rows - 1);
    const int d = (int)q.cols, rows = (int)b->rows, keys = (int)(to - from);
    const int ldq = (int)q.ld, ldk = (int)k.ld, ldv = (int)v.ld, ldo = (int)out.ld;
    const float one = 1, zero = 0;
    float *o = (float *)out.data + b->row * out.ld;
    sgemm_("T", "N", &keys, &rows, &d, &scale, (const float *)k.data + from * k.ld, &ldk,
           (const float *)q.data + b->row * q.ld, &ldq, &zero, scores, &keys);
    float sums[BLOCK_ROWS];
    for (int64_t r = 0; r < rows; r++)
        sums[r] = softmax_row(scores + r * keys, keys, first_key(b, b->row + r, window) - from,
                              end_key(b, b->row + r) - from);
    sgemm_("N", "N", &d, &rows, &keys, &one, (const float *)v.data + from * v.ld, &ldv, scores, &keys, &zero, o, &ldo);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < d; i++) o[r * out.ld + i] /= sums[r];
}

static int64_t cut_into_blocks(const int64_t *start, int64_t n_seq, int64_t past, block *blocks) {
    int64_t count = 0;
    for (int64_t s = 0; s < n_seq; s++)
        for (int64_t row = start[s]; row < start[s + 1]; row += BLOCK_ROWS, count++) {
            int64_t left = start[s + 1] - row;
            blocks[count] = (block){start[s], row, left < BLOCK_ROWS ? left : BLOCK_ROWS, past};
        }
    return count;
}

/* The most keys that any block sees. */
static int64_t most_keys(const block *blocks, int64_t count, int64_t window) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t last = blocks[i].row + blocks[i].rows - 1;
        int64_t keys = end_key(&blocks[i], last) - first_key(&blocks[i], blocks[i].row, window);
        if (keys > most) most = keys;
    }
    return most;
}

static ql_status attend_all(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                            const int64_t *start, int64_t n_seq, int64_t past, ql_mat out) {
    int64_t limit = q.rows / BLOCK_ROWS + n_seq; /* a sequence has at most one short block */
    block *blocks = ql_malloc((size_t)limit * sizeof *blocks);
    if (!blocks) return ql_fail(QL_NOMEM, "attention: no memory for %lld blocks", (long long)limit);
    int64_t count = cut_into_blocks(start, n_seq, past, blocks);
    size_t size = BLOCK_ROWS * (size_t)most_keys(blocks, count, shape->window);
    float *scores = ql_malloc((size_t)ctx->threads * size * sizeof *scores);
    if (!scores) {
        ql_mfree(blocks);
        return ql_fail(QL_NOMEM, "attention: no memory for scores of %zu bytes per thread", size * sizeof *scores);
    }
    int64_t d = q.cols / shape->heads, sharing = shape->heads / shape->kv_heads;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(ctx->threads)
    for (int64_t i = 0; i < count; i++)
        for (int64_t h = 0; h < shape->heads; h++)
            attend(&blocks[i], ql_cols(q, h * d, d), ql_cols(k, h / sharing * d, d), ql_cols(v, h / sharing * d, d),
                   shape->scale, shape->window, scores + (size_t)omp_get_thread_num() * size, ql_cols(out, h * d, d));
    ql_mfree(scores);
    ql_mfree(blocks);
    return QL_OK;
}

/* BF16 is computed in FP32 throughout; only the output is rounded. */
static ql_status attend_widened(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                                const int64_t *start, int64_t n_seq, ql_mat out, ql_arena *scratch) {
    ql_mat from[] = {q, k, v, out}, to[4];
    for (int i = 0; i < 4; i++) {
        float *data;
        QL_TRY(ql_take(scratch, (size_t)(from[i].rows * from[i].cols), sizeof *data, &data));
        to[i] = ql_mat_of(data, QL_F32, from[i].rows, from[i].cols);
        if (i < 3) QL_TRY(ql_cpu_convert(ctx, from[i], to[i]));
    }
    QL_TRY(attend_all(ctx, to[0], to[1], to[2], shape, start, n_seq, 0, to[3]));
    return ql_cpu_convert(ctx, to[3], out);
}

ql_status ql_cpu_attention(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                           const int64_t *start, int64_t n_seq, ql_mat out) {
    if (q.dtype == QL_F32) return attend_all(ctx, q, k, v, shape, start, n_seq, 0, out);
    ql_arena *scratch;
    QL_TRY(ql_arena_open(NULL, &scratch));
    ql_status status = attend_widened(ctx, q, k, v, shape, start, n_seq, out, scratch);
    ql_arena_close(scratch);
    return status;
}

ql_status ql_cpu_attention_cached(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                                  ql_mat out) {
    return attend_all(ctx, q, k, v, shape, (int64_t[]){0, q.rows}, 1, k.rows - q.rows, out);
}

/* Attention: sequences of different length, shared key heads, windows, large scores; over a cache. */
#include "tests/backend.h"

#include <math.h>

#include "tests/ref.h"

/* Scores of normal q and k reach about 5 standard deviations; their FP32 error (sqrt(d) 2^-24 relative to |q||k|) becomes a
 * relative error of the weights, then sums over the keys add sqrt(keys) 2^-24: below 4e-6 for d <= 128 and 300 keys. */
static const double BOUND = 4e-6;

static void check_attention(backend *b, const int64_t *start, int64_t n_seq, ql_attention_shape shape, int64_t d,
                            double size) {
    int64_t m = start[n_seq];
    ql_mat q = normal(b, m, shape.heads * d, 1), k = normal(b, m, shape.kv_heads * d, 2);
    ql_mat v = outliers(b, m, shape.kv_heads * d, 3), truth = poisoned(b, QL_F64, m, q.cols);
    for (int64_t r = 0; r < m; r++)
        for (int64_t c = 0; c < q.cols; c++) ref_put(q, r, c, size * ref_at(q, r, c));
    ref_attention(q, k, v, &shape, start, n_seq, truth);
    ql_mat out = poisoned(b, QL_F32, m, q.cols), dout = upload(b, out), again = upload(b, out);
    ql_mat dq = upload(b, q), dk = upload(b, k), dv = upload(b, v);
    assert_ok(ql_attention(b->ctx, dq, dk, dv, &shape, start, n_seq, dout));
    assert_ok(ql_attention(b->other, dq, dk, dv, &shape, start, n_seq, again));
    download(b, dout, out);
    assert_close(out, truth, BOUND * size);
    assert_same_bits_on_device(b, dout, again);
}

static ql_attention_shape heads(int64_t heads, int64_t kv_heads, int64_t window, int64_t d) {
    return (ql_attention_shape){heads, kv_heads, window, 1 / sqrtf((float)d)};
}

static void attention_single_token(void **state) {
    check_attention(*state, (int64_t[]){0, 1}, 1, heads(1, 1, 0, 2), 2, 1);
}

static void attention_sequences_of_different_length(void **state) {
    check_attention(*state, (int64_t[]){0, 1, 64, 64, 129, 300}, 5, heads(2, 2, 0, 24), 24, 1);
}

static void attention_shared_key_heads(void **state) {
    check_attention(*state, (int64_t[]){0, 70, 100}, 2, heads(6, 2, 0, 17), 17, 1);
    check_attention(*state, (int64_t[]){0, 33}, 1, heads(4, 1, 0, 128), 128, 1);
}

static void attention_windows(void **state) {
    const int64_t windows[] = {1, 2, 63, 64, 65, 149, 150, 1000};
    for (int i = 0; i < 8; i++)
        check_attention(*state, (int64_t[]){0, 150, 220}, 2, heads(2, 1, windows[i], 16), 16, 1);
}

/* Scores of several hundred: exp overflows without the maximum. */
static void attention_large_scores(void **state) {
    check_attention(*state, (int64_t[]){0, 100}, 1, heads(2, 2, 0, 32), 32, 100);
}

/* ---- BF16: tensor cores on the GPU ------------------------------------------------------------------------------------------ */

/* The operands are what the reference sees, so what remains is the rounding of the output and, on tensor cores, of the weights: each
 * is at most 2^-9 of every value, and with signs at random 0.6 of that in the norm.  kernels.md allows 3e-3. */
static const double BF16_BOUND = 3e-3;

static ql_mat in_bf16(backend *b, ql_mat x, double size, int64_t padding) {
    ql_mat half = poisoned_dense(b, QL_BF16, x.rows, x.cols + padding);
    half.cols = x.cols;
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) ref_put(half, r, c, size * ref_at(x, r, c));
    return half;
}

static void check_bf16(backend *b, const int64_t *start, int64_t n_seq, ql_attention_shape shape, int64_t d,
                       double size, int64_t padding) {
    int64_t m = start[n_seq];
    ql_mat q = in_bf16(b, normal(b, m, shape.heads * d, 1), size, padding);
    ql_mat k = in_bf16(b, normal(b, m, shape.kv_heads * d, 2), 1, padding);
    ql_mat v = in_bf16(b, outliers(b, m, shape.kv_heads * d, 3), 1, padding), truth = poisoned(b, QL_F64, m, q.cols);
    ref_attention(q, k, v, &shape, start, n_seq, truth);
    ql_mat out = poisoned(b, QL_BF16, m, q.cols), dout = upload(b, out), again = upload(b, out);
    ql_mat dq = upload(b, q), dk = upload(b, k), dv = upload(b, v);
    assert_ok(ql_attention(b->ctx, dq, dk, dv, &shape, start, n_seq, dout));
    assert_ok(ql_attention(b->other, dq, dk, dv, &shape, start, n_seq, again));
    download(b, dout, out);
    assert_close(out, truth, BF16_BOUND);
    assert_same_bits_on_device(b, dout, again);
}

/* More sequences than one launch takes, empty ones among them, also where a launch begins and ends. */
static void attention_bf16_many_sequences(void **state) {
    int64_t start[301] = {0};
    for (int i = 0; i < 300; i++)
        start[i + 1] = start[i] + (i == 200 ? 70 : i % 128 == 0 || i % 128 == 127 ? 0 : i % 4);
    check_bf16(*state, start, 300, heads(2, 1, 0, 16), 16, 1, 0);
}

static void attention_bf16_heads_of_every_size(void **state) {
    const int64_t sizes[] = {8, 40, 64, 80, 96, 128, 192, 256};
    for (int i = 0; i < 8; i++) check_bf16(*state, (int64_t[]){0, 70}, 1, heads(2, 1, 0, sizes[i]), sizes[i], 1, 0);
}

/* Heads that are not whole pieces of 16 bytes, with every sharing and window: what the F32 kernel takes, BF16 takes. */
static void attention_bf16_heads_of_odd_sizes(void **state) {
    const int64_t sizes[] = {1, 2, 17, 20, 100, 250};
    const ql_attention_shape shapes[] = {{6, 6, 0, 0}, {6, 2, 9, 0}, {6, 1, 1, 0}};
    for (int i = 0; i < 18; i++) {
        const ql_attention_shape *s = &shapes[i % 3];
        check_bf16(*state, (int64_t[]){0, 3, 3, 40}, 3, heads(s->heads, s->kv_heads, s->window, sizes[i / 3]),
                   sizes[i / 3], 1, 0);
    }
}

/* Queries, keys and values side by side in one matrix, which begins on 16 bytes, or one column later. */
static void attention_bf16_of_columns(void **state) {
    backend *b = *state;
    enum { M = 70, D = 40, HEADS = 4, SHARED = 2, ALL = (HEADS + 2 * SHARED) * D };
    const ql_attention_shape shape = heads(HEADS, SHARED, 33, D);
    const int64_t start[] = {0, M};
    for (int64_t skip = 0; skip < 2; skip++) {
        ql_mat all = in_bf16(b, normal(b, M, ALL + skip, 1), 1, 8 - skip), dall = upload(b, all);
        ql_mat out = poisoned(b, QL_BF16, M, HEADS * D), dout = upload(b, out),
               truth = poisoned(b, QL_F64, M, HEADS * D);
        const int64_t k = skip + HEADS * D, v = k + SHARED * D;
        ref_attention(ql_cols(all, skip, HEADS * D), ql_cols(all, k, SHARED * D), ql_cols(all, v, SHARED * D), &shape,
                      start, 1, truth);
        assert_ok(ql_attention(b->ctx, ql_cols(dall, skip, HEADS * D), ql_cols(dall, k, SHARED * D),
                               ql_cols(dall, v, SHARED * D), &shape, start, 1, dout));
        download(b, dout, out);
        assert_close(out, truth, BF16_BOUND);
    }
}

static void attention_bf16_around_tiles(void **state) {
    check_bf16(*state, (int64_t[]){0, 1, 64, 64, 129, 194, 300}, 6, heads(2, 2, 0, 64), 64, 1, 0);
    for (int64_t m = 63; m <= 65; m++) check_bf16(*state, (int64_t[]){0, m}, 1, heads(1, 1, 0, 64), 64, 1, 0);
    check_bf16(*state, (int64_t[]){0, 256}, 1, heads(6, 2, 0, 64), 64, 1, 8);
}

static void attention_bf16_windows(void **state) {
    const int64_t windows[] = {1, 2, 63, 64, 65, 149, 150, 1000};
    for (int i = 0; i < 8; i++) check_bf16(*state, (int64_t[]){0, 150, 220}, 2, heads(2, 1, windows[i], 64), 64, 1, 0);
}

/* Rows that do not begin at multiples of 16 bytes, heads that are not whole pieces. */
static void attention_bf16_of_any_alignment(void **state) {
    check_bf16(*state, (int64_t[]){0, 40, 70}, 2, heads(4, 2, 0, 64), 64, 1, 3);
    check_bf16(*state, (int64_t[]){0, 70}, 1, heads(2, 2, 9, 17), 17, 1, 0);
}

static void attention_bf16_large_scores(void **state) {
    check_bf16(*state, (int64_t[]){0, 100}, 1, heads(2, 2, 0, 64), 64, 100, 0);
}

static void attention_bf16_refuses_mixtures(void **state) {
    backend *b = *state;
    ql_mat half = upload(b, in_bf16(b, normal(b, 4, 16, 1), 1, 0)), single = upload(b, normal(b, 4, 16, 1));
    ql_attention_shape shape = heads(2, 2, 0, 8);
    assert_refused(ql_attention(b->ctx, half, single, half, &shape, (int64_t[]){0, 4}, 1, half), QL_INVALID,
                   "k: is F32, expected BF16");
    assert_refused(ql_attention(b->ctx, half, half, half, &shape, (int64_t[]){0, 4}, 1, single), QL_INVALID,
                   "out: is F32, expected BF16");
    assert_refused(ql_attention_cached(b->ctx, half, half, half, &shape, half), QL_INVALID, "q: is BF16");
}

/* The last m of t rows against all t keys: as the double-precision reference says, and as whole sequences come out. */
static void check_cached(backend *b, int64_t m, int64_t t, ql_attention_shape shape, int64_t d, double size) {
    ql_mat whole = normal(b, t, shape.heads * d, 1), k = normal(b, t, shape.kv_heads * d, 2);
    ql_mat v = outliers(b, t, shape.kv_heads * d, 3), q = ql_rows(whole, t - m, m);
    for (int64_t r = 0; r < t; r++)
        for (int64_t c = 0; c < whole.cols; c++) ref_put(whole, r, c, size * ref_at(whole, r, c));
    ql_mat truth = poisoned(b, QL_F64, m, q.cols), out = poisoned(b, QL_F32, m, q.cols);
    ref_attention_cached(q, k, v, &shape, truth);
    ql_mat dq = upload(b, q), dk = upload(b, k), dv = upload(b, v), dout = upload(b, out), again = upload(b, out);
    assert_ok(ql_attention_cached(b->ctx, dq, dk, dv, &shape, dout));
    assert_ok(ql_attention_cached(b->other, dq, dk, dv, &shape, again));
    download(b, dout, out);
    assert_close(out, truth, BOUND * size);
    assert_same_bits_on_device(b, dout, again);
    ql_mat all = poisoned(b, QL_F32, t, q.cols), dall = upload(b, all);
    assert_ok(ql_attention(b->ctx, upload(b, whole), dk, dv, &shape, (int64_t[]){0, t}, 1, dall));
    download(b, dall, all);
    assert_close(out, ql_rows(all, t - m, m), 2 * BOUND * size); /* both are that close to the truth */
}

static void attention_cached_one_query(void **state) {
    check_cached(*state, 1, 1, heads(1, 1, 0, 2), 2, 1);
    check_cached(*state, 1, 7, heads(2, 2, 0, 24), 24, 1); /* fewer keys than warps */
    check_cached(*state, 1, 300, heads(6, 2, 0, 17), 17, 1);
    check_cached(*state, 1, 257, heads(4, 1, 0, 256), 256, 1);
}

static void attention_cached_some_queries(void **state) {
    check_cached(*state, 3, 130, heads(4, 2, 0, 32), 32, 1);
    check_cached(*state, 65, 129, heads(1, 1, 0, 16), 16, 1);
    check_cached(*state, 20, 20, heads(2, 2, 0, 16), 16, 1); /* an empty cache */
}

static void attention_cached_windows(void **state) {
    const int64_t windows[] = {1, 2, 8, 39, 40, 1000};
    for (int i = 0; i < 6; i++) {
        check_cached(*state, 1, 40, heads(2, 1, windows[i], 16), 16, 1);
        check_cached(*state, 9, 40, heads(2, 1, windows[i], 16), 16, 1);
    }
    check_cached(*state, 70, 150, heads(1, 1, 64, 16), 16, 1); /* two blocks of queries on the CPU */
}

static void attention_cached_large_scores(void **state) { check_cached(*state, 2, 50, heads(2, 2, 0, 32), 32, 100); }

static void attention_cached_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat q = upload(b, normal(b, 2, 12, 1)), k = upload(b, normal(b, 6, 6, 2));
    ql_attention_shape shape = heads(4, 2, 0, 3);
    assert_ok(ql_attention_cached(b->ctx, ql_rows(q, 0, 0), k, k, &shape, ql_rows(q, 0, 0)));
    assert_refused(ql_attention_cached(b->ctx, q, ql_rows(k, 0, 1), ql_rows(k, 0, 1), &shape, q), QL_INVALID,
                   "2 queries cannot be the last of 1 keys");
    assert_refused(ql_attention_cached(b->ctx, q, k, ql_rows(k, 0, 5), &shape, q), QL_INVALID,
                   "v: has 5 rows, expected 6");
    assert_refused(ql_attention_cached(b->ctx, q, ql_cols(k, 0, 5), k, &shape, q), QL_INVALID,
                   "k: has 5 columns, expected 6");
}

static void attention_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat q = upload(b, normal(b, 6, 12, 1)), k = upload(b, normal(b, 6, 6, 2));
    const int64_t good[] = {0, 2, 6}, falling[] = {0, 4, 2, 6}, late[] = {1, 6}, shorter[] = {0, 5};
    ql_attention_shape shape = heads(4, 2, 0, 3), bad = shape;
    assert_refused(ql_attention(b->ctx, q, k, k, &shape, falling, 3, q), QL_INVALID, "sequence 1 starts at row 4");
    assert_refused(ql_attention(b->ctx, q, k, k, &shape, late, 1, q), QL_INVALID, "cover rows 1 .. 5");
    assert_refused(ql_attention(b->ctx, q, k, k, &shape, shorter, 1, q), QL_INVALID, "cover rows 0 .. 4");
    assert_refused(ql_attention(b->ctx, q, k, ql_cols(k, 0, 5), &shape, good, 2, q), QL_INVALID,
                   "v: has 5 columns, expected 6");
    bad.kv_heads = 3;
    assert_refused(ql_attention(b->ctx, q, k, k, &bad, good, 2, q), QL_INVALID, "4 heads are not a multiple of 3");
    bad.heads = 0;
    assert_refused(ql_attention(b->ctx, q, k, k, &bad, good, 2, q), QL_INVALID, "heads: is 0");
    bad = shape, bad.window = -1;
    assert_refused(ql_attention(b->ctx, q, k, k, &bad, good, 2, q), QL_INVALID, "window -1");
    assert_refused(ql_attention(b->ctx, q, k, k, &shape, NULL, 2, q), QL_INVALID, "null pointer");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_single_token),
        cmocka_unit_test(attention_sequences_of_different_length),
        cmocka_unit_test(attention_shared_key_heads),
        cmocka_unit_test(attention_windows),
        cmocka_unit_test(attention_large_scores),
        cmocka_unit_test(attention_bf16_heads_of_every_size),
        cmocka_unit_test(attention_bf16_heads_of_odd_sizes),
        cmocka_unit_test(attention_bf16_of_columns),
        cmocka_unit_test(attention_bf16_many_sequences),
        cmocka_unit_test(attention_bf16_around_tiles),
        cmocka_unit_test(attention_bf16_windows),
        cmocka_unit_test(attention_bf16_of_any_alignment),
        cmocka_unit_test(attention_bf16_large_scores),
        cmocka_unit_test(attention_bf16_refuses_mixtures),
        cmocka_unit_test(attention_refuses_what_does_not_fit),
        cmocka_unit_test(attention_cached_one_query),
        cmocka_unit_test(attention_cached_some_queries),
        cmocka_unit_test(attention_cached_windows),
        cmocka_unit_test(attention_cached_large_scores),
        cmocka_unit_test(attention_cached_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

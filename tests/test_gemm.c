/* Dense products: tile borders, bias, leading dimensions, refusals. */
#include "tests/backend.h"

#include <math.h>

#include "tests/ref.h"

/* A sum of k products in FP32 walks about sqrt(k) roundings of 2^-24 away from the truth; twice that is the bound, and blocked
 * summation stays well below it. */
static double product_bound(int64_t k) { return sqrt((double)k) * 0x1p-23; }

static void check_gemm(backend *b, ql_mat x, ql_mat w, ql_mat bias) {
    ql_mat y = poisoned(b, QL_F32, x.rows, w.rows), dy = upload(b, y), again = upload(b, y);
    ql_mat truth = poisoned(b, QL_F64, x.rows, w.rows);
    ql_mat dx = upload(b, x), dw = upload(b, w), dbias = ql_is_present(bias) ? upload(b, bias) : bias;
    assert_ok(ql_gemm(b->ctx, dx, dw, dbias, dy));
    download(b, dy, y);
    ref_gemm(x, w, bias, truth);
    assert_close(y, truth, product_bound(x.cols));
    assert_ok(ql_gemm(b->other, dx, dw, dbias, again));
    assert_same_bits_on_device(b, dy, again);
}

/* ---- BF16 in, F32 or BF16 out -------------------------------------------------------------------------------------------------- */

/* A sum errs by product_bound(k) |x| |w| at most, and its rounding to BF16 by 2^-8 of it. */
static void check_elements(ql_mat y, ql_mat truth, ql_mat x, ql_mat w) {
    for (int64_t r = 0; r < y.rows; r++)
        for (int64_t c = 0; c < y.cols; c++) {
            double xx = 0, ww = 0, t = ref_at(truth, r, c);
            for (int64_t i = 0; i < x.cols; i++) xx += pow(ref_at(x, r, i), 2), ww += pow(ref_at(w, c, i), 2);
            if (!(fabs(ref_at(y, r, c) - t) <= 0x1p-8 * fabs(t) + product_bound(x.cols) * sqrt(xx * ww)))
                fail_msg("(%lld, %lld) is %.9g, expected %.9g", (long long)r, (long long)c, ref_at(y, r, c), t);
        }
}

static void check_bf16(backend *b, ql_mat x, ql_mat w, ql_mat bias) {
    ql_mat truth = poisoned(b, QL_F64, x.rows, w.rows), dx = upload(b, x), dw = upload(b, w);
    ql_mat dbias = ql_is_present(bias) ? upload(b, bias) : bias;
    ref_gemm(x, w, bias, truth);
    const ql_dtype types[] = {QL_F32, QL_BF16};
    for (int i = 0; i < 2; i++) {
        ql_mat y = poisoned(b, types[i], x.rows, w.rows), dy = upload(b, y), again = upload(b, y);
        assert_ok(ql_gemm(b->ctx, dx, dw, dbias, dy));
        assert_ok(ql_gemm(b->other, dx, dw, dbias, again));
        download(b, dy, y);
        if (types[i] == QL_F32) assert_close(y, truth, product_bound(x.cols));
        else check_elements(y, truth, x, w);
        assert_same_bits_on_device(b, dy, again);
    }
}

static void gemm_of_bf16_odd_sizes(void **state) {
    backend *b = *state;
    const int64_t sizes[][3] = {{1, 1, 1}, {1, 300, 7}, {7, 1, 33}, {17, 63, 118}, {65, 257, 129}, {515, 1030, 30}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ql_mat x = narrowed(b, outliers(b, sizes[i][0], sizes[i][2], 1)),
               w = narrowed(b, normal(b, sizes[i][1], sizes[i][2], 2));
        check_bf16(b, x, w, ql_no_mat());
        check_bf16(b, x, w, normal(b, 1, w.rows, 3));
    }
}

/* More inputs than are widened at a time on the CPU, more rows than go through one slab on the GPU. */
static void gemm_of_bf16_long_sums_and_many_rows(void **state) {
    backend *b = *state;
    check_bf16(b, narrowed(b, normal(b, 3, 14337, 7)), narrowed(b, outliers(b, 5, 14337, 8)), normal(b, 1, 5, 9));
    check_bf16(b, narrowed(b, normal(b, 2051, 9, 7)), narrowed(b, normal(b, 6, 9, 8)), normal(b, 1, 6, 9));
}

/* The bias in FP32, and one rounding after it: rounding the bias, or the sum before it, would give 1 in both columns. */
static void gemm_of_bf16_rounds_after_the_bias(void **state) {
    backend *b = *state;
    ql_mat x = poisoned(b, QL_BF16, 3, 2), w = poisoned(b, QL_BF16, 2, 2), bias = poisoned(b, QL_F32, 1, 2),
           y = poisoned(b, QL_BF16, 3, 2), dy = upload(b, y);
    for (int64_t r = 0; r < 3; r++) ref_put(x, r, 0, 1), ref_put(x, r, 1, 0x1p-8);
    for (int64_t c = 0; c < 2; c++) ref_put(w, c, 0, 1), ref_put(w, c, 1, (double)c);
    ref_put(bias, 0, 0, 0x1p-8 + 0x1p-20); /* of the sum 1 */
    ref_put(bias, 0, 1, 0x1p-10);          /* of the sum 1 + 2^-8 */
    assert_ok(ql_gemm(b->ctx, upload(b, x), upload(b, w), upload(b, bias), dy));
    download(b, dy, y);
    for (int64_t i = 0; i < 6; i++) assert_true(ref_at(y, i / 2, i % 2) == 1 + 0x1p-7);
}

static void gemm_odd_sizes(void **state) {
    const int64_t sizes[][3] = {{1, 1, 1}, {1, 300, 7}, {7, 1, 33}, {17, 63, 118}, {65, 257, 129}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ql_mat x = normal(*state, sizes[i][0], sizes[i][2], 1), w = normal(*state, sizes[i][1], sizes[i][2], 2);
        check_gemm(*state, x, w, ql_no_mat());
        check_gemm(*state, x, w, normal(*state, 1, w.rows, 3));
    }
}

static void gemm_crosses_tiles(void **state) {
    check_gemm(*state, outliers(*state, 515, 30, 4), normal(*state, 1030, 30, 5), normal(*state, 1, 1030, 6));
}

static void gemm_long_sum(void **state) {
    check_gemm(*state, normal(*state, 3, 14337, 7), outliers(*state, 5, 14337, 8), ql_no_mat());
}

static void gemm_of_no_rows(void **state) {
    backend *b = *state;
    ql_mat w = upload(b, normal(b, 5, 8, 1));
    assert_ok(ql_gemm(b->ctx, ql_mat_of(NULL, QL_F32, 0, 8), w, ql_no_mat(), ql_mat_of(NULL, QL_F32, 0, 5)));
}

static void gemm_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat x = upload(b, normal(b, 4, 8, 1)), w = upload(b, normal(b, 5, 8, 2)), y = upload(b, normal(b, 4, 5, 3));
    ql_mat narrow = x, half = x, odd = x, none = ql_no_mat();
    ql_mat bf16 = upload(b, narrowed(b, normal(b, 4, 8, 1)));
    narrow.ld = 7, half.dtype = QL_F16, odd.data = (char *)x.data + 2;
    assert_refused(ql_gemm(b->ctx, x, ql_cols(w, 0, 7), none, y), QL_INVALID, "w: has 7 columns, expected 8");
    assert_refused(ql_gemm(b->ctx, narrow, w, none, y), QL_INVALID, "x: 4 rows, 8 columns, leading dimension 7");
    assert_refused(ql_gemm(b->ctx, half, w, none, y), QL_INVALID, "x: is F16, expected F32");
    assert_refused(ql_gemm(b->ctx, x, bf16, none, y), QL_INVALID, "w: is BF16, expected F32");
    assert_refused(ql_gemm(b->ctx, bf16, w, none, y), QL_INVALID, "w: is F32, expected BF16");
    assert_refused(ql_gemm(b->ctx, bf16, bf16, none, ql_cols(half, 0, 4)), QL_INVALID, "y: is F16, expected F32");
    assert_refused(ql_gemm(b->ctx, x, ql_rows(x, 0, 4), none, ql_cols(bf16, 0, 4)), QL_INVALID,
                   "y: is BF16, expected F32");
    assert_refused(ql_gemm(b->ctx, odd, w, none, y), QL_INVALID, "not a multiple of 4");
    assert_refused(ql_gemm(b->ctx, x, w, ql_rows(w, 0, 1), y), QL_INVALID, "bias: has 8 columns, expected 5");
    assert_refused(ql_gemm(b->ctx, x, w, none, ql_rows(y, 0, 3)), QL_INVALID, "y: has 3 rows, expected 4");
    assert_refused(ql_gemm(b->ctx, ql_mat_of(NULL, QL_F32, 4, 8), w, none, y), QL_INVALID, "x: absent");
    assert_refused(ql_gemm(b->ctx, ql_cols(x, 0, 0), ql_cols(w, 0, 0), none, y), QL_INVALID, "at least 1");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm_odd_sizes),
        cmocka_unit_test(gemm_crosses_tiles),
        cmocka_unit_test(gemm_long_sum),
        cmocka_unit_test(gemm_of_bf16_odd_sizes),
        cmocka_unit_test(gemm_of_bf16_long_sums_and_many_rows),
        cmocka_unit_test(gemm_of_bf16_rounds_after_the_bias),
        cmocka_unit_test(gemm_of_no_rows),
        cmocka_unit_test(gemm_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

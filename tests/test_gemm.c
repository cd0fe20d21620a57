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
    narrow.ld = 7, half.dtype = QL_F16, odd.data = (char *)x.data + 2;
    assert_refused(ql_gemm(b->ctx, x, ql_cols(w, 0, 7), none, y), QL_INVALID, "w: has 7 columns, expected 8");
    assert_refused(ql_gemm(b->ctx, narrow, w, none, y), QL_INVALID, "x: 4 rows, 8 columns, leading dimension 7");
    assert_refused(ql_gemm(b->ctx, half, w, none, y), QL_INVALID, "x: is F16, expected F32");
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
        cmocka_unit_test(gemm_of_no_rows),
        cmocka_unit_test(gemm_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

/* Statistics: H, moments, histogram of magnitudes. */
#include "tests/backend.h"

#include <math.h>

#include "host/num.h"
#include "tests/ref.h"

static ql_mat filled(backend *b, ql_dtype dtype, int64_t rows, int64_t cols, double value) {
    ql_mat mat = poisoned(b, dtype, rows, cols);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) ref_put(mat, r, c, value);
    return mat;
}

/* Two additions into one H whose lower triangle holds a value that must survive. */
static void check_hessian(backend *b, ql_mat x, ql_dtype dtype, double bound) {
    int64_t k = x.cols, half = x.rows / 2;
    ql_mat h = filled(b, dtype, k, k, -3), truth = poisoned(b, QL_F64, k, k);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) {
            if (i <= j) ref_put(h, i, j, 0);
            ref_put(truth, i, j, i <= j ? 0 : -3);
        }
    ref_hessian(x, truth);
    ql_mat dx = upload(b, x), dh = upload(b, h), again = upload(b, h);
    ql_ctx *contexts[] = {b->ctx, b->other};
    for (int i = 0; i < 2; i++) {
        assert_ok(ql_hessian(contexts[i], ql_rows(dx, 0, half), i ? again : dh));
        assert_ok(ql_hessian(contexts[i], ql_rows(dx, half, x.rows - half), i ? again : dh));
    }
    download(b, dh, h);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < i; j++) assert_true(ref_at(h, i, j) == -3);
    assert_close(h, truth, bound);
    assert_same_bits_on_device(b, dh, again);
}

static void hessian_odd_sizes(void **state) {
    check_hessian(*state, normal(*state, 1, 1, 1), QL_F32, 1e-5); /* kernels.md: 1e-5 of the norm for FP32 sums */
    check_hessian(*state, normal(*state, 65, 33, 2), QL_F32, 1e-5);
    check_hessian(*state, outliers(*state, 118, 257, 3), QL_F32, 1e-5);
}

static void hessian_crosses_tiles(void **state) {
    check_hessian(*state, normal(*state, 21, 523, 4), QL_F32, 1e-5);
    check_hessian(*state, normal(*state, 21, 523, 4), QL_F64, 1e-14);
}

/* Products in double: sqrt(m) 2^-53 and no FP32 rounding anywhere; more rows than are converted at a time. */
static void hessian_in_double(void **state) {
    check_hessian(*state, normal(*state, 1, 1, 1), QL_F64, 1e-15);
    check_hessian(*state, outliers(*state, 1100, 37, 5), QL_F64, 1e-14);
}

static void hessian_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat x = upload(b, normal(b, 3, 8, 1)), h = upload(b, normal(b, 8, 8, 2)), half = h;
    half.dtype = QL_BF16;
    assert_refused(ql_hessian(b->ctx, x, ql_cols(h, 0, 7)), QL_INVALID, "h: has 7 columns, expected 8");
    assert_refused(ql_hessian(b->ctx, x, ql_rows(h, 0, 7)), QL_INVALID, "h: has 7 rows, expected 8");
    assert_refused(ql_hessian(b->ctx, x, half), QL_INVALID, "h: is BF16");
}

/* ---- moments ------------------------------------------------------------------------------------------------------------------ */

static void check_moments(backend *b, ql_mat x) {
    int64_t k = x.cols;
    ql_mat m[4], d[4], again[4];
    const double initial[] = {0.25, 0.5, INFINITY, -INFINITY};
    for (int i = 0; i < 4; i++) {
        m[i] = filled(b, i < 2 ? QL_F64 : QL_F32, 1, k, initial[i]);
        d[i] = upload(b, m[i]), again[i] = upload(b, m[i]);
    }
    ql_mat dx = upload(b, x);
    assert_ok(ql_moments(b->ctx, dx, d[0], d[1], d[2], d[3]));
    assert_ok(ql_moments(b->other, dx, again[0], again[1], again[2], again[3]));
    for (int i = 0; i < 4; i++) {
        download(b, d[i], m[i]);
        assert_same_bits_on_device(b, d[i], again[i]);
    }
    for (int64_t c = 0; c < k; c++) {
        double square = 0.25, magnitude = 0.5, min = INFINITY, max = -INFINITY;
        for (int64_t r = 0; r < x.rows; r++) {
            double value = ref_at(x, r, c);
            square += value * value, magnitude += fabs(value);
            min = fmin(min, value), max = fmax(max, value);
        }
        /* Double sums in another order: m 2^-53. */
        assert_true(fabs(ref_at(m[0], 0, c) - square) <= 1e-13 * square);
        assert_true(fabs(ref_at(m[1], 0, c) - magnitude) <= 1e-13 * magnitude);
        assert_true(ref_at(m[2], 0, c) == min && ref_at(m[3], 0, c) == max);
    }
}

static void moments_odd_sizes(void **state) {
    check_moments(*state, normal(*state, 1, 1, 1));
    check_moments(*state, outliers(*state, 131, 259, 2));
}

/* ---- abs_hist ------------------------------------------------------------------------------------------------------------------ */

static void abs_hist_counts_every_value(void **state) {
    backend *b = *state;
    ql_mat x = outliers(b, 67, 259, 1), count = filled(b, QL_U64, 1, 32768, 5), dcount = upload(b, count);
    const double special[] = {0, -0.0, INFINITY, -INFINITY, 1e-45, -3.4e38};
    for (int64_t c = 0; c < 6; c++) ref_put(x, 5, c, special[c]);
    uint64_t *expected = calloc(32768, sizeof *expected);
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) expected[ql_f32_to_bf16((float)ref_at(x, r, c)) & 0x7fff]++;
    assert_int_equal(expected[0], 3);      /* both zeros and the subnormal that rounds down */
    assert_int_equal(expected[0x7f80], 3); /* both infinities and -3.4e38, which rounds up to one */
    ql_mat dx = upload(b, x);
    assert_ok(ql_abs_hist(b->ctx, dx, dcount));
    assert_ok(ql_abs_hist(b->other, dx, dcount));
    download(b, dcount, count);
    for (int64_t i = 0; i < 32768; i++) assert_true(((uint64_t *)count.data)[i] == 5 + 2 * expected[i]);
    free(expected);
    assert_refused(ql_abs_hist(b->ctx, dx, ql_cols(dcount, 0, 100)), QL_INVALID, "expected 32768");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hessian_odd_sizes), cmocka_unit_test(hessian_crosses_tiles),
        cmocka_unit_test(hessian_in_double), cmocka_unit_test(hessian_refuses_what_does_not_fit),
        cmocka_unit_test(moments_odd_sizes), cmocka_unit_test(abs_hist_counts_every_value),
    };
    return run_on_backends(tests);
}

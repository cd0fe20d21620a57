/* R R^T = P (H + shift I) P^T around the borders of tiles, and matrices that have no factor. */
#include "tests/grids.h"

#include <math.h>

#include "tests/ref.h"

/* h with its lower triangle poisoned: it must not be read. */
static ql_mat upper_half(backend *b, ql_mat h) {
    ql_mat upper = poisoned(b, QL_F32, h.rows, h.cols);
    for (int64_t i = 0; i < h.rows; i++)
        for (int64_t j = i; j < h.cols; j++) ref_put(upper, i, j, ref_at(h, i, j));
    return upper;
}

static int64_t column_at(ql_mat order, int64_t p) { return ql_is_present(order) ? (int64_t)ref_at(order, 0, p) : p; }

/* The product in double, compared with the matrix in its order.  Bound: the backward error of a Cholesky factorization is below
 * k eps of the norm, and 10 k eps is what LAPACK's own tests allow. */
static void check_product(backend *b, ql_mat r, ql_mat h, ql_mat order, double shift) {
    int64_t k = r.cols;
    const float *data = r.data;
    ql_mat product = poisoned(b, QL_F64, k, k), truth = poisoned(b, QL_F64, k, k);
    for (int64_t p = 0; p < k; p++)
        for (int64_t q = 0; q < k; q++) {
            double sum = 0;
            for (int64_t i = p > q ? p : q; i < k; i++) sum += (double)data[p * r.ld + i] * data[q * r.ld + i];
            ref_put(product, p, q, sum);
            ref_put(truth, p, q, ref_at(h, column_at(order, p), column_at(order, q)) + (p == q ? shift : 0));
            if (q < p && data[p * r.ld + q] != 0) fail_msg("(%d, %d) below the diagonal is not 0", (int)p, (int)q);
        }
    assert_close(product, truth, 10 * (double)k * 0x1p-24);
}

static void check_factor(backend *b, ql_mat h, ql_mat order, double shift) {
    ql_mat r = poisoned(b, QL_F32, h.rows, h.cols), dr = upload(b, r), again = upload(b, r);
    ql_mat dh = upload(b, upper_half(b, h)), dorder = ql_is_present(order) ? upload(b, order) : order;
    assert_ok(ql_factor(b->ctx, dh, dorder, shift, dr));
    assert_ok(ql_factor(b->other, dh, dorder, shift, again));
    assert_same_bits_on_device(b, dr, again);
    download(b, dr, r);
    check_product(b, r, h, order, shift);
}

static void factor_around_tiles(void **state) {
    backend *b = *state;
    const int64_t sizes[] = {1, 2, 15, 16, 17, 97, 127, 128, 129, 255, 256, 257, 512, 530};
    for (int i = 0; i < 14; i++) {
        ql_mat h = random_hessian(b, QL_F32, sizes[i], sizes[i] + 10, (uint64_t)i);
        check_factor(b, h, ql_no_mat(), 0);
        check_factor(b, h, random_order(b, sizes[i], 5), 0.5);
    }
}

static void factor_of_nothing(void **state) {
    backend *b = *state;
    ql_mat none = upload(b, poisoned(b, QL_F32, 0, 0));
    assert_ok(ql_factor(b->ctx, none, ql_no_mat(), 1, none));
}

/* Rank one, zero, duplicate columns, one dead column: no factor without a shift, an exact one with it. */
static ql_mat deficient(backend *b, int kind, int64_t k) {
    ql_mat h = random_hessian(b, QL_F32, k, kind == 0 ? 1 : 2 * k, 3);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) {
            if (kind == 1 || (kind == 3 && (i == 40 || j == 40))) ref_put(h, i, j, 0);
            if (kind == 2) ref_put(h, i, j, ref_at(h, i / 2 * 2, j / 2 * 2));
        }
    return h;
}

static void factor_of_deficient_matrices_needs_a_shift(void **state) {
    backend *b = *state;
    for (int kind = 0; kind < 4; kind++) {
        ql_mat h = deficient(b, kind, 70), dr = upload(b, poisoned(b, QL_F32, 70, 70));
        check_factor(b, h, ql_no_mat(), 1e-2 * ref_quadratic(h, ql_no_mat()) / 70 + 1);
        /* Rounding may leave a tiny positive pivot where the exact one is 0, except where everything is exactly 0. */
        ql_status status = ql_factor(b->ctx, upload(b, upper_half(b, h)), ql_no_mat(), 0, dr);
        assert_true(status == QL_NUMERIC || (status == QL_OK && (kind == 0 || kind == 2)));
    }
}

/* Eigenvalues from 1 down to 1 / condition, turned by reflections; the bound is relative to the norm, so the condition must not
 * show. */
static ql_mat conditioned(backend *b, int64_t k, double condition) {
    ql_mat a = poisoned(b, QL_F64, k, k), h = poisoned(b, QL_F32, k, k), turn = normal(b, 6, k, 31);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) ref_put(a, i, j, i == j ? pow(condition, -(double)i / (double)(k - 1)) : 0);
    for (int64_t t = 0; t < turn.rows; t++)
        for (int side = 0; side < 2; side++)
            for (int64_t i = 0; i < k; i++) {
                double norm = 0, dot = 0;
                for (int64_t j = 0; j < k; j++) {
                    double v = ref_at(turn, t, j), x = side ? ref_at(a, j, i) : ref_at(a, i, j);
                    norm += v * v, dot += v * x;
                }
                for (int64_t j = 0; j < k; j++) {
                    double change = 2 * dot / norm * ref_at(turn, t, j);
                    if (side) ref_put(a, j, i, ref_at(a, j, i) - change);
                    else ref_put(a, i, j, ref_at(a, i, j) - change);
                }
            }
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) ref_put(h, i, j, ref_at(a, i < j ? i : j, i < j ? j : i));
    return h;
}

/* kernels.md: conditions of 1e2 to 1e8; FP32 rounds 1e-8 of the largest eigenvalue away, so there the shift that every use has. */
static void factor_of_badly_conditioned_matrices(void **state) {
    backend *b = *state;
    check_factor(b, conditioned(b, 300, 1e2), ql_no_mat(), 0);
    check_factor(b, conditioned(b, 300, 1e4), random_order(b, 300, 5), 0);
    check_factor(b, conditioned(b, 300, 1e6), ql_no_mat(), 1e-6);
    check_factor(b, conditioned(b, 300, 1e8), random_order(b, 300, 5), 1e-6);
}

/* What a GPU falls back to; the CPU does not read the variable. */
static void factor_by_the_library(void **state) {
    backend *b = *state;
    setenv("QALIB_FACTOR", "cusolver", 1);
    check_factor(b, random_hessian(b, QL_F32, 140, 150, 6), random_order(b, 140, 5), 0.5);
    ql_mat h = upper_half(b, random_hessian(b, QL_F32, 64, 128, 3)), r = poisoned(b, QL_F32, 64, 64);
    ref_put(h, 33, 33, -5);
    assert_refused(ql_factor(b->ctx, upload(b, h), ql_no_mat(), 1, upload(b, r)), QL_NUMERIC, "not positive definite");
    unsetenv("QALIB_FACTOR");
}

static void refuse(backend *b, int64_t k, int64_t at, double value, const char *words) {
    ql_mat h = upper_half(b, random_hessian(b, QL_F32, k, 2 * k, 3)), r = poisoned(b, QL_F32, k, k);
    ref_put(h, at, at, value);
    assert_refused(ql_factor(b->other, upload(b, h), ql_no_mat(), 1, upload(b, r)), QL_NUMERIC, words);
}

static void factor_refuses_indefinite_matrices(void **state) {
    backend *b = *state;
    refuse(b, 64, 33, -5, "at column 33");
    refuse(b, 64, 33, NAN, "at column 33");
    refuse(b, 600, 33, -5, "at column 33");
    refuse(b, 600, 590, -5, "at column 590");
    refuse(b, 64, 33, INFINITY, "not positive definite");
}

static void factor_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat h = upload(b, random_hessian(b, QL_F32, 8, 20, 1)), r = upload(b, poisoned(b, QL_F32, 8, 8)), bad = r;
    bad.cols = 7;
    assert_refused(ql_factor(b->ctx, h, ql_no_mat(), 1, bad), QL_INVALID, "r: has 7 columns, expected 8");
    assert_refused(ql_factor(b->ctx, bad, ql_no_mat(), 1, r), QL_INVALID, "h: has 7 columns, expected 8");
    ql_mat order = upload(b, random_order(b, 7, 1));
    assert_refused(ql_factor(b->ctx, h, order, 1, r), QL_INVALID, "order: has 7 columns, expected 8");
    if (!is_cpu(b)) return; /* only the CPU can look at values before it runs */
    order = random_order(b, 8, 1);
    ref_put(order, 0, 3, ref_at(order, 0, 2));
    assert_refused(ql_factor(b->ctx, h, order, 1, r), QL_INVALID, "order[3]");
    ref_put(order, 0, 3, 8);
    assert_refused(ql_factor(b->ctx, h, order, 1, r), QL_INVALID, "order[3] is 8, expected a permutation of 0 .. 7");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(factor_around_tiles),
        cmocka_unit_test(factor_of_badly_conditioned_matrices),
        cmocka_unit_test(factor_by_the_library),
        cmocka_unit_test(factor_of_nothing),
        cmocka_unit_test(factor_of_deficient_matrices_needs_a_shift),
        cmocka_unit_test(factor_refuses_indefinite_matrices),
        cmocka_unit_test(factor_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

/* Measures: loss, negative log-likelihood, Kullback-Leibler divergence. */
#include "tests/backend.h"

#include <math.h>

#include "tests/ref.h"

/* H of m tokens, its lower triangle poisoned: only the upper one may be read. */
static ql_mat random_hessian(backend *b, ql_dtype dtype, int64_t k, int64_t m) {
    ql_mat h = poisoned(b, dtype, k, k), sum = poisoned(b, QL_F64, k, k);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = i; j < k; j++) ref_put(sum, i, j, 0);
    ref_hessian(normal(b, m, k, 11), sum);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = i; j < k; j++) ref_put(h, i, j, ref_at(sum, i, j));
    return h;
}

static ql_mat difference(backend *b, ql_mat w, ql_mat q) {
    ql_mat e = poisoned(b, QL_F64, w.rows, w.cols);
    for (int64_t r = 0; r < w.rows; r++)
        for (int64_t c = 0; c < w.cols; c++) ref_put(e, r, c, ref_at(w, r, c) - ref_at(q, r, c));
    return e;
}

static void check_loss(backend *b, int64_t n, ql_mat h, int64_t k, double bound) {
    ql_mat w = outliers(b, n, k, 1), q = normal(b, n, k, 2), dw = upload(b, w), dq = upload(b, q);
    ql_mat dh = ql_is_present(h) ? upload(b, h) : h;
    double loss, norm, other_loss, other_norm;
    for (int64_t r = 0; r < n; r++) /* q = w with 1 % of noise: a loss much smaller than the norm */
        for (int64_t c = 0; c < k; c++) ref_put(q, r, c, ref_at(w, r, c) + 0.01 * ref_at(q, r, c));
    assert_ok(ql_upload(b->ctx, dq.data, q.data, (size_t)(q.rows * q.ld) * sizeof(float)));
    assert_ok(ql_loss(b->ctx, dw, dq, dh, &loss, &norm));
    assert_ok(ql_loss(b->other, dw, dq, dh, &other_loss, &other_norm));
    double true_loss = ref_quadratic(difference(b, w, q), h), true_norm = ref_quadratic(w, h);
    if (!(fabs(loss - true_loss) <= bound * true_loss)) fail_msg("loss %.12g, expected %.12g", loss, true_loss);
    if (!(fabs(norm - true_norm) <= bound * true_norm)) fail_msg("norm %.12g, expected %.12g", norm, true_norm);
    assert_true(loss == other_loss && norm == other_norm);
}

static void loss_odd_sizes(void **state) {
    const int64_t sizes[][2] = {{1, 1}, {3, 33}, {130, 65}, {5, 300}};
    for (int i = 0; i < 4; i++) {
        int64_t n = sizes[i][0], k = sizes[i][1];
        check_loss(*state, n, random_hessian(*state, QL_F32, k, 2 * k), k, 1e-5); /* FP32 products, double sums */
        check_loss(*state, n, random_hessian(*state, QL_F64, k, 2 * k), k, 1e-12);
        check_loss(*state, n, ql_no_mat(), k, 1e-6);
    }
}

static void loss_of_nothing_lost(void **state) {
    backend *b = *state;
    ql_mat w = upload(b, normal(b, 7, 40, 1));
    double loss = 1, norm = 0;
    assert_ok(ql_loss(b->ctx, w, w, upload(b, random_hessian(b, QL_F32, 40, 80)), &loss, &norm));
    assert_true(loss == 0 && norm > 0);
    assert_refused(ql_loss(b->ctx, w, w, ql_no_mat(), NULL, &norm), QL_INVALID, "null pointer");
    assert_refused(ql_loss(b->ctx, w, ql_cols(w, 0, 39), ql_no_mat(), &loss, &norm), QL_INVALID, "q: has 39 columns");
}

/* ---- nll, kld ------------------------------------------------------------------------------------------------------------------ */

static void nll_of_random_logits(void **state) {
    backend *b = *state;
    const int64_t vocabularies[] = {1, 2, 259, 4099};
    const int32_t wanted[] = {0, -1, 1, 258, 4098, 17, -100};
    for (int i = 0; i < 4; i++) {
        int32_t target[7];
        for (int t = 0; t < 7; t++) target[t] = wanted[t] < vocabularies[i] ? wanted[t] : 0;
        ql_mat logits = outliers(b, 7, vocabularies[i], 1), nll = poisoned(b, QL_F64, 1, 7);
        ql_mat dlogits = upload(b, logits), dtarget = upload(b, integers(b, 7, target));
        ql_mat dnll = upload(b, nll), again = upload(b, nll);
        assert_ok(ql_nll(b->ctx, dlogits, dtarget, dnll));
        assert_ok(ql_nll(b->other, dlogits, dtarget, again));
        download(b, dnll, nll);
        for (int64_t r = 0; r < 7; r++) {
            double truth = ref_nll(logits, r, target[r]);
            /* A double exponential of 2 ulp on the CPU; 1e-7 leaves room for FP32 ones summed in double. */
            if (!(fabs(ref_at(nll, 0, r) - truth) <= 1e-7 * (1 + truth)))
                fail_msg("v %lld: %.15g, expected %.15g", (long long)vocabularies[i], ref_at(nll, 0, r), truth);
        }
        assert_same_bits_on_device(b, dnll, again);
    }
}

static void nll_refuses_targets_outside(void **state) {
    backend *b = *state;
    const int32_t target[] = {0, 9};
    ql_mat logits = upload(b, normal(b, 2, 9, 1)), nll = upload(b, poisoned(b, QL_F64, 1, 2));
    ql_mat dtarget = upload(b, integers(b, 2, target));
    assert_refused(ql_nll(b->ctx, logits, ql_cols(dtarget, 0, 1), nll), QL_INVALID, "target: has 1 columns");
    if (!is_cpu(b)) return; /* only the CPU can look at values before it runs */
    assert_refused(ql_nll(b->ctx, logits, dtarget, nll), QL_INVALID, "target[1] is 9, there are 9 logits");
}

/* Rows: unrelated, nearly equal (a divergence of 1e-8), equal, and equal up to a constant. */
static void kld_of_random_logits(void **state) {
    backend *b = *state;
    ql_mat base = normal(b, 4, 1003, 1), logits = normal(b, 4, 1003, 2);
    for (int64_t c = 0; c < base.cols; c++) {
        ref_put(logits, 1, c, ref_at(base, 1, c) + 1e-4 * ref_at(logits, 1, c));
        ref_put(logits, 2, c, ref_at(base, 2, c));
        ref_put(base, 3, c, rint(8 * ref_at(base, 3, c)) / 8); /* so that adding 64 is exact */
        ref_put(logits, 3, c, ref_at(base, 3, c) + 64);
    }
    ql_mat kld = poisoned(b, QL_F64, 1, 4), same = poisoned(b, QL_U8, 1, 4), dkld = upload(b, kld);
    ql_mat dsame = upload(b, same), again = upload(b, kld), dbase = upload(b, base), dlogits = upload(b, logits);
    assert_ok(ql_kld(b->ctx, dbase, dlogits, dkld, dsame));
    assert_ok(ql_kld(b->other, dbase, dlogits, again, dsame));
    assert_same_bits_on_device(b, dkld, again);
    download(b, dkld, kld);
    download(b, dsame, same);
    for (int64_t r = 0; r < 4; r++) {
        double truth = ref_kld(base, logits, r);
        /* Terms of order 1 cancel in double: about v 2^-53 = 1e-13. */
        if (!(fabs(ref_at(kld, 0, r) - truth) <= 1e-12))
            fail_msg("row %lld: %.15g, expected %.15g", (long long)r, ref_at(kld, 0, r), truth);
    }
    assert_true(ref_kld(base, logits, 1) < 1e-7 && ref_kld(base, logits, 1) > 1e-9);
    assert_int_equal(ref_at(same, 0, 0), 0);
    for (int64_t r = 2; r < 4; r++) assert_int_equal(ref_at(same, 0, r), 1);
}

/* The first of several maxima counts; zero probability on both sides adds nothing. */
static void kld_ties_and_impossible_tokens(void **state) {
    backend *b = *state;
    const float base[2][4] = {{1, 2, 2, -INFINITY}, {0, 3, 1, 3}}, logits[2][4] = {{0, 5, 1, -INFINITY}, {0, 1, 2, 3}};
    ql_mat hbase = poisoned(b, QL_F32, 2, 4), hlogits = poisoned(b, QL_F32, 2, 4);
    for (int64_t i = 0; i < 8; i++) {
        ref_put(hbase, i / 4, i % 4, base[i / 4][i % 4]);
        ref_put(hlogits, i / 4, i % 4, logits[i / 4][i % 4]);
    }
    ql_mat kld = poisoned(b, QL_F64, 1, 2), same = poisoned(b, QL_U8, 1, 2), dkld = upload(b, kld),
           dsame = upload(b, same);
    assert_ok(ql_kld(b->ctx, upload(b, hbase), upload(b, hlogits), dkld, dsame));
    download(b, dkld, kld);
    download(b, dsame, same);
    double truth = ref_kld(ql_cols(hbase, 0, 3), ql_cols(hlogits, 0, 3), 0);
    assert_true(fabs(ref_at(kld, 0, 0) - truth) <= 1e-13);
    assert_int_equal(ref_at(same, 0, 0), 1);
    assert_int_equal(ref_at(same, 0, 1), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_odd_sizes),       cmocka_unit_test(loss_of_nothing_lost),
        cmocka_unit_test(nll_of_random_logits), cmocka_unit_test(nll_refuses_targets_outside),
        cmocka_unit_test(kld_of_random_logits), cmocka_unit_test(kld_ties_and_impossible_tokens),
    };
    return run_on_backends(tests);
}

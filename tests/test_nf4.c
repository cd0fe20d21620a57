/* NF4: against the table's nearest entry in double, known codes, and the edges: short blocks, rows that do not end with a block. */
#include <math.h>

#include "host/nf4.h"
#include "tests/backend.h"
#include "tests/ref.h"

/* The published table, typed once more from the paper's implementation. */
static const double table[16] = {
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
};

static double distance(double t, int code) { return fabs(t - table[code]); }

/* The code is the nearest entry, the maximum that of its block, and the value the product rounded once. */
static void check(backend *b, ql_mat w) {
    int64_t blocks = (w.rows * w.cols + 63) / 64;
    ql_mat absmax = poisoned(b, QL_F32, 1, blocks), codes = poisoned(b, QL_U8, w.rows, w.cols),
           back = poisoned(b, QL_F32, w.rows, w.cols);
    ql_mat dw = upload(b, w), da = upload(b, absmax), dc = upload(b, codes), db = upload(b, back);
    assert_ok(ql_nf4_quantize(b->ctx, dw, da, dc));
    assert_ok(ql_nf4_dequantize(b->ctx, dc, da, db));
    download(b, da, absmax);
    download(b, dc, codes);
    download(b, db, back);
    for (int64_t block = 0; block < blocks; block++) {
        double most = 0;
        for (int64_t i = block * 64; i < w.rows * w.cols && i < block * 64 + 64; i++)
            most = fmax(most, fabs(ref_at(w, i / w.cols, i % w.cols)));
        assert_true(ref_at(absmax, 0, block) == most);
    }
    for (int64_t i = 0; i < w.rows * w.cols; i++) {
        int64_t r = i / w.cols, c = i % w.cols;
        double most = ref_at(absmax, 0, i / 64), t = most > 0 ? ref_at(w, r, c) / most : 0;
        int code = (int)ref_at(codes, r, c), best = 0;
        for (int other = 1; other < 16; other++)
            if (distance(t, other) < distance(t, best)) best = other;
        /* Bound: middles between entries are rounded to F32, and so is the quotient. */
        if (code > 15 || distance(t, code) > distance(t, best) + 1e-6) fail_msg("element %d: code %d", (int)i, code);
        assert_true(ref_at(back, r, c) == (float)((double)(float)table[code] * most));
    }
}

static void nf4_shapes(void **state) {
    backend *b = *state;
    check(b, normal(b, 1, 1, 1));
    check(b, normal(b, 3, 64, 2));
    check(b, normal(b, 5, 100, 3)); /* blocks cross rows, the last has 52 */
    check(b, normal(b, 7, 63, 4));
    check(b, outliers(b, 40, 300, 5));
}

/* What lies exactly on an entry, and next to a middle; by the format's thresholds a tie belongs to the lower code. */
static void nf4_known_codes(void **state) {
    backend *b = *state;
    ql_mat w = poisoned(b, QL_F32, 1, 64), codes = poisoned(b, QL_U8, 1, 64);
    for (int i = 0; i < 64; i++) ref_put(w, 0, i, table[i % 16] * 4);
    ref_put(w, 0, 16, 4 * 0.03979014977812767f);
    ref_put(w, 0, 17, 4 * 0.0398);
    ref_put(w, 0, 18, -4 * 0.8480964004993439f);
    ref_put(w, 0, 19, -4 * 0.848);
    ql_mat da = upload(b, poisoned(b, QL_F32, 1, 1)), dc = upload(b, codes);
    assert_ok(ql_nf4_quantize(b->ctx, upload(b, w), da, dc));
    download(b, dc, codes);
    for (int i = 0; i < 64; i++)
        if (i < 16 || i > 19) assert_int_equal((int)ref_at(codes, 0, i), i % 16);
    assert_int_equal((int)ref_at(codes, 0, 16), 7);
    assert_int_equal((int)ref_at(codes, 0, 17), 8);
    assert_int_equal((int)ref_at(codes, 0, 18), 0);
    assert_int_equal((int)ref_at(codes, 0, 19), 1);
}

static void nf4_zeros_keep_the_code_of_zero(void **state) {
    backend *b = *state;
    ql_mat w = poisoned(b, QL_F32, 2, 64), codes = poisoned(b, QL_U8, 2, 64);
    for (int i = 0; i < 128; i++) ref_put(w, i / 64, i % 64, i < 64 ? -0.0 : 1);
    ql_mat da = upload(b, poisoned(b, QL_F32, 1, 2)), dc = upload(b, codes);
    assert_ok(ql_nf4_quantize(b->ctx, upload(b, w), da, dc));
    download(b, dc, codes);
    for (int i = 0; i < 128; i++) assert_int_equal((int)ref_at(codes, i / 64, i % 64), i < 64 ? QL_NF4_ZERO : 15);
}

static void nf4_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat w = upload(b, normal(b, 2, 64, 1)), codes = upload(b, poisoned(b, QL_U8, 2, 64)),
           few = upload(b, poisoned(b, QL_F32, 1, 1)), narrow = upload(b, poisoned(b, QL_U8, 2, 63));
    assert_refused(ql_nf4_quantize(b->ctx, w, few, codes), QL_INVALID, "absmax");
    assert_refused(ql_nf4_dequantize(b->ctx, narrow, few, w), QL_INVALID, "codes");
    ql_mat none = upload(b, normal(b, 0, 64, 1)), empty = upload(b, poisoned(b, QL_F32, 1, 0));
    assert_ok(ql_nf4_quantize(b->ctx, none, empty, upload(b, poisoned(b, QL_U8, 0, 64))));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nf4_shapes),
        cmocka_unit_test(nf4_known_codes),
        cmocka_unit_test(nf4_zeros_keep_the_code_of_zero),
        cmocka_unit_test(nf4_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

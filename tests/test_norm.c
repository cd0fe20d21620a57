/* RMS norm and rotary embedding. */
#include "tests/backend.h"

#include <math.h>

#include "tests/ref.h"

/* Three roundings (the inverse root, two products), each at most 2^-24. */
static const double NORM_BOUND = 3 * 0x1p-24;

static void check_rmsnorm(backend *b, ql_mat x, int64_t d, int in_place) {
    ql_mat weight = normal(b, 1, d, 9), truth = poisoned(b, QL_F64, x.rows, x.cols);
    ql_mat y = poisoned(b, QL_F32, x.rows, x.cols), dx = upload(b, x), dweight = upload(b, weight);
    ql_mat dy = in_place ? dx : upload(b, y), again = upload(b, in_place ? x : y);
    ref_rmsnorm(x, weight, 1e-5f, truth);
    assert_ok(ql_rmsnorm(b->other, in_place ? again : dx, dweight, 1e-5f, again));
    assert_ok(ql_rmsnorm(b->ctx, dx, dweight, 1e-5f, dy));
    download(b, dy, y);
    assert_close(y, truth, NORM_BOUND);
    assert_same_bits_on_device(b, dy, again);
}

static void rmsnorm_odd_sizes(void **state) {
    check_rmsnorm(*state, normal(*state, 1, 1, 1), 1, 0);
    check_rmsnorm(*state, normal(*state, 7, 259, 2), 259, 0);
    check_rmsnorm(*state, outliers(*state, 65, 1000, 3), 1000, 1);
}

static void rmsnorm_per_head(void **state) {
    check_rmsnorm(*state, normal(*state, 9, 5 * 24, 4), 24, 0);
    check_rmsnorm(*state, normal(*state, 9, 5 * 24, 4), 24, 1);
}

/* eps carries a row of zeros, and squares beyond FP32 must not overflow. */
static void rmsnorm_extreme_rows(void **state) {
    backend *b = *state;
    ql_mat x = normal(b, 2, 40, 5), ones = poisoned(b, QL_F32, 1, 40), y = poisoned(b, QL_F32, 2, 40);
    for (int64_t c = 0; c < 40; c++) {
        ref_put(ones, 0, c, 1);
        ref_put(x, 0, c, 0);
        ref_put(x, 1, c, c % 2 ? 1e30 : -1e30);
    }
    ql_mat dy = upload(b, y);
    assert_ok(ql_rmsnorm(b->ctx, upload(b, x), upload(b, ones), 1e-6f, dy));
    download(b, dy, y);
    for (int64_t c = 0; c < 40; c++) {
        assert_true(ref_at(y, 0, c) == 0);
        assert_true(fabs(ref_at(y, 1, c) - (c % 2 ? 1 : -1)) < 1e-6);
    }
}

static void check_rope(backend *b, int64_t m, int64_t heads, int64_t d) {
    enum { POSITIONS = 50 };
    ql_mat x = normal(b, m, heads * d, 6), truth = poisoned(b, QL_F64, m, heads * d);
    ql_mat cosines = poisoned(b, QL_F32, POSITIONS, d / 2), sines = poisoned(b, QL_F32, POSITIONS, d / 2);
    for (int64_t p = 0; p < POSITIONS; p++)
        for (int64_t i = 0; i < d / 2; i++) {
            ref_put(cosines, p, i, cos((double)p * pow(10000, -2.0 * (double)i / (double)d)));
            ref_put(sines, p, i, sin((double)p * pow(10000, -2.0 * (double)i / (double)d)));
        }
    ql_mat position = poisoned_dense(b, QL_I32, 1, m);
    for (int64_t r = 0; r < m; r++) ref_put(position, 0, r, (double)((r * 7 + 49) % POSITIONS));
    ref_rope(x, heads, position, cosines, sines, truth);
    ql_mat dx = upload(b, x), again = upload(b, x), dposition = upload(b, position);
    ql_mat dcos = upload(b, cosines), dsin = upload(b, sines);
    assert_ok(ql_rope(b->ctx, dx, heads, dposition, dcos, dsin));
    assert_ok(ql_rope(b->other, again, heads, dposition, dcos, dsin));
    download(b, dx, x);
    assert_close(x, truth, 0x1p-23); /* two products and a sum */
    assert_same_bits_on_device(b, dx, again);
}

static void rope_odd_sizes(void **state) {
    check_rope(*state, 1, 1, 2);
    check_rope(*state, 65, 3, 24);
    check_rope(*state, 17, 2, 128);
}

/* In BF16: the bits of the F32 operation on the same values, rounded once. */
static void check_bf16_norm(backend *b, ql_mat half, int64_t d) {
    ql_mat dw = upload(b, normal(b, 1, d, 9)), x = widened(b, half), dx = upload(b, x), dhalf = upload(b, half);
    assert_ok(ql_rmsnorm(b->ctx, dx, dw, 1e-5f, dx));
    assert_ok(ql_rmsnorm(b->ctx, dhalf, dw, 1e-5f, dhalf));
    download(b, dx, x);
    download(b, dhalf, half);
    assert_same_bits(half, narrowed(b, x));
}

/* From F32 to BF16 and back: the bits of the F32 operation, rounded once or on widened values. */
static void check_mixed_norm(backend *b, ql_mat x, int64_t d) {
    ql_mat half = narrowed(b, x), wide = widened(b, half), dw = upload(b, normal(b, 1, d, 9));
    ql_mat y = poisoned(b, QL_F32, x.rows, x.cols), dy = upload(b, y), dsame = upload(b, y);
    ql_mat rounded = poisoned(b, QL_BF16, x.rows, x.cols), drounded = upload(b, rounded), dx = upload(b, x);
    assert_ok(ql_rmsnorm(b->ctx, dx, dw, 1e-5f, dy));
    assert_ok(ql_rmsnorm(b->ctx, dx, dw, 1e-5f, drounded));
    download(b, dy, y);
    download(b, drounded, rounded);
    assert_same_bits(rounded, narrowed(b, y));
    assert_ok(ql_rmsnorm(b->ctx, upload(b, wide), dw, 1e-5f, dy));
    assert_ok(ql_rmsnorm(b->ctx, upload(b, half), dw, 1e-5f, dsame));
    assert_same_bits_on_device(b, dy, dsame);
}

static void rmsnorm_between_types(void **state) {
    check_mixed_norm(*state, outliers(*state, 65, 259, 3), 259);
    check_mixed_norm(*state, normal(*state, 9, 5 * 24, 4), 24);
}

static void rmsnorm_in_bf16(void **state) {
    check_bf16_norm(*state, narrowed(*state, outliers(*state, 65, 259, 3)), 259);
    check_bf16_norm(*state, narrowed(*state, normal(*state, 9, 5 * 24, 4)), 24);
}

static void rope_in_bf16(void **state) {
    backend *b = *state;
    ql_mat half = narrowed(b, normal(b, 17, 3 * 24, 6)), x = widened(b, half), dhalf = upload(b, half),
           dx = upload(b, x);
    ql_mat cosines = upload(b, normal(b, 17, 12, 7)), sines = upload(b, normal(b, 17, 12, 8)),
           at = poisoned_dense(b, QL_I32, 1, 17);
    for (int64_t r = 0; r < 17; r++) ref_put(at, 0, r, (double)(16 - r));
    at = upload(b, at);
    assert_ok(ql_rope(b->ctx, dx, 3, at, cosines, sines));
    assert_ok(ql_rope(b->ctx, dhalf, 3, at, cosines, sines));
    download(b, dx, x);
    download(b, dhalf, half);
    assert_same_bits(half, narrowed(b, x));
}

enum { LONG = 2048 + 40, HEAD = 80 };

static ql_status norm_of_rows(backend *b, ql_mat x, ql_mat y) {
    ql_mat weight = poisoned_dense(b, QL_F32, 1, y.cols);
    for (int64_t c = 0; c < y.cols; c++) ref_put(weight, 0, c, 1 + 1 / (double)(c + 2));
    return ql_rmsnorm(b->ctx, y, upload(b, weight), 1e-5f, x);
}

static ql_status norm_of_heads(backend *b, ql_mat x, ql_mat y) {
    ql_mat weight = poisoned_dense(b, QL_F32, 1, HEAD);
    for (int64_t c = 0; c < HEAD; c++) ref_put(weight, 0, c, 1 + 1 / (double)(c + 2));
    (void)y;
    return ql_rmsnorm(b->ctx, x, upload(b, weight), 1e-5f, x);
}

static ql_status rope_of_heads(backend *b, ql_mat x, ql_mat y) {
    ql_mat cosines = poisoned_dense(b, QL_F32, 3, HEAD / 2), sines = poisoned_dense(b, QL_F32, 3, HEAD / 2);
    for (int64_t i = 0; i < 3 * HEAD / 2; i++) {
        ref_put(cosines, 0, i, cos((double)i));
        ref_put(sines, 0, i, sin((double)i));
    }
    (void)y;
    return ql_rope(b->ctx, x, x.cols / HEAD, upload(b, integers(b, 3, (const int32_t[]){2, 0, 1})), upload(b, cosines),
                   upload(b, sines));
}

/* Eight values at a time or one by one; rows longer than a block takes at once, and heads that it takes together. */
static void norm_and_rope_wherever_rows_begin(void **state) {
    backend *b = *state;
    ql_mat x = outliers(b, 3, LONG, 1), y = outliers(b, 3, LONG, 2), heads = normal(b, 3, 53 * HEAD, 3);
    assert_same_wherever(b, norm_of_rows, x, y);
    assert_same_wherever(b, norm_of_rows, narrowed(b, x), y);
    assert_same_wherever(b, norm_of_rows, x, narrowed(b, y));
    assert_same_wherever(b, norm_of_rows, narrowed(b, x), narrowed(b, y));
    apply_operation *const any[] = {norm_of_heads, rope_of_heads};
    for (int i = 0; i < 2; i++) {
        assert_same_wherever(b, any[i], heads, x);
        assert_same_wherever(b, any[i], narrowed(b, heads), x);
    }
}

static void rope_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    const int32_t late[] = {0, 4}, early[] = {-1, 0};
    ql_mat x = upload(b, normal(b, 2, 12, 1)), table = upload(b, normal(b, 4, 3, 2));
    ql_mat at = upload(b, integers(b, 2, late));
    assert_refused(ql_rope(b->ctx, x, 5, at, table, table), QL_INVALID, "x has 12 columns, expected 5 heads");
    assert_refused(ql_rope(b->ctx, x, 4, at, table, table), QL_INVALID, "even size");
    assert_refused(ql_rope(b->ctx, x, 1, at, table, table), QL_INVALID, "cos: has 3 columns, expected 6");
    assert_refused(ql_rope(b->ctx, x, 2, ql_cols(at, 0, 1), table, table), QL_INVALID, "position: has 1 columns");
    if (!is_cpu(b)) return; /* only the CPU can look at values before it runs */
    assert_refused(ql_rope(b->ctx, x, 2, at, table, table), QL_INVALID, "position[1] is 4, the table has 4");
    at = upload(b, integers(b, 2, early));
    assert_refused(ql_rope(b->ctx, x, 2, at, table, table), QL_INVALID, "position[0] is -1");
}

static void rmsnorm_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat x = upload(b, normal(b, 2, 12, 1)), w = upload(b, normal(b, 1, 5, 2));
    ql_mat half = x;
    half.dtype = QL_F16;
    assert_refused(ql_rmsnorm(b->ctx, x, w, 1e-5f, x), QL_INVALID, "multiple of 5");
    assert_refused(ql_rmsnorm(b->ctx, x, ql_cols(w, 0, 4), 1e-5f, half), QL_INVALID, "y: is F16, expected F32");
    assert_refused(ql_rmsnorm(b->ctx, x, ql_cols(w, 0, 0), 1e-5f, x), QL_INVALID, "at least 1");
    assert_refused(ql_rmsnorm(b->ctx, x, ql_cols(w, 0, 4), 1e-5f, ql_rows(x, 0, 1)), QL_INVALID, "y: has 1 rows");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rmsnorm_odd_sizes),    cmocka_unit_test(rmsnorm_per_head),
        cmocka_unit_test(rmsnorm_extreme_rows), cmocka_unit_test(rmsnorm_refuses_what_does_not_fit),
        cmocka_unit_test(rmsnorm_in_bf16),      cmocka_unit_test(rmsnorm_between_types),
        cmocka_unit_test(rope_in_bf16),         cmocka_unit_test(norm_and_rope_wherever_rows_begin),
        cmocka_unit_test(rope_odd_sizes),       cmocka_unit_test(rope_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

/* Embedding, SwiGLU, addition, conversion, search for NaN and infinity. */
#include "tests/backend.h"

#include <float.h>
#include <math.h>

#include "host/num.h"
#include "tests/ref.h"

static void embed_picks_rows(void **state) {
    backend *b = *state;
    const int32_t ids[] = {6, 0, 3, 3, 6};
    ql_mat table = normal(b, 7, 33, 1), x = poisoned(b, QL_F32, 5, 33), dx = upload(b, x);
    ql_mat dtable = upload(b, table), dids = upload(b, integers(b, 5, ids));
    assert_ok(ql_embed(b->ctx, dtable, dids, dx));
    download(b, dx, x);
    for (int64_t r = 0; r < 5; r++) assert_same_bits(ql_rows(x, r, 1), ql_rows(table, ids[r], 1));
    assert_refused(ql_embed(b->ctx, dtable, dids, ql_cols(dx, 0, 32)), QL_INVALID, "x: has 32 columns, expected 33");
    if (!is_cpu(b)) return; /* only the CPU can look at values before it runs */
    assert_refused(ql_embed(b->ctx, ql_rows(dtable, 0, 6), dids, dx), QL_INVALID, "ids[0] is 6, the table has 6 rows");
}

static void check_swiglu(backend *b, ql_mat gate, ql_mat up, int in_place) {
    ql_mat y = poisoned(b, QL_F32, gate.rows, gate.cols), truth = poisoned(b, QL_F64, gate.rows, gate.cols);
    ql_mat dgate = upload(b, gate), other_gate = upload(b, gate), dup = upload(b, up);
    ql_mat dy = in_place ? dgate : upload(b, y), again = in_place ? other_gate : upload(b, y);
    ref_swiglu(gate, up, truth);
    assert_ok(ql_swiglu(b->ctx, dgate, dup, dy));
    assert_ok(ql_swiglu(b->other, other_gate, dup, again));
    download(b, dy, y);
    assert_same_bits_on_device(b, dy, again);
    /* Element by element: 2 ulp of exp, then a sum, a quotient and a product.  What underflows counts as zero. */
    for (int64_t r = 0; r < y.rows; r++)
        for (int64_t c = 0; c < y.cols; c++) {
            double t = ref_at(truth, r, c), a = ref_at(y, r, c);
            if (!(fabs(a - t) <= 4 * 0x1p-23 * fabs(t) + 1e-34))
                fail_msg("silu(%g): %.9g, expected %.9g", ref_at(gate, r, c), a, t);
        }
}

static void swiglu_odd_sizes(void **state) {
    check_swiglu(*state, normal(*state, 1, 1, 1), normal(*state, 1, 1, 2), 0);
    check_swiglu(*state, outliers(*state, 33, 259, 3), normal(*state, 33, 259, 4), 0);
    check_swiglu(*state, outliers(*state, 33, 259, 3), normal(*state, 33, 259, 4), 1);
}

/* The whole range of gate in steps of 1/64: exp saturates on one side and underflows on the other. */
static void swiglu_whole_range(void **state) {
    backend *b = *state;
    ql_mat gate = poisoned(b, QL_F32, 1, 16384), up = poisoned(b, QL_F32, 1, 16384);
    for (int64_t c = 0; c < gate.cols; c++) {
        ref_put(gate, 0, c, ((double)c - 8192) / 64);
        ref_put(up, 0, c, 1);
    }
    check_swiglu(b, gate, up, 0);
}

static void swiglu_keeps_nan(void **state) {
    backend *b = *state;
    ql_mat gate = normal(b, 1, 40, 1), dy;
    ref_put(gate, 0, 7, NAN);
    assert_ok(ql_swiglu(b->ctx, upload(b, gate), upload(b, normal(b, 1, 40, 2)), dy = upload(b, gate)));
    download(b, dy, gate);
    for (int64_t c = 0; c < 40; c++) assert_int_equal(!!isnan(ref_at(gate, 0, c)), c == 7);
}

/* In BF16: the bits of the F32 operation on the same values, rounded once. */
static void elementwise_in_bf16(void **state) {
    backend *b = *state;
    ql_mat gate = narrowed(b, outliers(b, 33, 259, 3)), up = narrowed(b, normal(b, 33, 259, 4)), x = widened(b, gate);
    ql_mat dgate = upload(b, gate), dup = upload(b, up), dx = upload(b, x), dy = upload(b, widened(b, up));
    assert_ok(ql_swiglu(b->ctx, dgate, dup, dgate));
    assert_ok(ql_swiglu(b->ctx, dx, dy, dx));
    download(b, dgate, gate);
    download(b, dx, x);
    assert_same_bits(gate, narrowed(b, x));
    x = widened(b, gate), dx = upload(b, x);
    assert_ok(ql_add(b->ctx, dgate, -0.7f, dup));
    assert_ok(ql_add(b->ctx, dx, -0.7f, dy));
    download(b, dgate, gate);
    download(b, dx, x);
    assert_same_bits(gate, narrowed(b, x));
    const int32_t ids[] = {6, 0, 32, 3, 6};
    ql_mat rows = poisoned(b, QL_BF16, 5, 259), drows = upload(b, rows);
    assert_ok(ql_embed(b->ctx, dup, upload(b, integers(b, 5, ids)), drows));
    download(b, drows, rows);
    for (int64_t r = 0; r < 5; r++) assert_same_bits(ql_rows(rows, r, 1), ql_rows(up, ids[r], 1));
    assert_refused(ql_add(b->ctx, dgate, 1, dx), QL_INVALID, "y: is F32, expected BF16");
    assert_refused(ql_swiglu(b->ctx, dgate, dx, dgate), QL_INVALID, "up: is F32, expected BF16");
}

static ql_status swiglu_in_place(backend *b, ql_mat x, ql_mat y) { return ql_swiglu(b->ctx, x, y, x); }
static ql_status add_some(backend *b, ql_mat x, ql_mat y) { return ql_add(b->ctx, x, -0.7f, y); }
static ql_status convert_from(backend *b, ql_mat x, ql_mat y) { return ql_convert(b->ctx, y, x); }
static ql_status embed_from(backend *b, ql_mat x, ql_mat y) {
    return ql_embed(b->ctx, y, upload(b, integers(b, 3, (const int32_t[]){2, 0, 1})), x);
}

/* Eight values at a time or one by one; more of them than a block takes at once. */
static void elementwise_wherever_rows_begin(void **state) {
    backend *b = *state;
    ql_mat x = outliers(b, 3, 2 * 2048 + 40, 1), y = normal(b, 3, 2 * 2048 + 40, 2), half = narrowed(b, x);
    apply_operation *const any[] = {swiglu_in_place, add_some, embed_from};
    for (int i = 0; i < 3; i++) {
        assert_same_wherever(b, any[i], x, y);
        assert_same_wherever(b, any[i], half, narrowed(b, y));
    }
    assert_same_wherever(b, add_some, x, narrowed(b, y));
    assert_same_wherever(b, convert_from, half, y);
    assert_same_wherever(b, convert_from, y, half);
}

/* Two roundings, one of the product and one of the sum: every backend gives their bits. */
static void add_rounds_twice(void **state) {
    backend *b = *state;
    const float factors[] = {1, -0.7f};
    for (int i = 0; i < 2; i++) {
        ql_mat x = outliers(b, 35, 123, 1), y = normal(b, 35, 123, 2), sum = poisoned(b, QL_F32, 35, 123);
        for (int64_t r = 0; r < x.rows; r++)
            for (int64_t c = 0; c < x.cols; c++) {
                float term = (float)(factors[i] * ref_at(y, r, c));
                ref_put(sum, r, c, ref_at(x, r, c) + term);
            }
        ql_mat dx = upload(b, x), mixed = upload(b, x), half = narrowed(b, y);
        assert_ok(ql_add(b->ctx, mixed, factors[i], upload(b, half))); /* BF16 on F32 */
        assert_ok(ql_add(b->ctx, dx, factors[i], upload(b, y)));
        ql_mat expected = upload(b, x);
        download(b, dx, x);
        assert_same_bits(x, sum);
        assert_ok(ql_add(b->ctx, expected, factors[i], upload(b, widened(b, half))));
        assert_same_bits_on_device(b, mixed, expected);
    }
}

/* Sums of statistics are added in double; a matrix may be taken from itself. */
static void add_in_double_and_to_itself(void **state) {
    backend *b = *state;
    ql_mat x = poisoned(b, QL_F64, 7, 300), y = poisoned(b, QL_F64, 7, 300), sum = poisoned(b, QL_F64, 7, 300),
           zero = poisoned(b, QL_F64, 7, 300);
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            ref_put(x, r, c, 1.0 / (double)(3 + r * x.cols + c));
            ref_put(y, r, c, 1e-9 / (double)(7 + r + c));
            ref_put(sum, r, c, ref_at(x, r, c) + ref_at(y, r, c));
            ref_put(zero, r, c, 0);
        }
    ql_mat dx = upload(b, x);
    assert_ok(ql_add(b->ctx, dx, 1, upload(b, y)));
    download(b, dx, x);
    assert_same_bits(x, sum);
    assert_ok(ql_add(b->ctx, dx, -1, dx));
    download(b, dx, x);
    assert_same_bits(x, zero);
}

/* ---- convert --------------------------------------------------------------------------------------------------------------- */

static ql_mat converted(backend *b, ql_mat src, ql_dtype dtype) {
    ql_mat dst = poisoned(b, dtype, src.rows, src.cols), ddst = upload(b, dst);
    assert_ok(ql_convert(b->ctx, upload(b, src), ddst));
    download(b, ddst, dst);
    return dst;
}

/* Every 16-bit pattern is exact in F32 and F64, and comes back as it was; NaN stays NaN. */
static void convert_all_halves_there_and_back(void **state) {
    backend *b = *state;
    const ql_dtype halves[] = {QL_F16, QL_BF16}, wide[] = {QL_F32, QL_F64};
    for (int i = 0; i < 4; i++) {
        ql_mat src = poisoned(b, halves[i / 2], 64, 1024);
        for (int64_t n = 0; n < 65536; n++) ((uint16_t *)src.data)[n / 1024 * src.ld + n % 1024] = (uint16_t)n;
        ql_mat there = converted(b, src, wide[i % 2]), back = converted(b, there, halves[i / 2]);
        for (int64_t n = 0; n < 65536; n++) {
            double s = ref_at(src, n / 1024, n % 1024), t = ref_at(there, n / 1024, n % 1024);
            double r = ref_at(back, n / 1024, n % 1024);
            if (isnan(s) ? !isnan(t) || !isnan(r) : s != t || s != r || signbit(s) != signbit(r))
                fail_msg("%s 0x%04x", ql_dtype_name(halves[i / 2]), (unsigned)n);
        }
    }
}

/* The F16 or BF16 that is nearest to x, found by search among all of them: ties to the even pattern. */
static uint16_t nearest_half(double x, ql_dtype dtype) {
    uint32_t low = 0, high = dtype == QL_F16 ? 0x7c00 : 0x7f80; /* patterns of positive values rise with their values */
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        uint16_t pattern = (uint16_t)middle;
        if (ref_at(ql_mat_of(&pattern, dtype, 1, 1), 0, 0) <= fabs(x)) low = middle;
        else high = middle;
    }
    uint16_t a = (uint16_t)low;
    double below = ref_at(ql_mat_of(&a, dtype, 1, 1), 0, 0);
    int last = low == (dtype == QL_F16 ? 0x7bffu : 0x7f7fu);
    uint16_t c = (uint16_t)high;
    double step = last ? below - ref_at(ql_mat_of(&(uint16_t){(uint16_t)(a - 1)}, dtype, 1, 1), 0, 0)
                       : ref_at(ql_mat_of(&c, dtype, 1, 1), 0, 0) - below;
    double rest = fabs(x) - below;
    uint32_t up = rest > step / 2 || (rest == step / 2 && (low & 1));
    return (uint16_t)((low + up) | (signbit(x) ? 0x8000u : 0));
}

/* From double, including values a hair beside the middle of two halves, where rounding twice goes wrong. */
static void convert_rounds_doubles_once(void **state) {
    backend *b = *state;
    const ql_dtype halves[] = {QL_F16, QL_BF16};
    const double values[] = {0,
                             -0.0,
                             1,
                             1 + 0x1p-11,
                             1 + 0x1p-11 + 0x1p-40,
                             1 + 0x1p-11 - 0x1p-40,
                             1 + 0x1p-8,
                             1 + 0x1p-8 + 0x1p-50,
                             1 + 0x1p-8 - 0x1p-50,
                             1 + 3 * 0x1p-8 - 0x1p-45,
                             65504,
                             65519.99,
                             65520,
                             65536,
                             1e300,
                             -1e300,
                             0x1p-25,
                             0x1p-25 * (1 + 0x1p-50),
                             3 * 0x1p-25,
                             0x1p-24,
                             1e-310,
                             -1e-310,
                             0x1p-134,
                             0x1p-134 * (1 + 0x1p-40),
                             0x1p-133,
                             3.3e38,
                             3.3961775e38,
                             3.4e38,
                             -FLT_MAX,
                             FLT_MAX,
                             5.9e-39,
                             1e-45};
    int64_t count = sizeof values / sizeof *values;
    ql_mat src = poisoned(b, QL_F64, 1, count);
    memcpy(src.data, values, sizeof values);
    for (int h = 0; h < 2; h++) {
        ql_mat dst = converted(b, src, halves[h]);
        for (int64_t c = 0; c < count; c++) {
            uint16_t actual = ((uint16_t *)dst.data)[c], expected = nearest_half(values[c], halves[h]);
            if (actual != expected)
                fail_msg("%s of %.17g: 0x%04x, expected 0x%04x", ql_dtype_name(halves[h]), values[c], actual, expected);
        }
    }
    ql_mat single = converted(b, src, QL_F32);
    for (int64_t c = 0; c < count; c++) {
        float expected = (float)values[c];
        assert_memory_equal((float *)single.data + c, &expected, sizeof expected);
    }
}

static void convert_infinities_and_same_type(void **state) {
    backend *b = *state;
    const ql_dtype types[] = {QL_F64, QL_F32, QL_F16, QL_BF16};
    for (int i = 0; i < 16; i++) {
        ql_mat src = poisoned(b, types[i / 4], 1, 3);
        ref_put(src, 0, 0, INFINITY), ref_put(src, 0, 1, -INFINITY), ref_put(src, 0, 2, -1.5);
        ql_mat dst = converted(b, src, types[i % 4]);
        for (int64_t c = 0; c < 3; c++) assert_true(ref_at(dst, 0, c) == ref_at(src, 0, c));
    }
}

static void convert_refuses_integers(void **state) {
    backend *b = *state;
    ql_mat x = upload(b, normal(b, 2, 4, 1)), codes = upload(b, poisoned(b, QL_U8, 2, 4));
    assert_refused(ql_convert(b->ctx, x, codes), QL_INVALID, "dst: is U8, expected F64, F32, F16 or BF16");
    assert_refused(ql_convert(b->ctx, x, ql_rows(x, 0, 1)), QL_INVALID, "dst: has 1 rows, expected 2");
}

/* ---- find_nonfinite ---------------------------------------------------------------------------------------------------------- */

static void find_nonfinite_gives_the_first(void **state) {
    backend *b = *state;
    const ql_dtype types[] = {QL_F64, QL_F32, QL_F16, QL_BF16};
    const double bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 12; i++) {
        ql_mat x = poisoned(b, types[i / 3], 70, 131); /* the padding is NaN and does not count */
        int64_t index = 7;
        for (int64_t n = 0; n < 70 * 131; n++) ref_put(x, n / 131, n % 131, n % 5 ? 60000 : -1e-7);
        assert_ok(ql_find_nonfinite(b->ctx, upload(b, x), &index));
        assert_int_equal(index, -1);
        ref_put(x, 69, 130, bad[i % 3]);
        assert_ok(ql_find_nonfinite(b->other, upload(b, x), &index));
        assert_int_equal(index, 69 * 131 + 130);
        ref_put(x, 40, 3, bad[i % 3]);
        ref_put(x, 40, 2, bad[i % 3]);
        assert_ok(ql_find_nonfinite(b->other, upload(b, x), &index));
        assert_int_equal(index, 40 * 131 + 2);
    }
}

static void find_nonfinite_of_nothing(void **state) {
    backend *b = *state;
    int64_t index = 7;
    assert_ok(ql_find_nonfinite(b->ctx, ql_mat_of(NULL, QL_F32, 0, 5), &index));
    assert_int_equal(index, -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embed_picks_rows),
        cmocka_unit_test(elementwise_in_bf16),
        cmocka_unit_test(elementwise_wherever_rows_begin),
        cmocka_unit_test(swiglu_odd_sizes),
        cmocka_unit_test(swiglu_whole_range),
        cmocka_unit_test(swiglu_keeps_nan),
        cmocka_unit_test(add_rounds_twice),
        cmocka_unit_test(add_in_double_and_to_itself),
        cmocka_unit_test(convert_all_halves_there_and_back),
        cmocka_unit_test(convert_rounds_doubles_once),
        cmocka_unit_test(convert_infinities_and_same_type),
        cmocka_unit_test(convert_refuses_integers),
        cmocka_unit_test(find_nonfinite_gives_the_first),
        cmocka_unit_test(find_nonfinite_of_nothing),
    };
    return run_on_backends(tests);
}

/* Values of one byte: scales of every tile, every type, ties, clamps, what is not finite. */
#include "tests/backend.h"

#include <float.h>
#include <math.h>

#include "host/num.h"
#include "tests/ref.h"

enum { TYPES = 4 };
static const ql_dtype code_types[TYPES] = {QL_I8, QL_U8, QL_F8_E4M3, QL_F8_E5M2};

typedef struct tiles {
    ql_scale_mode mode;
    int64_t group;
} tiles;
static const tiles every_mode[] = {
    {QL_SCALE_TENSOR, 0}, {QL_SCALE_ROW, 0},           {QL_SCALE_GROUP, 128},
    {QL_SCALE_GROUP, 5},  {QL_SCALE_GROUP, INT32_MAX}, {QL_SCALE_BLOCK, 0},
};
enum { MODES = sizeof every_mode / sizeof *every_mode };

static void tile_of(tiles t, int64_t row, int64_t col, int64_t *i, int64_t *j) {
    *i = t.mode == QL_SCALE_TENSOR ? 0 : t.mode == QL_SCALE_BLOCK ? row / 128 : row;
    *j = t.mode == QL_SCALE_GROUP ? col / t.group : t.mode == QL_SCALE_BLOCK ? col / 128 : 0;
}

static double at_tile(ql_mat scale, tiles t, int64_t row, int64_t col) {
    int64_t i, j;
    tile_of(t, row, col, &i, &j);
    return t.mode == QL_SCALE_ROW ? ref_at(scale, 0, i) : ref_at(scale, i, j);
}

static ql_values poisoned_values(backend *b, ql_dtype dtype, tiles t, int64_t rows, int64_t cols) {
    int64_t high = t.mode == QL_SCALE_GROUP ? rows : t.mode == QL_SCALE_BLOCK ? (rows + 127) / 128 : 1;
    int64_t wide = 1;
    if (t.mode == QL_SCALE_ROW) wide = rows;
    if (t.mode == QL_SCALE_GROUP) wide = (cols - 1) / t.group + 1;
    if (t.mode == QL_SCALE_BLOCK) wide = (cols + 127) / 128;
    ql_values values = {poisoned(b, dtype, rows, cols), t.mode, t.group, poisoned(b, QL_F32, high, wide), ql_no_mat()};
    if (dtype == QL_U8) values.zero = poisoned(b, QL_I32, high, wide);
    return values;
}

static ql_values upload_values(backend *b, ql_values values) {
    values.codes = upload(b, values.codes), values.scale = upload(b, values.scale);
    if (ql_is_present(values.zero)) values.zero = upload(b, values.zero);
    return values;
}

static void download_values(backend *b, ql_values device, ql_values host) {
    download(b, device.codes, host.codes);
    download(b, device.scale, host.scale);
    if (ql_is_present(host.zero)) download(b, device.zero, host.zero);
}

static ql_values run_dynamic(backend *b, ql_mat x, ql_dtype dtype, tiles t) {
    ql_values values = poisoned_values(b, dtype, t, x.rows, x.cols), first = upload_values(b, values);
    ql_values again = upload_values(b, values);
    ql_mat dx = upload(b, x);
    assert_ok(ql_quantize_dynamic(b->ctx, dx, &first));
    assert_ok(ql_quantize_dynamic(b->other, dx, &again));
    assert_same_bits_on_device(b, first.codes, again.codes);
    assert_same_bits_on_device(b, first.scale, again.scale);
    download_values(b, first, values);
    return values;
}

/* Codes of `x` with the scales of `values`, in place. */
static void run_static(backend *b, ql_mat x, ql_values values) {
    ql_values device = upload_values(b, values);
    assert_ok(ql_quantize_static(b->ctx, upload(b, x), &device));
    download_values(b, device, values);
}

static ql_mat run_dequantize(backend *b, ql_values values, ql_dtype dtype) {
    ql_mat x = poisoned(b, dtype, values.codes.rows, values.codes.cols), dx = upload(b, x);
    ql_values device = upload_values(b, values);
    assert_ok(ql_dequantize_values(b->other, &device, dx));
    download(b, dx, x);
    return x;
}

/* ---- the definition, in double ------------------------------------------------------------------------------------------- */

static double value_of_byte(uint8_t byte, ql_dtype dtype) { return ref_at(ql_mat_of(&byte, dtype, 1, 1), 0, 0); }

/* The finite F8 nearest to x, found by search among all of them: ties to the even pattern. */
static double nearest_f8(double x, ql_dtype dtype) {
    int low = 0, high = dtype == QL_F8_E4M3 ? 0x7f : 0x7c; /* the first pattern that is not finite */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (value_of_byte((uint8_t)middle, dtype) <= fabs(x)) low = middle;
        else high = middle;
    }
    double below = value_of_byte((uint8_t)low, dtype), above = value_of_byte((uint8_t)(low + 1), dtype);
    int up = isfinite(above) && (fabs(x) - below > above - fabs(x) || (fabs(x) - below == above - fabs(x) && low % 2));
    return copysign(up ? above : below, x);
}

/* What the code of x stands for, in units of the scale: the quotient is rounded to F32 first, as the definition asks. */
static double reference_code(double x, double scale, double zero, ql_dtype dtype) {
    double quotient = (float)(x / scale);
    if (dtype == QL_U8) return fmin(fmax(rint(quotient) + zero, 0), 255);
    if (dtype == QL_I8) return fmin(fmax(rint(quotient), -127), 127);
    return nearest_f8(quotient, dtype);
}

static void check_scales(ql_mat x, ql_values values, tiles t) {
    static double high[200000], low[200000]; /* by tile, at its place in the matrix of scales */
    ql_dtype dtype = values.codes.dtype;
    double limit = dtype == QL_F8_E4M3 ? 448 : dtype == QL_F8_E5M2 ? 57344 : 127;
    int64_t stride = values.scale.cols, i, j;
    memset(high, 0, sizeof high), memset(low, 0, sizeof low);
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            tile_of(t, r, c, &i, &j);
            double v = ref_at(x, r, c);
            high[i * stride + j] = fmax(high[i * stride + j], v), low[i * stride + j] = fmin(low[i * stride + j], v);
        }
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            tile_of(t, r, c, &i, &j);
            double up = high[i * stride + j], down = low[i * stride + j], scale = at_tile(values.scale, t, r, c);
            double truth = fmax(dtype == QL_U8 ? (up - down) / 255 : fmax(up, -down) / limit, FLT_MIN);
            if (!(fabs(scale - truth) <= truth * 0x1p-23))
                fail_msg("(%d, %d): scale %.9g, expected %.9g", (int)r, (int)c, scale, truth);
            if (dtype != QL_U8) continue;
            double zero = at_tile(values.zero, t, r, c);
            if (zero != rint((float)(-down / scale)) || zero < 0 || zero > 255)
                fail_msg("(%d, %d): zero point %g of %g", (int)r, (int)c, zero, -down / scale);
        }
}

static void check_codes(ql_mat x, ql_values values, tiles t) {
    ql_dtype dtype = values.codes.dtype;
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            double zero = dtype == QL_U8 ? at_tile(values.zero, t, r, c) : 0;
            double truth = reference_code(ref_at(x, r, c), at_tile(values.scale, t, r, c), zero, dtype);
            double code = ref_at(values.codes, r, c);
            if (!(code == truth && signbit(code) == signbit(truth)))
                if (!(code == truth && code == 0 && dtype != QL_F8_E4M3 && dtype != QL_F8_E5M2))
                    fail_msg("%s (%d, %d): %g becomes %g, expected %g", ql_dtype_name(dtype), (int)r, (int)c,
                             ref_at(x, r, c), code, truth);
        }
}

static void check_dequantized(backend *b, ql_values values, tiles t, ql_dtype dtype) {
    ql_mat x = run_dequantize(b, values, dtype), truth = poisoned(b, dtype, 1, 1);
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            double zero = ql_is_present(values.zero) ? at_tile(values.zero, t, r, c) : 0;
            double exact = at_tile(values.scale, t, r, c) * (ref_at(values.codes, r, c) - zero);
            ref_put(truth, 0, 0, dtype == QL_F32 ? exact : ql_f64_to_odd(exact)); /* one rounding in the end */
            if (ref_at(x, r, c) != ref_at(truth, 0, 0))
                fail_msg("(%d, %d): %.9g, expected %.9g", (int)r, (int)c, ref_at(x, r, c), ref_at(truth, 0, 0));
        }
}

/* ---- tests ------------------------------------------------------------------------------------------------------------------ */

static ql_mat source(backend *b, ql_dtype dtype, int64_t rows, int64_t cols, uint64_t seed) {
    ql_mat wide = outliers(b, rows, cols, seed), x = poisoned(b, dtype, rows, cols);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) ref_put(x, r, c, ref_at(wide, r, c) + 0.5);
    return x;
}

static void check_all(backend *b, ql_dtype from, ql_dtype to, tiles t, int64_t rows, int64_t cols) {
    ql_mat x = source(b, from, rows, cols, (uint64_t)(rows + to));
    ql_values values = run_dynamic(b, x, to, t);
    check_scales(x, values, t);
    check_codes(x, values, t);
    check_dequantized(b, values, t, from);
    ql_mat moved =
        source(b, from, rows, cols, 77); /* other values than those that the scales were made of: some are clamped */
    run_static(b, moved, values);
    check_codes(moved, values, t);
}

static void values_every_type_and_tile(void **state) {
    for (int mode = 0; mode < MODES; mode++)
        for (int type = 0; type < TYPES; type++) {
            check_all(*state, QL_F32, code_types[type], every_mode[mode], 130, 259); /* short tiles on both edges */
            check_all(*state, QL_BF16, code_types[type], every_mode[mode], 3, 300);
            check_all(*state, QL_F16, code_types[type], every_mode[mode], 1, 1);
            check_all(*state, QL_F16, code_types[type], every_mode[mode], 19, 128);
        }
}

static ql_mat row_of_values(backend *b, int64_t count, const float *values) {
    ql_mat x = poisoned_dense(b, QL_F32, 1, count);
    memcpy(x.data, values, (size_t)count * sizeof *values);
    return x;
}

static void values_ties_go_to_even(void **state) {
    backend *b = *state;
    const float x[] = {127, -127, 0.5f, 1.5f, 2.5f, -0.5f, -2.5f, 63.5f, -0.0f};
    const int codes[] = {127, -127, 0, 2, 2, 0, -2, 64, 0};
    ql_values values = run_dynamic(b, row_of_values(b, 9, x), QL_I8, every_mode[1]);
    assert_true(ref_at(values.scale, 0, 0) == 1);
    for (int i = 0; i < 9; i++) assert_true(ref_at(values.codes, 0, i) == codes[i]);
    /* E4M3: 17 lies between 16 and 18, 19 between 18 and 20; the least subnormal is 2^-9. */
    const float f[] = {448, 17, 19, -17, 0x1p-9f, 0x1p-10f, 0x1.8p-9f, 0x1.1p-10f};
    const double f_codes[] = {448, 16, 20, -16, 0x1p-9, 0, 0x1p-8, 0x1p-9};
    values = run_dynamic(b, row_of_values(b, 8, f), QL_F8_E4M3, every_mode[1]);
    for (int i = 0; i < 8; i++) assert_true(ref_at(values.codes, 0, i) == f_codes[i]);
}

static void values_asymmetric_range_contains_zero(void **state) {
    backend *b = *state;
    const float above[] = {510, 255, 2, 3}, below[] = {-510, -255, -2, -3}, wide[] = {FLT_MAX, -FLT_MAX, 0, 1};
    const int above_codes[] = {255, 128, 1, 2}, below_codes[] = {0, 127, 254, 253};
    ql_values values = run_dynamic(b, row_of_values(b, 4, above), QL_U8, every_mode[1]);
    assert_int_equal(ref_at(values.zero, 0, 0), 0);
    for (int i = 0; i < 4; i++) assert_int_equal(ref_at(values.codes, 0, i), above_codes[i]);
    values = run_dynamic(b, row_of_values(b, 4, below), QL_U8, every_mode[1]);
    assert_int_equal(ref_at(values.zero, 0, 0), 255);
    for (int i = 0; i < 4; i++) assert_int_equal(ref_at(values.codes, 0, i), below_codes[i]);
    values = run_dynamic(b, row_of_values(b, 4, wide), QL_U8, every_mode[1]); /* max - min exceeds FLT_MAX */
    assert_true(isfinite(ref_at(values.scale, 0, 0)));
    check_codes(row_of_values(b, 4, wide), values, every_mode[1]);
}

static void values_zeros_and_subnormals_have_the_least_scale(void **state) {
    backend *b = *state;
    for (int type = 0; type < TYPES; type++)
        for (int mode = 0; mode < MODES; mode++) {
            ql_mat x = poisoned(b, QL_F32, 2, 140);
            for (int64_t c = 0; c < 140; c++)
                ref_put(x, 0, c, 0), ref_put(x, 1, c, c % 3 ? 0x1p-149 * (double)c : -0x1p-127);
            ql_values values = run_dynamic(b, x, code_types[type], every_mode[mode]);
            check_scales(x, values, every_mode[mode]);
            assert_true(at_tile(values.scale, every_mode[mode], 0, 0) == FLT_MIN);
            check_codes(x, values, every_mode[mode]);
        }
}

/* A tile with NaN or infinity becomes NaN as a whole, its neighbours do not notice. */
static void values_not_finite_poison_their_tile(void **state) {
    backend *b = *state;
    const double bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 4; i++)
        for (int type = 0; type < TYPES; type++)
            for (int mode = 0; mode < MODES; mode++) {
                tiles t = every_mode[mode];
                ql_mat x = normal(b, 3, 139, 1);
                ref_put(x, 1, 134, bad[i]);
                ql_values values = run_dynamic(b, x, code_types[type], t);
                ql_mat y = run_dequantize(b, values, QL_F32);
                for (int64_t r = 0; r < 3; r++)
                    for (int64_t c = 0; c < 139; c++) {
                        int64_t tile[4];
                        tile_of(t, r, c, &tile[0], &tile[1]), tile_of(t, 1, 134, &tile[2], &tile[3]);
                        int hit = tile[0] == tile[2] && tile[1] == tile[3];
                        assert_int_equal(!!isnan(at_tile(values.scale, t, r, c)), hit);
                        assert_int_equal(!!isnan(ref_at(y, r, c)), hit);
                    }
            }
}

static void trap24_static_values_saturate(void **state) {
    backend *b = *state;
    const float x[] = {INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 1e6f, -1e6f, NAN};
    const double largest[] = {127, 255, 448, 57344}, least[] = {-127, 0, -448, -57344};
    for (int type = 0; type < TYPES; type++) {
        ql_values values = poisoned_values(b, code_types[type], every_mode[0], 1, 7);
        ref_put(values.scale, 0, 0, 0.5);
        if (ql_is_present(values.zero)) ref_put(values.zero, 0, 0, 37);
        run_static(b, row_of_values(b, 7, x), values);
        for (int i = 0; i < 6; i++) assert_true(ref_at(values.codes, 0, i) == (i % 2 ? least : largest)[type]);
        double of_nan = ref_at(values.codes, 0, 6);
        if (code_types[type] == QL_I8) assert_true(of_nan == 0);
        else if (code_types[type] == QL_U8) assert_true(of_nan == 37);
        else assert_true(isnan(of_nan));
    }
}

/* Every code that quantization makes comes back from what it stands for; scales from the least to large. */
static void values_quantize_inverts_dequantize(void **state) {
    backend *b = *state;
    const double scales[] = {FLT_MIN, 0x1.8p-60, 0.003, 1, 0x1.fffffep100};
    for (int type = 0; type < TYPES; type++) {
        ql_values values = poisoned_values(b, code_types[type], every_mode[1], 5, 256);
        for (int r = 0; r < 5; r++) {
            ref_put(values.scale, 0, r, scales[r]);
            if (ql_is_present(values.zero)) ref_put(values.zero, 0, r, 60 * r);
            for (int c = 0; c < 256; c++) {
                double value = value_of_byte((uint8_t)c, code_types[type]);
                ((uint8_t *)values.codes.data)[r * values.codes.ld + c] =
                    isfinite(value) && value != -128 ? (uint8_t)c : 1;
            }
        }
        ql_mat codes = upload(b, values.codes), x = run_dequantize(b, values, QL_F32);
        run_static(b, x, values);
        assert_same_bits_on_device(b, upload(b, values.codes), codes);
    }
}

static void values_refuse_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat x = upload(b, normal(b, 4, 200, 1));
    ql_values good = upload_values(b, poisoned_values(b, QL_U8, every_mode[2], 4, 200)), bad = good;
    assert_ok(ql_quantize_dynamic(b->ctx, x, &good));
    bad.group = 64;
    assert_refused(ql_quantize_dynamic(b->ctx, x, &bad), QL_INVALID, "scale: has 2 columns, expected 4");
    bad = good, bad.group = 0;
    assert_refused(ql_quantize_static(b->ctx, x, &bad), QL_INVALID, "group 0, expected 1");
    bad.group = (int64_t)1 << 31;
    assert_refused(ql_quantize_static(b->ctx, x, &bad), QL_INVALID, "group 2147483648");
    bad = good, bad.mode = QL_SCALE_NONE;
    assert_refused(ql_quantize_static(b->ctx, x, &bad), QL_INVALID, "scale mode 0");
    bad = good, bad.zero = ql_no_mat();
    assert_refused(ql_dequantize_values(b->ctx, &bad, x), QL_INVALID, "zero");
    bad = good, bad.codes.dtype = QL_I8;
    assert_refused(ql_dequantize_values(b->ctx, &bad, x), QL_INVALID, "I8 has no zero points");
    bad = good, bad.codes.dtype = QL_BOOL;
    assert_refused(ql_dequantize_values(b->ctx, &bad, x), QL_INVALID, "codes are BOOL");
    bad = good, bad.codes.cols = 199;
    assert_refused(ql_dequantize_values(b->ctx, &bad, x), QL_INVALID, "codes: has 199 columns, expected 200");
    x.dtype = QL_I32;
    assert_refused(ql_quantize_dynamic(b->ctx, x, &good), QL_INVALID, "is I32");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_every_type_and_tile),
        cmocka_unit_test(values_ties_go_to_even),
        cmocka_unit_test(values_asymmetric_range_contains_zero),
        cmocka_unit_test(values_zeros_and_subnormals_have_the_least_scale),
        cmocka_unit_test(values_not_finite_poison_their_tile),
        cmocka_unit_test(trap24_static_values_saturate),
        cmocka_unit_test(values_quantize_inverts_dequantize),
        cmocka_unit_test(values_refuse_what_does_not_fit),
    };
    return run_on_backends(tests);
}

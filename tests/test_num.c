/* Number formats against the definition, exhaustively over the 16-bit side. */
#include "tests/test.h"

#include <math.h>

#include "host/num.h"
#include "host/rng.h"

/* Value of a binary16 by its definition, in double. */
static double f16_value(uint16_t h) {
    int exponent = (h >> 10) & 31, fraction = h & 0x3ff;
    double magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                      : ldexp(fraction, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void f16_decodes_every_bit_pattern(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        double expected = f16_value((uint16_t)h), actual = ql_f16_to_f32((uint16_t)h);
        if (isnan(expected)) assert_true(isnan(actual));
        else if (actual != expected || signbit(actual) != signbit(expected)) fail_msg("0x%04x", h);
    }
}

/* Between two neighbours a and b: below the middle rounds to a, above it to b, the middle to the even one. */
static void check_between(uint16_t low, double a, double b, uint16_t (*encode)(float)) {
    float middle = (float)((a + b) / 2);
    uint16_t even = low & 1 ? (uint16_t)(low + 1) : low;
    if ((double)middle == (a + b) / 2 && encode(middle) != even) fail_msg("tie above 0x%04x", low);
    if (encode(nextafterf(middle, -INFINITY)) != low) fail_msg("below the tie above 0x%04x", low);
    if (encode(nextafterf(middle, INFINITY)) != low + 1) fail_msg("above the tie above 0x%04x", low);
}

static uint16_t encode_f16(float x) { return ql_f32_to_f16(x); }
static uint16_t encode_bf16(float x) { return ql_f32_to_bf16(x); }

static void f16_rounds_to_nearest_even_everywhere(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        assert_int_equal(ql_f32_to_f16((float)f16_value((uint16_t)h)), h);
        double above = h == 0x7bff ? 65536.0 : f16_value((uint16_t)(h + 1));
        check_between((uint16_t)h, f16_value((uint16_t)h), above, encode_f16);
    }
    assert_int_equal(ql_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(ql_f32_to_f16(-0.0f), 0x8000);
    assert_true(isnan(ql_f16_to_f32(ql_f32_to_f16(NAN))));
}

static void bf16_rounds_to_nearest_even_everywhere(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7f7f; h++) {
        double a = ql_bf16_to_f32((uint16_t)h), b = ql_bf16_to_f32((uint16_t)(h + 1));
        assert_int_equal(ql_f32_to_bf16((float)a), h);
        if (h >= 2) check_between((uint16_t)h, a, b, encode_bf16);
    }
    assert_int_equal(ql_f32_to_bf16(ql_bits_f32(0x3f808000u)), 0x3f80); /* formats: known answers */
    assert_int_equal(ql_f32_to_bf16(ql_bits_f32(0x3f818000u)), 0x3f82);
    assert_int_equal(ql_f32_to_bf16(INFINITY), 0x7f80);
    assert_true(isnan(ql_bf16_to_f32(ql_f32_to_bf16(ql_bits_f32(0x7f800001u)))));
}

/* Value of an FP8 by its definition, in double.  E4M3 has no infinity; E5M2 is like binary16 with two fraction bits. */
static double e4m3_value(uint8_t b) {
    int exponent = (b >> 3) & 15, fraction = b & 7;
    double magnitude = (b & 0x7f) == 0x7f ? NAN : exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);
    return b & 0x80 ? -magnitude : magnitude;
}

static double e5m2_value(uint8_t b) {
    int exponent = (b >> 2) & 31, fraction = b & 3;
    double magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? ldexp(4 + fraction, exponent - 17)
                                      : ldexp(fraction, -16);
    return b & 0x80 ? -magnitude : magnitude;
}

static void f8_decodes_every_bit_pattern(void **state) {
    (void)state;
    for (int b = 0; b < 256; b++) {
        const double expected[] = {e4m3_value((uint8_t)b), e5m2_value((uint8_t)b)};
        const double actual[] = {ql_e4m3_to_f32((uint8_t)b), ql_e5m2_to_f32((uint8_t)b)};
        for (int i = 0; i < 2; i++) {
            if (isnan(expected[i])) assert_true(isnan(actual[i]));
            else if (actual[i] != expected[i] || signbit(actual[i]) != signbit(expected[i])) fail_msg("0x%02x", b);
        }
    }
}

/* The code of nearest finite value, the even one of two; by search over all codes. */
static uint8_t nearest_f8(double x, double (*value)(uint8_t), uint8_t largest) {
    uint8_t best = 0;
    double magnitude = fmin(fabs(x), value(largest)); /* saturates */
    for (int b = 1; b <= largest; b++) {
        double error = fabs(value((uint8_t)b) - magnitude), least = fabs(value(best) - magnitude);
        if (error < least || (error == least && b % 2 == 0)) best = (uint8_t)b;
    }
    return (uint8_t)(best | (signbit(x) ? 0x80 : 0));
}

/* Every BF16, which holds all FP8 and all midpoints between two of them. */
static void f8_rounds_every_bf16_to_the_nearest(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float x = ql_bf16_to_f32((uint16_t)h);
        if (isnan(x)) {
            assert_true(isnan(ql_e4m3_to_f32(ql_f32_to_e4m3(x))) && isnan(ql_e5m2_to_f32(ql_f32_to_e5m2(x))));
            continue;
        }
        if (ql_f32_to_e4m3(x) != nearest_f8(x, e4m3_value, 0x7e)) fail_msg("E4M3 of %.9g", (double)x);
        if (ql_f32_to_e5m2(x) != nearest_f8(x, e5m2_value, 0x7b)) fail_msg("E5M2 of %.9g", (double)x);
    }
}

static uint16_t encode_e4m3(float x) { return ql_f32_to_e4m3(x); }
static uint16_t encode_e5m2(float x) { return ql_f32_to_e5m2(x); }

/* One bit of binary32 beside each midpoint. */
static void f8_rounds_to_nearest_even_everywhere(void **state) {
    (void)state;
    for (int b = 0; b < 0x7e; b++)
        check_between((uint16_t)b, e4m3_value((uint8_t)b), e4m3_value((uint8_t)(b + 1)), encode_e4m3);
    for (int b = 0; b < 0x7b; b++)
        check_between((uint16_t)b, e5m2_value((uint8_t)b), e5m2_value((uint8_t)(b + 1)), encode_e5m2);
}

static void random_numbers_have_their_moments(void **state) {
    (void)state;
    enum { N = 200000 };
    double sum = 0, square = 0, uniform = 0;
    for (uint64_t i = 0; i < N; i++) {
        double x = ql_random_normal(42, i);
        sum += x, square += x * x, uniform += ql_random_uniform(7, i);
    }
    /* Five standard errors: 1/sqrt(N), sqrt(2/N), sqrt(1/12N). */
    assert_true(fabs(sum / N) < 5 / sqrt(N));
    assert_true(fabs(square / N - 1) < 5 * sqrt(2.0 / N));
    assert_true(fabs(uniform / N - 0.5) < 5 * sqrt(1.0 / 12 / N));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_decodes_every_bit_pattern),
        cmocka_unit_test(f16_rounds_to_nearest_even_everywhere),
        cmocka_unit_test(bf16_rounds_to_nearest_even_everywhere),
        cmocka_unit_test(f8_decodes_every_bit_pattern),
        cmocka_unit_test(f8_rounds_every_bf16_to_the_nearest),
        cmocka_unit_test(f8_rounds_to_nearest_even_everywhere),
        cmocka_unit_test(random_numbers_have_their_moments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

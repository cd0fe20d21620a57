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
        cmocka_unit_test(random_numbers_have_their_moments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

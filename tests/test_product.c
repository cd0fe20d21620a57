/* Products of every kind, on every backend, against double precision on the exact operands. */
#include "tests/product.h"

#include <math.h>

#include "host/rng.h"
#include "tests/ref.h"

/* ---- codes times halves ---------------------------------------------------------------------------------------------------------- */

static void codes_every_width_and_type(void **state) {
    const int widths[] = {2, 3, 4, 8};
    const ql_dtype results[] = {QL_F32, QL_F16, QL_BF16};
    for (int i = 0; i < 12; i++) {
        ql_product p = w4a16(70, 192, 64);
        p.bits = widths[i % 4], p.y = results[i / 4], p.zero_points = i % 2, p.bias = i / 2 % 2;
        p.x = i % 3 ? QL_F16 : QL_BF16, p.scale = i % 5 ? QL_BF16 : QL_F16, p.ordered = i % 7 == 3;
        check_product(*state, p, 5);
    }
}

static void codes_every_group(void **state) {
    const int64_t groups[] = {32, 64, 128, 416};
    for (int i = 0; i < 8; i++) {
        ql_product p = w4a16(65, 416, groups[i / 2]); /* 416 = 3 * 128 + 32: the last group is short */
        p.zero_points = 1, p.ordered = i % 2;
        check_product(*state, p, 3);
    }
}

/* More groups than a group has inputs: where another library loaded only as many scales (k > group^2). */
static void codes_more_groups_than_inputs_per_group(void **state) { check_product(*state, w4a16(16, 1056, 32), 2); }

static void codes_tails(void **state) {
    const int64_t n[] = {1, 7, 63, 64, 129}, k[] = {32, 64, 96, 320};
    for (int i = 0; i < 20; i++) {
        ql_product p = w4a16(n[i % 5], k[i / 5], 32);
        p.bits = i % 2 ? 3 : 4, p.zero_points = 1;
        check_product(*state, p, 1 + i % 3);
    }
}

/* Several tiles of y in both directions. */
static void codes_many_tokens(void **state) { check_product(*state, w4a16(300, 64, 64), 300); }

/* ---- integers -------------------------------------------------------------------------------------------------------------------- */

static int32_t ordered_half(uint16_t h) { return h & 0x8000 ? -(int32_t)(h & 0x7fff) : h; }

/* At most `ulps` steps between a BF16 result and the truth rounded to BF16. */
static void assert_ulps(ql_mat y, ql_mat truth, int ulps) {
    for (int64_t r = 0; r < y.rows; r++)
        for (int64_t c = 0; c < y.cols; c++) {
            int32_t found = ordered_half(((uint16_t *)y.data)[r * y.ld + c]);
            int32_t expected = ordered_half(ql_f32_to_bf16((float)ref_at(truth, r, c)));
            if (abs(found - expected) > ulps)
                fail_msg("(%lld, %lld): %g is %d steps from %g", (long long)r, (long long)c, ref_at(y, r, c),
                         abs(found - expected), ref_at(truth, r, c));
        }
}

/* Sums are exact, two products in FP32 follow: a last place of BF16 at most. */
static void check_within_one_step(backend *b, ql_product p, int64_t m) {
    operands o = make_operands(b, p, m);
    assert_ulps(run_product(b, &o), truth_of(b, &o), 1);
}

static void integers_every_scale_and_type(void **state) {
    const ql_scale_mode modes[] = {QL_SCALE_TENSOR, QL_SCALE_ROW};
    const ql_dtype results[] = {QL_F32, QL_F16, QL_BF16};
    for (int i = 0; i < 12; i++) {
        ql_product p = w8a8(70, 176, modes[i % 2], modes[i / 2 % 2], results[i / 4]);
        p.bias = i % 3 == 1, p.x_zero = i % 5 == 2, p.x = p.x_zero ? QL_U8 : QL_I8;
        if (p.y == QL_BF16 && !p.bias) check_within_one_step(*state, p, 5);
        else check_product(*state, p, 5);
    }
}

static void assert_equal_sums(backend *b, const operands *o) {
    ql_mat y = run_product(b, o);
    for (int64_t r = 0; r < o->m; r++)
        for (int64_t c = 0; c < o->p.n; c++) {
            int64_t sum = 0;
            for (int64_t i = 0; i < o->p.k; i++)
                sum += (int64_t)((int8_t *)o->x.data)[r * o->x.ld + i] *
                       ((int8_t *)o->weight.values.data)[c * o->weight.values.ld + i];
            assert_int_equal(((int32_t *)y.data)[r * y.ld + c], sum);
        }
}

static void integers_exact_sums(void **state) {
    operands o = make_operands(*state, w8a8(130, 528, QL_SCALE_NONE, QL_SCALE_NONE, QL_I32), 17);
    assert_equal_sums(*state, &o);
}

/* The longest sums that fit into 32 bits, at their extremes: 131072 * 127 * 127 = 2114060288. */
static void integers_longest_sums(void **state) {
    operands o = make_operands(*state, w8a8(3, 131072, QL_SCALE_NONE, QL_SCALE_NONE, QL_I32), 2);
    for (int64_t i = 0; i < o.p.k; i++) {
        ref_put(o.x, 0, i, 127);
        ref_put(o.weight.values, 0, i, 127);
        ref_put(o.weight.values, 1, i, -127);
    }
    assert_equal_sums(*state, &o);
}

static void integers_tails(void **state) {
    const int64_t n[] = {1, 7, 65, 128}, k[] = {16, 48, 192, 1040};
    for (int i = 0; i < 16; i++) {
        operands o = make_operands(*state, w8a8(n[i % 4], k[i / 4], QL_SCALE_NONE, QL_SCALE_NONE, QL_I32), 1 + i % 4);
        assert_equal_sums(*state, &o);
    }
}

/* ---- codes times bytes ------------------------------------------------------------------------------------------------------------- */

static void codes_times_bytes(void **state) {
    const ql_dtype results[] = {QL_F32, QL_F16, QL_BF16};
    const int64_t groups[] = {32, 64, 128, 352};
    for (int i = 0; i < 24; i++) {
        ql_product p = w4a16(67, 352, groups[i / 6]);
        p.x = i % 2 ? QL_I8 : QL_F8_E4M3, p.x_scale = QL_SCALE_ROW, p.y = results[i % 3];
        p.zero_points = i / 3 % 2, p.bias = i % 4 == 1, p.ordered = i % 5 == 2;
        if (i < 6) p.w_scale = QL_SCALE_ROW, p.ordered = 0;
        check_product(*state, p, 6);
    }
}

/* Per channel the sums are exact integers, whatever cancels. */
static void codes_times_integers_within_one_step(void **state) {
    ql_product p = w4a16(65, 544, 0);
    p.x = QL_I8, p.x_scale = p.w_scale = QL_SCALE_ROW, p.y = QL_BF16, p.zero_points = 1;
    check_within_one_step(*state, p, 9);
}

/* ---- FP8 ----------------------------------------------------------------------------------------------------------------------------- */

static void f8_every_pair_and_scale(void **state) {
    const ql_dtype types[] = {QL_F8_E4M3, QL_F8_E5M2}, results[] = {QL_F32, QL_F16, QL_BF16};
    const ql_scale_mode x_modes[] = {QL_SCALE_TENSOR, QL_SCALE_TENSOR, QL_SCALE_ROW, QL_SCALE_ROW, QL_SCALE_BLOCK};
    const ql_scale_mode w_modes[] = {QL_SCALE_TENSOR, QL_SCALE_ROW, QL_SCALE_TENSOR, QL_SCALE_ROW, QL_SCALE_BLOCK};
    for (int i = 0; i < 20; i++) {
        int mode = i / 4;
        ql_dtype y = mode == 4 ? QL_F32 : results[i % 3]; /* blocks reach beyond FP16 */
        ql_product p = f8(140, 304, types[i % 2], types[i / 2 % 2], x_modes[mode], w_modes[mode], y);
        p.bias = i % 3 == 1;
        check_product(*state, p, 5);
    }
}

/* Blocks at both ends that are shorter than 128, scales from 2^-20 to 2^20. */
static void f8_blocks_with_tails(void **state) {
    const int64_t n[] = {1, 127, 129, 300}, k[] = {16, 128, 144, 400};
    for (int i = 0; i < 4; i++)
        check_product(*state,
                      f8(n[i], k[i], QL_F8_E4M3, QL_F8_E4M3, QL_SCALE_BLOCK, QL_SCALE_BLOCK, i % 2 ? QL_BF16 : QL_F32),
                      4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_every_width_and_type),
        cmocka_unit_test(codes_every_group),
        cmocka_unit_test(codes_more_groups_than_inputs_per_group),
        cmocka_unit_test(codes_tails),
        cmocka_unit_test(codes_many_tokens),
        cmocka_unit_test(integers_every_scale_and_type),
        cmocka_unit_test(integers_exact_sums),
        cmocka_unit_test(integers_longest_sums),
        cmocka_unit_test(integers_tails),
        cmocka_unit_test(codes_times_bytes),
        cmocka_unit_test(codes_times_integers_within_one_step),
        cmocka_unit_test(f8_every_pair_and_scale),
        cmocka_unit_test(f8_blocks_with_tails),
    };
    return run_on_backends(tests);
}

/* The kernels of I8 and FP8 products: every tile and tail, exact sums, what is not finite, repeats, batches. */
#include "tests/product.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ref.h"

enum { TOKENS = 700 };

static ql_product integers_of(ql_dtype x, ql_dtype y, ql_scale_mode mode, int64_t n, int64_t k) {
    ql_product p = w8a8(n, k, mode, mode, y);
    p.x = x, p.x_zero = x == QL_U8, p.m_max = TOKENS;
    return p;
}

static ql_product f8_of(ql_dtype x, ql_dtype w, ql_dtype y, ql_scale_mode mode, int64_t n, int64_t k) {
    ql_product p = f8(n, k, x, w, mode, mode, y);
    p.m_max = TOKENS;
    return p;
}

/* A plan with its packed weight, for several executions. */
typedef struct prepared {
    ql_plan *plan;
    void *packed;
} prepared;

static prepared prepare(backend *b, const operands *o) {
    prepared ready = {.plan = make_plan(b->ctx, &o->p)};
    ready.packed = pack_operands(b, ready.plan, o);
    return ready;
}

/* y of the first m rows of x.  For FP8, y_scale is 1/4, and *amax becomes the largest magnitude. */
static ql_mat execute(backend *b, const operands *o, prepared ready, int64_t m, double *amax) {
    ql_arguments a = arguments_of(b, o, ready.packed);
    ql_mat largest = poisoned_dense(b, QL_F32, 1, 1), scale = poisoned_dense(b, QL_F32, 1, 1);
    ref_put(scale, 0, 0, 0.25);
    a.x.rows = a.y.rows = m;
    if (o->p.x_scale == QL_SCALE_BLOCK) a.x_scale.rows = m;
    if (o->p.x_scale == QL_SCALE_ROW) a.x_scale.cols = m;
    if (o->p.y == QL_F8_E4M3) a.y_scale = upload(b, scale), a.y_amax = upload(b, largest);
    execute_product(b, b->ctx, ready.plan, &a);
    if (o->p.y == QL_F8_E4M3) download(b, a.y_amax, largest);
    if (amax) *amax = ref_at(largest, 0, 0);
    return result_of(b, a.y);
}

/* ---- integers ---------------------------------------------------------------------------------------------------------------------- */

static void check_sums(backend *b, int64_t m, int64_t n, int64_t k) {
    operands o = make_operands(b, integers_of(QL_I8, QL_I32, QL_SCALE_NONE, n, k), m);
    assert_close(run_product(b, &o), truth_of(b, &o), 0);
}

/* Around the sizes of tiles (16, 64, 128, 256), one block and many, K of one chunk to some steps with every kind of tail; more tiles of
 * outputs than a band has. */
static void integers_every_tile_and_tail(void **state) {
    const int64_t m[] = {1, 7, 16, 17, 63, 65, 118, 257}, n[] = {1, 63, 64, 129, 200}, k[] = {16, 112, 128, 144, 704};
    for (int i = 0; i < 24; i++) check_sums(*state, m[i % 8], n[i % 5], k[(i + i / 5) % 5]);
    check_sums(*state, 300, 1300, 32);
}

/* Few tokens and outputs, long K: the work of one tile is split over the whole GPU. */
static void integers_split_sums(void **state) {
    const int64_t k[] = {1024, 2048, 4112};
    for (int i = 0; i < 6; i++) check_sums(*state, i % 2 ? 3 : 33, i % 2 ? 65 : 3, k[i / 2]);
}

/* The exact sum becomes F32, is rounded twice more, and then to y: within a unit in the last place of y, and the last places of what the
 * bias cancels. */
static void check_fused(backend *b, ql_product p, int64_t m) {
    operands o = make_operands(b, p, m);
    ql_mat y = run_product(b, &o), truth = truth_of(b, &o);
    double unit = p.y == QL_BF16 ? 0x1p-7 : p.y == QL_F16 ? 0x1p-10 : 0x1p-23;
    for (int64_t r = 0; r < m; r++)
        for (int64_t c = 0; c < p.n; c++) {
            double a = ref_at(y, r, c), e = ref_at(truth, r, c), bias = p.bias ? fabs(ref_at(o.bias, 0, c)) : 0;
            if (!(fabs(a - e) <= fabs(e) * unit + (fabs(e) + 2 * bias) * 0x1p-22 + (p.y == QL_F16 ? 0x1p-24 : 0)))
                fail_msg("(%d, %d): %.9g, expected %.9g", (int)r, (int)c, a, e);
        }
}

static void integers_scales_zero_points_and_bias(void **state) {
    const ql_dtype results[] = {QL_F32, QL_BF16, QL_F16};
    const int64_t m[] = {5, 40, 130};
    for (int i = 0; i < 12; i++) {
        ql_product p =
            integers_of(i % 2 ? QL_U8 : QL_I8, results[i % 3], i / 6 ? QL_SCALE_ROW : QL_SCALE_TENSOR, 77, 416);
        p.bias = i % 4 > 1;
        check_fused(*state, p, m[(i + i / 3) % 3]);
    }
}

/* ---- FP8 ----------------------------------------------------------------------------------------------------------------------------- */

static void f8_every_tile_and_tail(void **state) {
    const ql_dtype types[] = {QL_F8_E4M3, QL_F8_E5M2};
    const ql_scale_mode modes[] = {QL_SCALE_ROW, QL_SCALE_BLOCK, QL_SCALE_TENSOR, QL_SCALE_BLOCK};
    const int64_t m[] = {1, 16, 17, 65, 130, 257}, n[] = {3, 64, 130, 257}, k[] = {16, 128, 400, 528};
    for (int i = 0; i < 24; i++) {
        ql_product p = f8_of(types[i % 2], types[i / 2 % 2], i % 3 ? QL_F32 : QL_BF16, modes[i / 4 % 4], n[i / 3 % 4],
                             k[i / 5 % 4]);
        p.bias = i % 2, p.accumulate = i % 5 ? QL_PROMOTE : QL_FAST;
        check_product(*state, p, m[i % 6]);
    }
}

static void f8_split_sums(void **state) {
    check_product(*state, f8_of(QL_F8_E4M3, QL_F8_E4M3, QL_F32, QL_SCALE_ROW, 65, 4112), 3);
    check_product(*state, f8_of(QL_F8_E5M2, QL_F8_E4M3, QL_F32, QL_SCALE_BLOCK, 65, 4112), 33);
}

/* Every byte times one: subnormals, both zeros and the largest are exact; what is not finite times the zeros beside it is NaN. */
static void f8_every_byte(void **state) {
    backend *b = *state;
    const ql_dtype types[] = {QL_F8_E4M3, QL_F8_E5M2};
    for (int i = 0; i < 4; i++) {
        operands o =
            make_operands(b, f8_of(types[i / 2], types[i % 2], QL_F32, QL_SCALE_TENSOR, 256, 16), i % 2 ? 3 : 80);
        ref_put(o.x_scale, 0, 0, 1), ref_put(o.weight.scale, 0, 0, 1);
        for (int64_t c = 0; c < 16; c++) {
            for (int64_t r = 0; r < o.m; r++) ref_put(o.x, r, c, c == r % 16);
            for (int64_t r = 0; r < 256; r++)
                ((uint8_t *)o.weight.values.data)[r * o.weight.values.ld + c] = (uint8_t)r;
        }
        ql_mat y = run_product(b, &o);
        for (int64_t r = 0; r < o.m; r++)
            for (int64_t c = 0; c < 256; c++) {
                double value = ref_at(o.weight.values, c, 0), got = ref_at(y, r, c);
                if (isfinite(value) ? got != value : !isnan(got))
                    fail_msg("%s 0x%02x: %g, expected %g", ql_dtype_name(o.p.w), (int)c, got, value);
            }
    }
}

/* NaN in a row of x reaches this row of y alone, and the largest magnitude. */
static void f8_not_finite(void **state) {
    backend *b = *state;
    const int64_t m[] = {9, 40, 100};
    for (int i = 0; i < 6; i++) {
        operands o = make_operands(b,
                                   f8_of(i % 2 ? QL_F8_E5M2 : QL_F8_E4M3, QL_F8_E4M3, QL_F8_E4M3,
                                         i % 2 ? QL_SCALE_BLOCK : QL_SCALE_ROW, 70, 272),
                                   m[i / 2]);
        double amax;
        ref_put(o.x, 7, 200, NAN);
        prepared ready = prepare(b, &o);
        ql_mat y = execute(b, &o, ready, o.m, &amax);
        for (int64_t r = 0; r < o.m; r++)
            for (int64_t c = 0; c < 70; c++) assert_int_equal(!!isnan(ref_at(y, r, c)), r == 7);
        assert_true(isnan(amax));
        ql_plan_free(ready.plan);
    }
}

/* The largest magnitude is that of the values before they are divided and rounded to FP8. */
static void f8_largest_magnitude(void **state) {
    backend *b = *state;
    const int64_t m[] = {2, 60, 300};
    for (int i = 0; i < 3; i++) {
        operands o = make_operands(b, f8_of(QL_F8_E4M3, QL_F8_E4M3, QL_F8_E4M3, QL_SCALE_ROW, 150, 1040), m[i]);
        double amax, largest = 0;
        prepared ready = prepare(b, &o);
        ql_mat y = execute(b, &o, ready, o.m, &amax), truth = truth_of(b, &o);
        for (int64_t r = 0; r < o.m; r++)
            for (int64_t c = 0; c < 150; c++) {
                double value = ref_at(truth, r, c);
                largest = fmax(largest, fabs(value));
                ref_put(truth, r, c, fmax(-448, fmin(448, value / 0.25)));
            }
        assert_close(y, truth,
                     0.04); /* half a unit of three bits of fraction is at most 1/16 of a value, 0.03 on the average */
        if (!(fabs(amax - largest) <= 1e-3 * largest)) fail_msg("largest %g, expected %g", amax, largest);
        ql_plan_free(ready.plan);
    }
}

/* ---- repeats and batches --------------------------------------------------------------------------------------------------------------- */

/* Also where the processor plays the GPU and runs the last block first. */
static void same_bits_every_time(void **state) {
    backend *b = *state;
    for (int i = 0; i < 4; i++) {
        ql_product f = f8_of(QL_F8_E4M3, QL_F8_E5M2, QL_BF16, i / 2 ? QL_SCALE_ROW : QL_SCALE_BLOCK, 70, 1040);
        operands o = make_operands(b, i % 2 ? f : integers_of(QL_U8, QL_BF16, QL_SCALE_ROW, 70, 1040), i / 2 ? 17 : 5);
        prepared ready = prepare(b, &o);
        ql_mat first = execute(b, &o, ready, o.m, NULL);
        for (int repeat = 1; repeat < 20; repeat++) {
            setenv("QALIB_EMULATED_BLOCKS", repeat % 2 ? "reversed" : "", 1);
            assert_same_bits(first, execute(b, &o, ready, o.m, NULL));
        }
        unsetenv("QALIB_EMULATED_BLOCKS");
        ql_plan_free(ready.plan);
    }
}

/* QL_ANY_BATCH: a row of x gives the same bits alone and among others. */
static void same_bits_in_any_batch(void **state) {
    backend *b = *state;
    const int64_t batches[] = {1, 16, 40};
    for (int i = 0; i < 3; i++) {
        ql_product p = f8_of(QL_F8_E4M3, QL_F8_E4M3, QL_F32, i ? QL_SCALE_ROW : QL_SCALE_BLOCK, 70, 1040);
        p.repeat = QL_ANY_BATCH, p.accumulate = i == 2 ? QL_FAST : QL_PROMOTE;
        operands o = make_operands(b, p, 129);
        prepared ready = prepare(b, &o);
        ql_mat all = execute(b, &o, ready, 129, NULL);
        for (int j = 0; j < 3; j++)
            assert_same_bits(ql_rows(all, 0, batches[j]), execute(b, &o, ready, batches[j], NULL));
        ql_plan_free(ready.plan);
    }
}

/* Which kernel takes how many tokens; on Hopper its own. */
static void kernels_by_tokens(void **state) {
    backend *b = *state;
    if (is_cpu(b)) return;
    const ql_product products[] = {integers_of(QL_I8, QL_I32, QL_SCALE_NONE, 64, 64),
                                   f8_of(QL_F8_E4M3, QL_F8_E5M2, QL_F32, QL_SCALE_ROW, 64, 64)};
    const struct {
        int64_t m;
        const char *name;
    } expected[] = {{1, "few"}, {16, "few"}, {17, "some"}, {64, "some"}, {65, "many"}, {TOKENS, "many"}};
    for (int i = 0; i < 2; i++) {
        ql_plan *plan = make_plan(b->ctx, &products[i]);
        const char *arch = strstr(ql_plan_describe(plan, 1), ".sm");
        assert_non_null(arch);
        for (int j = 0; j < 6; j++) {
            char name[32];
            snprintf(name, sizeof name, "%s_%s%s", i ? "fp8" : "int8", expected[j].name, arch);
            assert_string_equal(ql_plan_describe(plan, expected[j].m), name);
        }
        ql_plan_free(plan);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_every_tile_and_tail),
        cmocka_unit_test(integers_split_sums),
        cmocka_unit_test(integers_scales_zero_points_and_bias),
        cmocka_unit_test(f8_every_tile_and_tail),
        cmocka_unit_test(f8_split_sums),
        cmocka_unit_test(f8_every_byte),
        cmocka_unit_test(f8_not_finite),
        cmocka_unit_test(f8_largest_magnitude),
        cmocka_unit_test(same_bits_every_time),
        cmocka_unit_test(same_bits_in_any_batch),
        cmocka_unit_test(kernels_by_tokens),
    };
    return run_on_backends(tests);
}

/* Rounding to a grid and back: ties, clamps, every code, groups of any shape. */
#include "tests/grids.h"

#include <math.h>
#include <stdbool.h>

#include "host/num.h"
#include "host/rng.h"
#include "tests/ref.h"

static void fill_grid(ql_grid grid, uint64_t seed) {
    for (int64_t r = 0; r < grid.scale.rows; r++)
        for (int64_t g = 0; g < grid.scale.cols; g++) {
            uint64_t i = (uint64_t)(r * grid.scale.cols + g);
            ref_put(grid.scale, r, g, 0.01 + ql_random_uniform(seed, i));
            ref_put(grid.zero, r, g, (double)(ql_random(seed + 1, i) % (1u << grid.bits)));
        }
}

static ql_mat run_quantize(backend *b, ql_mat w, ql_grid grid) {
    ql_mat codes = poisoned(b, QL_U8, w.rows, w.cols), dcodes = upload(b, codes), again = upload(b, codes);
    ql_mat dw = upload(b, w);
    ql_grid dgrid = upload_grid(b, grid);
    assert_ok(ql_quantize(b->ctx, dw, &dgrid, dcodes));
    assert_ok(ql_quantize(b->other, dw, &dgrid, again));
    assert_same_bits_on_device(b, dcodes, again);
    download(b, dcodes, codes);
    return codes;
}

static ql_mat run_dequantize(backend *b, ql_mat codes, ql_grid grid) {
    ql_mat w = poisoned(b, QL_F32, codes.rows, codes.cols), dw = upload(b, w);
    ql_grid dgrid = upload_grid(b, grid);
    assert_ok(ql_dequantize(b->other, upload(b, codes), &dgrid, dw));
    download(b, dw, w);
    return w;
}

/* The formula in double; the quotient is rounded to F32 first, as the definition of a code asks. */
static void check_codes(ql_mat w, ql_grid grid, ql_mat codes) {
    for (int64_t r = 0; r < w.rows; r++)
        for (int64_t c = 0; c < w.cols; c++) {
            int64_t g = grid_group(&grid, c);
            double quotient = (float)(ref_at(w, r, c) / ref_at(grid.scale, r, g));
            double code = fmin(fmax(rint(quotient) + ref_at(grid.zero, r, g), 0), (1 << grid.bits) - 1);
            if (ref_at(codes, r, c) != code)
                fail_msg("(%d, %d): code %g, expected %g", (int)r, (int)c, ref_at(codes, r, c), code);
        }
}

static void check_both_ways(backend *b, int bits, int64_t n, int64_t k, int64_t group, bool scattered) {
    ql_grid grid = poisoned_grid(b, bits, n, k, group, scattered ? scattered_groups(b, k, group) : ql_no_mat());
    fill_grid(grid, (uint64_t)bits);
    ql_mat w = normal(b, n, k, 5), codes = run_quantize(b, w, grid), truth = poisoned(b, QL_F32, n, k);
    check_codes(w, grid, codes);
    ref_dequantize(codes, &grid, truth);
    assert_same_bits(run_dequantize(b, codes, grid), truth);
}

static void quantize_every_width_and_group(void **state) {
    for (int i = 0; i < GRID_WIDTHS; i++) {
        check_both_ways(*state, grid_widths[i], 17, 256, 64, false);
        check_both_ways(*state, grid_widths[i], 5, 131, 32, false); /* last group short */
        check_both_ways(*state, grid_widths[i], 5, 131, 32, true);
        check_both_ways(*state, grid_widths[i], 3, 77, 1000, false); /* one group, larger than the row */
        check_both_ways(*state, grid_widths[i], 1, 1, 1, false);
    }
}

static void quantize_rounds_ties_to_even_and_clamps(void **state) {
    backend *b = *state;
    const float w[] = {0.5f, 1.5f,   2.5f,  -0.5f, -1.5f, -2.5f,   -0.0f, 7.0f,
                       7.5f, 100.0f, 3e38f, -8.0f, -8.5f, -100.0f, -3e38f};
    const int codes[] = {8, 10, 10, 8, 6, 6, 8, 15, 15, 15, 15, 0, 0, 0, 0};
    enum { K = sizeof w / sizeof *w };
    const float scales[] = {1.0f, 0x1p-24f, 0.125f};
    for (int s = 0; s < 3; s++) {
        ql_grid grid = poisoned_grid(b, 4, 1, K, K, ql_no_mat());
        ql_mat values = poisoned(b, QL_F32, 1, K);
        for (int i = 0; i < K; i++) ref_put(values, 0, i, (double)w[i] * scales[s]);
        ref_put(grid.scale, 0, 0, scales[s]);
        ref_put(grid.zero, 0, 0, 8);
        ql_mat result = run_quantize(b, values, grid);
        for (int i = 0; i < K; i++) assert_int_equal(ref_at(result, 0, i), codes[i]);
    }
}

/* What a code stands for is rounded back to this code: all codes and zero points, scales from the least FP16 to the largest. */
static void quantize_inverts_dequantize(void **state) {
    backend *b = *state;
    const double scales[] = {0x1p-24, 0x1.8p-23, 0x1p-14, 0x1.554p-7, 1, 65504};
    for (int w = 0; w < GRID_WIDTHS; w++) {
        int bits = grid_widths[w], q = 1 << bits;
        ql_grid grid = poisoned_grid(b, bits, 6 * q, q, q, ql_no_mat());
        ql_mat codes = poisoned(b, QL_U8, 6 * q, q);
        for (int r = 0; r < 6 * q; r++) {
            ref_put(grid.scale, r, 0, scales[r / q]);
            ref_put(grid.zero, r, 0, r % q);
            for (int c = 0; c < q; c++) ref_put(codes, r, c, c);
        }
        assert_same_bits(run_quantize(b, run_dequantize(b, codes, grid), grid), codes);
    }
}

static void quantize_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_grid grid = poisoned_grid(b, 4, 3, 64, 32, scattered_groups(b, 64, 32)), d = upload_grid(b, grid), bad = d;
    ql_mat w = upload(b, normal(b, 3, 64, 1)), codes = upload(b, poisoned(b, QL_U8, 3, 64));
    bad.group = 16;
    assert_refused(ql_quantize(b->ctx, w, &bad, codes), QL_INVALID, "scale: has 2 columns, expected 4");
    bad = d, bad.bits = 9;
    assert_refused(ql_dequantize(b->ctx, codes, &bad, w), QL_INVALID, "9 bits");
    codes.cols = 63;
    assert_refused(ql_quantize(b->ctx, w, &d, codes), QL_INVALID, "codes: has 63 columns, expected 64");
    codes.cols = 64;
    if (!is_cpu(b)) return; /* only the CPU can look at values before it runs */
    ((int32_t *)d.g_idx.data)[7] = -1;
    assert_refused(ql_quantize(b->ctx, w, &d, codes), QL_INVALID, "quantize: g_idx[7] is -1, there are 2 groups");
    assert_refused(ql_dequantize(b->ctx, codes, &d, w), QL_INVALID, "dequantize: g_idx[7] is -1");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantize_every_width_and_group),
        cmocka_unit_test(quantize_rounds_ties_to_even_and_clamps),
        cmocka_unit_test(quantize_inverts_dequantize),
        cmocka_unit_test(quantize_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

/* Packed codes on tensor cores: every shape of the kernel, its tails and its split of the work, against double precision. */
#include "tests/product.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ref.h"

static ql_product w4a8(int64_t n, int64_t k, int64_t group) {
    ql_product p = w4a16(n, k, group);
    p.x = QL_I8, p.x_scale = QL_SCALE_ROW;
    if (group == 0) p.w_scale = QL_SCALE_ROW;
    return p;
}

/* ---- which kernel --------------------------------------------------------------------------------------------------------- */

static void assert_kernel(backend *b, ql_product p, int64_t m, const char *name) {
    ql_plan *plan = make_plan(b->ctx, &p);
    assert_string_equal(ql_plan_describe(plan, m), name);
    ql_plan_free(plan);
}

/* The emulated GPU becomes another one, and again what the environment said; a real one stays what it is. */
static void set_arch(const char *arch) { setenv("QALIB_EMULATED_ARCH", arch, 1); }
static const char *given_arch(void) {
    static char given[8];
    const char *arch = getenv("QALIB_EMULATED_ARCH");
    if (!*given) snprintf(given, sizeof given, "%s", arch ? arch : "80");
    return given;
}

static int is_hopper(backend *b) {
    ql_product p = w4a16(64, 64, 64);
    ql_plan *plan = make_plan(b->ctx, &p);
    int found = strstr(ql_plan_describe(plan, 300), "sm90") != NULL;
    ql_plan_free(plan);
    return found;
}

/* More tokens than 32 (16 for other widths than 4 and for bytes) are for wgmma there. */
static void kernels_of_hopper(void **state) {
    backend *b = *state;
    if (is_cpu(b) || !is_hopper(b)) {
        print_message("skip: not Hopper\n");
        skip();
    }
    ql_product p = w4a16(64, 64, 64), wide = p, any = p, bytes = w4a8(64, 64, 64);
    wide.bits = 3, any.repeat = QL_ANY_BATCH;
    assert_kernel(b, p, 8, "w4a16.8");
    assert_kernel(b, p, 32, "w4a16.32");
    assert_kernel(b, p, 33, "w4a16.64.sm90");
    assert_kernel(b, p, 64, "w4a16.64.sm90");
    assert_kernel(b, p, 65, "w4a16.128.sm90");
    assert_kernel(b, wide, 16, "w3a16.16");
    assert_kernel(b, wide, 17, "w3a16.128.sm90");
    assert_kernel(b, any, 1, "w4a16.128.sm90");
    assert_kernel(b, bytes, 16, "w4a8.16");
    assert_kernel(b, bytes, 17, "w4a8.64.sm90");
    assert_kernel(b, bytes, 65, "w4a8.128.sm90");
}

/* The smallest shape that takes all tokens at once; one kernel for every batch where bits must not depend on it. */
static void kernels_by_tokens(void **state) {
    backend *b = *state;
    if (is_cpu(b) || is_hopper(b)) {
        print_message("skip: the CPU has one kernel, Hopper its own\n");
        skip();
    }
    ql_product p = w4a16(64, 64, 64), wide = p, bytes = w4a8(64, 64, 64);
    wide.bits = 3;
    assert_kernel(b, p, 1, "w4a16.8");
    assert_kernel(b, p, 9, "w4a16.16");
    assert_kernel(b, p, 17, "w4a16.32");
    assert_kernel(b, p, 64, "w4a16.64");
    assert_kernel(b, p, 65, "w4a16.128");
    assert_kernel(b, wide, 16, "w3a16.16");
    assert_kernel(b, wide, 17, "w3a16.128");
    assert_kernel(b, bytes, 1, "w4a8.16");
    assert_kernel(b, bytes, 64, "w4a8.64");
    assert_kernel(b, bytes, 300, "w4a8.128");
    p.x = QL_F8_E4M3, p.x_scale = QL_SCALE_ROW;
    assert_kernel(b, p, 8, "w4a16.8");
    p = w4a16(64, 64, 64), p.repeat = QL_ANY_BATCH;
    assert_kernel(b, p, 1, "w4a16.128");
}

/* ---- shapes ------------------------------------------------------------------------------------------------------------------ */

static const int64_t token_counts[] = {1, 2, 7, 16, 17, 33, 65, 130};
enum { TOKEN_COUNTS = 8 };

/* n of no multiple of 64, k % 128 = 64, every group; types, zero points, order and bias in turn. */
static void tokens_and_groups(void **state) {
    const int64_t groups[] = {32, 64, 128, 320};
    const ql_dtype results[] = {QL_F32, QL_F16, QL_BF16};
    for (int i = 0; i < 4 * TOKEN_COUNTS; i++) {
        ql_product p = w4a16(200, 320, groups[i / TOKEN_COUNTS]);
        p.x = i % 2 ? QL_F16 : QL_BF16, p.y = results[i % 3], p.scale = i % 5 ? QL_BF16 : QL_F16;
        p.zero_points = i % 4 < 2, p.ordered = i % 7 == 3, p.bias = i % 3 == 1;
        check_product(*state, p, token_counts[i % TOKEN_COUNTS]);
    }
}

static void other_widths(void **state) {
    const int widths[] = {2, 3, 8};
    for (int i = 0; i < 12; i++) {
        ql_product p = w4a16(130, 320, i % 2 ? 32 : 128);
        p.bits = widths[i % 3], p.x = i / 3 % 2 ? QL_F16 : QL_BF16, p.zero_points = i / 6;
        check_product(*state, p, i % 4 < 2 ? 5 : 20);
    }
}

/* The last half tile, tile and step; with one group over all of k, which may be shorter than a step. */
static void every_tail_of_k(void **state) {
    const int64_t k[] = {32, 64, 96, 128, 160, 192, 224, 256, 288, 352};
    for (int i = 0; i < 20; i++) {
        ql_product p = w4a16(65, k[i / 2], i % 2 ? k[i / 2] : 32);
        p.zero_points = 1;
        check_product(*state, p, token_counts[(i + i / 8) % TOKEN_COUNTS]);
    }
}

/* More groups than a group has inputs (k > group^2), and steps whose groups are not the first ones. */
static void more_groups_than_inputs_per_group(void **state) {
    for (int i = 0; i < 4; i++) check_product(*state, w4a16(64, 1088, 32), token_counts[2 * i + 1]);
}

/* One tile that all blocks share, and many tiles that none does. */
static void deep_and_wide(void **state) {
    for (int i = 0; i < 4; i++) {
        check_product(*state, w4a16(16, 2304, 128), token_counts[2 * i]);
        check_product(*state, w4a16(705, 64, 64), token_counts[2 * i]);
    }
}

/* More steps per block than there are stages, so that each stage is filled several times: with cp.async, and with bulk copies, whose
 * barriers then go from phase to phase. */
static void stages_lap_after_lap(void **state) {
    const char *const arch[] = {"80", "90"};
    for (int i = 0; i < 4; i++) {
        set_arch(arch[i % 2]); /* 12 tiles of 5 steps for 5 blocks */
        check_product(*state, i < 2 ? w4a16(705, 1280, 128) : w4a8(705, 1280, 64), i < 2 ? 3 : 12);
        set_arch(given_arch());
    }
}

/* Tiles of 256 outputs x 64 or 128 tokens, more of them than the emulated GPU has processors: some are dealt out whole and some by
 * steps; every tail, and two groups within 64 inputs. */
static void wide_tiles(void **state) {
    const struct {
        int64_t n, k, group, m;
    } cases[] = {{600, 352, 32, 40},  {600, 352, 128, 200}, {300, 96, 32, 300},  {70, 1088, 64, 34},
                 {257, 224, 224, 65}, {1030, 64, 32, 129},  {64, 1184, 32, 100}, {1300, 32, 32, 33}};
    for (int i = 0; i < 8; i++) {
        ql_product p = w4a16(cases[i].n, cases[i].k, cases[i].group);
        const ql_dtype results[] = {QL_F32, QL_F16, QL_BF16};
        p.x = i % 2 ? QL_F16 : QL_BF16, p.y = results[i % 3], p.scale = i % 4 ? QL_BF16 : QL_F16;
        p.zero_points = i % 3 < 2, p.ordered = i == 5, p.bias = i % 3 == 1, p.repeat = i == 4 ? QL_ANY_BATCH : 0;
        check_product(*state, p, cases[i].m);
    }
    for (int i = 0; i < 6; i++) {
        const int widths[] = {2, 3, 8};
        ql_product p = w4a16(300, 160, i % 2 ? 32 : 64);
        p.bits = widths[i % 3], p.x = i / 3 ? QL_F16 : QL_BF16, p.zero_points = i % 2;
        check_product(*state, p, i == 5 ? 130 : 20);
    }
    /* Bytes, 128 inputs at a time: with groups, and with one scale per output. */
    for (int i = 0; i < 8; i++) {
        ql_product p = w4a8(cases[i].n, cases[i].k, i % 2 ? 0 : cases[i].group);
        p.zero_points = i % 3 < 2, p.ordered = i == 6, p.bias = i % 5 == 1, p.repeat = i == 4 ? QL_ANY_BATCH : 0;
        check_product(*state, p, cases[i].m);
    }
}

/* A row of x has the same bits alone and among others. */
static void rows_alone_and_in_batches(void **state) {
    backend *b = *state;
    ql_product p = w4a16(300, 352, 32);
    p.repeat = QL_ANY_BATCH;
    operands o = make_operands(b, p, 150);
    ql_mat all = run_product(b, &o);
    for (int64_t r = 0; r < o.m; r += 49) {
        operands one = o;
        one.m = 1, one.x = ql_rows(o.x, r, 1), one.exact_x = ql_rows(o.exact_x, r, 1);
        assert_same_bits(run_product(b, &one), ql_rows(all, r, 1));
    }
}

/* A thousandth of the inputs is a hundred times larger. */
static void outlying_inputs(void **state) {
    backend *b = *state;
    for (int i = 0; i < 3; i++) {
        ql_product p = w4a16(96, 1024, 128);
        p.x = i ? QL_F16 : QL_BF16;
        operands o = make_operands(b, p, token_counts[2 * i + 1]);
        for (int64_t r = 0; r < o.m; r++) {
            ref_put(o.x, r, 511, 100 * ref_at(o.x, r, 511));
            ref_put(o.exact_x, r, 511, ref_at(o.x, r, 511)); /* rounded to its type once more */
        }
        assert_close(run_product(b, &o), truth_of(b, &o), bound_of(&p));
    }
}

/* Weights rounded to x's type: errors of at most 2^-9 or 2^-12 of a weight, even over that, have a root mean square of the bound over
 * the square root of 3. */
static void rounded_weights_where_allowed(void **state) {
    backend *b = *state;
    const int64_t m = 1026;
    for (int i = 0; i < 4; i++) {
        ql_product p = w4a16(70, 96, 32);
        p.m_max = 1100, p.accumulate = QL_FAST, p.x = i % 2 ? QL_F16 : QL_BF16, p.zero_points = p.ordered = i / 2;
        operands o = make_operands(b, p, m);
        if (!is_cpu(b)) assert_kernel(b, p, m, "codes.cublaslt");
        assert_close(run_product(b, &o), truth_of(b, &o), p.x == QL_F16 ? 0x1p-12 : 0x1p-9);
        p.accumulate = QL_PROMOTE;
        if (!is_cpu(b)) assert_kernel(b, p, m, is_hopper(b) ? "w4a16.128.sm90" : "w4a16.128");
    }
}

/* ---- integers ----------------------------------------------------------------------------------------------------------------- */

static void bytes_and_groups(void **state) {
    const int64_t groups[] = {32, 64, 128, 320};
    for (int i = 0; i < 2 * TOKEN_COUNTS; i++) {
        ql_product p = w4a8(200, 320, groups[i % 4]);
        p.zero_points = i / 4 % 2, p.ordered = i % 5 == 2, p.bias = i % 3 == 1;
        check_product(*state, p, token_counts[(i + i / 4) % TOKEN_COUNTS]);
    }
}

/* With a scale per output the sums are exact: FP32 results are two products from the truth, each 2^-24, the bias a third. */
static void bytes_sum_exactly(void **state) {
    backend *b = *state;
    for (int i = 0; i < TOKEN_COUNTS; i++) {
        ql_product p = w4a8(130, 1088, 0);
        p.zero_points = i % 2;
        operands o = make_operands(b, p, token_counts[i]);
        ql_mat y = run_product(b, &o), truth = truth_of(b, &o);
        for (int64_t r = 0; r < o.m; r++)
            for (int64_t c = 0; c < p.n; c++)
                assert_true(fabs(ref_at(y, r, c) - ref_at(truth, r, c)) <= 3 * 0x1p-24 * fabs(ref_at(truth, r, c)));
    }
}

static void f8_inputs(void **state) {
    for (int i = 0; i < TOKEN_COUNTS; i++) {
        ql_product p = w4a16(100, 352, i % 2 ? 32 : 128);
        p.x = QL_F8_E4M3, p.x_scale = QL_SCALE_ROW, p.zero_points = i / 2 % 2, p.ordered = i == 3;
        if (i >= 4) p.w_scale = QL_SCALE_ROW;
        check_product(*state, p, token_counts[i]);
    }
}

/* ---- the same bits ------------------------------------------------------------------------------------------------------------- */

/* Runs the product once more, with fresh poison. */
static void assert_again(backend *b, const operands *o, const void *packed, ql_mat first) {
    ql_plan *plan = make_plan(b->ctx, &o->p);
    ql_arguments a = arguments_of(b, o, packed);
    execute_product(b, b->ctx, plan, &a);
    assert_same_bits(result_of(b, a.y), first);
    ql_plan_free(plan);
}

static void assert_repeats(backend *b, ql_product p, int64_t m) {
    operands o = make_operands(b, p, m);
    ql_plan *plan = make_plan(b->ctx, &p);
    void *packed = pack_operands(b, plan, &o);
    ql_arguments a = arguments_of(b, &o, packed);
    execute_product(b, b->ctx, plan, &a);
    ql_mat first = result_of(b, a.y);
    ql_plan_free(plan);
    for (int i = 1; i < 20; i++) assert_again(b, &o, packed, first);
    /* Of the emulated GPU: the last block first, and the way of copying of another architecture (for many tokens that has another kernel). */
    setenv("QALIB_EMULATED_BLOCKS", "reversed", 1);
    assert_again(b, &o, packed, first);
    unsetenv("QALIB_EMULATED_BLOCKS");
    set_arch("90");
    if (m <= (p.x == QL_I8 ? 16 : 32)) assert_again(b, &o, packed, first);
    set_arch(given_arch());
}

static void twenty_repeats_in_any_order(void **state) {
    for (int i = 0; i < TOKEN_COUNTS; i++) {
        ql_product p = i % 2 ? w4a8(72, 608, 32) : w4a16(72, 608, 32);
        p.zero_points = p.ordered = i / 2 % 2;
        assert_repeats(*state, p, token_counts[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_by_tokens), cmocka_unit_test(kernels_of_hopper),
        cmocka_unit_test(tokens_and_groups), cmocka_unit_test(other_widths),
        cmocka_unit_test(every_tail_of_k),   cmocka_unit_test(more_groups_than_inputs_per_group),
        cmocka_unit_test(deep_and_wide),     cmocka_unit_test(stages_lap_after_lap),
        cmocka_unit_test(wide_tiles),        cmocka_unit_test(rows_alone_and_in_batches),
        cmocka_unit_test(outlying_inputs),   cmocka_unit_test(rounded_weights_where_allowed),
        cmocka_unit_test(bytes_and_groups),  cmocka_unit_test(bytes_sum_exactly),
        cmocka_unit_test(f8_inputs),         cmocka_unit_test(twenty_repeats_in_any_order),
    };
    given_arch(); /* remembered before it changes */
    return run_on_backends(tests);
}

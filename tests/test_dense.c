/* Dense products: every type and pair of types, rows in any batch, operands that do not lie as planned, and measured choices. */
#include "tests/product.h"

#include <unistd.h>

#include "host/choices.h"
#include "host/file.h"
#include "host/log.h"
#include "host/product.h"
#include "tests/ref.h"

static const ql_dtype types[] = {QL_F32, QL_F16, QL_BF16};

static ql_product dense(ql_dtype type, ql_dtype y, int64_t n, int64_t k, int64_t m_max) {
    return (ql_product){.n = n, .k = k, .m_max = m_max, .x = type, .w = type, .y = y};
}

static void dense_every_type(void **state) {
    for (int i = 0; i < 18; i++) {
        ql_product p = dense(types[i % 3], types[i / 3 % 3], i < 9 ? 80 : 67, i < 9 ? 192 : 37, 40);
        p.bias = i % 2;
        check_product(*state, p, 6);
    }
}

/* Algorithms are planned for powers of two; every m in between runs with one of them. */
static void dense_every_number_of_tokens(void **state) {
    backend *b = *state;
    ql_product p = dense(QL_BF16, QL_BF16, 48, 64, 21);
    operands o = make_operands(b, p, 21);
    ql_plan *plan = make_plan(b->ctx, &p);
    ql_arguments all = arguments_of(b, &o, pack_operands(b, plan, &o)), some = all;
    ql_mat truth = truth_of(b, &o);
    for (int64_t m = 1; m <= 21; m++) {
        some.x = ql_rows(all.x, 0, m), some.y = upload(b, poisoned(b, p.y, m, p.n));
        execute_product(b, b->ctx, plan, &some);
        assert_close(result_of(b, some.y), ql_rows(truth, 0, m), bound_of(&p));
    }
    ql_plan_free(plan);
}

/* A view that begins in the middle of a row, with an odd leading dimension. */
static void dense_operands_out_of_line(void **state) {
    backend *b = *state;
    ql_product p = dense(QL_F16, QL_F32, 40, 48, 8);
    operands o = make_operands(b, p, 7);
    ql_plan *plan = make_plan(b->ctx, &p);
    ql_arguments a = arguments_of(b, &o, pack_operands(b, plan, &o));
    ql_mat wide = poisoned_with(b, QL_F16, 7, 60, 61), x = ql_cols(wide, 3, 48);
    for (int64_t r = 0; r < 7; r++)
        for (int64_t c = 0; c < 48; c++) ref_put(x, r, c, ref_at(o.x, r, c));
    a.x = ql_cols(upload(b, wide), 3, 48);
    execute_product(b, b->ctx, plan, &a);
    assert_close(result_of(b, a.y), truth_of(b, &o), bound_of(&p));
    ql_plan_free(plan);
}

/* ---- pairs of types, and rows in any batch ------------------------------------------------------------------------------------------ */

static ql_product any_batch(int pair, ql_dtype y, int64_t n, int64_t k, int64_t m_max) {
    ql_product p = dense(types[pair % 3], y, n, k, m_max);
    p.w = types[pair / 3], p.repeat = QL_ANY_BATCH;
    return p;
}

/* Operands of one type go to cuBLASLt unless rows must not hang on their batch; no product goes to the kernel for everything. */
static void dense_kernels_are_chosen(void **state) {
    backend *b = *state;
    for (int i = 0; i < 18 && !is_cpu(b); i++) {
        ql_product p = any_batch(i % 9, QL_F32, 70, 64, 130);
        const char *expected = p.x == p.w && p.x != QL_F32 ? "dense.sm80" : "dense_f32.sm80";
        if (i >= 9) p.repeat = QL_SAME_CALL;
        if (i >= 9 && p.x == p.w) expected = "dense.cublaslt";
        ql_plan *plan = make_plan(b->ctx, &p);
        assert_string_equal(ql_plan_describe(plan, 1), expected);
        assert_string_equal(ql_plan_describe(plan, 130), expected);
        ql_plan_free(plan);
    }
}

/* x and w of each type, to each type, for few tokens, some and many. */
static void dense_every_pair(void **state) {
    static const int64_t m[] = {5, 33, 70};
    for (int i = 0; i < 27; i++) {
        ql_product p = any_batch(i % 9, types[i / 9], 70, 72, 70);
        p.bias = i % 2;
        check_product(*state, p, m[(i + i / 9) % 3]);
    }
}

/* Ends of segments, stages and rows: one input to several steps of every segment, also where rows do not begin on 16 bytes. */
static void dense_tails(void **state) {
    static const int64_t k[] = {1, 7, 8, 37, 63, 64, 65, 128, 129, 200, 264, 520, 1032}, n[] = {1, 31, 32, 33, 65, 129};
    static const int pairs[] = {4, 8, 0, 5};
    for (int i = 0; i < 26; i++)
        check_product(*state, any_batch(pairs[i % 4], QL_F32, n[i % 6], k[i % 13], 130), i % 3 ? 1 + i % 2 * 16 : 66);
}

/* A row has the same bits alone and among others, wherever it stands. */
static void check_rows(backend *b, ql_product p, int64_t step) {
    const int64_t most = p.m_max;
    operands o = make_operands(b, p, most);
    ql_plan *plan = make_plan(b->ctx, &p);
    ql_arguments all = arguments_of(b, &o, pack_operands(b, plan, &o)), some = all;
    execute_product(b, b->ctx, plan, &all);
    ql_mat y = result_of(b, all.y);
    assert_close(y, truth_of(b, &o), bound_of(&p));
    for (int64_t m = 1; m < most; m += step) {
        const int64_t first = m * 7 % (most - m + 1);
        some.x = ql_rows(all.x, first, m), some.y = upload(b, poisoned(b, p.y, m, p.n));
        execute_product(b, b->ctx, plan, &some);
        assert_same_bits(result_of(b, some.y), ql_rows(y, first, m));
    }
    ql_plan_free(plan);
}

static void dense_rows_in_any_batch(void **state) {
    check_rows(*state, any_batch(8, QL_F32, 35, 680, 131), 1);  /* 11 steps: segments of 2, 3, 3 and 3 */
    check_rows(*state, any_batch(4, QL_BF16, 35, 104, 131), 5); /* two empty segments */
    check_rows(*state, any_batch(4, QL_F32, 35, 259, 131), 9);  /* rows that begin anywhere */
    check_rows(*state, any_batch(0, QL_F32, 35, 200, 131), 3);
    check_rows(*state, any_batch(7, QL_BF16, 35, 67, 131), 9); /* F16 times BF16 */
    check_rows(*state, any_batch(2, QL_F16, 35, 72, 131), 9);  /* BF16 times F32 */
}

/* Where x lies changes neither bits nor what stands around y. */
static void dense_views_keep_the_bits(void **state) {
    backend *b = *state;
    for (int pair = 0; pair < 9; pair++) {
        ql_product p = any_batch(pair, QL_F32, 40, 48, 80);
        operands o = make_operands(b, p, 70);
        ql_plan *plan = make_plan(b->ctx, &p);
        ql_arguments a = arguments_of(b, &o, pack_operands(b, plan, &o)), view = a;
        ql_mat wide = poisoned_with(b, p.x, 70, 60, 61), x = ql_cols(wide, 3, 48);
        for (int64_t r = 0; r < 70; r++)
            for (int64_t c = 0; c < 48; c++) ref_put(x, r, c, ref_at(o.x, r, c));
        view.x = ql_cols(upload(b, wide), 3, 48);
        view.y = upload(b, poisoned(b, p.y, 70, p.n));
        execute_product(b, b->ctx, plan, &a);
        execute_product(b, b->ctx, plan, &view);
        assert_same_bits(result_of(b, view.y), result_of(b, a.y));
        ql_plan_free(plan);
    }
}

/* ---- measuring ------------------------------------------------------------------------------------------------------------------- */

static const char *temporary_file(void) {
    static char path[64];
    snprintf(path, sizeof path, "/tmp/qalib-choices-%d.txt", (int)getpid());
    unlink(path);
    return path;
}

/* m = 1, 2, 4, 8 and 10, each with the candidate that was fastest. */
static void measuring_leaves_a_line_per_bucket(void **state) {
    backend *b = *state;
    const char *path = temporary_file();
    ql_product p = dense(QL_BF16, QL_BF16, 48, 64, 10);
    if (is_cpu(b)) {
        assert_refused(ql_plan_measure(b->ctx, &p, path), QL_UNSUPPORTED, "nothing to choose from");
        assert_false(ql_path_exists(path));
        return;
    }
    ql_arena *arena;
    ql_choices choices;
    assert_ok(ql_arena_open(NULL, &arena));
    assert_ok(ql_plan_measure(b->ctx, &p, path));
    assert_ok(ql_plan_measure(b->ctx, &p, path)); /* replaces, does not repeat */
    assert_ok(ql_choices_load(path, arena, &choices));
    assert_int_equal(choices.count, 5);
    const int64_t m[] = {1, 2, 4, 8, 10};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(choices.list[i].m, m[i]);
        assert_true(choices.list[i].ns > 0);
        /* The emulated library's third candidate takes half a millisecond, the others one. */
        if (strstr(ql_ctx_describe(b->ctx), "emulated")) assert_int_equal(choices.list[i].ns, 500000);
    }
    ql_product codes = w4a16(64, 64, 32);
    assert_refused(ql_plan_measure(b->ctx, &codes, path), QL_UNSUPPORTED, "nothing to choose from");
    ql_arena_close(arena);
    unlink(path);
}

static ql_mat run_measured(backend *b, const operands *o, const char *path) {
    ql_plan *plan;
    assert_ok(ql_plan_make_measured(b->ctx, &o->p, path, &plan));
    ql_arguments a = arguments_of(b, o, pack_operands(b, plan, o));
    execute_product(b, b->ctx, plan, &a);
    ql_plan_free(plan);
    return result_of(b, a.y);
}

/* With the file, without it, and with algorithms in it that the library does not know: always a right product. */
static void plans_read_what_was_measured(void **state) {
    backend *b = *state;
    const char *path = temporary_file();
    operands o = make_operands(b, dense(QL_F16, QL_F16, 48, 64, 10), 9);
    ql_mat truth = truth_of(b, &o);
    assert_close(run_measured(b, &o, path), truth, bound_of(&o.p));
    if (is_cpu(b)) return;
    assert_ok(ql_plan_measure(b->ctx, &o.p, path));
    assert_close(run_measured(b, &o, path), truth, bound_of(&o.p));

    ql_arena *arena;
    ql_choices choices;
    assert_ok(ql_arena_open(NULL, &arena));
    assert_ok(ql_choices_load(path, arena, &choices));
    for (int64_t i = 0; i < choices.count; i++) memset(choices.list[i].algorithm, 0x5a, QL_ALGORITHM_BYTES);
    assert_ok(ql_choices_save(path, arena, &choices));
    assert_close(run_measured(b, &o, path), truth, bound_of(&o.p));
    ql_arena_close(arena);

    assert_ok(ql_file_save(path, "not a choice\n", 13));
    ql_log_open(false, QL_ERROR);
    assert_close(run_measured(b, &o, path), truth, bound_of(&o.p));
    ql_log_open(false, QL_INFO);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_every_type),
        cmocka_unit_test(dense_every_number_of_tokens),
        cmocka_unit_test(dense_operands_out_of_line),
        cmocka_unit_test(dense_kernels_are_chosen),
        cmocka_unit_test(dense_every_pair),
        cmocka_unit_test(dense_tails),
        cmocka_unit_test(dense_rows_in_any_batch),
        cmocka_unit_test(dense_views_keep_the_bits),
        cmocka_unit_test(measuring_leaves_a_line_per_bucket),
        cmocka_unit_test(plans_read_what_was_measured),
    };
    return run_on_backends(tests);
}

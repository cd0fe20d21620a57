/* Executing plans: what is refused, repeated, shared between threads, and rounded to FP8. */
#include "tests/product.h"

#include <math.h>
#include <pthread.h>

#include "host/num.h"
#include "tests/ref.h"

/* One product of each kind, small. */
static int kinds(ql_product *p) {
    ql_product list[] = {
        w4a16(70, 160, 32),
        w4a16(70, 160, 160),
        w4a16(70, 160, 32),
        w8a8(70, 160, QL_SCALE_ROW, QL_SCALE_ROW, QL_F16),
        f8(70, 160, QL_F8_E4M3, QL_F8_E5M2, QL_SCALE_ROW, QL_SCALE_TENSOR, QL_BF16),
        f8(70, 160, QL_F8_E4M3, QL_F8_E4M3, QL_SCALE_BLOCK, QL_SCALE_BLOCK, QL_F32),
        {.n = 70, .k = 160, .m_max = 40, .x = QL_BF16, .w = QL_BF16, .y = QL_BF16},
    };
    list[1].ordered = 0, list[1].zero_points = 1, list[1].bits = 3, list[1].x = QL_F16;
    list[2].x = QL_I8, list[2].x_scale = QL_SCALE_ROW, list[2].zero_points = list[2].ordered = 1;
    memcpy(p, list, sizeof list);
    return (int)(sizeof list / sizeof *list);
}
enum { MOST_KINDS = 8 };

/* ---- refusals -------------------------------------------------------------------------------------------------------------- */

static void arguments_are_checked_by_name(void **state) {
    backend *b = *state;
    ql_product p = f8(33, 160, QL_F8_E4M3, QL_F8_E4M3, QL_SCALE_ROW, QL_SCALE_ROW, QL_F8_E4M3);
    p.bias = 1, p.m_max = 4;
    operands o = make_operands(b, p, 3);
    ql_plan *plan = make_plan(b->ctx, &p);
    ql_arguments good = arguments_of(b, &o, pack_operands(b, plan, &o)), a;
    char *workspace = poisoned_bytes(b, ql_plan_workspace(plan) + 256);
    void *stream = ql_ctx_stream(b->ctx);
#define REFUSED(change, words)                                                                                         \
    do {                                                                                                               \
        a = good, change;                                                                                              \
        assert_refused(ql_execute(plan, &a, workspace, stream), QL_INVALID, words);                                    \
    } while (0)
    REFUSED(a.x.dtype = QL_I8, "execute: x: is I8, expected F8_E4M3");
    REFUSED(a.x.cols = 159, "execute: x: has 159 columns, expected 160");
    REFUSED(a.x.rows = 5, "execute: x: has 5 rows, the plan was made for at most 4");
    REFUSED(a.x.data = (char *)a.x.data + 8, "expected multiples of 16");
    REFUSED((a.x.ld = 168, a.x.rows = a.y.rows = 2, a.x_scale.cols = 2),
            "with 168 bytes per row, expected multiples of 16");
    REFUSED(a.x_scale.data = NULL, "execute: x_scale: absent");
    REFUSED(a.x_scale.cols = 2, "execute: x_scale: has 2 columns, expected 3");
    REFUSED(a.x_zero = a.x_scale, "execute: x_zero: present, the product has none");
    REFUSED(a.bias.data = NULL, "execute: bias: absent");
    REFUSED(a.y.rows = 2, "execute: y: has 2 rows, expected 3");
    REFUSED(a.y.dtype = QL_F8_E5M2, "execute: y: is F8_E5M2, expected F8_E4M3");
    REFUSED(a.y_scale.data = NULL, "execute: y_scale: absent");
    REFUSED(a.y_amax.data = (char *)a.y_amax.data + 1, "execute: y_amax: address");
    REFUSED(a.weight = NULL, "execute: weight: at");
    REFUSED(a.weight = (const char *)a.weight + 16, "execute: weight: at");
#undef REFUSED
    if (ql_plan_workspace(plan)) {
        assert_refused(ql_execute(plan, &good, NULL, stream), QL_INVALID, "execute: workspace");
        assert_refused(ql_execute(plan, &good, workspace + 128, stream), QL_INVALID, "execute: workspace");
    }
    assert_refused(ql_execute(NULL, &good, workspace, stream), QL_INVALID, "null pointer");
    assert_refused(ql_execute(plan, NULL, workspace, stream), QL_INVALID, "null pointer");
    if (!is_cpu(b)) assert_refused(ql_execute(plan, &good, workspace, NULL), QL_INVALID, "the default stream");
    assert_ok(ql_execute(plan, &good, workspace, stream));
    assert_ok(ql_sync(b->ctx));
    ql_plan_free(plan);
}

static void nothing_happens_without_tokens(void **state) {
    backend *b = *state;
    ql_product p = w4a16(33, 64, 32);
    operands o = make_operands(b, p, 2);
    ql_plan *plan = make_plan(b->ctx, &p);
    ql_arguments a = arguments_of(b, &o, pack_operands(b, plan, &o));
    a.x.rows = a.y.rows = 0;
    execute_product(b, b->ctx, plan, &a);
    a.y.rows = 2;
    ql_mat y = result_of(b, a.y);
    for (int64_t c = 0; c < 33; c++) assert_true(isnan(ref_at(y, 0, c)) && isnan(ref_at(y, 1, c)));
    ql_plan_free(plan);
}

/* ---- the same bits ---------------------------------------------------------------------------------------------------------------- */

static void twenty_repeats(void **state) {
    backend *b = *state;
    ql_product list[MOST_KINDS];
    for (int i = 0, count = kinds(list); i < count; i++) {
        operands o = make_operands(b, list[i], 7);
        ql_plan *plan = make_plan(b->ctx, &list[i]);
        ql_arguments a = arguments_of(b, &o, pack_operands(b, plan, &o));
        execute_product(b, b->ctx, plan, &a);
        ql_mat first = result_of(b, a.y);
        for (int repeat = 1; repeat < 20; repeat++) {
            a.y = upload(b, poisoned(b, a.y.dtype, a.y.rows, a.y.cols));
            execute_product(b, b->ctx, plan, &a);
            assert_same_bits(result_of(b, a.y), first);
        }
        ql_plan_free(plan);
    }
}

/* Row by row the same bits as all rows together. */
static void rows_do_not_depend_on_their_batch(void **state) {
    backend *b = *state;
    ql_product list[MOST_KINDS];
    for (int i = 0, count = kinds(list); i < count; i++) {
        list[i].repeat = QL_ANY_BATCH;
        operands o = make_operands(b, list[i], 37);
        ql_plan *plan = make_plan(b->ctx, &list[i]);
        ql_arguments all = arguments_of(b, &o, pack_operands(b, plan, &o)), one = all;
        ql_mat alone = upload(b, poisoned(b, all.y.dtype, 37, all.y.cols));
        execute_product(b, b->ctx, plan, &all);
        assert_string_equal(ql_plan_describe(plan, 1), ql_plan_describe(plan, 37));
        for (int64_t r = 0; r < 37; r += 5) {
            one.x = ql_rows(all.x, r, 1), one.y = ql_rows(alone, r, 1);
            if (list[i].x_scale == QL_SCALE_ROW) one.x_scale = ql_cols(all.x_scale, r, 1);
            if (list[i].x_scale == QL_SCALE_BLOCK) one.x_scale = ql_rows(all.x_scale, r, 1);
            execute_product(b, b->ctx, plan, &one);
            assert_same_bits_on_device(b, one.y, ql_rows(all.y, r, 1));
        }
        ql_plan_free(plan);
    }
}

/* ---- one plan, several threads ------------------------------------------------------------------------------------------------- */

typedef struct worker {
    const ql_plan *plan;
    ql_arguments arguments;
    void *workspace, *stream;
    ql_status status;
} worker;

static void *work(void *argument) {
    worker *w = argument;
    for (int i = 0; i < 5 && w->status == QL_OK; i++)
        w->status = ql_execute(w->plan, &w->arguments, w->workspace, w->stream);
    return NULL;
}

static void threads_share_a_plan(void **state) {
    enum { WORKERS = 3 };
    backend *b = *state;
    if (!is_cpu(b)) return; /* the emulated GPU runs one launch at a time; streams on a real one: perf */
    ql_product p = w4a16(130, 160, 32);
    operands o = make_operands(b, p, 9);
    ql_plan *plan = make_plan(b->other, &p);
    void *packed = pack_operands(b, plan, &o);
    worker workers[WORKERS];
    pthread_t threads[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        workers[i] =
            (worker){plan, arguments_of(b, &o, packed), poisoned_bytes(b, ql_plan_workspace(plan)), NULL, QL_OK};
    for (int i = 0; i < WORKERS; i++) assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(workers[i].status, QL_OK);
        assert_same_bits_on_device(b, workers[i].arguments.y, workers[0].arguments.y);
    }
    assert_close(result_of(b, workers[0].arguments.y), truth_of(b, &o), bound_of(&p));
    ql_plan_free(plan);
}

/* ---- numbers ---------------------------------------------------------------------------------------------------------------------- */

/* Zero tokens give the bias exactly, whatever the weights. */
static void zero_rows_give_the_bias(void **state) {
    backend *b = *state;
    ql_product p = w4a16(70, 160, 32);
    p.bias = p.zero_points = 1;
    operands o = make_operands(b, p, 3);
    for (int64_t i = 0; i < p.k; i++) ref_put(o.x, 1, i, 0);
    ql_mat y = run_product(b, &o);
    for (int64_t c = 0; c < p.n; c++) assert_true(ref_at(y, 1, c) == ref_at(o.bias, 0, c));
}

/* Each result one of the two neighbours of value / scale, and the nearer one unless they are as near as the sums are exact, which is to
 * `apart`. */
static void assert_rounded_to_f8(ql_mat y, ql_mat truth, double scale, double apart) {
    for (int64_t r = 0; r < y.rows; r++)
        for (int64_t c = 0; c < y.cols; c++) {
            double value = ref_at(truth, r, c) / scale, slack = apart / scale + 1e-4 * fabs(value);
            double least = ql_e4m3_to_f32(ql_f32_to_e4m3((float)(value - slack)));
            double most = ql_e4m3_to_f32(ql_f32_to_e4m3((float)(value + slack))), found = ref_at(y, r, c);
            if (!(found >= least && found <= most))
                fail_msg("(%lld, %lld): %g, expected %g .. %g", (long long)r, (long long)c, found, least, most);
        }
}

static void f8_results_and_their_largest_magnitude(void **state) {
    backend *b = *state;
    ql_product p = f8(140, 304, QL_F8_E4M3, QL_F8_E4M3, QL_SCALE_ROW, QL_SCALE_ROW, QL_F8_E4M3);
    p.bias = 1, p.accumulate = QL_PROMOTE;
    operands o = make_operands(b, p, 17);
    ql_plan *plan = make_plan(b->ctx, &p);
    ql_arguments a = arguments_of(b, &o, pack_operands(b, plan, &o));
    ql_mat truth = truth_of(b, &o), amax = poisoned_dense(b, QL_F32, 1, 1);
    double largest = 0, squares = 0;
    const int64_t count = truth.rows * truth.cols;
    for (int64_t i = 0; i < count; i++) {
        double value = ((double *)truth.data)[i];
        largest = fmax(largest, fabs(value)), squares += value * value;
    }
    const double apart = 5 * bound_of(&p) * sqrt(squares / (double)count); /* five times the typical error of a sum */
    const float y_scale = (float)(largest / 800); /* so that the largest results saturate at 448 */
    assert_ok(ql_upload(b->ctx, a.y_scale.data, &y_scale, sizeof y_scale));
    execute_product(b, b->ctx, plan, &a);
    download(b, a.y_amax, amax);
    assert_true(fabs(ref_at(amax, 0, 0) - largest) <= apart);
    assert_rounded_to_f8(result_of(b, a.y), truth, y_scale, apart);
    a.y_amax = ql_no_mat(); /* optional */
    execute_product(b, b->ctx, plan, &a);
    ql_plan_free(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arguments_are_checked_by_name),
        cmocka_unit_test(nothing_happens_without_tokens),
        cmocka_unit_test(twenty_repeats),
        cmocka_unit_test(rows_do_not_depend_on_their_batch),
        cmocka_unit_test(threads_share_a_plan),
        cmocka_unit_test(zero_rows_give_the_bias),
        cmocka_unit_test(f8_results_and_their_largest_magnitude),
    };
    return run_on_backends(tests);
}

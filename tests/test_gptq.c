/* GPTQ on fixed grids against the original recursion through the inverse, in double. */
#include "tests/grids.h"

#include <math.h>
#include <stdbool.h>

#include "host/num.h"
#include "host/rng.h"
#include "tests/ref.h"
#include "tests/ref_gptq.h"

typedef struct shape {
    int64_t n, k, group;
    int bits, symmetric;
    bool scattered, ordered;
} shape;

/* Result of the operation on one backend; both thread counts must give the same bits. */
static ql_mat run_gptq(backend *b, ql_mat w, ql_mat h, double shift, ql_mat order, ql_grid grid) {
    ql_mat codes = poisoned(b, QL_U8, w.rows, w.cols), dcodes = upload(b, codes), again = upload(b, codes);
    ql_mat dr = upload(b, poisoned(b, QL_F32, w.cols, w.cols)), dw = upload(b, w);
    ql_mat dorder = ql_is_present(order) ? upload(b, order) : order;
    ql_grid d = upload_grid(b, grid);
    assert_ok(ql_factor(b->ctx, upload(b, h), dorder, shift, dr));
    assert_ok(ql_gptq(b->ctx, dw, dr, dorder, &d, dcodes));
    assert_ok(ql_gptq(b->other, dw, dr, dorder, &d, again));
    assert_same_bits_on_device(b, dcodes, again);
    download(b, dcodes, codes);
    return codes;
}

static ql_grid searched_grid(backend *b, ql_mat w, shape s) {
    ql_mat g_idx = s.scattered ? scattered_groups(b, s.k, s.group) : ql_no_mat();
    ql_grid grid = poisoned_grid(b, s.bits, s.n, s.k, s.group, g_idx), d = upload_grid(b, grid);
    ql_grid_rule rule = {.symmetric = s.symmetric};
    assert_ok(ql_grid_search(b->ctx, upload(b, w), ql_no_mat(), &rule, &d));
    download_grid(b, d, grid);
    return grid;
}

static double loss(backend *b, ql_mat w, ql_mat h, ql_grid grid, ql_mat codes) {
    ql_mat e = poisoned(b, QL_F64, w.rows, w.cols), q = poisoned(b, QL_F32, w.rows, w.cols);
    ref_dequantize(codes, &grid, q);
    for (int64_t r = 0; r < w.rows; r++)
        for (int64_t c = 0; c < w.cols; c++) ref_put(e, r, c, ref_at(w, r, c) - ref_at(q, r, c));
    return ref_quadratic(e, h);
}

/* A code's value carries F32 errors of the order of 1e-5 steps: values within 1e-4 of a tie may go either way, and a row goes its
 * own way from there.  2e-4 of all codes lie that near, so of k codes in a row k * 2e-4 at most are expected; twice that is the
 * bound, and one row is always allowed. */
static void check_gptq(backend *b, shape s) {
    ql_mat w = outliers(b, s.n, s.k, 11), h = random_hessian(b, QL_F32, s.k, 2 * s.k + 8, 12);
    ql_mat order = s.ordered ? random_order(b, s.k, 13) : ql_no_mat();
    double shift = 0.01 * ref_at(h, 0, 0);
    ql_grid grid = searched_grid(b, w, s);
    ql_mat codes = run_gptq(b, w, h, shift, order, grid);
    ref_gptq_job truth = {.bits = s.bits, .group = s.group, .w = w, .h = h, .position = order, .grid = grid};
    truth.codes = poisoned(b, QL_U8, s.n, s.k), truth.margin = poisoned(b, QL_F64, s.n, s.k);
    ref_gptq(&truth, shift);
    assert_codes_agree(&truth, codes, 1e-4, fmax(4e-4 * (double)s.k, 1.0 / (double)s.n));
    double mine = loss(b, w, h, grid, codes), its = loss(b, w, h, grid, truth.codes);
    assert_true(fabs(mine - its) <= 0.02 * its); /* rows that parted are as good */
}

static void gptq_every_width_and_group(void **state) {
    for (int i = 0; i < GRID_WIDTHS; i++) {
        check_gptq(*state, (shape){33, 160, 32, grid_widths[i], 1, false, false});
        check_gptq(*state, (shape){33, 160, 64, grid_widths[i], 0, false, true}); /* last group short */
        check_gptq(*state, (shape){17, 131, 131, grid_widths[i], 0, false, true});
        check_gptq(*state, (shape){9, 70, 32, grid_widths[i], 1, true, true});
    }
}

static void gptq_around_panels_and_leaves(void **state) {
    const int64_t columns[] = {1, 2, 15, 16, 17, 33, 97}, rows[] = {1, 2, 127, 128, 129, 300};
    for (int i = 0; i < 7; i++) check_gptq(*state, (shape){5, columns[i], 16, 4, 1, false, true});
    for (int i = 0; i < 6; i++) check_gptq(*state, (shape){rows[i], 40, 32, 3, 0, false, false});
}

/* An upper triangle whose errors feed back about as strongly as a real factor's: its rows off the diagonal have norm 1/2. */
static ql_mat random_factor(backend *b, int64_t k) {
    ql_mat r = poisoned(b, QL_F32, k, k);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) {
            double x = ql_random_normal(21, (uint64_t)(i * k + j));
            ((float *)r.data)[i * r.ld + j] = (float)(j < i ? 0 : j > i ? x / (2 * sqrt((double)k)) : 1 + fabs(x));
        }
    return r;
}

/* The loop over columns that solvers block: once in double, whose rounding ties are noted, once in FP32 with fused steps. */
static void plain_loop(ref_gptq_job *truth, ql_mat r, ql_mat singles) {
    int64_t k = r.cols;
    double *sum = malloc((size_t)k * sizeof *sum);
    float *single = malloc((size_t)k * sizeof *single);
    assert_true(sum && single);
    for (int64_t row = 0; row < truth->w.rows; row++) {
        for (int64_t p = 0; p < k; p++) sum[p] = single[p] = 0;
        for (int64_t p = 0; p < k; p++) {
            int64_t c = ql_is_present(truth->position) ? (int64_t)ref_at(truth->position, 0, p) : p;
            int64_t g = ql_is_present(truth->grid.g_idx) ? (int64_t)ref_at(truth->grid.g_idx, 0, c) : c / truth->group;
            double w = ref_at(truth->w, row, c), scale = ref_at(truth->grid.scale, row, g);
            int zero = (int)ref_at(truth->grid.zero, row, g), maxq = (1 << truth->bits) - 1;
            double quotient = (w + sum[p] / ref_at(r, p, p)) / scale;
            double code = fmin(fmax(rint(quotient) + zero, 0), maxq), error = w - scale * (code - zero);
            int same = ql_encode((float)w + single[p] / (float)ref_at(r, p, p), (float)scale, zero, maxq);
            float missed = (float)w - ql_decode(same, (float)scale, zero);
            ref_put(truth->codes, row, c, code);
            ref_put(truth->margin, row, c, fabs(fabs(quotient - floor(quotient)) - 0.5));
            ref_put(singles, row, c, same);
            const float *factor = (const float *)r.data + p * r.ld;
            for (int64_t q = p + 1; q < k; q++) {
                sum[q] += error * factor[q];
                single[q] = fmaf(missed, factor[q], single[q]);
            }
        }
    }
    free(sum), free(single);
}

/* What GPTQ makes small: |errors R|^2, the errors in the order of treatment. */
static double loss_of(const ref_gptq_job *job, ql_mat r, ql_mat codes) {
    const int64_t k = r.cols;
    double loss = 0, *sum = malloc((size_t)k * sizeof *sum);
    assert_non_null(sum);
    for (int64_t row = 0; row < codes.rows; row++) {
        for (int64_t q = 0; q < k; q++) sum[q] = 0;
        for (int64_t p = 0; p < k; p++) {
            int64_t c = ql_is_present(job->position) ? (int64_t)ref_at(job->position, 0, p) : p;
            int64_t g = ql_is_present(job->grid.g_idx) ? (int64_t)ref_at(job->grid.g_idx, 0, c) : c / job->group;
            double error = ref_at(job->w, row, c) -
                           ref_at(job->grid.scale, row, g) * (ref_at(codes, row, c) - ref_at(job->grid.zero, row, g));
            const float *factor = (const float *)r.data + p * r.ld;
            for (int64_t q = p; q < k; q++) sum[q] += error * factor[q];
        }
        for (int64_t q = 0; q < k; q++) loss += sum[q] * sum[q];
    }
    free(sum);
    return loss;
}

/* On the GPU all sums within 1024 columns are the loop's own, so the codes are; BLAS adds in its own order, and so do products
 * between superblocks of the GPU: there, and on the CPU, rows may part at ties. */
static void check_against_loop(backend *b, shape s, bool exact) {
    ql_mat w = normal(b, s.n, s.k, 22), r = random_factor(b, s.k), order = ql_no_mat(), singles;
    if (s.ordered) order = random_order(b, s.k, 23);
    ql_grid grid = searched_grid(b, w, s), d = upload_grid(b, grid);
    ref_gptq_job truth = {.bits = s.bits, .group = s.group, .w = w, .position = order, .grid = grid};
    truth.codes = poisoned(b, QL_U8, s.n, s.k), truth.margin = poisoned(b, QL_F64, s.n, s.k);
    singles = poisoned(b, QL_U8, s.n, s.k);
    plain_loop(&truth, r, singles);
    ql_mat codes = poisoned(b, QL_U8, s.n, s.k), dcodes = upload(b, codes), dr = upload(b, r), dw = upload(b, w);
    assert_ok(ql_gptq(b->ctx, dw, dr, s.ordered ? upload(b, order) : order, &d, dcodes));
    download(b, dcodes, codes);
    if (exact && !is_cpu(b)) assert_same_bits(codes, singles);
    /* Products in parts, and another order of sums: some codes differ, what they are worth does not. */
    double loss = loss_of(&truth, r, codes), plain = loss_of(&truth, r, singles);
    if (fabs(loss - plain) > 1e-3 * plain) fail_msg("loss %.9g, of the plain loop in FP32 %.9g", loss, plain);
    assert_codes_agree(&truth, codes, 1e-4, fmax(4e-4 * (double)s.k, 1.0 / (double)s.n));
}

static void gptq_is_the_plain_loop(void **state) {
    check_against_loop(*state, (shape){256, 512, 32, 4, 1, false, false}, true);
    check_against_loop(*state, (shape){40, 512, 64, 3, 0, false, true}, true);
    check_against_loop(*state, (shape){33, 385, 128, 2, 0, true, true}, true);
    check_against_loop(*state, (shape){31, 257, 257, 8, 1, false, true}, true);
    check_against_loop(*state, (shape){7, 1024, 128, 4, 1, false, false}, true);
}

static void gptq_beyond_a_superblock(void **state) {
    check_against_loop(*state, (shape){9, 1025, 128, 4, 1, false, false}, false);
    check_against_loop(*state, (shape){35, 2100, 64, 4, 0, false, true}, false);
    check_against_loop(*state, (shape){20, 2081, 128, 3, 1, true, true}, false);
}

/* H a multiple of the identity couples nothing: nearest rounding. */
static void gptq_without_correlation_is_nearest_rounding(void **state) {
    backend *b = *state;
    shape s = {7, 100, 32, 4, 0, false, false};
    ql_mat w = normal(b, s.n, s.k, 1), h = poisoned(b, QL_F32, s.k, s.k), codes = poisoned(b, QL_U8, s.n, s.k);
    for (int64_t i = 0; i < s.k; i++)
        for (int64_t j = 0; j < s.k; j++) ref_put(h, i, j, 0);
    ql_grid grid = searched_grid(b, w, s), d = upload_grid(b, grid);
    ql_mat dcodes = upload(b, codes);
    assert_ok(ql_quantize(b->ctx, upload(b, w), &d, dcodes));
    download(b, dcodes, codes);
    assert_same_bits(run_gptq(b, w, h, 3, ql_no_mat(), grid), codes);
}

/* Dead columns (zero rows of H) are rounded to nearest and leave the others alone, whatever their share. */
static void gptq_dead_columns(void **state) {
    backend *b = *state;
    shape s = {9, 80, 32, 4, 1, false, true};
    const int alive_of[] = {80, 79, 40, 0};
    for (int i = 0; i < 4; i++) {
        ql_mat w = normal(b, s.n, s.k, 2), h = random_hessian(b, QL_F32, s.k, 200, 4), order = random_order(b, s.k, 5);
        for (int64_t r = 0; r < s.k; r++)
            for (int64_t c = 0; c < s.k; c++)
                if (r >= alive_of[i] || c >= alive_of[i]) ref_put(h, r, c, 0);
        ql_grid grid = searched_grid(b, w, s), d = upload_grid(b, grid);
        ql_mat codes = run_gptq(b, w, h, 1, order, grid), nearest = poisoned(b, QL_U8, s.n, s.k),
               dn = upload(b, nearest);
        assert_ok(ql_quantize(b->ctx, upload(b, w), &d, dn));
        download(b, dn, nearest);
        for (int64_t r = 0; r < s.n; r++)
            for (int64_t c = alive_of[i]; c < s.k; c++) assert_true(ref_at(codes, r, c) == ref_at(nearest, r, c));
    }
}

static void gptq_beats_nearest_rounding(void **state) {
    backend *b = *state;
    shape s = {40, 200, 64, 3, 0, false, true};
    ql_mat w = normal(b, s.n, s.k, 3), h = random_hessian(b, QL_F32, s.k, 400, 6), codes = poisoned(b, QL_U8, s.n, s.k);
    ql_grid grid = searched_grid(b, w, s), d = upload_grid(b, grid);
    ql_mat dcodes = upload(b, codes);
    assert_ok(ql_quantize(b->ctx, upload(b, w), &d, dcodes));
    download(b, dcodes, codes);
    ql_mat solved = run_gptq(b, w, h, 1, random_order(b, s.k, 7), grid);
    assert_true(loss(b, w, h, grid, solved) < 0.8 * loss(b, w, h, grid, codes));
}

static void gptq_of_nothing(void **state) {
    backend *b = *state;
    ql_mat r = upload(b, poisoned(b, QL_F32, 8, 8)), codes = upload(b, poisoned(b, QL_U8, 0, 8));
    ql_grid d = upload_grid(b, poisoned_grid(b, 4, 0, 8, 8, ql_no_mat()));
    assert_ok(ql_gptq(b->ctx, upload(b, normal(b, 0, 8, 1)), r, ql_no_mat(), &d, codes));
}

static void gptq_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat w = upload(b, normal(b, 3, 8, 1)), r = upload(b, poisoned(b, QL_F32, 8, 8)),
           codes = upload(b, poisoned(b, QL_U8, 3, 8));
    ql_mat order = upload(b, random_order(b, 8, 1)), bad = r;
    ql_grid d = upload_grid(b, poisoned_grid(b, 4, 3, 8, 4, scattered_groups(b, 8, 4)));
    bad.rows = 7;
    assert_refused(ql_gptq(b->ctx, w, bad, order, &d, codes), QL_INVALID, "r: has 7 rows, expected 8");
    bad = order, bad.cols = 7;
    assert_refused(ql_gptq(b->ctx, w, r, bad, &d, codes), QL_INVALID, "order: has 7 columns, expected 8");
    if (!is_cpu(b)) return; /* only the CPU can look at values before it runs */
    ((int32_t *)order.data)[1] = ((int32_t *)order.data)[0];
    assert_refused(ql_gptq(b->ctx, w, r, order, &d, codes), QL_INVALID, "order[1]");
    ((int32_t *)d.g_idx.data)[4] = 2;
    assert_refused(ql_gptq(b->ctx, w, r, ql_no_mat(), &d, codes), QL_INVALID, "g_idx[4] is 2, there are 2 groups");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gptq_every_width_and_group),
        cmocka_unit_test(gptq_around_panels_and_leaves),
        cmocka_unit_test(gptq_is_the_plain_loop),
        cmocka_unit_test(gptq_beyond_a_superblock),
        cmocka_unit_test(gptq_without_correlation_is_nearest_rounding),
        cmocka_unit_test(gptq_dead_columns),
        cmocka_unit_test(gptq_beats_nearest_rounding),
        cmocka_unit_test(gptq_of_nothing),
        cmocka_unit_test(gptq_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

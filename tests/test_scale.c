/* Scales and zero points: against a search by brute force in double, and the edges: zeros, one sign, all equal, too large. */
#include "tests/grids.h"

#include <math.h>
#include <stdbool.h>

#include "host/num.h"
#include "host/rng.h"
#include "tests/ref.h"

static ql_grid run_search(backend *b, ql_mat w, ql_mat importance, ql_grid_rule rule, ql_grid grid) {
    ql_grid d = upload_grid(b, grid), again = upload_grid(b, grid);
    ql_mat dw = upload(b, w), di = ql_is_present(importance) ? upload(b, importance) : importance;
    assert_ok(ql_grid_search(b->ctx, dw, di, &rule, &d));
    assert_ok(ql_grid_search(b->other, dw, di, &rule, &again));
    assert_same_bits_on_device(b, d.scale, again.scale);
    assert_same_bits_on_device(b, d.zero, again.zero);
    download_grid(b, d, grid);
    return grid;
}

/* ---- the rule, in double ------------------------------------------------------------------------------------------------- */

typedef struct truth {
    ql_mat w, importance;
    ql_grid grid;
    ql_grid_rule rule;
    int64_t row, group;
} truth;

static double cost(const truth *t, double scale, double zero) {
    double sum = 0;
    for (int64_t c = 0; c < t->w.cols; c++) {
        if (grid_group(&t->grid, c) != t->group) continue;
        double w = ref_at(t->w, t->row, c), weight = ql_is_present(t->importance) ? ref_at(t->importance, 0, c) : 1;
        double code = fmin(fmax(rint(w / scale) + zero, 0), (1 << t->grid.bits) - 1);
        sum += weight * pow(w - scale * (code - zero), 2);
    }
    return sum;
}

static double stored(double scale) { return fmax(ql_round_f16((float)scale), 0x1p-24); }

/* The least cost that any candidate of the rule reaches. */
static double least_cost(const truth *t) {
    double lo = 0, hi = 0, least = INFINITY, maxq = (1 << t->grid.bits) - 1;
    for (int64_t c = 0; c < t->w.cols; c++)
        if (grid_group(&t->grid, c) == t->group) {
            lo = fmin(lo, ref_at(t->w, t->row, c));
            hi = fmax(hi, ref_at(t->w, t->row, c));
        }
    for (int i = 0; i <= (t->rule.search ? 50 : 0); i++) {
        double p = 1 - i / 100.0;
        if (t->rule.symmetric) {
            least = fmin(least, cost(t, stored(2 * p * fmax(-lo, hi) / maxq), (maxq + 1) / 2));
            continue;
        }
        double scale = stored(p * (hi - lo) / maxq), zero = rint(-p * lo / scale);
        least = fmin(least, cost(t, scale, fmin(fmax(zero, 1), maxq)));
        if (zero < 1) least = fmin(least, cost(t, stored(p * hi / (maxq - 1)), 1));
    }
    return least;
}

/* The chosen grid is storable and costs what the best candidate costs.  Bound: candidates are compared by sums in F32 of up to a
 * few hundred terms, in which costs closer than 1e-5 may change places. */
static void check_choice(truth t) {
    for (t.row = 0; t.row < t.w.rows; t.row++)
        for (t.group = 0; t.group < t.grid.scale.cols; t.group++) {
            double scale = ref_at(t.grid.scale, t.row, t.group), zero = ref_at(t.grid.zero, t.row, t.group);
            if (!(scale > 0) || scale != ql_round_f16((float)scale)) fail_msg("scale %g is not storable", scale);
            if (t.rule.symmetric) assert_true(zero == 1 << (t.grid.bits - 1));
            else assert_true(zero >= 1 && zero < 1 << t.grid.bits);
            double reached = cost(&t, scale, zero), least = least_cost(&t);
            if (!(fabs(reached - least) <= 1e-5 * least))
                fail_msg("row %d, group %d: cost %.9g, least %.9g", (int)t.row, (int)t.group, reached, least);
        }
}

static ql_mat positive(backend *b, int64_t count, uint64_t seed) {
    ql_mat mat = poisoned(b, QL_F32, 1, count);
    for (int64_t i = 0; i < count; i++) ref_put(mat, 0, i, pow(ql_random_normal(seed, (uint64_t)i), 2));
    return mat;
}

typedef struct shape {
    int64_t n, k, group;
    bool scattered, weighted;
} shape;

static void check_rules(backend *b, shape s, int bits) {
    ql_mat g_idx = s.scattered ? scattered_groups(b, s.k, s.group) : ql_no_mat();
    ql_mat importance = s.weighted ? positive(b, s.k, 3) : ql_no_mat(), w = outliers(b, s.n, s.k, 7);
    for (int symmetric = 0; symmetric < 2; symmetric++)
        for (int search = 0; search < 2; search++) {
            ql_grid grid = poisoned_grid(b, bits, s.n, s.k, s.group, g_idx);
            ql_grid_rule rule = {.symmetric = symmetric, .search = search};
            check_choice((truth){w, importance, run_search(b, w, importance, rule, grid), rule, 0, 0});
        }
}

static void scale_every_width_and_group(void **state) {
    for (int i = 0; i < GRID_WIDTHS; i++) {
        check_rules(*state, (shape){9, 256, 64, false, false}, grid_widths[i]);
        check_rules(*state, (shape){5, 300, 128, false, true}, grid_widths[i]); /* last group short */
        check_rules(*state, (shape){5, 131, 32, true, true}, grid_widths[i]);
        check_rules(*state, (shape){3, 77, 77, false, true}, grid_widths[i]);
        check_rules(*state, (shape){1, 1, 32, false, false}, grid_widths[i]);
    }
}

/* ---- edges --------------------------------------------------------------------------------------------------------------- */

static ql_mat row_of(backend *b, int64_t k, const float *values) {
    ql_mat w = poisoned(b, QL_F32, 1, k);
    memcpy(w.data, values, (size_t)k * sizeof *values);
    return w;
}

static ql_grid grid_of_row(backend *b, int bits, int64_t k, const float *values, ql_grid_rule rule) {
    return run_search(b, row_of(b, k, values), ql_no_mat(), rule, poisoned_grid(b, bits, 1, k, k, ql_no_mat()));
}

static void scale_known_ranges(void **state) {
    backend *b = *state;
    ql_grid grid = grid_of_row(b, 4, 3, (float[]){-7.5f, 1, 2}, (ql_grid_rule){.symmetric = 1});
    assert_true(ref_at(grid.scale, 0, 0) == 1 && ref_at(grid.zero, 0, 0) == 8);
    grid = grid_of_row(b, 4, 3, (float[]){-5, 1, 10}, (ql_grid_rule){0});
    assert_true(ref_at(grid.scale, 0, 0) == 1 && ref_at(grid.zero, 0, 0) == 5);
    grid = grid_of_row(b, 4, 3, (float[]){-15, -3, -2}, (ql_grid_rule){0}); /* 0 is part of the range */
    assert_true(ref_at(grid.scale, 0, 0) == 1 && ref_at(grid.zero, 0, 0) == 15);
}

/* No weight below zero: the free zero point would be 0.  Spread evenly up to 14, scale hi / 14 is exact.  Many small integers and one
 * far 15 rather keep the scale hi / 15, which is exact for them, and clip the far one. */
static void scale_moves_a_zero_point_of_zero(void **state) {
    backend *b = *state;
    float even[15], far[60];
    for (int i = 0; i < 15; i++) even[i] = (float)i;
    for (int i = 0; i < 60; i++) far[i] = i == 14 ? 15.0f : (float)(i % 6);
    ql_grid grid = grid_of_row(b, 4, 15, even, (ql_grid_rule){0});
    assert_true(ref_at(grid.scale, 0, 0) == 1 && ref_at(grid.zero, 0, 0) == 1);
    grid = grid_of_row(b, 4, 60, far, (ql_grid_rule){0});
    assert_true(ref_at(grid.scale, 0, 0) == 1 && ref_at(grid.zero, 0, 0) == 1);
}

/* All equal: asymmetric grids meet the value to FP16's rounding of the scale, 2^-11; symmetric ones clip the positive one by the
 * half step that their convention costs. */
static void scale_all_equal(void **state) {
    backend *b = *state;
    for (int i = 0; i < GRID_WIDTHS; i++)
        for (int sign = -1; sign <= 1; sign += 2) {
            float w[5];
            for (int c = 0; c < 5; c++) w[c] = (float)sign * 0.3f;
            truth t = {.w = row_of(b, 5, w)};
            t.grid = grid_of_row(b, grid_widths[i], 5, w, (ql_grid_rule){0});
            double scale = ref_at(t.grid.scale, 0, 0), error = sqrt(cost(&t, scale, ref_at(t.grid.zero, 0, 0)) / 5);
            assert_true(error <= 0.3 * 0x1p-11);
            t.grid = grid_of_row(b, grid_widths[i], 5, w, (ql_grid_rule){.symmetric = 1});
            scale = ref_at(t.grid.scale, 0, 0), error = sqrt(cost(&t, scale, ref_at(t.grid.zero, 0, 0)) / 5);
            assert_true(error <= 0.5 * scale + 0.3 * 0x1p-11);
        }
}

static void trap15_scale_of_nothing_is_positive(void **state) {
    const ql_grid_rule rules[] = {{0},
                                  {.search = 1},
                                  {.symmetric = 1},
                                  {.symmetric = 1, .search = 1},
                                  {.literature = 1},
                                  {.symmetric = 1, .literature = 1},
                                  {.half_quadratic = 1}};
    const float zeros[] = {0, -0.0f, 0, 0}, tiny[] = {1e-40f, -1e-40f, 1e-30f, 0};
    for (int i = 0; i < 7; i++) {
        ql_grid grid = grid_of_row(*state, 4, 4, zeros, rules[i]);
        assert_true(ref_at(grid.scale, 0, 0) > 0);
        grid = grid_of_row(*state, 4, 4, tiny, rules[i]);
        assert_true(ref_at(grid.scale, 0, 0) > 0);
    }
}

/* 2 a / 15 = 65504 is the largest scale of FP16; from 65520 on a scale rounds to infinity. */
static void scale_beyond_fp16_is_refused(void **state) {
    backend *b = *state;
    ql_grid_rule rule = {.symmetric = 1};
    ql_grid grid = grid_of_row(b, 4, 1, (float[]){-65504 * 7.5f}, rule);
    assert_true(ref_at(grid.scale, 0, 0) == 65504);
    for (int i = 0; i < 2; i++) {
        ql_mat w = normal(b, 7, 100, 1);
        ref_put(w, 5, 70, i ? 3.3e38 : 65520 * 7.5);
        ref_put(w, 6, 3, 3e38);
        ql_grid d = upload_grid(b, poisoned_grid(b, 4, 7, 100, 32, ql_no_mat()));
        for (rule.search = 0; rule.search < 2; rule.search++)
            assert_refused(ql_grid_search(b->other, upload(b, w), ql_no_mat(), &rule, &d), QL_NUMERIC,
                           "row 5, group 2");
    }
}

/* Columns without importance do not count, however far out they lie. */
static void scale_follows_importance(void **state) {
    backend *b = *state;
    float w[64], weight[64];
    for (int i = 0; i < 64; i++) w[i] = (float)(i % 15 - 7) * 0.5f, weight[i] = 1;
    w[9] = 6.9f, weight[9] = 0; /* share 0.5 of its range leaves about the range of the others */
    ql_grid_rule rule = {.symmetric = 1, .search = 1};
    ql_mat mat = row_of(b, 64, w), importance = row_of(b, 64, weight);
    ql_grid ignoring = run_search(b, mat, importance, rule, poisoned_grid(b, 4, 1, 64, 64, ql_no_mat()));
    ql_grid equal = run_search(b, mat, ql_no_mat(), rule, poisoned_grid(b, 4, 1, 64, 64, ql_no_mat()));
    assert_true(ref_at(ignoring.scale, 0, 0) < 0.52 && ref_at(equal.scale, 0, 0) > 0.52);
}

/* ---- HQQ ------------------------------------------------------------------------------------------------------------------- */

/* One iteration as published, on weights in steps (scale 1): the mean error, and the next zero point. */
static double published_iteration(const truth *t, double scale, double beta, double *zero) {
    double error = 0, sum = 0, members = 0;
    for (int64_t c = 0; c < t->w.cols; c++) {
        if (grid_group(&t->grid, c) != t->group) continue;
        double w_f = ref_at(t->w, t->row, c) / scale;
        double w_q = fmin(fmax(rint(w_f + *zero), 0), (1 << t->grid.bits) - 1), w_r = w_q - *zero, x = w_f - w_r;
        double w_e = copysign(fmax(fabs(x) - pow(fabs(x), 0.7 - 1) / beta, 0), x);
        sum += w_q - (w_f - w_e);
        error += fabs(x);
        members++;
    }
    *zero = sum / members;
    return error / members;
}

/* The least cost from a scale and a whole zero point on: every iterate, rounded. */
static double least_of_iterates(const truth *t, double scale, double start) {
    double zero = start, beta = 10, best_error = INFINITY, maxq = (1 << t->grid.bits) - 1;
    double least = cost(t, scale, start);
    for (int i = 0; i < 20; i++, beta *= 1.01) {
        double error = published_iteration(t, scale, beta, &zero);
        least = fmin(least, cost(t, scale, fmin(fmax(rint(zero), 1), maxq)));
        if (!(error < best_error)) break;
        best_error = error;
    }
    return least;
}

/* Of least squares for the codes that this scale gives. */
static double fitted_scale(const truth *t, double scale, double zero) {
    double product = 0, square = 0;
    for (int64_t c = 0; c < t->w.cols; c++) {
        if (grid_group(&t->grid, c) != t->group) continue;
        double w = ref_at(t->w, t->row, c),
               steps = fmin(fmax(rint(w / scale) + zero, 0), (1 << t->grid.bits) - 1) - zero;
        product += w * steps;
        square += steps * steps;
    }
    return product / square;
}

/* How many groups the fits made better than every iterate. */
static int check_half_quadratic(truth t) {
    double maxq = (1 << t.grid.bits) - 1;
    int gained = 0;
    for (t.row = 0; t.row < t.w.rows; t.row++)
        for (t.group = 0; t.group < t.grid.scale.cols; t.group++) {
            double lo = 0, hi = 0, least = INFINITY;
            for (int64_t c = 0; c < t.w.cols; c++)
                if (grid_group(&t.grid, c) == t.group) {
                    lo = fmin(lo, ref_at(t.w, t.row, c));
                    hi = fmax(hi, ref_at(t.w, t.row, c));
                }
            for (int i = 0; i <= 10; i++) {
                double p = 1 - i / 20.0, scale = stored(p * (hi - lo) / maxq), zero = rint(-p * lo / scale);
                least = fmin(least, least_of_iterates(&t, scale, fmin(fmax(zero, 1), maxq)));
                if (zero < 1) least = fmin(least, least_of_iterates(&t, stored(p * hi / (maxq - 1)), 1));
            }
            double scale = ref_at(t.grid.scale, t.row, t.group), zero = ref_at(t.grid.zero, t.row, t.group);
            assert_true(zero >= 1 && zero <= maxq && scale == ql_round_f16((float)scale));
            /* As in check_choice; the iterates' own sums in F32 may stop one of them earlier. */
            double reached = cost(&t, scale, zero);
            if (!(reached <= (1 + 1e-4) * least))
                fail_msg("row %d, group %d: %.9g, least %.9g", (int)t.row, (int)t.group, reached, least);
            gained += reached < 0.999 * least;
            /* One more fit gains nothing to speak of: eight rounds go almost all the way. */
            double fitted = fitted_scale(&t, scale, zero);
            if (!(fitted > 0 && cost(&t, stored(fitted), zero) >= 0.99 * reached))
                fail_msg("row %d, group %d: the scale %g fits worse than %g", (int)t.row, (int)t.group, scale, fitted);
        }
    return gained;
}

static void scale_half_quadratic_as_published(void **state) {
    const shape shapes[] = {
        {9, 256, 64, false, false}, {5, 300, 128, false, false}, {5, 131, 32, true, false}, {3, 77, 77, false, false}};
    backend *b = *state;
    ql_grid_rule rule = {.half_quadratic = 1};
    int gained = 0;
    for (int i = 0; i < 16; i++) {
        shape s = shapes[i / 4];
        ql_mat g_idx = s.scattered ? scattered_groups(b, s.k, s.group) : ql_no_mat();
        ql_mat w = outliers(b, s.n, s.k, (uint64_t)i);
        ql_grid grid = poisoned_grid(b, grid_widths[i % GRID_WIDTHS], s.n, s.k, s.group, g_idx);
        gained += check_half_quadratic((truth){w, ql_no_mat(), run_search(b, w, ql_no_mat(), rule, grid), rule, 0, 0});
    }
    assert_true(gained > 40);
}

/* ---- the paper's grids ------------------------------------------------------------------------------------------------------ */

static void check_literature(backend *b, int bits, int symmetric, const float *w, double scale, int zero) {
    ql_grid grid = grid_of_row(b, bits, 3, w, (ql_grid_rule){.symmetric = symmetric, .literature = 1});
    assert_true(ref_at(grid.scale, 0, 0) == (float)scale);
    assert_int_equal(ref_at(grid.zero, 0, 0), zero);
}

static void scale_literature(void **state) {
    backend *b = *state;
    const float mixed[] = {-0.3f, 0.1f, 0.7f}, positive_row[] = {0.1f, 0.7f, 0.3f}, none[] = {0, 0, 0};
    check_literature(b, 4, 0, mixed, ((double)0.7f + (double)0.3f) / 15, 5); /* -lo / scale = 4.5: above it by FP32 */
    check_literature(b, 3, 0, positive_row, (double)0.7f / 7, 0);            /* a zero point of 0 is free */
    check_literature(b, 4, 1, mixed, 2 * (double)0.7f / 15, 8);
    check_literature(b, 4, 1, positive_row, (double)0.7f / 15, 8); /* the quirk: half the step, upper half clipped */
    check_literature(b, 8, 1, none, 2.0 / 255, 128);
    check_literature(b, 2, 0, none, 2.0 / 3, 2);
}

static void scale_nothing_to_do(void **state) {
    backend *b = *state;
    ql_grid_rule rule = {.symmetric = 1, .search = 1};
    ql_grid d = upload_grid(b, poisoned_grid(b, 4, 0, 64, 32, ql_no_mat()));
    assert_ok(ql_grid_search(b->ctx, upload(b, normal(b, 0, 64, 1)), ql_no_mat(), &rule, &d));
    d = upload_grid(b, poisoned_grid(b, 4, 3, 0, 32, ql_no_mat()));
    assert_ok(ql_grid_search(b->ctx, upload(b, normal(b, 3, 0, 1)), ql_no_mat(), &rule, &d));
}

static void scale_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat w = upload(b, normal(b, 2, 64, 1)), short_importance = upload(b, normal(b, 1, 63, 1));
    ql_grid d = upload_grid(b, poisoned_grid(b, 4, 2, 64, 32, scattered_groups(b, 64, 32)));
    ql_grid_rule rule = {.search = 1, .literature = 1};
    assert_refused(ql_grid_search(b->ctx, w, ql_no_mat(), &rule, &d), QL_INVALID, "literature grids are not searched");
    rule.literature = 0;
    assert_refused(ql_grid_search(b->ctx, w, short_importance, &rule, &d), QL_INVALID, "has 63 columns, expected 64");
    assert_refused(ql_grid_search(b->ctx, w, ql_no_mat(), NULL, &d), QL_INVALID, "rule: a null pointer");
    rule = (ql_grid_rule){.symmetric = 1, .half_quadratic = 1};
    assert_refused(ql_grid_search(b->ctx, w, ql_no_mat(), &rule, &d), QL_INVALID,
                   "half-quadratic grids are asymmetric");
    rule = (ql_grid_rule){.search = 1};
    if (!is_cpu(b)) return; /* only the CPU can look at values before it runs */
    ((int32_t *)d.g_idx.data)[63] = 2;
    assert_refused(ql_grid_search(b->ctx, w, ql_no_mat(), &rule, &d), QL_INVALID, "g_idx[63] is 2, there are 2 groups");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scale_every_width_and_group),
        cmocka_unit_test(scale_half_quadratic_as_published),
        cmocka_unit_test(scale_known_ranges),
        cmocka_unit_test(scale_moves_a_zero_point_of_zero),
        cmocka_unit_test(scale_all_equal),
        cmocka_unit_test(trap15_scale_of_nothing_is_positive),
        cmocka_unit_test(scale_beyond_fp16_is_refused),
        cmocka_unit_test(scale_follows_importance),
        cmocka_unit_test(scale_literature),
        cmocka_unit_test(scale_nothing_to_do),
        cmocka_unit_test(scale_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

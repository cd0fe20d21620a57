/* Scaling by rows and columns, magnitudes of columns, and the clip search, against loops in double. */
#include "tests/grids.h"

#include <math.h>

#include "host/num.h"
#include "tests/ref.h"

/* ---- scale ---------------------------------------------------------------------------------------------------------------- */

/* Two products, rows first: every backend gives their bits. */
static void check_scale(backend *b, ql_mat x, ql_mat rows, ql_mat cols) {
    ql_mat truth = poisoned(b, QL_F32, x.rows, x.cols), y = poisoned(b, QL_F32, x.rows, x.cols), dx = upload(b, x);
    ql_mat drows = ql_is_present(rows) ? upload(b, rows) : rows, dcols = ql_is_present(cols) ? upload(b, cols) : cols;
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            float value = (float)ref_at(x, r, c);
            if (ql_is_present(rows)) value = (float)((double)value * ref_at(rows, 0, r));
            if (ql_is_present(cols)) value = (float)((double)value * ref_at(cols, 0, c));
            ref_put(truth, r, c, value);
        }
    ql_mat dy = upload(b, y);
    assert_ok(ql_scale(b->ctx, dx, drows, dcols, dy));
    download(b, dy, y);
    assert_same_bits(y, truth);
    assert_ok(ql_scale(b->other, dx, drows, dcols, dx)); /* in place */
    assert_same_bits_on_device(b, dx, dy);
}

static void scale_rows_and_columns(void **state) {
    backend *b = *state;
    ql_mat x = outliers(b, 35, 301, 1), rows = normal(b, 1, 35, 2), cols = normal(b, 1, 301, 3), none = ql_no_mat();
    check_scale(b, x, rows, cols);
    check_scale(b, x, rows, none);
    check_scale(b, x, none, cols);
    check_scale(b, x, none, none);
    check_scale(b, normal(b, 1, 1, 1), normal(b, 1, 1, 2), none);
}

/* ---- magnitude ------------------------------------------------------------------------------------------------------------ */

static double largest_of_group(ql_mat w, int64_t row, int64_t group, int64_t column) {
    double largest = 0;
    for (int64_t c = column / group * group; c < w.cols && c / group == column / group; c++)
        largest = fmax(largest, fabs(ref_at(w, row, c)));
    return largest;
}

/* The largest is exact; the mean differs by FP32 divisions and one last rounding. */
static void check_magnitude(backend *b, ql_mat w, int64_t group) {
    ql_mat max = poisoned(b, QL_F32, 1, w.cols), mean = poisoned(b, QL_F32, 1, w.cols), dw = upload(b, w);
    ql_mat dmax = upload(b, max), dmean = upload(b, mean), again = upload(b, mean);
    assert_ok(ql_magnitude(b->ctx, dw, group, dmax, dmean));
    download(b, dmax, max);
    download(b, dmean, mean);
    assert_ok(ql_magnitude(b->other, dw, group, dmax, again));
    assert_same_bits_on_device(b, dmean, again);
    for (int64_t c = 0; c < w.cols; c++) {
        double most = 0, sum = 0;
        for (int64_t r = 0; r < w.rows; r++) {
            most = fmax(most, fabs(ref_at(w, r, c)));
            sum += fabs(ref_at(w, r, c)) / (largest_of_group(w, r, group, c) + 1e-6);
        }
        assert_true(ref_at(max, 0, c) == most);
        assert_true(fabs(ref_at(mean, 0, c) - sum / (double)w.rows) <= 3 * 0x1p-23 * sum / (double)w.rows);
    }
}

static void magnitude_of_groups(void **state) {
    backend *b = *state;
    check_magnitude(b, outliers(b, 70, 256, 1), 128);
    check_magnitude(b, normal(b, 9, 300, 2), 64); /* last group short */
    check_magnitude(b, normal(b, 5, 300, 3), 300);
    check_magnitude(b, normal(b, 1, 1, 4), 32);
    ql_mat zeros = normal(b, 4, 64, 5);
    for (int64_t r = 0; r < 4; r++)
        for (int64_t c = 0; c < 64; c++) ref_put(zeros, r, c, 0);
    check_magnitude(b, zeros, 32);
}

/* ---- clip search ------------------------------------------------------------------------------------------------------------- */

typedef struct problem {
    ql_mat w, h;
    int64_t group;
    int bits, symmetric;
} problem;

/* e^T H e of one row and group on a grid, in double. */
static double loss_of(const problem *p, int64_t row, int64_t g, double scale, double zero) {
    int64_t first = g * p->group, end = first + p->group < p->w.cols ? first + p->group : p->w.cols;
    double e[128], sum = 0;
    for (int64_t c = first; c < end; c++) {
        double w = ref_at(p->w, row, c), code = fmin(fmax(rint(w / scale) + zero, 0), (1 << p->bits) - 1);
        e[c - first] = w - scale * (code - zero);
    }
    for (int64_t i = first; i < end; i++)
        for (int64_t j = first; j < end; j++)
            sum += e[i - first] * ref_at(p->h, i < j ? i : j, i < j ? j : i) * e[j - first];
    return sum;
}

static double stored(double scale) { return fmax(ql_round_f16((float)scale), 0x1p-24); }

/* The least loss over the published shares, straight from the rule's words. */
static double least_loss(const problem *p, int64_t row, int64_t g) {
    int64_t first = g * p->group, end = first + p->group < p->w.cols ? first + p->group : p->w.cols;
    double lo = 0, hi = 0, least = INFINITY, maxq = (1 << p->bits) - 1;
    for (int64_t c = first; c < end; c++) lo = fmin(lo, ref_at(p->w, row, c)), hi = fmax(hi, ref_at(p->w, row, c));
    for (int i = 0; i < 10; i++) {
        double limit = (1 - i / 20.0) * fmax(-lo, hi), low = fmax(lo, -limit), high = fmin(hi, limit);
        if (p->symmetric) {
            least = fmin(least, loss_of(p, row, g, stored(2 * fmax(-low, high) / maxq), (maxq + 1) / 2));
            continue;
        }
        double scale = stored((high - low) / maxq), zero = rint(-low / scale);
        least = fmin(least, loss_of(p, row, g, scale, fmin(fmax(zero, 1), maxq)));
        if (zero < 1) least = fmin(least, loss_of(p, row, g, stored(high / (maxq - 1)), 1));
    }
    return least;
}

static ql_grid run_clip(backend *b, const problem *p) {
    ql_grid grid = poisoned_grid(b, p->bits, p->w.rows, p->w.cols, p->group, ql_no_mat()), d = upload_grid(b, grid),
            again = upload_grid(b, grid);
    const ql_grid_rule rule = {.symmetric = p->symmetric};
    ql_mat dw = upload(b, p->w), dh = upload(b, p->h);
    assert_ok(ql_clip_search(b->ctx, dw, dh, &rule, &d));
    assert_ok(ql_clip_search(b->other, dw, dh, &rule, &again));
    assert_same_bits_on_device(b, d.scale, again.scale);
    assert_same_bits_on_device(b, d.zero, again.zero);
    download_grid(b, d, grid);
    return grid;
}

/* Bound: candidates are compared by sums in F32 of group^2 terms of both signs, in which losses closer than 1e-4 may change places. */
static void check_clip(backend *b, problem p) {
    ql_grid grid = run_clip(b, &p);
    for (int64_t r = 0; r < p.w.rows; r++)
        for (int64_t g = 0; g < grid.scale.cols; g++) {
            double reached = loss_of(&p, r, g, ref_at(grid.scale, r, g), ref_at(grid.zero, r, g));
            double least = least_loss(&p, r, g);
            if (!(fabs(reached - least) <= 1e-4 * least))
                fail_msg("row %d, group %d: loss %.9g, least %.9g", (int)r, (int)g, reached, least);
        }
}

static void clip_every_width_and_group(void **state) {
    backend *b = *state;
    for (int symmetric = 0; symmetric < 2; symmetric++) {
        for (int i = 0; i < GRID_WIDTHS; i++)
            check_clip(b, (problem){outliers(b, 5, 256, 7), random_hessian(b, QL_F32, 256, 300, 8), 128, grid_widths[i],
                                    symmetric});
        check_clip(b,
                   (problem){normal(b, 3, 77, 9), random_hessian(b, QL_F32, 77, 90, 10), 32, 4, symmetric}); /* short */
        check_clip(b, (problem){normal(b, 2, 1, 9), random_hessian(b, QL_F32, 1, 9, 10), 32, 3, symmetric});
    }
}

/* Clipping pays: with one far weight on an input that hardly ever fires, the chosen scale is below that of the whole range. */
static void clip_gives_up_what_does_not_matter(void **state) {
    backend *b = *state;
    problem p = {normal(b, 1, 64, 1), random_hessian(b, QL_F32, 64, 200, 2), 64, 4, 1};
    for (int64_t c = 0; c < 64; c++) ref_put(p.w, 0, c, (double)(c % 15 - 7) * 0.5);
    ref_put(p.w, 0, 9, 6.9);
    for (int64_t c = 0; c < 64; c++) ref_put(p.h, c < 9 ? c : 9, c < 9 ? 9 : c, c == 9 ? 1e-6 : 0);
    ql_grid grid = run_clip(b, &p);
    assert_true(ref_at(grid.scale, 0, 0) < 0.6 && 2 * 6.9 / 15 > 0.9);
}

static void clip_beyond_fp16_is_refused(void **state) {
    backend *b = *state;
    ql_mat w = normal(b, 7, 100, 1);
    const ql_grid_rule rule = {.symmetric = 1};
    ref_put(w, 5, 70, 3.3e38);
    ql_grid d = upload_grid(b, poisoned_grid(b, 4, 7, 100, 32, ql_no_mat()));
    ql_mat h = upload(b, random_hessian(b, QL_F32, 100, 20, 2));
    assert_refused(ql_clip_search(b->other, upload(b, w), h, &rule, &d), QL_NUMERIC, "row 5, group 2");
}

static void smooth_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat w = upload(b, normal(b, 2, 256, 1)), vector = upload(b, normal(b, 1, 256, 1));
    ql_mat h = upload(b, random_hessian(b, QL_F32, 256, 8, 2)), short_vector = upload(b, normal(b, 1, 255, 1));
    ql_grid_rule rule = {.search = 1};
    ql_grid whole = upload_grid(b, poisoned_grid(b, 4, 2, 256, 256, ql_no_mat()));
    assert_refused(ql_scale(b->ctx, w, ql_no_mat(), short_vector, w), QL_INVALID, "has 255 columns, expected 256");
    assert_refused(ql_magnitude(b->ctx, w, 0, vector, vector), QL_INVALID, "group");
    assert_refused(ql_magnitude(b->ctx, w, 32, vector, short_vector), QL_INVALID, "mean");
    assert_refused(ql_clip_search(b->ctx, w, h, &rule, &whole), QL_INVALID, "clipping is the search");
    rule.search = 0;
    assert_refused(ql_clip_search(b->ctx, w, h, &rule, &whole), QL_INVALID,
                   "groups of 256 inputs, expected at most 128");
    whole.g_idx = upload(b, scattered_groups(b, 256, 256));
    assert_refused(ql_clip_search(b->ctx, w, h, &rule, &whole), QL_INVALID, "g_idx must be absent");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scale_rows_and_columns),      cmocka_unit_test(magnitude_of_groups),
        cmocka_unit_test(clip_every_width_and_group),  cmocka_unit_test(clip_gives_up_what_does_not_matter),
        cmocka_unit_test(clip_beyond_fp16_is_refused), cmocka_unit_test(smooth_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

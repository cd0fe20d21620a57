/* GPTQ as published, against a program that inverts H explicitly and updates everything at once: widths, groups, orders, both kinds
 * of grid, dead columns. */
#include "tests/grids.h"

#include <math.h>

#include "host/rng.h"
#include "tests/ref.h"
#include "tests/ref_gptq.h"

typedef struct shape {
    int64_t n, k, group;
    int bits, symmetric;
    ql_act_order order;
    int dead; /* per cent of the columns */
} shape;

static ql_mat hessian_with_dead_columns(backend *b, shape s) {
    ql_mat h = random_hessian(b, QL_F64, s.k, s.dead > 50 ? 1 : 2 * s.k, 21);
    for (int64_t i = 0; i < s.k; i++)
        for (int64_t j = 0; j < s.k; j++) {
            int dead_i = (int)(i * 37 % 100) < s.dead, dead_j = (int)(j * 37 % 100) < s.dead;
            ref_put(h, i, j,
                    i > j              ? NAN
                    : dead_i || dead_j ? 0
                                       : ref_at(h, i, j)); /* below the diagonal: not to be read */
        }
    return h;
}

static ref_gptq_job make_job(backend *b, shape s) {
    ref_gptq_job job = {.bits = s.bits, .symmetric = s.symmetric, .group = s.group, .order = s.order};
    job.w = outliers(b, s.n, s.k, 22), job.h = hessian_with_dead_columns(b, s), job.scale = 2.0 / 128;
    job.position = poisoned_dense(b, QL_I32, 1, s.k);
    job.grid = poisoned_grid(b, s.bits, s.n, s.k, s.group, poisoned_dense(b, QL_I32, 1, s.k));
    job.grid.scale = poisoned(b, QL_F64, s.n, ql_groups(s.k, s.group));
    job.codes = poisoned(b, QL_U8, s.n, s.k), job.margin = poisoned(b, QL_F64, s.n, s.k);
    ref_literature(&job);
    return job;
}

static int row_agrees(const ref_gptq_job *job, ql_mat codes, int64_t row) {
    int64_t c = 0;
    while (c < codes.cols && ref_at(codes, row, c) == ref_at(job->codes, row, c)) c++;
    return c == codes.cols;
}

/* tr(E H E^T) of the weights that the codes stand for. */
static double loss(backend *b, const ref_gptq_job *job, const ql_grid *grid, ql_mat codes) {
    ql_mat e = poisoned(b, QL_F64, job->w.rows, job->w.cols), q = poisoned(b, QL_F32, job->w.rows, job->w.cols);
    ref_dequantize(codes, grid, q);
    for (int64_t r = 0; r < e.rows; r++)
        for (int64_t c = 0; c < e.cols; c++) ref_put(e, r, c, ref_at(job->w, r, c) - ref_at(q, r, c));
    return ref_quadratic(e, job->h);
}

/* Symmetric grids put the extreme of a group on a tie.  It stays there only if no feedback reaches it before it is rounded, as when
 * it comes first in its group: a share of 1 / group of all groups, and only a negative extreme can flip.  One row is always
 * allowed.  Where rows agree, grids agree to the rounding of a scale to F32. */
static void check_literature(backend *b, shape s) {
    ref_gptq_job job = make_job(b, s);
    ql_mat codes = poisoned(b, QL_U8, s.n, s.k), dcodes = upload(b, codes), again = upload(b, codes);
    ql_mat dw = upload(b, job.w), dh = upload(b, job.h);
    ql_grid grid = poisoned_grid(b, s.bits, s.n, s.k, s.group, poisoned_dense(b, QL_I32, 1, s.k));
    ql_grid d = upload_grid(b, grid), other = upload_grid(b, grid);
    assert_ok(ql_gptq_literature(b->ctx, dw, dh, job.scale, s.symmetric, s.order, &d, dcodes));
    assert_ok(ql_gptq_literature(b->other, dw, dh, job.scale, s.symmetric, s.order, &other, again));
    assert_same_bits_on_device(b, dcodes, again);
    assert_same_bits_on_device(b, d.scale, other.scale);
    download(b, dcodes, codes);
    download_grid(b, d, grid);

    double groups = (double)grid.scale.cols, share = s.symmetric ? groups / (double)s.group : 0;
    assert_codes_agree(&job, codes, 1e-6, fmax(share, 1.0 / (double)s.n));
    assert_same_bits(grid.g_idx, job.grid.g_idx);
    for (int64_t r = 0; r < s.n; r++)
        for (int64_t g = 0; g < grid.scale.cols && row_agrees(&job, codes, r); g++) {
            double scale = ref_at(job.grid.scale, r, g);
            assert_true(fabs(ref_at(grid.scale, r, g) - scale) <= 0x1p-23 * scale);
            assert_true(ref_at(grid.zero, r, g) == ref_at(job.grid.zero, r, g));
        }
    double mine = loss(b, &job, &grid, codes), its = loss(b, &job, &job.grid, job.codes);
    assert_true(fabs(mine - its) <= 0.02 * its); /* rows that parted are as good */
}

static void literature_every_grid_and_order(void **state) {
    const int64_t groups[] = {32, 64, 128, 150};
    for (int symmetric = 0; symmetric < 2; symmetric++)
        for (int order = 0; order < 3; order++)
            for (int i = 0; i < GRID_WIDTHS; i += 2)
                for (int g = 0; g < 4; g++)
                    check_literature(*state,
                                     (shape){12, 150, groups[g], grid_widths[i], symmetric, (ql_act_order)order, 0});
}

/* Three blocks, the last one short, with groups that do not divide them, and more rows than a panel. */
static void literature_blocks_and_panels(void **state) {
    for (int order = 0; order < 3; order++) {
        check_literature(*state, (shape){5, 300, 96, 4, 0, (ql_act_order)order, 0});
        check_literature(*state, (shape){150, 40, 32, 3, 1, (ql_act_order)order, 0});
    }
    check_literature(*state, (shape){3, 1, 32, 4, 0, QL_ORDER_DYNAMIC, 0});
    check_literature(*state, (shape){1, 129, 128, 2, 0, QL_ORDER_NONE, 0});
}

static void literature_dead_columns(void **state) {
    const int per_cent[] = {1, 50, 100};
    for (int i = 0; i < 3; i++)
        for (int order = 0; order < 3; order++) {
            check_literature(*state, (shape){9, 150, 64, 4, 0, (ql_act_order)order, per_cent[i]});
            check_literature(*state, (shape){9, 150, 150, 4, 0, (ql_act_order)order, per_cent[i]});
        }
}

/* The weights of dead columns are gone: their codes stand for 0, even where the grid of the row knew them. */
static void literature_dead_weights_become_zero(void **state) {
    backend *b = *state;
    shape s = {4, 60, 60, 4, 1, QL_ORDER_NONE, 20};
    ref_gptq_job job = make_job(b, s);
    ql_mat codes = poisoned(b, QL_U8, s.n, s.k), dcodes = upload(b, codes);
    ql_grid d = upload_grid(b, poisoned_grid(b, 4, s.n, s.k, s.group, ql_no_mat()));
    assert_ok(ql_gptq_literature(b->ctx, upload(b, job.w), upload(b, job.h), 1, 1, QL_ORDER_NONE, &d, dcodes));
    download(b, dcodes, codes);
    for (int64_t r = 0; r < s.n; r++)
        for (int64_t c = 0; c < s.k; c++)
            if (c * 37 % 100 < s.dead) assert_true(ref_at(codes, r, c) == 8);
}

static void literature_refuses_indefinite_matrices(void **state) {
    backend *b = *state;
    for (int i = 0; i < 2; i++) {
        ql_mat h = random_hessian(b, QL_F64, 40, 80, 1), codes = upload(b, poisoned(b, QL_U8, 2, 40));
        ref_put(h, 17, 17, i ? NAN : -1e4);
        ql_grid d = upload_grid(b, poisoned_grid(b, 4, 2, 40, 32, ql_no_mat()));
        assert_refused(
            ql_gptq_literature(b->ctx, upload(b, normal(b, 2, 40, 1)), upload(b, h), 1, 1, QL_ORDER_NONE, &d, codes),
            QL_NUMERIC, "not positive definite");
    }
}

static void literature_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat w = upload(b, normal(b, 2, 40, 1)), h = upload(b, random_hessian(b, QL_F64, 40, 80, 1)), bad = h;
    ql_mat codes = upload(b, poisoned(b, QL_U8, 2, 40));
    ql_grid d = upload_grid(b, poisoned_grid(b, 4, 2, 40, 32, ql_no_mat()));
    assert_refused(ql_gptq_literature(b->ctx, w, h, 0, 1, QL_ORDER_NONE, &d, codes), QL_INVALID, "scale is 0");
    assert_refused(ql_gptq_literature(b->ctx, w, h, NAN, 1, QL_ORDER_NONE, &d, codes), QL_INVALID, "scale is");
    assert_refused(ql_gptq_literature(b->ctx, w, h, 1, 1, (ql_act_order)3, &d, codes), QL_INVALID, "3 is not an order");
    assert_refused(ql_gptq_literature(b->ctx, w, h, 1, 1, QL_ORDER_DYNAMIC, &d, codes), QL_INVALID, "g_idx");
    bad.dtype = QL_F32;
    assert_refused(ql_gptq_literature(b->ctx, w, bad, 1, 1, QL_ORDER_NONE, &d, codes), QL_INVALID,
                   "is F32, expected F64");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(literature_every_grid_and_order),
        cmocka_unit_test(literature_blocks_and_panels),
        cmocka_unit_test(literature_dead_columns),
        cmocka_unit_test(literature_dead_weights_become_zero),
        cmocka_unit_test(literature_refuses_indefinite_matrices),
        cmocka_unit_test(literature_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

/* Coordinate descent and the operations of drift, against naive double precision. */
#include "tests/backend.h"

#include <math.h>

#include "host/num.h"
#include "tests/ref.h"

/* H = X^T X of random rows, as an upper triangle in F32, and on the device. */
static ql_mat make_hessian(backend *b, int64_t k, int64_t rows, uint64_t seed) {
    ql_mat x = outliers(b, rows, k, seed), h = poisoned(b, QL_F32, k, k);
    ql_mat sum = poisoned_dense(b, QL_F64, k, k);
    for (int64_t i = 0; i < k * k; i++) ((double *)sum.data)[i] = 0;
    ref_hessian(x, sum);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) ref_put(h, i, j, j >= i ? ref_at(sum, i, j) : NAN);
    return h;
}

static double mean_diagonal(ql_mat h) {
    double sum = 0;
    for (int64_t i = 0; i < h.rows; i++) sum += ref_at(h, i, i);
    return sum / (double)h.rows;
}

typedef struct subject {
    ql_mat w, h, dh, dw;
    ql_grid grid, dgrid; /* host and device */
    ql_mat codes, dcodes;
    double shift;
} subject;

static subject make_subject(backend *b, int64_t n, int64_t k, int bits, int64_t group, uint64_t seed) {
    subject s = {.w = normal(b, n, k, seed), .h = make_hessian(b, k, 3 * k, seed + 1)};
    const ql_grid_rule rule = {.symmetric = 1};
    s.shift = 0.01 * mean_diagonal(s.h);
    s.grid = (ql_grid){.bits = bits,
                       .group = group,
                       .scale = poisoned(b, QL_F32, n, ql_groups(k, group)),
                       .zero = poisoned(b, QL_U8, n, ql_groups(k, group))};
    s.codes = poisoned(b, QL_U8, n, k);
    s.dw = upload(b, s.w);
    s.dh = upload(b, s.h);
    s.dgrid = s.grid;
    s.dgrid.scale = upload(b, s.grid.scale);
    s.dgrid.zero = upload(b, s.grid.zero);
    s.dcodes = upload(b, s.codes);
    assert_ok(ql_grid_search(b->ctx, s.dw, ql_no_mat(), &rule, &s.dgrid));
    assert_ok(ql_quantize(b->ctx, s.dw, &s.dgrid, s.dcodes));
    return s;
}

static void fetch(backend *b, subject *s) {
    download(b, s->dgrid.scale, s->grid.scale);
    download(b, s->dgrid.zero, s->grid.zero);
    download(b, s->dcodes, s->codes);
}

/* tr(E (H + shift I) E^T) of the rows in double. */
static double loss_of(backend *b, const subject *s) {
    int64_t n = s->w.rows, k = s->w.cols;
    ql_mat e = poisoned_dense(b, QL_F64, n, k), q = poisoned_dense(b, QL_F32, n, k);
    double plain = 0;
    ref_dequantize(s->codes, &s->grid, q);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j++) {
            ref_put(e, i, j, ref_at(s->w, i, j) - ref_at(q, i, j));
            plain += ref_at(e, i, j) * ref_at(e, i, j);
        }
    return ref_quadratic(e, s->h) + s->shift * plain;
}

/* At the end no single code can move to a neighbour and lower the loss; 1e-4 of a step's own curvature allows for FP32 gradients. */
static void refine_ends_where_no_code_wants_to_move(void **state) {
    backend *b = *state;
    subject s = make_subject(b, 5, 96, 3, 32, 7);
    assert_ok(ql_refine(b->ctx, s.dw, s.dh, s.shift, 100, &s.dgrid, s.dcodes));
    fetch(b, &s);
    int64_t k = s.w.cols;
    for (int64_t r = 0; r < s.w.rows; r++)
        for (int64_t j = 0; j < k; j++) {
            double gradient = 0;
            for (int64_t i = 0; i < k; i++) {
                float scale = (float)ref_at(s.grid.scale, r, i / 32);
                double e = ql_decode((int)ref_at(s.codes, r, i), scale, (int)ref_at(s.grid.zero, r, i / 32)) -
                           ref_at(s.w, r, i);
                gradient += e * (ref_at(s.h, i < j ? i : j, i < j ? j : i) + (i == j ? s.shift : 0));
            }
            double step = ref_at(s.grid.scale, r, j / 32), curvature = ref_at(s.h, j, j) + s.shift;
            int code = (int)ref_at(s.codes, r, j);
            if (code < 7) assert_true(2 * gradient * step + curvature * step * step > -1e-4 * curvature * step * step);
            if (code > 0) assert_true(-2 * gradient * step + curvature * step * step > -1e-4 * curvature * step * step);
        }
}

static void refine_lowers_the_loss_of_every_shape(void **state) {
    backend *b = *state;
    const struct {
        int64_t n, k, group;
        int bits;
    } cases[] = {{33, 256, 128, 4}, {7, 130, 64, 2}, {64, 96, 96, 3}, {1, 40, 32, 8}, {3, 300, 128, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        subject s = make_subject(b, cases[i].n, cases[i].k, cases[i].bits, cases[i].group, 20 + i);
        fetch(b, &s);
        double before = loss_of(b, &s), last = before;
        for (int sweeps = 1; sweeps <= 4; sweeps++) {
            assert_ok(ql_refine(b->ctx, s.dw, s.dh, s.shift, 1, &s.dgrid, s.dcodes));
            fetch(b, &s);
            double now = loss_of(b, &s);
            assert_true(now <= last * (1 + 1e-5)); /* FP32 gradients */
            last = now;
        }
        assert_true(last <
                    0.9 * before); /* nearest rounding leaves far more than a tenth on the table with outliers in H */
        for (int64_t r = 0; r < s.w.rows; r++)
            for (int64_t g = 0; g < s.grid.scale.cols; g++) {
                float scale = (float)ref_at(s.grid.scale, r, g);
                assert_true(scale > 0 && scale == ql_round_f16(scale));
            }
    }
}

/* Scales stay where groups are scattered; codes still move. */
static void refine_respects_group_indices(void **state) {
    backend *b = *state;
    subject s = make_subject(b, 4, 64, 4, 32, 40);
    int32_t index[64];
    for (int i = 0; i < 64; i++) index[i] = (i * 5) % 2;
    s.grid.g_idx = integers(b, 64, index);
    s.dgrid.g_idx = upload(b, s.grid.g_idx);
    const ql_grid_rule rule = {.symmetric = 1};
    assert_ok(ql_grid_search(b->ctx, s.dw, ql_no_mat(), &rule, &s.dgrid));
    assert_ok(ql_quantize(b->ctx, s.dw, &s.dgrid, s.dcodes));
    fetch(b, &s);
    double before = loss_of(b, &s), scale = ref_at(s.grid.scale, 2, 1);
    assert_ok(ql_refine(b->ctx, s.dw, s.dh, s.shift, 4, &s.dgrid, s.dcodes));
    fetch(b, &s);
    assert_true(loss_of(b, &s) < before);
    assert_true(ref_at(s.grid.scale, 2, 1) == scale);
}

static void refine_is_the_same_for_any_number_of_threads(void **state) {
    backend *b = *state;
    subject first = make_subject(b, 70, 200, 4, 64, 50), second = make_subject(b, 70, 200, 4, 64, 50);
    assert_ok(ql_refine(b->ctx, first.dw, first.dh, first.shift, 3, &first.dgrid, first.dcodes));
    assert_ok(ql_refine(b->other, second.dw, second.dh, second.shift, 3, &second.dgrid, second.dcodes));
    assert_same_bits_on_device(b, first.dcodes, second.dcodes);
    assert_same_bits_on_device(b, first.dgrid.scale, second.dgrid.scale);
}

static void check_cross(backend *b, ql_mat y, ql_mat x, double bound) {
    ql_mat c = normal(b, y.cols, x.cols, 3), dc = upload(b, c), again = upload(b, c);
    ql_mat truth = poisoned_dense(b, QL_F64, c.rows, c.cols), dy = upload(b, y), dx = upload(b, x);
    for (int64_t i = 0; i < c.rows; i++)
        for (int64_t j = 0; j < c.cols; j++) {
            double sum = ref_at(c, i, j);
            for (int64_t m = 0; m < x.rows; m++) sum += ref_at(y, m, i) * ref_at(x, m, j);
            ref_put(truth, i, j, sum);
        }
    assert_ok(ql_cross(b->ctx, dy, dx, dc));
    assert_ok(ql_cross(b->other, dy, dx, again));
    download(b, dc, c);
    assert_close(c, truth, bound);
    assert_same_bits_on_device(b, dc, again);
}

static void cross_adds_the_product(void **state) {
    backend *b = *state;
    check_cross(b, normal(b, 37, 300, 1), normal(b, 37, 270, 2), 1e-6); /* 37 terms in FP32 */
}

/* Of the same values in BF16 whose products are exact; equal signs, where sums that are cut off lose most, as for H. */
static void cross_of_bf16(void **state) {
    backend *b = *state;
    check_cross(b, narrowed(b, normal(b, 37, 300, 1)), narrowed(b, normal(b, 37, 270, 2)), 1e-6);
    ql_mat x = narrowed(b, normal(b, 4200, 23, 4)), y = narrowed(b, normal(b, 4200, 9, 5));
    for (int64_t r = 0; r < x.rows; r++) {
        for (int64_t c = 0; c < x.cols; c++) ref_put(x, r, c, fabs(ref_at(x, r, c)));
        for (int64_t c = 0; c < y.cols; c++) ref_put(y, r, c, fabs(ref_at(y, r, c)));
    }
    check_cross(b, y, x, 1e-5);
}

/* x (H + shift I) must give b back. */
static void solve_inverts_the_damped_hessian(void **state) {
    backend *b = *state;
    enum { N = 70, K = 130 };
    int32_t order[K];
    for (int i = 0; i < K; i++) order[i] = (i * 37) % K;
    ql_mat h = make_hessian(b, K, 3 * K, 5), rhs = normal(b, N, K, 6), x = poisoned(b, QL_F32, N, K), dx = upload(b, x);
    ql_mat r = poisoned(b, QL_F32, K, K), dr = upload(b, r), permutation = upload(b, integers(b, K, order));
    double shift = 0.05 * mean_diagonal(h);
    assert_ok(ql_factor(b->ctx, upload(b, h), permutation, shift, dr));
    assert_ok(ql_solve(b->ctx, upload(b, rhs), dr, permutation, dx));
    download(b, dx, x);
    ql_mat back = poisoned_dense(b, QL_F32, N, K), truth = poisoned_dense(b, QL_F64, N, K);
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < K; j++) {
            double sum = shift * ref_at(x, i, j);
            for (int64_t p = 0; p < K; p++) sum += ref_at(x, i, p) * ref_at(h, p < j ? p : j, p < j ? j : p);
            ref_put(back, i, j, sum);
            ref_put(truth, i, j, ref_at(rhs, i, j));
        }
    assert_close(back, truth, 1e-3); /* condition about 1e4 (outliers squared over 5 % damping), FP32 */
}

static void refusals_name_the_operand(void **state) {
    backend *b = *state;
    ql_mat a = upload(b, normal(b, 4, 8, 1)), c = upload(b, normal(b, 5, 8, 1));
    ql_mat half = upload(b, narrowed(b, normal(b, 4, 8, 1)));
    assert_refused(ql_cross(b->ctx, a, c, a), QL_INVALID, "cross: x");
    assert_refused(ql_cross(b->ctx, half, a, a), QL_INVALID, "cross: x: is F32, expected BF16");
    assert_refused(ql_cross(b->ctx, half, half, ql_cols(half, 0, 8)), QL_INVALID, "cross: c: is BF16, expected F32");
    assert_refused(ql_solve(b->ctx, a, c, ql_no_mat(), a), QL_INVALID, "solve: r");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cross_of_bf16),
        cmocka_unit_test(refine_ends_where_no_code_wants_to_move),
        cmocka_unit_test(refine_lowers_the_loss_of_every_shape),
        cmocka_unit_test(refine_respects_group_indices),
        cmocka_unit_test(refine_is_the_same_for_any_number_of_threads),
        cmocka_unit_test(cross_adds_the_product),
        cmocka_unit_test(solve_inverts_the_damped_hessian),
        cmocka_unit_test(refusals_name_the_operand),
    };
    return run_on_backends(tests);
}

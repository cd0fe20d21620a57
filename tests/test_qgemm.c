/* Products with quantized weights: every width, short last groups, group indices, panel borders. */
#include "tests/backend.h"
#include "tests/grids.h"

#include <math.h>

#include "host/rng.h"
#include "tests/ref.h"

typedef struct shape {
    int64_t m, n, k, group;
    int bits, act_order;
} shape;

/* Random codes and zero points over the whole range of the width; groups in reverse order where act_order asks for them. */
static ql_grid random_grid(backend *b, shape s) {
    int64_t groups = ql_groups(s.k, s.group);
    ql_grid grid = {s.bits, s.group, poisoned(b, QL_F32, s.n, groups), poisoned(b, QL_U8, s.n, groups), ql_no_mat()};
    for (int64_t r = 0; r < s.n; r++)
        for (int64_t g = 0; g < groups; g++) {
            uint64_t i = (uint64_t)(r * groups + g);
            ref_put(grid.scale, r, g, 0.01 + ql_random_uniform(1, i));
            ref_put(grid.zero, r, g, (double)(ql_random(2, i) % (1u << s.bits)));
        }
    if (s.act_order) {
        grid.g_idx = poisoned_dense(b, QL_I32, 1, s.k);
        for (int64_t i = 0; i < s.k; i++) ref_put(grid.g_idx, 0, i, (double)((s.k - 1 - i) * 7 % s.k / s.group));
    }
    return grid;
}

static ql_qweight upload_weight(backend *b, shape s, ql_mat words, const ql_grid *grid) {
    ql_qweight w = {s.n, s.k, upload(b, words), *grid};
    w.grid.scale = upload(b, grid->scale);
    w.grid.zero = upload(b, grid->zero);
    if (ql_is_present(grid->g_idx)) w.grid.g_idx = upload(b, grid->g_idx);
    return w;
}

static void check_qgemm(backend *b, shape s) {
    ql_grid grid = random_grid(b, s);
    ql_mat codes = poisoned(b, QL_U8, s.n, s.k), words = poisoned(b, QL_I32, s.n, ql_packed_words(s.k, s.bits));
    for (int64_t r = 0; r < s.n; r++)
        for (int64_t c = 0; c < s.k; c++)
            ref_put(codes, r, c, (double)(ql_random(3, (uint64_t)(r * s.k + c)) % (1u << s.bits)));
    ref_pack(codes, s.bits, words);
    ql_mat dense = poisoned(b, QL_F32, s.n, s.k);
    ref_dequantize(codes, &grid, dense);

    ql_mat x = normal(b, s.m, s.k, 4), bias = normal(b, 1, s.n, 5), y = poisoned(b, QL_F32, s.m, s.n);
    ql_mat truth = poisoned(b, QL_F64, s.m, s.n), dx = upload(b, x), dbias = upload(b, bias);
    ql_mat dy = upload(b, y), again = upload(b, y);
    ql_qweight w = upload_weight(b, s, words, &grid);
    assert_ok(ql_qgemm(b->ctx, dx, &w, dbias, dy));
    download(b, dy, y);
    ref_gemm(x, dense, bias, truth);
    assert_close(y, truth, sqrt((double)s.k) * 0x1p-23); /* as for gemm: the weights are exact up to one rounding */
    assert_ok(ql_qgemm(b->other, dx, &w, dbias, again));
    assert_same_bits_on_device(b, dy, again);
    if (!is_cpu(b)) return; /* CUDA may expand in another order of operations */
    assert_ok(ql_gemm(b->ctx, dx, upload(b, dense), dbias, again));
    assert_same_bits_on_device(b, dy, again);
}

static void qgemm_every_width(void **state) {
    for (int i = 0; i < GRID_WIDTHS; i++) {
        check_qgemm(*state, (shape){17, 65, 256, 64, grid_widths[i], 0});
        check_qgemm(*state, (shape){5, 3, 37, 16, grid_widths[i], 0}); /* k % 8, words and the last group are short */
        check_qgemm(*state, (shape){5, 3, 37, 16, grid_widths[i], 1});
        check_qgemm(*state, (shape){1, 9, 118, 118, grid_widths[i], 0}); /* one group */
    }
}

static void qgemm_smallest(void **state) { check_qgemm(*state, (shape){1, 1, 1, 32, 3, 0}); }

static void qgemm_crosses_panels(void **state) {
    check_qgemm(*state, (shape){3, 2500, 40, 32, 4, 1});
    check_qgemm(*state, (shape){515, 600, 16, 16, 3, 0});
}

static void qgemm_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    shape s = {2, 3, 64, 32, 4, 1};
    ql_grid grid = random_grid(b, s);
    ql_mat words = poisoned(b, QL_I32, 3, 8), x = upload(b, normal(b, 2, 64, 1)), y = upload(b, normal(b, 2, 3, 2));
    ql_qweight good = upload_weight(b, s, words, &grid), w = good;
    w.grid.bits = 1;
    assert_refused(ql_qgemm(b->ctx, x, &w, ql_no_mat(), y), QL_INVALID, "1 bits, expected 2 to 8");
    w = good, w.grid.group = 16;
    assert_refused(ql_qgemm(b->ctx, x, &w, ql_no_mat(), y), QL_INVALID, "scale: has 2 columns, expected 4");
    w = good, w.grid.group = 0;
    assert_refused(ql_qgemm(b->ctx, x, &w, ql_no_mat(), y), QL_INVALID, "group: is 0");
    w = good, w.grid.bits = 3;
    assert_refused(ql_qgemm(b->ctx, x, &w, ql_no_mat(), y), QL_INVALID, "codes: has 8 columns, expected 6");
    w = good, w.grid.zero.dtype = QL_I8;
    assert_refused(ql_qgemm(b->ctx, x, &w, ql_no_mat(), y), QL_INVALID, "zero: is I8, expected U8");
    assert_refused(ql_qgemm(b->ctx, x, NULL, ql_no_mat(), y), QL_INVALID, "null pointer");
    if (!is_cpu(b)) return; /* only the CPU can look at values before it runs */
    ref_put(grid.g_idx, 0, 5, 2);
    w = good, w.grid.g_idx = upload(b, grid.g_idx);
    assert_refused(ql_qgemm(b->ctx, x, &w, ql_no_mat(), y), QL_INVALID, "g_idx[5] is 2, there are 2 groups");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qgemm_every_width),
        cmocka_unit_test(qgemm_smallest),
        cmocka_unit_test(qgemm_crosses_panels),
        cmocka_unit_test(qgemm_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}

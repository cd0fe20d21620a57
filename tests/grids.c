#include "tests/grids.h"

#include <math.h>

#include "host/rng.h"
#include "tests/ref.h"

const int grid_widths[GRID_WIDTHS] = {2, 3, 4, 5, 6, 7, 8};

ql_grid poisoned_grid(backend *b, int bits, int64_t n, int64_t k, int64_t group, ql_mat g_idx) {
    int64_t groups = ql_groups(k, group);
    return (ql_grid){bits, group, poisoned(b, QL_F32, n, groups), poisoned(b, QL_U8, n, groups), g_idx};
}

ql_grid upload_grid(backend *b, ql_grid host) {
    ql_grid device = host;
    device.scale = upload(b, host.scale);
    device.zero = upload(b, host.zero);
    if (ql_is_present(host.g_idx)) device.g_idx = upload(b, host.g_idx);
    return device;
}

void download_grid(backend *b, ql_grid device, ql_grid host) {
    download(b, device.scale, host.scale);
    download(b, device.zero, host.zero);
    if (ql_is_present(host.g_idx)) download(b, device.g_idx, host.g_idx);
}

ql_mat scattered_groups(backend *b, int64_t k, int64_t group) {
    ql_mat g_idx = poisoned_dense(b, QL_I32, 1, k);
    for (int64_t i = 0; i < k; i++) ref_put(g_idx, 0, i, (double)(ql_random(99, (uint64_t)i) % (uint64_t)k / group));
    return g_idx;
}

ql_mat random_order(backend *b, int64_t k, uint64_t seed) {
    ql_mat order = poisoned_dense(b, QL_I32, 1, k);
    int32_t *at = order.data;
    for (int64_t i = 0; i < k; i++) { /* Fisher-Yates from the inside out */
        int64_t j = (int64_t)(ql_random(seed, (uint64_t)i) % (uint64_t)(i + 1));
        at[i] = at[j];
        at[j] = (int32_t)i;
    }
    return order;
}

ql_mat random_codes(backend *b, int bits, int64_t n, int64_t k, uint64_t seed) {
    ql_mat codes = poisoned(b, QL_U8, n, k);
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < k; c++)
            ref_put(codes, r, c, (double)(ql_random(seed, (uint64_t)(r * k + c)) & ((1u << bits) - 1)));
    return codes;
}

/* Neighbours share half of their values, and every 10th column is five times larger. */
static double activation(int64_t t, int64_t i, int64_t k, uint64_t seed) {
    double own = ql_random_normal(seed, (uint64_t)(t * k + i)),
           shared = ql_random_normal(seed + 1, (uint64_t)(t * k + i / 4));
    return (own + shared) * (i % 10 == 3 ? 5 : 1);
}

ql_mat random_hessian(backend *b, ql_dtype dtype, int64_t k, int64_t tokens, uint64_t seed) {
    ql_mat x = poisoned_dense(b, QL_F64, tokens, k), h = poisoned(b, dtype, k, k);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < k; i++) ref_put(x, t, i, activation(t, i, k, seed));
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = i; j < k; j++) {
            double sum = 0;
            for (int64_t t = 0; t < tokens; t++)
                sum += ((const double *)x.data)[t * k + i] * ((const double *)x.data)[t * k + j];
            ref_put(h, i, j, sum);
            ref_put(h, j, i, sum);
        }
    return h;
}

int64_t grid_group(const ql_grid *grid, int64_t column) {
    return ql_is_present(grid->g_idx) ? (int64_t)ref_at(grid->g_idx, 0, column) : column / grid->group;
}

#include "host/cpu/groups.h"

ql_status ql_cpu_check_groups(const char *operation, const ql_grid *grid, int64_t k) {
    const int32_t *g_idx = grid->g_idx.data;
    int64_t groups = ql_groups(k, grid->group);
    for (int64_t i = 0; g_idx && i < k; i++)
        if (g_idx[i] < 0 || g_idx[i] >= groups)
            return ql_fail(QL_INVALID, "%s: g_idx[%lld] is %d, there are %lld groups", operation, (long long)i,
                           (int)g_idx[i], (long long)groups);
    return QL_OK;
}

ql_status ql_cpu_check_order(const char *operation, ql_mat order, int64_t k, ql_arena *scratch) {
    if (!ql_is_present(order)) return QL_OK;
    uint8_t *seen;
    QL_TRY(ql_take(scratch, (size_t)k, sizeof *seen, &seen));
    for (int64_t p = 0; p < k; p++) {
        int64_t column = ql_column_at(order, p);
        if (column < 0 || column >= k || seen[column]++)
            return ql_fail(QL_INVALID, "%s: order[%lld] is %lld, expected a permutation of 0 .. %lld", operation,
                           (long long)p, (long long)column, (long long)k - 1);
    }
    return QL_OK;
}

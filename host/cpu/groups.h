/* Columns and their groups on the CPU, where index vectors lie in reach and can be checked. */
#ifndef HOST_CPU_GROUPS_H
#define HOST_CPU_GROUPS_H

#include "host/mat.h"
#include "host/mem.h"

static inline int64_t ql_group_of(const ql_grid *grid, int64_t column) {
    return ql_is_present(grid->g_idx) ? ((const int32_t *)grid->g_idx.data)[column] : column / grid->group;
}

/* The end of the run of columns that begins at `first` and has one group. */
static inline int64_t ql_group_end(const ql_grid *grid, int64_t first, int64_t k) {
    int64_t end = first + 1, group = ql_group_of(grid, first);
    if (!ql_is_present(grid->g_idx)) return (group + 1) * grid->group < k ? (group + 1) * grid->group : k;
    while (end < k && ql_group_of(grid, end) == group) end++;
    return end;
}

/* Column at position p. */
static inline int64_t ql_column_at(ql_mat order, int64_t p) {
    return ql_is_present(order) ? ((const int32_t *)order.data)[p] : p;
}

/* QL_INVALID, with the place, if an entry of g_idx is no group of the grid. */
ql_status ql_cpu_check_groups(const char *operation, const ql_grid *grid, int64_t k);

/* QL_INVALID, with the place, if a present order is no permutation of 0 .. k-1.  The memory comes from `scratch`. */
ql_status ql_cpu_check_order(const char *operation, ql_mat order, int64_t k, ql_arena *scratch);

#endif

/* Grids, orders and Hessians for the tests of quantization. */
#ifndef TESTS_GRIDS_H
#define TESTS_GRIDS_H

#include "tests/backend.h"

enum { GRID_WIDTHS = 7 };
extern const int grid_widths[GRID_WIDTHS]; /* 2 .. 8 */

/* A host grid full of poison; g_idx may be absent. */
ql_grid poisoned_grid(backend *b, int bits, int64_t n, int64_t k, int64_t group, ql_mat g_idx);
ql_grid upload_grid(backend *b, ql_grid host);
void download_grid(backend *b, ql_grid device, ql_grid host);

/* Group of each column, all over the place: sizes differ, and a group may be empty. */
ql_mat scattered_groups(backend *b, int64_t k, int64_t group);

/* A random permutation of 0 .. k-1. */
ql_mat random_order(backend *b, int64_t k, uint64_t seed);

/* Codes below 2^bits, U8. */
ql_mat random_codes(backend *b, int bits, int64_t n, int64_t k, uint64_t seed);

/* X^T X of `tokens` rows of correlated activations with a few large columns, both triangles, F32 or F64. */
ql_mat random_hessian(backend *b, ql_dtype dtype, int64_t k, int64_t tokens, uint64_t seed);

/* Group of a column of a host grid. */
int64_t grid_group(const ql_grid *grid, int64_t column);

#endif

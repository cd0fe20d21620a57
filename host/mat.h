/* Small helpers on ql_mat: views, emptiness, element addresses.  No arithmetic. */
#ifndef HOST_MAT_H
#define HOST_MAT_H

#include "host/qalib.h"

static inline ql_mat ql_mat_of(void *data, ql_dtype dtype, int64_t rows, int64_t cols) {
    ql_mat mat = {data, dtype, rows, cols, cols};
    return mat;
}

static inline ql_mat ql_no_mat(void) { return ql_mat_of(NULL, QL_F32, 0, 0); }

static inline int ql_is_present(ql_mat mat) { return mat.data != NULL; }

static inline size_t ql_mat_bytes(ql_mat mat) { return (size_t)(mat.rows * mat.cols) * ql_dtype_size(mat.dtype); }

/* Rows [first, first + count) and columns likewise; both share the memory of `mat`. */
static inline ql_mat ql_rows(ql_mat mat, int64_t first, int64_t count) {
    mat.data = (char *)mat.data + (size_t)(first * mat.ld) * ql_dtype_size(mat.dtype);
    mat.rows = count;
    return mat;
}

static inline ql_mat ql_cols(ql_mat mat, int64_t first, int64_t count) {
    mat.data = (char *)mat.data + (size_t)first * ql_dtype_size(mat.dtype);
    mat.cols = count;
    return mat;
}

static inline int64_t ql_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Length of a tile that may be the last. */
static inline int64_t ql_at_most(int64_t limit, int64_t left) { return left < limit ? left : limit; }

static inline int64_t ql_groups(int64_t k, int64_t group) { return ql_ceil_div(k, group); }

/* 32-bit words of one packed row of ql_qweight. */
static inline int64_t ql_packed_words(int64_t k, int bits) { return ql_ceil_div(k * bits, 32); }

#endif

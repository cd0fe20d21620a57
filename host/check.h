/* What the doors (ops.c, packed.c, product.c) ask of a matrix before anything runs: one sentence for what is wrong.
 * Names read "operation: argument". */
#ifndef HOST_CHECK_H
#define HOST_CHECK_H

#include "host/mat.h"
#include "host/status.h"

enum { ANY = -1 }; /* a dimension that the operand itself decides */

/* A view whose elements can be addressed.  BLAS and the kernels take sizes as int, so nothing may reach 2^31. */
static inline ql_status check_view(const char *name, ql_mat mat) {
    if (mat.rows < 0 || mat.cols < 0 || mat.ld < mat.cols || mat.rows > INT32_MAX || mat.ld > INT32_MAX)
        return ql_fail(QL_INVALID,
                       "%s: %lld rows, %lld columns, leading dimension %lld: expected columns <= leading dimension, "
                       "all in 0 .. 2^31-1",
                       name, (long long)mat.rows, (long long)mat.cols, (long long)mat.ld);
    if (!mat.data && mat.rows && mat.cols)
        return ql_fail(QL_INVALID, "%s: absent, expected %lld x %lld values", name, (long long)mat.rows,
                       (long long)mat.cols);
    size_t size = ql_dtype_size(mat.dtype);
    if (!size) return ql_fail(QL_INVALID, "%s: %d is not a dtype", name, (int)mat.dtype);
    if ((uintptr_t)mat.data % size)
        return ql_fail(QL_INVALID, "%s: address %p is not a multiple of %zu, the size of %s", name, mat.data, size,
                       ql_dtype_name(mat.dtype));
    return QL_OK;
}

/* A matrix of this type and shape. */
static inline ql_status check_mat(const char *name, ql_mat mat, ql_dtype dtype, int64_t rows, int64_t cols) {
    QL_TRY(check_view(name, mat));
    if (mat.dtype != dtype)
        return ql_fail(QL_INVALID, "%s: is %s, expected %s", name, ql_dtype_name(mat.dtype), ql_dtype_name(dtype));
    if (rows != ANY && mat.rows != rows)
        return ql_fail(QL_INVALID, "%s: has %lld rows, expected %lld", name, (long long)mat.rows, (long long)rows);
    if (cols != ANY && mat.cols != cols)
        return ql_fail(QL_INVALID, "%s: has %lld columns, expected %lld", name, (long long)mat.cols, (long long)cols);
    return QL_OK;
}

static inline ql_status check_optional(const char *name, ql_mat mat, ql_dtype dtype, int64_t rows, int64_t cols) {
    return ql_is_present(mat) ? check_mat(name, mat, dtype, rows, cols) : QL_OK;
}

static inline ql_status check_host(const char *name, const void *pointer) {
    return pointer ? QL_OK : ql_fail(QL_INVALID, "%s: a null pointer, expected host memory", name);
}

#endif

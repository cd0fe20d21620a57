/* The door of ql_execute: everything is checked here, against the plan, before a kernel sees it.  Only shapes and addresses: the
 * numbers lie on the device. */
#include "host/product.h"

#include "host/check.h"
#include "host/ops.h"

enum { ROW_ALIGN = 16 }; /* bytes: what cp.async, TMA and vector loads of x want */

static ql_status check_present(const char *name, int wanted, ql_mat mat, int64_t rows, int64_t cols, ql_dtype dtype) {
    if (wanted && !ql_is_present(mat)) return ql_fail(QL_INVALID, "execute: %s: absent, the product has it", name);
    if (!wanted && ql_is_present(mat)) return ql_fail(QL_INVALID, "execute: %s: present, the product has none", name);
    return wanted ? ql_context(check_mat(name, mat, dtype, rows, cols), "execute") : QL_OK;
}

static ql_status check_x_scale(const ql_product *p, ql_mat scale, int64_t m) {
    switch (p->x_scale) {
    case QL_SCALE_TENSOR: return check_present("x_scale", 1, scale, 1, 1, QL_F32);
    case QL_SCALE_ROW: return check_present("x_scale", 1, scale, 1, m, QL_F32);
    case QL_SCALE_BLOCK: return check_present("x_scale", 1, scale, m, ql_ceil_div(p->k, 128), QL_F32);
    default: return check_present("x_scale", 0, scale, 0, 0, QL_F32);
    }
}

/* Rows of x begin on multiples of 16 bytes, but for dense products, whose k may be anything. */
static ql_status check_x(const ql_product *p, ql_mat x) {
    size_t size = ql_dtype_size(p->x), pitch = (size_t)x.ld * size;
    QL_TRY(ql_context(check_mat("x", x, p->x, ANY, p->k), "execute"));
    if (x.rows > p->m_max)
        return ql_fail(QL_INVALID, "execute: x: has %lld rows, the plan was made for at most %lld", (long long)x.rows,
                       (long long)p->m_max);
    if (ql_dtype_size(p->w) > 1) return QL_OK;
    if ((uintptr_t)x.data % ROW_ALIGN || (x.rows > 1 && pitch % ROW_ALIGN))
        return ql_fail(QL_INVALID, "execute: x: begins at %p with %zu bytes per row, expected multiples of %d", x.data,
                       pitch, ROW_ALIGN);
    return QL_OK;
}

static ql_status check_address(const char *name, const void *address) {
    if (address && (uintptr_t)address % QL_PACKED_ALIGN == 0) return QL_OK;
    return ql_fail(QL_INVALID, "execute: %s: at %p, expected a multiple of %d", name, address, QL_PACKED_ALIGN);
}

static ql_status check_arguments(const ql_plan *plan, const ql_arguments *a, const void *workspace) {
    const ql_product *p = &plan->product;
    int64_t m = a->x.rows;
    QL_TRY(check_x(p, a->x));
    QL_TRY(check_x_scale(p, a->x_scale, m));
    QL_TRY(check_present("x_zero", p->x_zero, a->x_zero, 1, m, QL_I32));
    QL_TRY(check_present("bias", p->bias, a->bias, 1, p->n, QL_F32));
    QL_TRY(check_present("y", 1, a->y, m, p->n, p->y));
    QL_TRY(check_present("y_scale", p->y == QL_F8_E4M3, a->y_scale, 1, 1, QL_F32));
    QL_TRY(check_present("y_amax", p->y == QL_F8_E4M3 && ql_is_present(a->y_amax), a->y_amax, 1, 1, QL_F32));
    QL_TRY(check_address("weight", a->weight));
    return plan->workspace ? check_address("workspace", workspace) : QL_OK;
}

ql_status ql_execute(const ql_plan *plan, const ql_arguments *arguments, void *workspace, void *stream) {
    QL_TRY(check_host("execute: plan", plan));
    QL_TRY(check_host("execute: arguments", arguments));
    if (arguments->x.rows == 0) return QL_OK;
    QL_TRY(check_arguments(plan, arguments, workspace));
    QL_TRY(plan->ops->enter(plan, stream));
    return ql_plan_kernel(plan, arguments->x.rows)->run(plan, arguments, workspace, stream);
}

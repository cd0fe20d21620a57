/* From a product to a plan: is there such a product, which kernels compute it, how much memory they want. */
#include <stdbool.h>

#include "host/check.h"
#include "host/mem.h"
#include "host/ops.h"
#include "host/product.h"

/* ---- is there such a product -------------------------------------------------------------------------------------------- */

static bool is_f8(ql_dtype dtype) { return dtype == QL_F8_E4M3 || dtype == QL_F8_E5M2; }
static bool is_dense(ql_dtype dtype) { return dtype == QL_F16 || dtype == QL_BF16 || dtype == QL_F32; }
static bool is_one_or_row(ql_scale_mode mode) { return mode == QL_SCALE_TENSOR || mode == QL_SCALE_ROW; }

static const char *mode_name(ql_scale_mode mode) {
    static const char *const names[] = {"NONE", "TENSOR", "ROW", "GROUP", "BLOCK"};
    return (unsigned)mode < sizeof names / sizeof *names ? names[mode] : "unknown";
}

#define UNSUPPORTED(...) ql_fail(QL_UNSUPPORTED, "product: " __VA_ARGS__)

static ql_status check_range(const char *name, int64_t value) {
    if (value >= 1 && value <= INT32_MAX) return QL_OK;
    return ql_fail(QL_INVALID, "product: %s is %lld, expected 1 .. 2^31-1", name, (long long)value);
}

static ql_status check_k(const ql_product *p, int64_t multiple, int64_t most) {
    if (p->k % multiple)
        return UNSUPPORTED("k is %lld, expected a multiple of %lld for w %s", (long long)p->k, (long long)multiple,
                           ql_dtype_name(p->w));
    if (p->k > most)
        return UNSUPPORTED("k is %lld, expected at most %lld, beyond which the sums of 8-bit integers leave 32 bits",
                           (long long)p->k, (long long)most);
    return QL_OK;
}

static ql_status check_x(const ql_product *p, bool fits, const char *expected) {
    return fits ? QL_OK
                : UNSUPPORTED("x is %s, expected %s with w %s", ql_dtype_name(p->x), expected, ql_dtype_name(p->w));
}

static ql_status check_modes(const ql_product *p, bool fits, const char *expected) {
    if (fits) return QL_OK;
    return UNSUPPORTED("x_scale %s with w_scale %s, expected %s for x %s and w %s", mode_name(p->x_scale),
                       mode_name(p->w_scale), expected, ql_dtype_name(p->x), ql_dtype_name(p->w));
}

static ql_status check_y(const ql_product *p, bool also_fits, const char *expected) {
    if (also_fits || is_dense(p->y)) return QL_OK;
    return UNSUPPORTED("y is %s, expected %s for x %s and w %s", ql_dtype_name(p->y), expected, ql_dtype_name(p->x),
                       ql_dtype_name(p->w));
}

static ql_status check_groups(const ql_product *p) {
    if (p->w_scale != QL_SCALE_GROUP)
        return p->ordered ? UNSUPPORTED("ordered needs w_scale GROUP, found %s", mode_name(p->w_scale)) : QL_OK;
    if (p->group != 32 && p->group != 64 && p->group != 128 && p->group != p->k)
        return UNSUPPORTED("group is %lld, expected 32, 64, 128 or k = %lld", (long long)p->group, (long long)p->k);
    if (p->scale != QL_F16 && p->scale != QL_BF16)
        return UNSUPPORTED("scale is %s, expected F16 or BF16 for group scales", ql_dtype_name(p->scale));
    return QL_OK;
}

static ql_status check_codes(const ql_product *p) {
    bool floats = p->x == QL_F16 || p->x == QL_BF16;
    QL_TRY(check_x(p, floats || p->x == QL_I8 || p->x == QL_F8_E4M3, "F16, BF16, I8 or F8_E4M3"));
    QL_TRY(check_k(p, 32, floats || p->x == QL_F8_E4M3 ? INT32_MAX : 131072));
    QL_TRY(check_groups(p));
    QL_TRY(check_y(p, false, "F16, BF16 or F32"));
    if (floats) {
        if (p->bits != 2 && p->bits != 3 && p->bits != 4 && p->bits != 8)
            return UNSUPPORTED("bits is %d, expected 2, 3, 4 or 8", p->bits);
        return check_modes(p, p->x_scale == QL_SCALE_NONE && p->w_scale == QL_SCALE_GROUP, "NONE with GROUP");
    }
    if (p->bits != 4) return UNSUPPORTED("bits is %d, expected 4 with x %s", p->bits, ql_dtype_name(p->x));
    return check_modes(p, p->x_scale == QL_SCALE_ROW && (p->w_scale == QL_SCALE_GROUP || p->w_scale == QL_SCALE_ROW),
                       "ROW with GROUP or ROW");
}

static ql_status check_i8(const ql_product *p) {
    bool unsigned_x = p->x == QL_U8 && p->x_zero, exact = p->y == QL_I32;
    if (p->x == QL_U8 && !p->x_zero) return UNSUPPORTED("x is U8 without x_zero, expected zero points with it");
    QL_TRY(check_x(p, p->x == QL_I8 || unsigned_x, "I8, or U8 with x_zero,"));
    QL_TRY(check_k(p, 16, unsigned_x ? 65536 : 131072));
    if (exact && unsigned_x) return UNSUPPORTED("y is I32 with x U8, expected x I8 for exact sums");
    if (exact && p->bias) return UNSUPPORTED("y is I32 with a bias, expected none for exact sums");
    QL_TRY(check_y(p, exact, "F16, BF16, F32, or I32 without scales,"));
    if (exact) return check_modes(p, p->x_scale == QL_SCALE_NONE && p->w_scale == QL_SCALE_NONE, "NONE with NONE");
    return check_modes(p, is_one_or_row(p->x_scale) && is_one_or_row(p->w_scale), "TENSOR or ROW with TENSOR or ROW");
}

static ql_status check_f8(const ql_product *p) {
    bool blocks = p->x_scale == QL_SCALE_BLOCK && p->w_scale == QL_SCALE_BLOCK;
    QL_TRY(check_x(p, is_f8(p->x), "F8_E4M3 or F8_E5M2"));
    QL_TRY(check_k(p, 16, INT32_MAX));
    QL_TRY(check_y(p, p->y == QL_F8_E4M3, "F16, BF16, F32 or F8_E4M3"));
    return check_modes(p, blocks || (is_one_or_row(p->x_scale) && is_one_or_row(p->w_scale)),
                       "TENSOR or ROW with TENSOR or ROW, or BLOCK with BLOCK");
}

static ql_status check_dense(const ql_product *p) {
    QL_TRY(check_x(p, is_dense(p->x), "F16, BF16 or F32"));
    QL_TRY(check_y(p, false, "F16, BF16 or F32"));
    return check_modes(p, p->x_scale == QL_SCALE_NONE && p->w_scale == QL_SCALE_NONE, "NONE with NONE");
}

static ql_status check_product(const ql_product *p) {
    QL_TRY(check_range("n", p->n));
    QL_TRY(check_range("k", p->k));
    QL_TRY(check_range("m_max", p->m_max));
    if ((unsigned)p->accumulate > QL_FAST || (unsigned)p->repeat > QL_ANY_BATCH)
        return ql_fail(QL_INVALID, "product: accumulate %d, repeat %d: not in their enumerations", (int)p->accumulate,
                       (int)p->repeat);
    if (p->x_zero && p->x != QL_U8) return UNSUPPORTED("x_zero with x %s, expected U8", ql_dtype_name(p->x));
    if (p->zero_points && p->w != QL_U8) return UNSUPPORTED("zero_points with w %s, expected U8", ql_dtype_name(p->w));
    if (p->ordered && p->w != QL_U8) return UNSUPPORTED("ordered with w %s, expected U8", ql_dtype_name(p->w));
    if (p->w == QL_U8) return check_codes(p);
    if (p->w == QL_I8) return check_i8(p);
    if (is_f8(p->w)) return check_f8(p);
    if (is_dense(p->w)) return check_dense(p);
    return UNSUPPORTED("w is %s, expected U8, I8, F8_E4M3, F8_E5M2, F16, BF16 or F32", ql_dtype_name(p->w));
}

/* ---- which kernels -------------------------------------------------------------------------------------------------------- */

void ql_plan_offer(ql_plan *plan, const ql_kernel *kernel) {
    if (plan->n_kernels == QL_MOST_KERNELS || kernel->m_least > plan->product.m_max) return;
    if (plan->product.repeat == QL_ANY_BATCH && (kernel->m_least > 1 || kernel->m_most < plan->product.m_max)) return;
    if (kernel->takes(&plan->product, plan->arch) == QL_OK) plan->kernels[plan->n_kernels++] = kernel;
}

const ql_kernel *ql_plan_kernel(const ql_plan *plan, int64_t m) {
    for (int i = 0; i < plan->n_kernels; i++)
        if (m >= plan->kernels[i]->m_least && m <= plan->kernels[i]->m_most) return plan->kernels[i];
    return NULL;
}

static size_t most_workspace(const ql_plan *plan) {
    size_t most = 0;
    for (int i = 0; i < plan->n_kernels; i++) {
        const ql_kernel *kernel = plan->kernels[i];
        int64_t m = kernel->m_most < plan->product.m_max ? kernel->m_most : plan->product.m_max;
        size_t bytes = kernel->workspace ? kernel->workspace(&plan->product, m, plan->workers) : 0;
        if (bytes > most) most = bytes;
    }
    return (most + QL_PACKED_ALIGN - 1) / QL_PACKED_ALIGN * QL_PACKED_ALIGN;
}

/* Lets kernels prepare; those that find that they cannot serve leave the plan. */
static ql_status prepare(ql_ctx *ctx, ql_plan *plan) {
    int kept = 0;
    for (int i = 0; i < plan->n_kernels; i++) {
        const ql_kernel *kernel = plan->kernels[i];
        ql_status status = kernel->prepare ? kernel->prepare(ctx, plan) : QL_OK;
        if (status == QL_OK) plan->kernels[kept++] = kernel;
        else if (status != QL_UNSUPPORTED) return status;
    }
    plan->n_kernels = kept;
    return QL_OK;
}

static ql_status fill(ql_ctx *ctx, ql_plan *plan) {
    QL_TRY(ql_packed_describe(&plan->product, &plan->packed));
    QL_TRY(ctx->ops->plan(ctx, plan));
    QL_TRY(prepare(ctx, plan));
    plan->workspace = most_workspace(plan);
    return QL_OK;
}

static ql_status make(ql_ctx *ctx, const ql_product *product, const ql_choices *choices, ql_plan **out) {
    *out = NULL;
    QL_TRY(check_host("plan: product", product));
    QL_TRY(check_product(product));
    ql_plan *plan = ql_malloc(sizeof *plan);
    if (!plan) return ql_fail(QL_NOMEM, "plan: no memory for a plan");
    *plan = (ql_plan){.product = *product, .ops = ctx->ops, .choices = choices};
    ql_status status = fill(ctx, plan);
    plan->choices = NULL;
    if (status == QL_OK) *out = plan;
    else ql_plan_free(plan);
    return status;
}

ql_status ql_plan_make(ql_ctx *ctx, const ql_product *product, ql_plan **plan) {
    return make(ctx, product, NULL, plan);
}

ql_status ql_plan_make_measured(ql_ctx *ctx, const ql_product *product, const char *file, ql_plan **plan) {
    ql_arena *arena;
    ql_choices choices;
    *plan = NULL;
    QL_TRY(check_host("plan: file", file));
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = ql_choices_load(file, arena, &choices);
    if (status == QL_OK) status = make(ctx, product, &choices, plan);
    ql_arena_close(arena);
    return status;
}

static ql_status measure_into(ql_ctx *ctx, const ql_plan *plan, const char *file, ql_arena *arena) {
    ql_choices choices;
    QL_TRY(ql_choices_load(file, arena, &choices));
    QL_TRY(ctx->ops->measure(ctx, plan, arena, &choices));
    return ql_choices_save(file, arena, &choices);
}

ql_status ql_plan_measure(ql_ctx *ctx, const ql_product *product, const char *file) {
    ql_plan *plan;
    ql_arena *arena;
    QL_TRY(check_host("measure: file", file));
    QL_TRY(ql_plan_make(ctx, product, &plan));
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) {
        status = measure_into(ctx, plan, file, arena);
        ql_arena_close(arena);
    }
    ql_plan_free(plan);
    return status;
}

void ql_plan_free(ql_plan *plan) {
    if (plan && plan->free_data) plan->free_data(plan->data);
    ql_mfree(plan);
}

const char *ql_plan_describe(const ql_plan *plan, int64_t m) {
    const ql_kernel *kernel = ql_plan_kernel(plan, m);
    return kernel ? kernel->name : "none";
}

size_t ql_plan_workspace(const ql_plan *plan) { return plan->workspace; }
size_t ql_plan_packed(const ql_plan *plan) { return plan->packed.bytes; }

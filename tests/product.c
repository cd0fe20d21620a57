#include "tests/product.h"

#include <math.h>

#include "host/rng.h"
#include "tests/ref.h"

/* ---- combinations ---------------------------------------------------------------------------------------------------------- */

ql_product w4a16(int64_t n, int64_t k, int64_t group) {
    return (ql_product){.n = n,
                        .k = k,
                        .m_max = 300,
                        .x = QL_BF16,
                        .w = QL_U8,
                        .y = QL_F32,
                        .bits = 4,
                        .w_scale = QL_SCALE_GROUP,
                        .group = group,
                        .scale = QL_BF16};
}

ql_product w8a8(int64_t n, int64_t k, ql_scale_mode x_scale, ql_scale_mode w_scale, ql_dtype y) {
    return (ql_product){
        .n = n, .k = k, .m_max = 40, .x = QL_I8, .w = QL_I8, .y = y, .x_scale = x_scale, .w_scale = w_scale};
}

ql_product f8(int64_t n, int64_t k, ql_dtype x, ql_dtype w, ql_scale_mode x_scale, ql_scale_mode w_scale, ql_dtype y) {
    return (ql_product){.n = n, .k = k, .m_max = 40, .x = x, .w = w, .y = y, .x_scale = x_scale, .w_scale = w_scale};
}

/* ---- operands ------------------------------------------------------------------------------------------------------------- */

static uint64_t seed_of(int64_t a, int64_t b) { return (uint64_t)(a * 1000003 + b); }

/* Values that use the whole range of a type: integers uniform, floats normal. */
void fill_values(ql_mat mat, uint64_t seed, int64_t limit) {
    for (int64_t r = 0; r < mat.rows; r++)
        for (int64_t c = 0; c < mat.cols; c++) {
            uint64_t i = (uint64_t)(r * mat.cols + c);
            double value = ql_random_normal(seed, i);
            if (mat.dtype == QL_I8) value = (double)(int64_t)(ql_random(seed, i) % 255) - 127;
            if (mat.dtype == QL_U8) value = (double)(ql_random(seed, i) % (uint64_t)limit);
            if (mat.dtype == QL_I32) value = (double)(ql_random(seed, i) % (uint64_t)limit);
            ref_put(mat, r, c, value);
        }
}

/* Scales 2^(center - octaves) .. 2^(center + octaves), exactly representable in `dtype`. */
static void fill_scales(ql_mat mat, uint64_t seed, int center, int octaves, ql_dtype dtype) {
    for (int64_t r = 0; r < mat.rows; r++)
        for (int64_t c = 0; c < mat.cols; c++) {
            uint64_t i = (uint64_t)(r * mat.cols + c);
            float x = (float)ldexp(1 + ql_random_uniform(seed, 2 * i),
                                   (int)(ql_random(seed, 2 * i + 1) % (uint64_t)(2 * octaves + 1)) - octaves + center);
            ref_put(mat, r, c,
                    dtype == QL_F16    ? ql_round_f16(x)
                    : dtype == QL_BF16 ? ql_bf16_to_f32(ql_f32_to_bf16(x))
                                       : x);
        }
}

static int64_t aligned_ld(ql_dtype dtype, int64_t cols) {
    int64_t per_16 = 16 / (int64_t)ql_dtype_size(dtype);
    return (cols / per_16 + 2) * per_16;
}

static ql_mat scales_of(backend *b, ql_scale_mode mode, int64_t rows, int64_t k, int64_t group, int is_weight) {
    switch (mode) {
    case QL_SCALE_TENSOR: return poisoned_dense(b, QL_F32, 1, 1);
    case QL_SCALE_ROW: return poisoned_dense(b, QL_F32, 1, rows);
    case QL_SCALE_GROUP: return poisoned(b, QL_F32, rows, ql_groups(k, group));
    case QL_SCALE_BLOCK: return poisoned(b, QL_F32, is_weight ? ql_ceil_div(rows, 128) : rows, ql_ceil_div(k, 128));
    default: return ql_no_mat();
    }
}

static double scale_for(ql_scale_mode mode, ql_mat scale, int64_t row, int64_t group, int64_t k, int is_weight) {
    switch (mode) {
    case QL_SCALE_TENSOR: return ref_at(scale, 0, 0);
    case QL_SCALE_ROW: return ref_at(scale, 0, row);
    case QL_SCALE_GROUP: return ref_at(scale, row, group);
    case QL_SCALE_BLOCK: return ref_at(scale, is_weight ? row / 128 : row, k / 128);
    default: return 1;
    }
}

static int octaves_of(ql_scale_mode mode) { return mode == QL_SCALE_BLOCK ? 20 : 4; }

static void make_weight(backend *b, operands *o) {
    const ql_product *p = &o->p;
    ql_weight *w = &o->weight;
    int64_t group = p->w_scale == QL_SCALE_GROUP ? p->group : p->k, groups = ql_groups(p->k, group);
    w->values = poisoned(b, p->w, p->n, p->k);
    fill_values(w->values, seed_of(p->n, 1), p->w == QL_U8 ? INT64_C(1) << p->bits : 256);
    w->scale = scales_of(b, p->w_scale, p->n, p->k, p->group, 1);
    fill_scales(w->scale, seed_of(p->n, 2), -6, octaves_of(p->w_scale),
                p->w_scale == QL_SCALE_GROUP ? p->scale : QL_F32);
    if (p->zero_points) {
        w->zero = poisoned(b, QL_U8, p->n, groups);
        fill_values(w->zero, seed_of(p->n, 3), INT64_C(1) << p->bits);
    }
    if (p->ordered) {
        w->order = poisoned_dense(b, QL_I32, 1, p->k);
        for (int64_t i = 0; i < p->k; i++) ref_put(w->order, 0, i, (double)((p->k - 1 - i) * 7 % p->k / group));
    }
    o->exact_w = poisoned_dense(b, QL_F64, p->n, p->k);
    for (int64_t r = 0; r < p->n; r++)
        for (int64_t i = 0; i < p->k; i++) {
            int64_t g = p->ordered ? (int64_t)ref_at(w->order, 0, i) : i / group;
            double zero = p->zero_points ? ref_at(w->zero, r, g) : p->w == QL_U8 ? (double)(1 << (p->bits - 1)) : 0;
            ref_put(o->exact_w, r, i, (ref_at(w->values, r, i) - zero) * scale_for(p->w_scale, w->scale, r, g, i, 1));
        }
}

static void find_exact_x(operands *o) {
    const ql_product *p = &o->p;
    for (int64_t r = 0; r < o->m; r++)
        for (int64_t i = 0; i < p->k; i++) {
            double zero = p->x_zero ? ref_at(o->x_zero, 0, r) : 0;
            ref_put(o->exact_x, r, i, (ref_at(o->x, r, i) - zero) * scale_for(p->x_scale, o->x_scale, r, 0, i, 0));
        }
}

/* Every 50th input a hundred times larger, as in real activations; FP8 saturates. */
static void add_outliers(operands *o) {
    for (int64_t r = 0; r < o->m; r++)
        for (int64_t i = 0; i < o->p.k; i += 50) ref_put(o->x, r, i, 100 * ref_at(o->x, r, i));
    find_exact_x(o);
}

static void make_x(backend *b, operands *o) {
    const ql_product *p = &o->p;
    o->x = poisoned_with(b, p->x, o->m, p->k, aligned_ld(p->x, p->k));
    fill_values(o->x, seed_of(p->k, 4), 256);
    o->x_scale = scales_of(b, p->x_scale, o->m, p->k, 0, 0);
    int center = ql_dtype_size(p->x) == 1 ? -10 : 0; /* so that FP16 results stay finite */
    fill_scales(o->x_scale, seed_of(p->k, 5), center, octaves_of(p->x_scale), QL_F32);
    if (p->x_zero) {
        o->x_zero = poisoned_dense(b, QL_I32, 1, o->m);
        fill_values(o->x_zero, seed_of(p->k, 6), 256);
    }
    if (p->bias) {
        o->bias = poisoned_dense(b, QL_F32, 1, p->n);
        fill_values(o->bias, seed_of(p->n, 7), 0);
    }
    o->exact_x = poisoned_dense(b, QL_F64, o->m, p->k);
    find_exact_x(o);
}

operands make_operands(backend *b, ql_product p, int64_t m) {
    operands o = {.p = p, .m = m};
    make_weight(b, &o);
    make_x(b, &o);
    return o;
}

/* ---- running ---------------------------------------------------------------------------------------------------------------- */

static ql_mat on_device(backend *b, ql_mat host) { return ql_is_present(host) ? upload(b, host) : host; }

ql_weight weight_on_device(backend *b, const ql_weight *w) {
    return (ql_weight){on_device(b, w->values), on_device(b, w->scale), on_device(b, w->zero), on_device(b, w->order)};
}

void *poisoned_bytes(backend *b, size_t bytes) { return upload(b, poisoned_dense(b, QL_U8, 1, (int64_t)bytes)).data; }

ql_plan *make_plan(ql_ctx *ctx, const ql_product *p) {
    ql_plan *plan;
    assert_ok(ql_plan_make(ctx, p, &plan));
    return plan;
}

void *pack_operands(backend *b, const ql_plan *plan, const operands *o) {
    ql_weight device = weight_on_device(b, &o->weight);
    void *packed = poisoned_bytes(b, ql_plan_packed(plan));
    assert_ok(ql_pack_weight(b->ctx, plan, &device, packed));
    assert_ok(ql_check_weight(b->ctx, plan, packed));
    return packed;
}

ql_arguments arguments_of(backend *b, const operands *o, const void *packed) {
    ql_arguments a = {.x = on_device(b, o->x), .x_scale = on_device(b, o->x_scale), .x_zero = on_device(b, o->x_zero)};
    a.weight = packed;
    a.bias = on_device(b, o->bias);
    a.y = upload(b, poisoned(b, o->p.y, o->m, o->p.n));
    if (o->p.y == QL_F8_E4M3) {
        ql_mat one = poisoned_dense(b, QL_F32, 1, 1);
        ref_put(one, 0, 0, 1);
        a.y_scale = upload(b, one);
        a.y_amax = upload(b, poisoned_dense(b, QL_F32, 1, 1));
    }
    return a;
}

/* Runs with a poisoned result and a poisoned workspace, which may be large and is given back at once. */
void execute_product(backend *b, ql_ctx *ctx, const ql_plan *plan, const ql_arguments *a) {
    size_t bytes = ql_plan_workspace(plan);
    void *poison = malloc(bytes + 1), *workspace;
    assert_non_null(poison);
    memset(poison, BACKEND_POISON, bytes);
    assert_ok(ql_alloc(b->ctx, bytes, &workspace));
    assert_ok(ql_upload(b->ctx, workspace, poison, bytes));
    free(poison);
    assert_ok(ql_execute(plan, a, workspace, ql_ctx_stream(ctx)));
    assert_ok(ql_sync(ctx));
    ql_free(b->ctx, workspace);
}

ql_mat result_of(backend *b, ql_mat y) {
    ql_mat host = poisoned(b, y.dtype, y.rows, y.cols);
    download(b, y, host);
    return host;
}

ql_mat truth_of(backend *b, const operands *o) {
    ql_mat truth = poisoned_dense(b, QL_F64, o->m, o->p.n);
    ref_gemm(o->exact_x, o->exact_w, o->bias, truth);
    return truth;
}

/* FP32 sums: relative to the Frobenius norm of y, sqrt(k) roundings of one part in 2^24, doubled.  Hopper's tensor cores keep about 14
 * bits of sums of FP8: of 128 products with QL_PROMOTE, of all with QL_FAST.  Halves add their own rounding, at most 2^-11 and 2^-8
 * of a value, and on the average 0.6 of that. */
double bound_of(const ql_product *p) {
    int is_f8 = p->w == QL_F8_E4M3 || p->w == QL_F8_E5M2;
    double sums = !is_f8 ? sqrt((double)p->k) * 0x1p-23 : p->accumulate == QL_FAST ? 1e-2 : 5e-4;
    return fmax(sums, p->y == QL_F16 ? 5e-4 : p->y == QL_BF16 ? 3e-3 : 0);
}

void assert_unpacks(backend *b, const ql_plan *plan, const operands *o, const void *packed) {
    const ql_mat *from[] = {&o->weight.values, &o->weight.scale, &o->weight.zero, &o->weight.order};
    ql_weight host = {{0}, {0}, {0}, {0}}, device;
    ql_mat *to[] = {&host.values, &host.scale, &host.zero, &host.order};
    for (int i = 0; i < 4; i++)
        if (ql_is_present(*from[i]))
            *to[i] = poisoned_with(b, from[i]->dtype, from[i]->rows, from[i]->cols, from[i]->ld);
    device = weight_on_device(b, &host);
    assert_ok(ql_unpack_weight(b->ctx, plan, packed, &device));
    const ql_mat *back[] = {&device.values, &device.scale, &device.zero, &device.order};
    for (int i = 0; i < 4; i++) {
        if (!ql_is_present(*from[i])) continue;
        download(b, *back[i], *to[i]);
        assert_same_bits(*to[i], *from[i]);
    }
}

/* Pack, unpack, execute; and the same bits with another number of threads. */
ql_mat run_product(backend *b, const operands *o) {
    ql_plan *plan = make_plan(b->ctx, &o->p), *other = make_plan(b->other, &o->p);
    void *packed = pack_operands(b, plan, o);
    assert_unpacks(b, plan, o, packed);
    ql_arguments a = arguments_of(b, o, packed), again = arguments_of(b, o, packed);
    execute_product(b, b->ctx, plan, &a);
    execute_product(b, b->other, other, &again);
    assert_same_bits_on_device(b, a.y, again.y);
    ql_plan_free(plan);
    ql_plan_free(other);
    return result_of(b, a.y);
}

void check_product(backend *b, ql_product p, int64_t m) {
    operands o = make_operands(b, p, m);
    assert_close(run_product(b, &o), truth_of(b, &o), bound_of(&p));
    if (p.x == QL_I8 || p.x == QL_U8) return;
    add_outliers(&o);
    assert_close(run_product(b, &o), truth_of(b, &o), bound_of(&p));
}

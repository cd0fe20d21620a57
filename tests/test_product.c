/* Products of every kind, on every backend, against double precision on the exact operands. */
#include "tests/backend.h"

#include <math.h>

#include "host/product.h"
#include "host/rng.h"
#include "tests/ref.h"

/* ---- operands ------------------------------------------------------------------------------------------------------------- */

/* The numbers of one product: as the library takes them, in host memory, and what they stand for in F64. */
typedef struct operands {
    ql_product p;
    int64_t m;
    ql_mat x, x_scale, x_zero, bias;
    ql_weight weight;
    ql_mat exact_x, exact_w; /* [m][k], [n][k] F64 */
} operands;

static uint64_t seed_of(int64_t a, int64_t b) { return (uint64_t)(a * 1000003 + b); }

/* Values that use the whole range of a type: integers uniform, floats normal. */
static void fill(ql_mat mat, uint64_t seed, int64_t limit) {
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
    fill(w->values, seed_of(p->n, 1), p->w == QL_U8 ? INT64_C(1) << p->bits : 256);
    w->scale = scales_of(b, p->w_scale, p->n, p->k, p->group, 1);
    fill_scales(w->scale, seed_of(p->n, 2), 0, octaves_of(p->w_scale),
                p->w_scale == QL_SCALE_GROUP ? p->scale : QL_F32);
    if (p->zero_points) {
        w->zero = poisoned(b, QL_U8, p->n, groups);
        fill(w->zero, seed_of(p->n, 3), INT64_C(1) << p->bits);
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

static void make_x(backend *b, operands *o) {
    const ql_product *p = &o->p;
    o->x = poisoned_with(b, p->x, o->m, p->k, aligned_ld(p->x, p->k));
    fill(o->x, seed_of(p->k, 4), 256);
    o->x_scale = scales_of(b, p->x_scale, o->m, p->k, 0, 0);
    int center = ql_dtype_size(p->x) == 1 ? -14 : 0; /* so that FP16 results stay finite */
    fill_scales(o->x_scale, seed_of(p->k, 5), center, octaves_of(p->x_scale), QL_F32);
    if (p->x_zero) {
        o->x_zero = poisoned_dense(b, QL_I32, 1, o->m);
        fill(o->x_zero, seed_of(p->k, 6), 256);
    }
    if (p->bias) {
        o->bias = poisoned_dense(b, QL_F32, 1, p->n);
        fill(o->bias, seed_of(p->n, 7), 0);
    }
    o->exact_x = poisoned_dense(b, QL_F64, o->m, p->k);
    for (int64_t r = 0; r < o->m; r++)
        for (int64_t i = 0; i < p->k; i++) {
            double zero = p->x_zero ? ref_at(o->x_zero, 0, r) : 0;
            ref_put(o->exact_x, r, i, (ref_at(o->x, r, i) - zero) * scale_for(p->x_scale, o->x_scale, r, 0, i, 0));
        }
}

static operands make_operands(backend *b, ql_product p, int64_t m) {
    operands o = {.p = p, .m = m};
    make_weight(b, &o);
    make_x(b, &o);
    return o;
}

/* ---- running ---------------------------------------------------------------------------------------------------------------- */

static ql_mat on_device(backend *b, ql_mat host) { return ql_is_present(host) ? upload(b, host) : host; }

static ql_weight weight_on_device(backend *b, const ql_weight *w) {
    return (ql_weight){on_device(b, w->values), on_device(b, w->scale), on_device(b, w->zero), on_device(b, w->order)};
}

static void *poisoned_bytes(backend *b, size_t bytes) {
    return upload(b, poisoned_dense(b, QL_U8, 1, (int64_t)bytes)).data;
}

static ql_plan *make_plan(ql_ctx *ctx, const ql_product *p) {
    ql_plan *plan;
    assert_ok(ql_plan_make(ctx, p, &plan));
    return plan;
}

static void *pack(backend *b, const ql_plan *plan, const operands *o) {
    ql_weight device = weight_on_device(b, &o->weight);
    void *packed = poisoned_bytes(b, ql_plan_packed(plan));
    assert_ok(ql_pack_weight(b->ctx, plan, &device, packed));
    assert_ok(ql_check_weight(b->ctx, plan, packed));
    return packed;
}

static ql_arguments arguments_of(backend *b, const operands *o, const void *packed) {
    ql_arguments a = {on_device(b, o->x),
                      on_device(b, o->x_scale),
                      on_device(b, o->x_zero),
                      packed,
                      on_device(b, o->bias),
                      {0},
                      {0},
                      {0}};
    a.y = upload(b, poisoned(b, o->p.y, o->m, o->p.n));
    return a;
}

/* Runs with a poisoned result and a poisoned workspace. */
static void execute(backend *b, ql_ctx *ctx, const ql_plan *plan, const ql_arguments *a) {
    void *workspace = poisoned_bytes(b, ql_plan_workspace(plan));
    assert_ok(ql_execute(plan, a, workspace, ql_ctx_stream(ctx)));
    assert_ok(ql_sync(ctx));
}

static ql_mat result_of(backend *b, ql_mat y) {
    ql_mat host = poisoned(b, y.dtype, y.rows, y.cols);
    download(b, y, host);
    return host;
}

static ql_mat truth_of(backend *b, const operands *o) {
    ql_mat truth = poisoned_dense(b, QL_F64, o->m, o->p.n);
    ref_gemm(o->exact_x, o->exact_w, o->bias, truth);
    return truth;
}

/* FP32 sums: relative to the Frobenius norm of y, sqrt(k) roundings of one part in 2^24, doubled.  Halves add their own rounding, at
 * most 2^-11 and 2^-8 of a value, and on the average 0.6 of that. */
static double bound_of(const ql_product *p) {
    double sums = sqrt((double)p->k) * 0x1p-23;
    return p->y == QL_F16 ? 5e-4 : p->y == QL_BF16 ? 3e-3 : sums;
}

static void assert_unpacks(backend *b, const ql_plan *plan, const operands *o, const void *packed) {
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
static ql_mat run_product(backend *b, const operands *o) {
    ql_plan *plan = make_plan(b->ctx, &o->p), *other = make_plan(b->other, &o->p);
    void *packed = pack(b, plan, o);
    assert_unpacks(b, plan, o, packed);
    ql_arguments a = arguments_of(b, o, packed), again = arguments_of(b, o, packed);
    execute(b, b->ctx, plan, &a);
    execute(b, b->other, other, &again);
    assert_same_bits_on_device(b, a.y, again.y);
    ql_plan_free(plan);
    ql_plan_free(other);
    return result_of(b, a.y);
}

static void check_product(backend *b, ql_product p, int64_t m) {
    operands o = make_operands(b, p, m);
    assert_close(run_product(b, &o), truth_of(b, &o), bound_of(&p));
}

/* ---- codes times halves ---------------------------------------------------------------------------------------------------------- */

static ql_product w4a16(int64_t n, int64_t k, int64_t group) {
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

static void codes_every_width_and_type(void **state) {
    const int widths[] = {2, 3, 4, 8};
    const ql_dtype results[] = {QL_F32, QL_F16, QL_BF16};
    for (int i = 0; i < 12; i++) {
        ql_product p = w4a16(70, 192, 64);
        p.bits = widths[i % 4], p.y = results[i / 4], p.zero_points = i % 2, p.bias = i / 2 % 2;
        p.x = i % 3 ? QL_F16 : QL_BF16, p.scale = i % 5 ? QL_BF16 : QL_F16, p.ordered = i % 7 == 3;
        check_product(*state, p, 5);
    }
}

static void codes_every_group(void **state) {
    const int64_t groups[] = {32, 64, 128, 416};
    for (int i = 0; i < 8; i++) {
        ql_product p = w4a16(65, 416, groups[i / 2]); /* 416 = 3 * 128 + 32: the last group is short */
        p.zero_points = 1, p.ordered = i % 2;
        check_product(*state, p, 3);
    }
}

/* More groups than a group has inputs: where another library loaded only as many scales (k > group^2). */
static void codes_more_groups_than_inputs_per_group(void **state) { check_product(*state, w4a16(16, 1056, 32), 2); }

static void codes_tails(void **state) {
    const int64_t n[] = {1, 7, 63, 64, 129}, k[] = {32, 64, 96, 320};
    for (int i = 0; i < 20; i++) {
        ql_product p = w4a16(n[i % 5], k[i / 5], 32);
        p.bits = i % 2 ? 3 : 4, p.zero_points = 1;
        check_product(*state, p, 1 + i % 3);
    }
}

/* Several tiles of y in both directions. */
static void codes_many_tokens(void **state) { check_product(*state, w4a16(300, 64, 64), 300); }

/* ---- integers -------------------------------------------------------------------------------------------------------------------- */

static ql_product w8a8(int64_t n, int64_t k, ql_scale_mode x_scale, ql_scale_mode w_scale, ql_dtype y) {
    return (ql_product){
        .n = n, .k = k, .m_max = 40, .x = QL_I8, .w = QL_I8, .y = y, .x_scale = x_scale, .w_scale = w_scale};
}

static int32_t ordered_half(uint16_t h) { return h & 0x8000 ? -(int32_t)(h & 0x7fff) : h; }

/* At most `ulps` steps between a BF16 result and the truth rounded to BF16. */
static void assert_ulps(ql_mat y, ql_mat truth, int ulps) {
    for (int64_t r = 0; r < y.rows; r++)
        for (int64_t c = 0; c < y.cols; c++) {
            int32_t found = ordered_half(((uint16_t *)y.data)[r * y.ld + c]);
            int32_t expected = ordered_half(ql_f32_to_bf16((float)ref_at(truth, r, c)));
            if (abs(found - expected) > ulps)
                fail_msg("(%lld, %lld): %g is %d steps from %g", (long long)r, (long long)c, ref_at(y, r, c),
                         abs(found - expected), ref_at(truth, r, c));
        }
}

/* Sums are exact, two products in FP32 follow: a last place of BF16 at most. */
static void check_within_one_step(backend *b, ql_product p, int64_t m) {
    operands o = make_operands(b, p, m);
    assert_ulps(run_product(b, &o), truth_of(b, &o), 1);
}

static void integers_every_scale_and_type(void **state) {
    const ql_scale_mode modes[] = {QL_SCALE_TENSOR, QL_SCALE_ROW};
    const ql_dtype results[] = {QL_F32, QL_F16, QL_BF16};
    for (int i = 0; i < 12; i++) {
        ql_product p = w8a8(70, 176, modes[i % 2], modes[i / 2 % 2], results[i / 4]);
        p.bias = i % 3 == 1, p.x_zero = i % 5 == 2, p.x = p.x_zero ? QL_U8 : QL_I8;
        if (p.y == QL_BF16 && !p.bias) check_within_one_step(*state, p, 5);
        else check_product(*state, p, 5);
    }
}

static void assert_equal_sums(backend *b, const operands *o) {
    ql_mat y = run_product(b, o);
    for (int64_t r = 0; r < o->m; r++)
        for (int64_t c = 0; c < o->p.n; c++) {
            int64_t sum = 0;
            for (int64_t i = 0; i < o->p.k; i++)
                sum += (int64_t)((int8_t *)o->x.data)[r * o->x.ld + i] *
                       ((int8_t *)o->weight.values.data)[c * o->weight.values.ld + i];
            assert_int_equal(((int32_t *)y.data)[r * y.ld + c], sum);
        }
}

static void integers_exact_sums(void **state) {
    operands o = make_operands(*state, w8a8(130, 528, QL_SCALE_NONE, QL_SCALE_NONE, QL_I32), 17);
    assert_equal_sums(*state, &o);
}

/* The longest sums that fit into 32 bits, at their extremes: 131072 * 127 * 127 = 2114060288. */
static void integers_longest_sums(void **state) {
    operands o = make_operands(*state, w8a8(3, 131072, QL_SCALE_NONE, QL_SCALE_NONE, QL_I32), 2);
    for (int64_t i = 0; i < o.p.k; i++) {
        ref_put(o.x, 0, i, 127);
        ref_put(o.weight.values, 0, i, 127);
        ref_put(o.weight.values, 1, i, -127);
    }
    assert_equal_sums(*state, &o);
}

static void integers_tails(void **state) {
    const int64_t n[] = {1, 7, 65, 128}, k[] = {16, 48, 192, 1040};
    for (int i = 0; i < 16; i++) {
        operands o = make_operands(*state, w8a8(n[i % 4], k[i / 4], QL_SCALE_NONE, QL_SCALE_NONE, QL_I32), 1 + i % 4);
        assert_equal_sums(*state, &o);
    }
}

/* ---- codes times bytes ------------------------------------------------------------------------------------------------------------- */

static void codes_times_bytes(void **state) {
    const ql_dtype results[] = {QL_F32, QL_F16, QL_BF16};
    const int64_t groups[] = {32, 64, 128, 352};
    for (int i = 0; i < 24; i++) {
        ql_product p = w4a16(67, 352, groups[i / 6]);
        p.x = i % 2 ? QL_I8 : QL_F8_E4M3, p.x_scale = QL_SCALE_ROW, p.y = results[i % 3];
        p.zero_points = i / 3 % 2, p.bias = i % 4 == 1, p.ordered = i % 5 == 2;
        if (i < 6) p.w_scale = QL_SCALE_ROW, p.ordered = 0;
        check_product(*state, p, 6);
    }
}

/* Per channel the sums are exact integers, whatever cancels. */
static void codes_times_integers_within_one_step(void **state) {
    ql_product p = w4a16(65, 544, 0);
    p.x = QL_I8, p.x_scale = p.w_scale = QL_SCALE_ROW, p.y = QL_BF16, p.zero_points = 1;
    check_within_one_step(*state, p, 9);
}

/* ---- FP8 ----------------------------------------------------------------------------------------------------------------------------- */

static ql_product f8(int64_t n, int64_t k, ql_dtype x, ql_dtype w, ql_scale_mode x_scale, ql_scale_mode w_scale,
                     ql_dtype y) {
    return (ql_product){.n = n, .k = k, .m_max = 40, .x = x, .w = w, .y = y, .x_scale = x_scale, .w_scale = w_scale};
}

static void f8_every_pair_and_scale(void **state) {
    const ql_dtype types[] = {QL_F8_E4M3, QL_F8_E5M2}, results[] = {QL_F32, QL_F16, QL_BF16};
    const ql_scale_mode x_modes[] = {QL_SCALE_TENSOR, QL_SCALE_TENSOR, QL_SCALE_ROW, QL_SCALE_ROW, QL_SCALE_BLOCK};
    const ql_scale_mode w_modes[] = {QL_SCALE_TENSOR, QL_SCALE_ROW, QL_SCALE_TENSOR, QL_SCALE_ROW, QL_SCALE_BLOCK};
    for (int i = 0; i < 20; i++) {
        int mode = i / 4;
        ql_dtype y = mode == 4 ? QL_F32 : results[i % 3]; /* blocks reach beyond FP16 */
        ql_product p = f8(140, 304, types[i % 2], types[i / 2 % 2], x_modes[mode], w_modes[mode], y);
        p.bias = i % 3 == 1;
        check_product(*state, p, 5);
    }
}

/* Blocks at both ends that are shorter than 128, scales from 2^-20 to 2^20. */
static void f8_blocks_with_tails(void **state) {
    const int64_t n[] = {1, 127, 129, 300}, k[] = {16, 128, 144, 400};
    for (int i = 0; i < 4; i++)
        check_product(*state,
                      f8(n[i], k[i], QL_F8_E4M3, QL_F8_E4M3, QL_SCALE_BLOCK, QL_SCALE_BLOCK, i % 2 ? QL_BF16 : QL_F32),
                      4);
}

/* ---- dense ---------------------------------------------------------------------------------------------------------------------------- */

static void dense_every_type(void **state) {
    const ql_dtype types[] = {QL_F32, QL_F16, QL_BF16};
    for (int i = 0; i < 18; i++) {
        ql_product p = {.n = i < 9 ? 80 : 67,
                        .k = i < 9 ? 192 : 37,
                        .m_max = 40,
                        .x = types[i % 3],
                        .w = types[i % 3],
                        .y = types[i / 3 % 3],
                        .bias = i % 2};
        check_product(*state, p, 6);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_every_width_and_type),
        cmocka_unit_test(codes_every_group),
        cmocka_unit_test(codes_more_groups_than_inputs_per_group),
        cmocka_unit_test(codes_tails),
        cmocka_unit_test(codes_many_tokens),
        cmocka_unit_test(integers_every_scale_and_type),
        cmocka_unit_test(integers_exact_sums),
        cmocka_unit_test(integers_longest_sums),
        cmocka_unit_test(integers_tails),
        cmocka_unit_test(codes_times_bytes),
        cmocka_unit_test(codes_times_integers_within_one_step),
        cmocka_unit_test(f8_every_pair_and_scale),
        cmocka_unit_test(f8_blocks_with_tails),
        cmocka_unit_test(dense_every_type),
    };
    return run_on_backends(tests);
}

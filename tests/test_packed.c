/* Packed weights and plans: what is refused, which damage is found, and offsets beyond 2^31. */
#include "tests/product.h"

#include "host/fault.h"
#include "host/product.h"
#include "tests/ref.h"

/* ---- plans --------------------------------------------------------------------------------------------------------------- */

static void refuse_product(ql_ctx *ctx, ql_product p, ql_status status, const char *words) {
    ql_plan *plan = (ql_plan *)ctx; /* anything but NULL */
    assert_refused(ql_plan_make(ctx, &p, &plan), status, words);
    assert_null(plan);
}

static void plans_name_the_violated_constraint(void **state) {
    ql_ctx *ctx = ((backend *)*state)->ctx;
    const ql_product codes = w4a16(64, 128, 64), bytes = w8a8(64, 128, QL_SCALE_ROW, QL_SCALE_ROW, QL_F16);
    const ql_product eights = f8(64, 128, QL_F8_E4M3, QL_F8_E4M3, QL_SCALE_ROW, QL_SCALE_ROW, QL_F16);
    const ql_product dense = {.n = 4, .k = 5, .m_max = 6, .x = QL_F32, .w = QL_F32, .y = QL_F32};
    ql_product p;
#define REFUSED(from, change, status, words) (p = from, change, refuse_product(ctx, p, status, words))
    REFUSED(codes, p.n = 0, QL_INVALID, "n is 0");
    REFUSED(codes, p.m_max = INT64_C(1) << 31, QL_INVALID, "m_max is 2147483648");
    REFUSED(codes, p.repeat = 7, QL_INVALID, "repeat 7");
    REFUSED(codes, p.k = 48, QL_UNSUPPORTED, "k is 48, expected a multiple of 32");
    REFUSED(codes, p.bits = 5, QL_UNSUPPORTED, "bits is 5");
    REFUSED(codes, p.group = 96, QL_UNSUPPORTED, "group is 96, expected 32, 64, 128 or k = 128");
    REFUSED(codes, p.scale = QL_F32, QL_UNSUPPORTED, "scale is F32, expected F16 or BF16");
    REFUSED(codes, p.x = QL_F32, QL_UNSUPPORTED, "x is F32, expected F16, BF16, I8 or F8_E4M3 with w U8");
    REFUSED(codes, p.y = QL_F8_E4M3, QL_UNSUPPORTED, "y is F8_E4M3");
    REFUSED(codes, p.w_scale = QL_SCALE_ROW, QL_UNSUPPORTED, "x_scale NONE with w_scale ROW, expected NONE with GROUP");
    REFUSED(codes, (p.x = QL_I8, p.x_scale = QL_SCALE_ROW, p.bits = 3), QL_UNSUPPORTED,
            "bits is 3, expected 4 with x I8");
    REFUSED(codes, (p.x = QL_I8, p.x_scale = QL_SCALE_ROW, p.w_scale = QL_SCALE_ROW, p.ordered = 1), QL_UNSUPPORTED,
            "ordered needs w_scale GROUP, found ROW");
    REFUSED(codes, (p.x = QL_I8, p.x_scale = QL_SCALE_ROW, p.k = 131072 + 32), QL_UNSUPPORTED, "at most 131072");
    REFUSED(bytes, p.k = 24, QL_UNSUPPORTED, "k is 24, expected a multiple of 16");
    REFUSED(bytes, p.k = 131088, QL_UNSUPPORTED, "at most 131072");
    REFUSED(bytes, (p.x = QL_U8, p.x_zero = 1, p.k = 65552), QL_UNSUPPORTED, "at most 65536");
    REFUSED(bytes, p.x = QL_U8, QL_UNSUPPORTED, "x is U8 without x_zero");
    REFUSED(bytes, p.x_zero = 1, QL_UNSUPPORTED, "x_zero with x I8");
    REFUSED(bytes, p.y = QL_I32, QL_UNSUPPORTED, "x_scale ROW with w_scale ROW, expected NONE with NONE");
    REFUSED(bytes, (p.y = QL_I32, p.bias = 1), QL_UNSUPPORTED, "a bias");
    REFUSED(bytes, p.w_scale = QL_SCALE_GROUP, QL_UNSUPPORTED, "TENSOR or ROW with TENSOR or ROW");
    REFUSED(bytes, p.zero_points = 1, QL_UNSUPPORTED, "zero_points with w I8");
    REFUSED(bytes, p.ordered = 1, QL_UNSUPPORTED, "ordered with w I8");
    REFUSED(eights, p.x = QL_I8, QL_UNSUPPORTED, "x is I8, expected F8_E4M3 or F8_E5M2 with w F8_E4M3");
    REFUSED(eights, p.y = QL_F8_E5M2, QL_UNSUPPORTED, "y is F8_E5M2");
    REFUSED(eights, p.w_scale = QL_SCALE_BLOCK, QL_UNSUPPORTED, "x_scale ROW with w_scale BLOCK");
    REFUSED(eights, p.k = 120, QL_UNSUPPORTED, "k is 120");
    REFUSED(dense, p.x = QL_I8, QL_UNSUPPORTED, "x is I8, expected F16, BF16 or F32 with w F32");
    REFUSED(dense, p.w_scale = QL_SCALE_ROW, QL_UNSUPPORTED, "w_scale ROW");
    REFUSED(dense, p.w = QL_F64, QL_UNSUPPORTED, "w is F64");
    REFUSED(dense, p.w = (ql_dtype)99, QL_UNSUPPORTED, "w is ?");
#undef REFUSED
    ql_plan *plan;
    assert_refused(ql_plan_make(ctx, NULL, &plan), QL_INVALID, "null pointer");
}

/* ---- offsets ------------------------------------------------------------------------------------------------------------------ */

/* Sections follow one another without overlap, each as long as its contents, on 256-byte borders. */
static void assert_sections(const ql_packed *h, const uint64_t *offsets, const double *sizes, int count) {
    uint64_t end = sizeof *h;
    for (int i = 0; i < count; i++) {
        if (sizes[i] == 0) {
            assert_true(offsets[i] == 0);
            continue;
        }
        assert_true(offsets[i] == end);
        end += ((uint64_t)sizes[i] + 255) / 256 * 256; /* below 2^53: exact in double */
    }
    assert_true(h->bytes == end);
}

static void sections_lie_where_their_sizes_say(void **state) {
    (void)state;
    const int64_t n[] = {1, 64, 130, 200000}, k[] = {32, 96, 28672, 262144}; /* the last: 5.2e10 codes */
    for (int i = 0; i < 16; i++) {
        double rows = (double)((n[i % 4] + 63) / 64 * 64), cols = (double)((k[i / 4] + 63) / 64 * 64);
        ql_packed h;
        ql_product p = w4a16(n[i % 4], k[i / 4], 32);
        p.bits = 3, p.zero_points = 1, p.ordered = 1;
        assert_ok(ql_packed_describe(&p, &h));
        double groups = (double)((p.k + 31) / 32),
               sizes[] = {rows * cols * 3 / 8, rows * groups * 2, rows * groups, 0, (double)p.k * 4};
        assert_sections(&h, (uint64_t[]){h.values, h.scale, h.zero, h.sums, h.order}, sizes, 5);
        assert_int_equal(ql_tiles_bytes(p.n, p.k, 3), (int64_t)sizes[0]);

        p = w8a8(n[i % 4], 1024 * (i + 1), QL_SCALE_ROW, QL_SCALE_ROW, QL_F16), p.x = QL_U8, p.x_zero = 1;
        assert_ok(ql_packed_describe(&p, &h));
        double bytes[] = {(double)p.n * (double)p.k, (double)p.n * 4, 0, (double)p.n * 4, 0};
        assert_sections(&h, (uint64_t[]){h.values, h.scale, h.zero, h.sums, h.order}, bytes, 5);
    }
}

/* 2^31 - 64 outputs of 4096 inputs: every index below is far beyond 32 bits. */
static void indices_beyond_31_bits(void **state) {
    backend *b = *state;
    ql_plan *plan;
    ql_product p = w4a16(INT64_C(0x7fffffc0), 4096, 128);
    assert_ok(ql_plan_make(b->ctx, &p, &plan));
    const int64_t tiles = INT64_C(0x7fffffc0) / 64 * (4096 / 64), units = tiles * 128;
    assert_true(ql_plan_packed(plan) == 256 + (uint64_t)units * 16 + (uint64_t)p.n * 32 * 2);
    assert_true(ql_unit_word(tiles - 1, 127, 4) == (units - 1) * 4);
    assert_true(ql_packed_at(&plan->packed, p.n - 1, 31) == 32 * p.n - 1);
    ql_plan_free(plan);

    p = (ql_product){.n = INT32_MAX, .k = INT32_MAX, .m_max = 1, .x = QL_F32, .w = QL_F32, .y = QL_F32};
    assert_refused(ql_plan_make(b->ctx, &p, &plan), QL_UNSUPPORTED, "expected n k below 2^60");
}

/* ---- packing ------------------------------------------------------------------------------------------------------------------- */

/* Operands of a weight that has every section, its plan, and memory for it. */
typedef struct packing {
    operands o;
    ql_plan *plan;
    void *packed;
} packing;

static packing begin_packing(backend *b) {
    ql_product p = w4a16(70, 160, 32);
    p.zero_points = p.ordered = 1;
    packing t = {.o = make_operands(b, p, 1), .plan = make_plan(b->ctx, &p)};
    t.packed = poisoned_bytes(b, ql_plan_packed(t.plan));
    return t;
}

static ql_status try_packing(backend *b, const packing *t) {
    ql_weight device = weight_on_device(b, &t->o.weight);
    return ql_pack_weight(b->ctx, t->plan, &device, t->packed);
}

static void packing_refuses_numbers_that_do_not_fit(void **state) {
    backend *b = *state;
    packing t = begin_packing(b);
    ql_weight *w = &t.o.weight;
    ref_put(w->values, 69, 159, 16);
    assert_refused(try_packing(b, &t), QL_INVALID, "the code of row 69, column 159 is not below 2^4");
    ref_put(w->values, 69, 159, 15);
    double kept = ref_at(w->scale, 3, 4);
    ref_put(w->scale, 3, 4, 1 + 0x1p-12);
    assert_refused(try_packing(b, &t), QL_INVALID, "of row 3, group 4 is not a BF16");
    ref_put(w->scale, 3, 4, kept);
    kept = ref_at(w->order, 0, 7);
    ref_put(w->order, 0, 7, 5);
    assert_refused(try_packing(b, &t), QL_INVALID, "order[7] is 5, there are 5 groups");
    ref_put(w->order, 0, 7, -1);
    assert_refused(try_packing(b, &t), QL_INVALID, "order[7] is -1");
    ref_put(w->order, 0, 7, kept == 0 ? 1 : 0);
    assert_refused(try_packing(b, &t), QL_INVALID, "has more than 32 inputs");
    ref_put(w->order, 0, 7, kept);
    assert_ok(try_packing(b, &t));
    assert_ok(ql_check_weight(b->ctx, t.plan, t.packed));
    ql_plan_free(t.plan);
}

static void packing_refuses_matrices_that_do_not_fit(void **state) {
    backend *b = *state;
    packing t = begin_packing(b);
    ql_weight good = weight_on_device(b, &t.o.weight), w;
    char *packed = t.packed;
    const struct {
        ql_mat *part;
        ql_mat wrong;
        const char *words;
    } cases[] = {
        {&w.values, {good.values.data, QL_U8, 70, 159, 160}, "weight: values: has 159 columns, expected 160"},
        {&w.scale, {good.scale.data, QL_F16, 70, 5, 5}, "weight: scale: is F16, expected F32"},
        {&w.zero, {NULL, QL_U8, 0, 0, 0}, "weight: zero: absent"},
        {&w.order, {good.order.data, QL_I32, 160, 1, 1}, "weight: order: has 160 rows, expected 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        w = good;
        *cases[i].part = cases[i].wrong;
        assert_refused(ql_pack_weight(b->ctx, t.plan, &w, packed), QL_INVALID, cases[i].words);
        assert_refused(ql_unpack_weight(b->ctx, t.plan, packed, &w), QL_INVALID, cases[i].words);
    }
    assert_refused(ql_pack_weight(b->ctx, t.plan, &good, packed + 16), QL_INVALID, "a multiple of 256");
    assert_refused(ql_pack_weight(b->ctx, t.plan, &good, NULL), QL_INVALID, "a multiple of 256");
    assert_refused(ql_check_weight(b->ctx, NULL, packed), QL_INVALID, "null pointer");
    ql_product plain = w4a16(70, 160, 32);
    ql_plan *other = make_plan(b->ctx, &plain);
    assert_refused(ql_pack_weight(b->ctx, other, &good, packed), QL_INVALID,
                   "weight: zero: present, the product has none");
    ql_plan_free(other);
    ql_plan_free(t.plan);
}

/* ---- damage ------------------------------------------------------------------------------------------------------------------ */

static void refuse_damage(backend *b, const packing *t, const unsigned char *good, size_t at, ql_status status,
                          const char *words) {
    size_t bytes = ql_plan_packed(t->plan);
    unsigned char *bad = malloc(bytes);
    assert_non_null(bad);
    memcpy(bad, good, bytes);
    bad[at] ^= 0x40;
    assert_ok(ql_upload(b->ctx, t->packed, bad, bytes));
    assert_refused(ql_check_weight(b->ctx, t->plan, t->packed), status, words);
    free(bad);
}

static void damage_is_found_wherever_it_is(void **state) {
    backend *b = *state;
    packing t = begin_packing(b);
    const ql_packed *h = &t.plan->packed;
    size_t bytes = ql_plan_packed(t.plan);
    unsigned char *good = malloc(bytes);
    assert_non_null(good);
    assert_ok(try_packing(b, &t));
    assert_ok(ql_download(b->ctx, good, t.packed, bytes));
#define AT(field) offsetof(ql_packed, field)
    const struct {
        size_t at;
        ql_status status;
        const char *words;
    } cases[] = {
        {AT(magic), QL_FORMAT, "does not begin with QLPACKED"},
        {AT(version), QL_MISMATCH, "version is 65, the plan has 1"},
        {AT(layout), QL_MISMATCH, "layout is"},
        {AT(n), QL_MISMATCH, "n is 6, the plan has 70"},
        {AT(k), QL_MISMATCH, "k is 224, the plan has 160"},
        {AT(group), QL_MISMATCH, "group is 96, the plan has 32"},
        {AT(bits), QL_MISMATCH, "bits is 68, the plan has 4"},
        {AT(dtype), QL_MISMATCH, "dtype is"},
        {AT(scale_mode), QL_MISMATCH, "scale mode is"},
        {AT(scale_dtype), QL_MISMATCH, "dtype of scales is"},
        {AT(zero_points), QL_MISMATCH, "presence of zero points is 65, the plan has 1"},
        {AT(sums_of_rows), QL_MISMATCH, "presence of sums is 64, the plan has 0"},
        {AT(ordered), QL_MISMATCH, "presence of an order is 65"},
        {AT(reserved), QL_FORMAT, "reserved bytes of the header"},
        {AT(bytes), QL_FORMAT, "size or reserved bytes"},
        {AT(values), QL_FORMAT, "offsets, size"},
        {AT(order), QL_FORMAT, "offsets, size"},
        {AT(checksum), QL_FORMAT, "damaged, checksum"},
        {AT(rest), QL_FORMAT, "reserved bytes"},
        {h->values, QL_FORMAT, "damaged, checksum"},
        {h->scale + 3, QL_FORMAT, "damaged, checksum"},
        {h->zero - 1, QL_FORMAT, "damaged, checksum"}, /* between sections */
        {h->zero, QL_FORMAT, "damaged, checksum"},
        {bytes - 1, QL_FORMAT, "damaged, checksum"},
    };
#undef AT
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse_damage(b, &t, good, cases[i].at, cases[i].status, cases[i].words);
    assert_ok(ql_upload(b->ctx, t.packed, good, bytes));
    assert_ok(ql_check_weight(b->ctx, t.plan, t.packed));
    free(good);
    ql_plan_free(t.plan);
}

/* Two words that change places give another checksum, although it is a sum. */
static void damage_by_exchange_is_found(void **state) {
    backend *b = *state;
    packing t = begin_packing(b);
    uint64_t words[2], swapped[2];
    char *values = (char *)t.packed + t.plan->packed.values;
    assert_ok(try_packing(b, &t));
    assert_ok(ql_download(b->ctx, words, values, sizeof words));
    assert_true(words[0] != words[1]);
    swapped[0] = words[1], swapped[1] = words[0];
    assert_ok(ql_upload(b->ctx, values, swapped, sizeof swapped));
    assert_refused(ql_check_weight(b->ctx, t.plan, t.packed), QL_FORMAT, "damaged, checksum");
    ql_plan_free(t.plan);
}

/* Another product's weight: same bytes, another meaning. */
static void weight_of_another_product_is_refused(void **state) {
    backend *b = *state;
    ql_product p = w4a16(64, 128, 64), q = p;
    operands o = make_operands(b, p, 1);
    ql_plan *plan = make_plan(b->ctx, &p), *other;
    void *packed = pack_operands(b, plan, &o);
    q.scale = QL_F16;
    other = make_plan(b->ctx, &q);
    assert_int_equal(ql_plan_packed(plan), ql_plan_packed(other));
    assert_refused(ql_check_weight(b->ctx, other, packed), QL_MISMATCH, "dtype of scales");
    ql_plan_free(other);
    ql_plan_free(plan);
}

/* ---- memory that runs out ------------------------------------------------------------------------------------------------ */

#ifdef QL_FAULTS
static ql_status plan_pack_and_unpack(backend *b, const operands *o, const ql_weight *weight, void *packed) {
    ql_plan *plan;
    ql_status status = ql_plan_make(b->ctx, &o->p, &plan);
    if (status == QL_OK) status = ql_pack_weight(b->ctx, plan, weight, packed);
    if (status == QL_OK) status = ql_unpack_weight(b->ctx, plan, packed, weight);
    ql_plan_free(plan);
    return status;
}

static void every_failed_allocation_is_reported(void **state) {
    backend *b = *state;
    packing t = begin_packing(b);
    ql_weight device = weight_on_device(b, &t.o.weight);
    ql_status status = QL_NOMEM;
    for (long n = 1; status != QL_OK; n++) {
        char setting[64];
        snprintf(setting, sizeof setting, "malloc:%ld", n);
        ql_fault_set(setting);
        status = plan_pack_and_unpack(b, &t.o, &device, t.packed);
        ql_fault_set(NULL);
        if (status != QL_OK && status != QL_NOMEM) fail_msg("%s: %s", setting, ql_last_error());
        assert_true(n < 100 && (n > 3 || status == QL_NOMEM)); /* the plan, and the order twice */
    }
    ql_plan_free(t.plan);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_name_the_violated_constraint),
        cmocka_unit_test(sections_lie_where_their_sizes_say),
        cmocka_unit_test(indices_beyond_31_bits),
        cmocka_unit_test(packing_refuses_numbers_that_do_not_fit),
        cmocka_unit_test(packing_refuses_matrices_that_do_not_fit),
        cmocka_unit_test(damage_is_found_wherever_it_is),
        cmocka_unit_test(damage_by_exchange_is_found),
        cmocka_unit_test(weight_of_another_product_is_refused),
#ifdef QL_FAULTS
        cmocka_unit_test(every_failed_allocation_is_reported),
#endif
    };
    return run_on_backends(tests);
}

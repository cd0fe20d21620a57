/* bitsandbytes NF4: known bytes, the dynamic map by its definition, blocks over the ends of rows, directories that contradict themselves. */
#include "tests/layout_dir.h"

#include <math.h>

#include "formats/json.h"
#include "host/mat.h"
#include "host/nf4.h"
#include "host/rng.h"

static const layout_scheme nf4 = {
    .layout = LAYOUT_BITSANDBYTES, .type = CODE_NF4, .bits = 4, .group = 64, .symmetric = true, .dtype = QL_BF16};

/* Codes of all values and block maxima of different sizes, already as a file holds them. */
static qmodule make_module(int64_t n, int64_t k) {
    qmodule q = layout_module(n, k, 4, 64, true);
    q.type = CODE_NF4;
    q.zero = NULL;
    assert_ok(ql_take(layout_arena, (size_t)qmodule_scales(&q), sizeof *q.scale, &q.scale));
    for (int64_t b = 0; b < qmodule_scales(&q); b++)
        q.scale[b] = (float)(0.01 + 0.1 * ql_random_uniform(5, (uint64_t)b));
    assert_ok(qmodule_nest(&q, layout_arena));
    return q;
}

static void assert_same_nf4(const qmodule *a, const qmodule *b) {
    size_t blocks = (size_t)qmodule_scales(a);
    assert_memory_equal(a->codes, b->codes, (size_t)(a->n * ql_packed_words(a->k, 4)) * sizeof *a->codes);
    assert_memory_equal(a->scale, b->scale, blocks * sizeof *a->scale);
    assert_non_null(b->absmax);
    assert_memory_equal(a->absmax, b->absmax, blocks);
    assert_memory_equal(a->nested, b->nested, ((blocks + 255) / 256 + 1) * sizeof *a->nested);
}

static void trap46_first_code_lies_in_the_high_half(void **state) {
    (void)state;
    qmodule q = make_module(8, 64);
    layout_tensors t;
    q.codes[0] = 0x21; /* inputs 0 and 1 of output 0 have the codes 1 and 2 */
    assert_ok(layout_encode(&nf4, &q, layout_arena, &t));
    const st_tensor *weight = &t.tensor[layout_index(&t, "weight")];
    assert_int_equal(((const uint8_t *)t.data[layout_index(&t, "weight")])[0], 0x12);
    assert_int_equal(weight->shape[0], 256);
    assert_int_equal(weight->shape[1], 1);
}

/* Built from the definition with a sort, in place of the closed form. */
static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void dynamic_map_follows_its_definition(void **state) {
    (void)state;
    double map[256] = {0, 1};
    int n = 2;
    for (int i = 0; i < 7; i++)
        for (int j = 0; j < 1 << i; j++) {
            double low = 0.1 + 0.9 * j / (1 << i), high = 0.1 + 0.9 * (j + 1) / (1 << i);
            map[n++] = pow(10, i - 6) * (low + high) / 2;
            map[n] = -map[n - 1];
            n++;
        }
    assert_int_equal(n, 256);
    qsort(map, 256, sizeof *map, ascending);
    qmodule q = make_module(8, 64);
    layout_tensors t;
    assert_ok(layout_encode(&nf4, &q, layout_arena, &t));
    const float *ours = t.data[layout_index(&t, "weight.nested_quant_map")];
    for (int i = 0; i < 256; i++) assert_true(fabs(ours[i] - map[i]) <= 1e-7 * fabs(map[i]));
    assert_true(ours[127] == 0 && ours[255] == 1 && ours[0] == -0.99296875f && ours[254] == 0.99296875f);
}

/* The restored maximum lies as near as the map allows: its largest gap is 0.9/64 between entries near 1, and 0.007 before 1. */
static void maxima_are_restored_within_the_map(void **state) {
    (void)state;
    for (int64_t k = 64; k <= 1024; k *= 4) {
        qmodule q = layout_module(72, k, 4, 64, true);
        q.type = CODE_NF4;
        int64_t blocks = qmodule_scales(&q);
        float *wanted;
        double mean = 0;
        assert_ok(ql_take(layout_arena, (size_t)blocks, sizeof *q.scale, &q.scale));
        assert_ok(ql_take(layout_arena, (size_t)blocks, sizeof *wanted, &wanted));
        for (int64_t b = 0; b < blocks; b++) {
            q.scale[b] = wanted[b] = (float)ql_random_uniform(6, (uint64_t)b);
            mean += (double)wanted[b] / (double)blocks;
        }
        assert_ok(qmodule_nest(&q, layout_arena));
        for (int64_t b = 0; b < blocks; b++) {
            double most = 0;
            for (int64_t i = b / 256 * 256; i < blocks && i < b / 256 * 256 + 256; i++)
                most = fmax(most, fabs(wanted[i] - mean));
            if (!(fabs(q.scale[b] - wanted[b]) <= most * 0.9 / 128 + 1e-6)) fail_msg("block %d", (int)b);
        }
    }
}

static void equal_maxima_are_restored_exactly(void **state) {
    (void)state;
    qmodule q = layout_module(8, 128, 4, 64, true);
    q.type = CODE_NF4;
    for (int b = 0; b < 16; b++) q.scale[b] = 0.25f;
    assert_ok(qmodule_nest(&q, layout_arena));
    for (int b = 0; b < 16; b++) assert_true(q.scale[b] == 0.25f);
}

/* K % 64 != 0: blocks are those of the flat order, not of rows. */
static void trap47_blocks_run_over_the_ends_of_rows(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{8, 64}, {6, 100}, {40, 96}, {3, 2}, {300, 130}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t n = shapes[i][0], k = shapes[i][1];
        qmodule q = make_module(n, k), back;
        layout_tensors t;
        float *w;
        layout_write(&nf4, &q, &t);
        assert_ok(layout_read_back(n, k, &back));
        assert_same_nf4(&q, &back);
        const float *table = t.data[layout_index(&t, "weight.quant_map")],
                    *map = t.data[layout_index(&t, "weight.nested_quant_map")],
                    *nested = t.data[layout_index(&t, "weight.nested_absmax")];
        const uint8_t *weight = t.data[layout_index(&t, "weight")], *absmax = t.data[layout_index(&t, "weight.absmax")];
        const char *text = t.data[layout_index(&t, "weight.quant_state.bitsandbytes__nf4")];
        float offset = strtof(strstr(text, "nested_offset\": ") + 16, NULL);
        assert_ok(ql_take(layout_arena, (size_t)(n * k), sizeof *w, &w));
        qmodule_dequantize(&back, w);
        for (int64_t e = 0; e < n * k; e++) {
            int code = e % 2 ? weight[e / 2] & 15 : weight[e / 2] >> 4;
            volatile float product = map[absmax[e / 64]] * nested[e / 64 / 256]; /* rounded, then added */
            if (w[e] != table[code] * (product + offset)) fail_msg("element %d of [%d][%d]", (int)e, (int)n, (int)k);
        }
    }
}

static void trap46_state_says_what_readers_ask(void **state) {
    (void)state;
    qmodule q = make_module(6, 100);
    layout_tensors t;
    uint64_t size = 0;
    assert_ok(layout_encode(&nf4, &q, layout_arena, &t));
    int which = layout_index(&t, "weight.quant_state.bitsandbytes__nf4");
    json_t *json = json_loadb(t.data[which], t.tensor[which].size, 0, NULL);
    assert_non_null(json);
    assert_int_equal(json_object_size(json), 7);
    assert_string_equal(json_string_value(json_object_get(json, "dtype")), "bfloat16");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(json, "shape"), 0)), 6);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(json, "shape"), 1)), 100);
    assert_true((float)json_real_value(json_object_get(json, "nested_offset")) == q.nested[1]); /* all digits */
    json_decref(json);
    for (int i = 0; i < t.count; i++) size += t.tensor[i].size;
    assert_int_equal(size % 8, 0); /* what follows lies on whole words */
}

static void config_says_what_loaders_ask(void **state) {
    (void)state;
    json_t *config;
    assert_ok(layout_config(&nf4, &config));
    assert_int_equal(json_object_size(config), 13);
    assert_string_equal(json_string_value(json_object_get(config, "bnb_4bit_quant_type")), "nf4");
    assert_true(json_is_true(json_object_get(config, "bnb_4bit_use_double_quant")));
    assert_true(json_is_real(json_object_get(config, "llm_int8_threshold"))); /* 6.0, not 6 */
    assert_string_equal(json_string_value(json_array_get(json_object_get(config, "llm_int8_skip_modules"), 0)),
                        "lm_head");
    json_decref(config);
}

static void what_cannot_be_held_is_refused(void **state) {
    (void)state;
    layout_scheme integers = nf4;
    layout_tensors t;
    qmodule q = make_module(8, 64),
            odd = {.name = LAYOUT_MODULE, .type = CODE_NF4, .n = 3, .k = 3, .bits = 4, .group = 64};
    integers.type = CODE_INT;
    assert_refused(layout_check(&integers), QL_MISMATCH, "NF4 alone");
    assert_refused(layout_encode(&nf4, &odd, layout_arena, &t), QL_MISMATCH, "is odd");
    q.absmax = NULL;
    assert_refused(layout_encode(&nf4, &q, layout_arena, &t), QL_MISMATCH, "not quantized with this file's map");
}

static void edit_state(layout_tensors *t, const char *from, const char *to) {
    char *text = t->data[layout_index(t, "weight.quant_state.bitsandbytes__nf4")], *at = strstr(text, from);
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
}

static void trap48_states_that_lie_are_named(void **state) {
    (void)state;
    static const char *const edits[][3] = {
        {"[8, 64]", "[64, 8]", "its shape is not [8, 64]"},
        {"\"nf4\"", "\"fp4\"", "quant_type \"fp4\""},
        {"blocksize\": 64", "blocksize\": 32", "blocks of 32"},
        {"nested_offset", "nested_ofsett", "nested_ofsett"},
        {"{", "[", "no JSON object"},
    };
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        qmodule q = make_module(8, 64), back;
        layout_tensors t;
        layout_write(&nf4, &q, &t);
        edit_state(&t, edits[i][0], edits[i][1]);
        layout_save_tensors(&t);
        assert_refused(layout_read_back(8, 64, &back), QL_FORMAT, edits[i][2]);
    }
}

static void trap13_configs_that_lie_or_cannot_be_read(void **state) {
    (void)state;
    static const layout_lie lies[] = {
#define NF4 "{\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true, \"bnb_4bit_use_double_quant\": true, "
        {NF4 "\"bnb_4bit_quant_type\": \"fp4\"}", QL_MISMATCH, "only NF4 with double quantization"},
        {"{\"quant_method\": \"bitsandbytes\", \"load_in_8bit\": true}", QL_MISMATCH, "only NF4"},
        {"{\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true, \"bnb_4bit_quant_type\": \"nf4\"}", QL_MISMATCH,
         "double quantization"},
        {NF4 "\"bnb_4bit_quant_type\": \"nf4\", \"bnb_4bit_quant_storage\": \"bfloat16\"}", QL_MISMATCH, "uint8"},
        {NF4 "\"bnb_4bit_quant_type\": 4}", QL_FORMAT, "bnb_4bit_quant_type"},
        {NF4 "\"bnb_4bit_quant_type\": \"nf4\", \"llm_int8_skip_modules\": [\"q_proj\"]}", QL_FORMAT,
         "the config says that it is not"},
        {NF4 "\"bnb_4bit_quant_type\": \"nf4\", \"llm_int8_skip_modules\": 1}", QL_FORMAT, "must be a list"},
        {"{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 64, \"sym\": true, \"desc_act\": false}", QL_FORMAT,
         "q_proj.qweight: missing"},
#undef NF4
    };
    qmodule q = make_module(8, 64);
    layout_tensors t;
    layout_write(&nf4, &q, &t);
    layout_refuse_lies(lies, sizeof lies / sizeof *lies, 8, 64);
}

static void missing_or_wrong_tensors_are_named(void **state) {
    (void)state;
    static const char *const suffixes[] = {"weight.quant_map",        "weight.nested_absmax",
                                           "weight.nested_quant_map", "weight",
                                           "weight.absmax",           "weight.quant_state.bitsandbytes__nf4"};
    for (int i = 0; i < 6; i++) {
        qmodule q = make_module(8, 64), back;
        layout_tensors t;
        char words[96];
        layout_write(&nf4, &q, &t);
        snprintf(words, sizeof words, "q_proj.%s: missing", suffixes[i]);
        layout_drop(&t, suffixes[i]);
        layout_save_tensors(&t);
        assert_refused(layout_read_back(8, 64, &back), QL_FORMAT, words);
    }
    qmodule q = make_module(8, 64), back;
    layout_tensors t;
    layout_write(&nf4, &q, &t);
    ((float *)t.data[layout_index(&t, "weight.quant_map")])[3] = -0.3f;
    layout_save_tensors(&t);
    assert_refused(layout_read_back(8, 64, &back), QL_FORMAT, "entry 3 is -0.3");
    layout_write(&nf4, &q, &t);
    ((float *)t.data[layout_index(&t, "weight.nested_absmax")])[0] = INFINITY;
    layout_save_tensors(&t);
    assert_refused(layout_read_back(8, 64, &back), QL_FORMAT, "the maximum of block");
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, layout_setup, layout_teardown)
    const struct CMUnitTest tests[] = {
        TEST(trap46_first_code_lies_in_the_high_half),
        TEST(dynamic_map_follows_its_definition),
        TEST(maxima_are_restored_within_the_map),
        TEST(equal_maxima_are_restored_exactly),
        TEST(trap47_blocks_run_over_the_ends_of_rows),
        TEST(trap46_state_says_what_readers_ask),
        TEST(config_says_what_loaders_ask),
        TEST(what_cannot_be_held_is_refused),
        TEST(trap48_states_that_lie_are_named),
        TEST(trap13_configs_that_lie_or_cannot_be_read),
        TEST(missing_or_wrong_tensors_are_named),
    };
    return cmocka_run_group_tests_name("layout_bitsandbytes", tests, NULL, NULL);
}

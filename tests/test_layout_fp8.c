/* FP8 files in blocks (quant_method "fp8"): where bytes and scales lie, and directories that contradict themselves. */
#include "tests/layout_dir.h"

#include "formats/json.h"
#include "host/mat.h"
#include "host/num.h"

static const layout_scheme blocks = {.layout = LAYOUT_FP8,
                                     .type = CODE_E4M3,
                                     .bits = 8,
                                     .group = FP8_BLOCK,
                                     .symmetric = true,
                                     .activations = ACTIVATIONS_TOKEN,
                                     .bytes = true};

/* Every byte but NaN, a scale of its own for every block. */
static qmodule make_module(int64_t n, int64_t k) {
    qmodule q = layout_module(n, k, 8, FP8_BLOCK, true);
    int64_t groups = ql_groups(k, FP8_BLOCK);
    uint8_t *codes = (uint8_t *)q.codes;
    q.type = CODE_E4M3;
    for (int64_t i = 0; i < n * k; i++)
        if ((codes[i] & 0x7f) == 0x7f) codes[i] = 0;
    for (int64_t r = 0; r < n; r++)
        for (int64_t g = 0; g < groups; g++)
            q.scale[r * groups + g] = 0.01f + 0.001f * (float)(r / FP8_BLOCK * groups + g);
    return q;
}

static void known_bytes(void **state) {
    (void)state;
    qmodule q = make_module(16, 16), back;
    layout_tensors t;
    float w[256];
    static const float values[] = {1.0f, 448.0f, 0x1p-9f, -0.0f, 0.0625f, 1.0625f};
    static const uint8_t bytes[] = {0x38, 0x7e, 0x01, 0x80, 0x18, 0x38};
    for (int i = 0; i < 6; i++) ((uint8_t *)q.codes)[i] = ql_f32_to_e4m3(values[i]);
    for (int i = 0; i < 16; i++) q.scale[i] = 1;
    layout_write(&blocks, &q, &t);
    assert_memory_equal(t.data[layout_index(&t, "weight")], bytes, sizeof bytes);
    assert_ok(layout_read_back(16, 16, &back));
    qmodule_dequantize(&back, w);
    for (int i = 0; i < 5; i++) assert_true(ql_f32_bits(w[i]) == ql_f32_bits(values[i]));
}

static void trap25_scale_inv_is_multiplied(void **state) {
    (void)state;
    qmodule q = make_module(272, 144), back;
    layout_tensors t;
    float *w;
    layout_write(&blocks, &q, &t);
    const float *scale = t.data[layout_index(&t, "weight_scale_inv")];
    const uint8_t *weight = t.data[layout_index(&t, "weight")];
    assert_string_equal(t.tensor[0].dtype_name, "F8_E4M3");
    assert_int_equal(t.tensor[1].shape[0], 3);
    assert_int_equal(t.tensor[1].shape[1], 2);
    assert_ok(layout_read_back(272, 144, &back));
    layout_assert_same(&q, &back);
    assert_ok(ql_take(layout_arena, 272 * 144, sizeof *w, &w));
    qmodule_dequantize(&back, w);
    for (int n = 0; n < 272; n++)
        for (int k = 0; k < 144; k++) {
            float expected = ql_e4m3_to_f32(weight[n * 144 + k]) * scale[n / 128 * 2 + k / 128];
            if (w[n * 144 + k] != expected) fail_msg("[%d, %d]", n, k);
        }
}

static void config_says_what_loaders_ask(void **state) {
    (void)state;
    static const char *const skipped[] = {"model.layers.1.mlp.gate_proj", NULL};
    layout_scheme scheme = blocks;
    json_t *config;
    scheme.skipped = skipped;
    assert_ok(layout_config(&scheme, &config));
    assert_string_equal(json_string_value(json_object_get(config, "quant_method")), "fp8");
    assert_string_equal(json_string_value(json_object_get(config, "activation_scheme")), "dynamic");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(config, "weight_block_size"), 1)), 128);
    const json_t *list = json_object_get(config, "modules_to_not_convert");
    assert_int_equal(json_array_size(list), 3);
    assert_string_equal(json_string_value(json_array_get(list, 2)), "model.layers.1.mlp.gate_up_proj");
    json_decref(config);
}

static void what_cannot_be_held_is_refused(void **state) {
    (void)state;
    layout_scheme rows = blocks, integers = blocks, fixed = blocks;
    layout_tensors t;
    qmodule odd = make_module(24, 16);
    rows.group = GROUP_ROW;
    integers.type = CODE_INT;
    fixed.activations = ACTIVATIONS_STATIC;
    assert_refused(layout_check(&rows), QL_MISMATCH, "blocks of 128 x 128");
    assert_refused(layout_check(&integers), QL_MISMATCH, "E4M3");
    assert_refused(layout_check(&fixed), QL_MISMATCH, "no input scales");
    assert_refused(layout_encode(&blocks, &odd, layout_arena, &t), QL_MISMATCH, "N = 24 is not a multiple of 16");
}

static void trap13_directories_that_lie_or_cannot_be_read(void **state) {
    (void)state;
    static const layout_lie lies[] = {
        {"{\"quant_method\": \"fp8\"}", QL_MISMATCH, "weight_block_size"},
        {"{\"quant_method\": \"fp8\", \"weight_block_size\": [64, 128]}", QL_MISMATCH, "weight_block_size"},
        {"{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128], \"fmt\": \"e5m2\"}", QL_MISMATCH, "e4m3"},
        {"{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128], \"modules_to_not_convert\": [\"q_proj\"]}",
         QL_FORMAT, "says that it is not"},
        {"{\"quant_method\": \"fp8\", \"weight_block_size\": 128}", QL_MISMATCH, "weight_block_size"},
        {"{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128], \"activation_scheme\": \"static\"}",
         QL_MISMATCH, "dynamic activations"},
        {"{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 16}", QL_FORMAT, "q_proj.qweight: missing"},
    };
    qmodule q = make_module(32, 16), back;
    layout_tensors t;
    layout_write(&blocks, &q, &t);
    layout_refuse_lies(lies, sizeof lies / sizeof *lies, 32, 16);
    layout_write(&blocks, &q, &t);
    assert_refused(layout_read_back(32, 32, &back), QL_FORMAT, "q_proj.weight: is [32, 16]");
    ((float *)t.data[1])[0] = 0;
    layout_save_tensors(&t);
    assert_refused(layout_read_back(32, 16, &back), QL_FORMAT, "weight_scale_inv: output 0, group 0 has the scale 0");
    ((uint8_t *)t.data[0])[3] = 0xff;
    layout_save_tensors(&t);
    assert_refused(layout_read_back(32, 16, &back), QL_FORMAT, "q_proj.weight: [0, 3] is NaN");
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, layout_setup, layout_teardown)
    const struct CMUnitTest tests[] = {
        TEST(known_bytes),
        TEST(trap25_scale_inv_is_multiplied),
        TEST(config_says_what_loaders_ask),
        TEST(what_cannot_be_held_is_refused),
        TEST(trap13_directories_that_lie_or_cannot_be_read),
    };
    return cmocka_run_group_tests_name("layout_fp8", tests, NULL, NULL);
}

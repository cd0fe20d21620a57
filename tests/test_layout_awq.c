/* AWQ files: known words, element by element reading of what the encoder wrote, bad directories. */
#include "tests/layout_dir.h"

#include "formats/json.h"

static layout_scheme scheme_of(const qmodule *q) {
    return (layout_scheme){.layout = LAYOUT_AWQ, .bits = 4, .group = q->group == q->k ? -1 : q->group};
}

static void trap16_columns_0_to_7_give_the_known_word(void **state) {
    (void)state;
    qmodule q = layout_module(16, 64, 4, 32, true);
    layout_scheme scheme = scheme_of(&q);
    layout_tensors t;
    memset(q.codes, 0, 16 * 8 * sizeof *q.codes);
    for (uint32_t n = 0; n < 8; n++) q.codes[n * 8] = n << 4; /* input 1 of outputs 0 .. 7 */
    assert_ok(layout_encode(&scheme, &q, layout_arena, &t));
    const uint32_t *qweight = t.data[layout_index(&t, "qweight")];
    assert_int_equal(t.tensor[0].shape[0], 64);
    assert_int_equal(t.tensor[0].shape[1], 2);
    assert_int_equal(qweight[1 * 2 + 0], 0x75316420);
    assert_int_equal(qweight[1 * 2 + 1], 0);
    assert_int_equal(qweight[0], 0);
}

static void trap17_zero_points_are_stored_as_they_are(void **state) {
    (void)state;
    qmodule q = layout_module(16, 64, 4, 32, true);
    layout_scheme scheme = scheme_of(&q);
    layout_tensors t;
    for (int n = 0; n < 8; n++) q.zero[n * 2] = (uint8_t)n; /* 0 is allowed here */
    assert_ok(layout_encode(&scheme, &q, layout_arena, &t));
    const uint32_t *qzeros = t.data[layout_index(&t, "qzeros")];
    assert_int_equal(qzeros[0], 0x75316420);
    assert_int_equal(qzeros[1], 0x88888888);
    assert_int_equal(qzeros[2], 0x88888888);
}

/* The kernels' own order of unpacking, from the other side: output 8c + j lies in lane reverse[j]. */
static void every_element_lies_where_the_format_says(void **state) {
    (void)state;
    static const int reverse[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    qmodule q = layout_module(24, 96, 4, 32, false);
    layout_scheme scheme = scheme_of(&q);
    layout_tensors t;
    assert_ok(layout_encode(&scheme, &q, layout_arena, &t));
    const uint32_t *qweight = t.data[0], *qzeros = t.data[1];
    for (int n = 0; n < 24; n++) {
        for (int k = 0; k < 96; k++)
            assert_int_equal(qweight[k * 3 + n / 8] >> 4 * reverse[n % 8] & 15, layout_code(&q, n, k));
        for (int g = 0; g < 3; g++)
            assert_int_equal(qzeros[g * 3 + n / 8] >> 4 * reverse[n % 8] & 15, q.zero[n * 3 + g]);
    }
}

static void round_trip_of_all_shapes(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{8, 32, 32}, {24, 96, 32}, {64, 128, 128}, {8, 100, 100}, {16, 20, 10}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        qmodule q = layout_module(shapes[i][0], shapes[i][1], 4, shapes[i][2], false), back;
        layout_scheme scheme = scheme_of(&q);
        layout_tensors t;
        layout_write(&scheme, &q, &t);
        assert_ok(layout_read_back(q.n, q.k, &back));
        layout_assert_same(&q, &back);
        layout_assert_weights(&q, &back);
    }
}

static void what_awq_cannot_hold_is_refused(void **state) {
    (void)state;
    layout_tensors t;
    json_t *config;
    qmodule q = layout_module(16, 64, 4, 32, true), three = layout_module(16, 64, 3, 32, true),
            odd = layout_module(12, 64, 4, 32, true);
    layout_scheme scheme = scheme_of(&q);
    assert_refused(layout_encode(&scheme, &three, layout_arena, &t), QL_MISMATCH, "AWQ files hold 4");
    assert_refused(layout_encode(&scheme, &odd, layout_arena, &t), QL_MISMATCH, "N = 12 is not a multiple of 8");
    int32_t g_idx[64];
    for (int k = 0; k < 64; k++) g_idx[k] = k % 2;
    q.g_idx = g_idx;
    assert_refused(layout_encode(&scheme, &q, layout_arena, &t), QL_MISMATCH, "no g_idx");
    const layout_override one = {LAYOUT_MODULE, 8, 32};
    scheme.overrides = &one;
    scheme.n_overrides = 1;
    assert_refused(layout_config(&scheme, &config), QL_MISMATCH, "one kind of grid");
}

/* 0.1 is no FP16 number: rounding it here would change every weight of the group without anybody noticing. */
static void trap12_scale_that_f16_rounds_is_refused(void **state) {
    (void)state;
    static const float bad[] = {0.1f, 0.0f, -1.0f, 70000.0f};
    for (int i = 0; i < 4; i++) {
        qmodule q = layout_module(16, 64, 4, 32, true);
        layout_scheme scheme = scheme_of(&q);
        layout_tensors t;
        q.scale[5] = bad[i];
        assert_refused(layout_encode(&scheme, &q, layout_arena, &t), QL_MISMATCH, "not a positive FP16 number");
    }
}

static void config_says_what_loaders_ask(void **state) {
    (void)state;
    static const char *const skipped[] = {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj", NULL};
    layout_scheme scheme = {.layout = LAYOUT_AWQ, .bits = 4, .group = 128, .skipped = skipped};
    json_t *config;
    assert_ok(layout_config(&scheme, &config));
    assert_string_equal(json_string_value(json_object_get(config, "quant_method")), "awq");
    assert_string_equal(json_string_value(json_object_get(config, "version")), "gemm");
    assert_int_equal(json_integer_value(json_object_get(config, "bits")), 4);
    assert_int_equal(json_integer_value(json_object_get(config, "group_size")), 128);
    assert_true(json_is_true(json_object_get(config, "zero_point")));
    const json_t *list = json_object_get(config, "modules_to_not_convert");
    assert_int_equal(json_array_size(list), 3);
    assert_string_equal(json_string_value(json_array_get(list, 1)), "model.layers.1.self_attn.qkv_proj");
    layout_scheme read = {.layout = LAYOUT_AWQ, .bits = 4, .group = 128, .ignored = list};
    layout_rule rule;
    assert_ok(layout_rule_of(&read, "model.layers.1.mlp.down_proj", &rule));
    assert_true(rule.skipped);
    json_decref(config);
}

static void trap20_full_names_hit_no_other_module(void **state) {
    (void)state;
    json_t *list = json_pack("[s, s]", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj");
    layout_scheme read = {.layout = LAYOUT_AWQ, .bits = 4, .group = 128, .ignored = list};
    static const char *const others[] = {"model.layers.10.mlp.down_proj", "model.layers.11.self_attn.q_proj",
                                         "model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj"};
    layout_rule rule;
    for (int i = 0; i < 4; i++) {
        assert_ok(layout_rule_of(&read, others[i], &rule));
        assert_false(rule.skipped);
    }
    json_decref(list);
}

/* ---- directories that contradict themselves --------------------------------------------------------------------------------- */

static void refuse_quantization(const char *text, ql_status status, const char *words) {
    qmodule q = layout_module(16, 64, 4, 32, false), back;
    layout_scheme scheme = scheme_of(&q);
    layout_tensors t;
    layout_write(&scheme, &q, &t);
    layout_save_quantization(json_loads(text, 0, NULL));
    assert_refused(layout_read_back(16, 64, &back), status, words);
}

static void trap13_configs_that_lie_or_cannot_be_read(void **state) {
    (void)state;
    refuse_quantization("{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 64}", QL_FORMAT,
                        "q_proj.qzeros: is [2, 2]");
    refuse_quantization("{\"quant_method\": \"awq\", \"bits\": 8, \"group_size\": 32}", QL_FORMAT, "bits = 8");
    refuse_quantization("{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 0}", QL_FORMAT, "group_size = 0");
    refuse_quantization("{\"quant_method\": \"awq\", \"bits\": 4}", QL_FORMAT, "group_size");
    refuse_quantization("{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 32, \"version\": \"gemv\"}",
                        QL_MISMATCH, "only \"gemm\"");
    refuse_quantization("{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 32, \"zero_point\": false}",
                        QL_MISMATCH, "without zero points");
    refuse_quantization("{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 32, "
                        "\"modules_to_not_convert\": [\"q_proj\"]}",
                        QL_FORMAT, "the config says that it is not");
    refuse_quantization("{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 32, "
                        "\"modules_to_not_convert\": [1]}",
                        QL_FORMAT, "modules_to_not_convert");
    refuse_quantization("{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 32, \"modules_to_not_convert\": 1}",
                        QL_FORMAT, "must be a list");
    refuse_quantization("{\"quant_method\": \"exl3\"}", QL_MISMATCH, "quant_method \"exl3\"");
}

static void missing_or_wrong_tensors_are_named(void **state) {
    (void)state;
    static const char *const suffixes[] = {"qweight", "qzeros", "scales"};
    for (int i = 0; i < 3; i++) {
        qmodule q = layout_module(16, 64, 4, 32, false), back;
        layout_scheme scheme = scheme_of(&q);
        layout_tensors t;
        char words[64];
        layout_write(&scheme, &q, &t);
        snprintf(words, sizeof words, "q_proj.%s: ", suffixes[i]);
        int which = layout_index(&t, suffixes[i]);
        layout_tensors changed = t;
        changed.tensor[which].dtype = i == 2 ? QL_I16 : QL_F32; /* same size */
        layout_save_tensors(&changed);
        assert_refused(layout_read_back(16, 64, &back), QL_FORMAT, words);
        layout_drop(&t, suffixes[i]);
        layout_save_tensors(&t);
        assert_refused(layout_read_back(16, 64, &back), QL_FORMAT, words);
    }
}

static void gptq_tensors_under_an_awq_config_are_recognized(void **state) {
    (void)state;
    qmodule q = layout_module(32, 64, 4, 32, true), back;
    layout_scheme awq = scheme_of(&q), gptq = {.bits = 4, .group = 32, .version = 1};
    layout_tensors t;
    layout_write(&gptq, &q, &t);
    json_t *config;
    assert_ok(layout_config(&awq, &config));
    layout_save_quantization(config);
    assert_refused(layout_read_back(32, 64, &back), QL_FORMAT, "this would be GPTQ");
}

static void bad_scale_is_named(void **state) {
    (void)state;
    qmodule q = layout_module(16, 64, 4, 32, false), back;
    layout_scheme scheme = scheme_of(&q);
    layout_tensors t;
    layout_write(&scheme, &q, &t);
    ((uint16_t *)t.data[2])[16 + 3] = 0x7c00;
    layout_save_tensors(&t);
    assert_refused(layout_read_back(16, 64, &back), QL_FORMAT, "scales: output 3, group 1 has the scale inf");
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, layout_setup, layout_teardown)
    const struct CMUnitTest tests[] = {
        TEST(trap16_columns_0_to_7_give_the_known_word),
        TEST(trap17_zero_points_are_stored_as_they_are),
        TEST(every_element_lies_where_the_format_says),
        TEST(round_trip_of_all_shapes),
        TEST(what_awq_cannot_hold_is_refused),
        TEST(trap12_scale_that_f16_rounds_is_refused),
        TEST(config_says_what_loaders_ask),
        TEST(trap20_full_names_hit_no_other_module),
        TEST(trap13_configs_that_lie_or_cannot_be_read),
        TEST(missing_or_wrong_tensors_are_named),
        TEST(gptq_tensors_under_an_awq_config_are_recognized),
        TEST(bad_scale_is_named),
    };
    return cmocka_run_group_tests_name("layout_awq", tests, NULL, NULL);
}

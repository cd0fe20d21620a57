/* compressed-tensors: known words, hand-made bytes, every scheme there and back, directories that contradict themselves. */
#include "tests/layout_dir.h"

#include <math.h>

#include "formats/json.h"
#include "host/mat.h"
#include "host/num.h"
#include "host/rng.h"

static layout_scheme packed(int bits, int64_t group, bool symmetric) {
    return (layout_scheme){.layout = LAYOUT_COMPRESSED, .bits = bits, .group = group, .symmetric = symmetric};
}

static layout_scheme bytes(code_type type, int64_t group, activation_mode activations) {
    return (layout_scheme){.layout = LAYOUT_COMPRESSED,
                           .type = type,
                           .bits = 8,
                           .group = group,
                           .symmetric = true,
                           .activations = activations,
                           .bytes = true};
}

/* ---- packed: where everything lies ------------------------------------------------------------------------------------------- */

static void known_words(void **state) {
    (void)state;
    qmodule q = layout_module(8, 8, 4, 8, true);
    layout_scheme scheme = packed(4, GROUP_ROW, true);
    layout_tensors t;
    q.codes[3] = 0x76543210; /* signed -8 .. -1: with 8 added 0 .. 7 */
    assert_ok(layout_encode(&scheme, &q, layout_arena, &t));
    assert_int_equal(((const uint32_t *)t.data[layout_index(&t, "weight_packed")])[3], 0x76543210);
    const int64_t *shape = t.data[layout_index(&t, "weight_shape")];
    assert_int_equal(shape[0], 8);
    assert_int_equal(shape[1], 8);
    qmodule wide = layout_module(8, 8, 8, 8, true);
    layout_scheme eight = packed(8, GROUP_ROW, true);
    wide.codes[2] = 0xFF020100;
    assert_ok(layout_encode(&eight, &wide, layout_arena, &t));
    assert_int_equal(((const uint32_t *)t.data[0])[2], 0xFF020100);
}

static void trap22_zero_points_run_along_outputs(void **state) {
    (void)state;
    qmodule q = layout_module(16, 64, 4, 32, false);
    layout_scheme scheme = packed(4, 32, false);
    layout_tensors t;
    for (int n = 0; n < 8; n++) q.zero[n * 2 + 1] = (uint8_t)n; /* group 1 of outputs 0 .. 7 */
    assert_ok(layout_encode(&scheme, &q, layout_arena, &t));
    int zeros = layout_index(&t, "weight_zero_point");
    assert_int_equal(t.tensor[zeros].shape[0], 2);
    assert_int_equal(t.tensor[zeros].shape[1], 2);
    assert_int_equal(((const uint32_t *)t.data[zeros])[0 * 2 + 1], 0x76543210);
}

static void trap22_symmetric_has_no_zero_points(void **state) {
    (void)state;
    qmodule q = layout_module(16, 64, 4, 32, true), back;
    layout_scheme scheme = packed(4, 32, true), asymmetric = packed(4, 32, false);
    layout_tensors t;
    assert_ok(layout_encode(&scheme, &q, layout_arena, &t));
    assert_int_equal(t.count, 3);
    layout_write(&asymmetric, &q, &t); /* with zero points, all of them 8 */
    json_t *config;
    assert_ok(layout_config(&scheme, &config));
    layout_save_quantization(config);
    assert_refused(layout_read_back(16, 64, &back), QL_FORMAT, "weight_zero_point: is there, but the config says");
    q.zero[5] = 7;
    assert_refused(layout_encode(&scheme, &q, layout_arena, &t), QL_MISMATCH, "has the zero point 7");
}

/* Zero points 0 .. 15 as they are: a packer that takes them for signed ones clamps all above 7. */
static void trap21_all_zero_points_survive(void **state) {
    (void)state;
    qmodule q = layout_module(16, 64, 4, 32, false), back;
    layout_scheme scheme = packed(4, 32, false);
    layout_tensors t;
    for (int n = 0; n < 16; n++) q.zero[2 * n] = (uint8_t)n;
    layout_write(&scheme, &q, &t);
    assert_ok(layout_read_back(16, 64, &back));
    layout_assert_same(&q, &back);
}

/* By the format's own formula, with signed codes and zero points as the library's documentation has them. */
static void packed_weights_follow_the_formula(void **state) {
    (void)state;
    static const int widths[] = {4, 8};
    for (int i = 0; i < 4; i++) {
        int bits = widths[i % 2], middle = 1 << (bits - 1), lanes = 32 / bits;
        qmodule q = layout_module(16, 64, bits, 32, i < 2), back;
        layout_scheme scheme = packed(bits, 32, i < 2);
        layout_tensors t;
        float *w;
        layout_write(&scheme, &q, &t);
        assert_ok(layout_read_back(16, 64, &back));
        assert_ok(ql_take(layout_arena, 16 * 64, sizeof *w, &w));
        qmodule_dequantize(&back, w);
        const uint32_t *words = t.data[0], *zeros = i < 2 ? NULL : t.data[layout_index(&t, "weight_zero_point")];
        const uint16_t *scales = t.data[layout_index(&t, "weight_scale")];
        for (int n = 0; n < 16; n++)
            for (int k = 0; k < 64; k++) {
                int u = (int)(words[n * (64 / lanes) + k / lanes] >> k % lanes * bits & ((1u << bits) - 1));
                int zu = zeros ? (int)(zeros[n / lanes * 2 + k / 32] >> n % lanes * bits & ((1u << bits) - 1)) : middle;
                float expected = (float)((u - middle) - (zu - middle)) * ql_f16_to_f32(scales[n * 2 + k / 32]);
                if (w[n * 64 + k] != expected) fail_msg("%d bits: [%d, %d]", bits, n, k);
            }
    }
}

static void packed_round_trips(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{8, 32, 32}, {24, 96, 32}, {64, 256, 128}, {40, 72, 72}, {16, 40, 8}};
    for (int i = 0; i < 20; i++) {
        const int64_t *s = shapes[i % 5];
        int bits = i / 5 % 2 ? 8 : 4;
        bool symmetric = i >= 10;
        qmodule q = layout_module(s[0], s[1], bits, s[2], symmetric), back;
        layout_scheme scheme = packed(bits, s[2] == s[1] ? GROUP_ROW : s[2], symmetric);
        layout_tensors t;
        layout_write(&scheme, &q, &t);
        assert_ok(layout_read_back(q.n, q.k, &back));
        layout_assert_same(&q, &back);
        layout_assert_weights(&q, &back);
    }
}

static void trap10_act_order_keeps_the_group_of_every_input(void **state) {
    (void)state;
    qmodule q = layout_module(16, 64, 4, 32, true), back;
    layout_scheme scheme = packed(4, 32, true);
    layout_tensors t;
    int32_t g_idx[64];
    for (int k = 0; k < 64; k++) g_idx[k] = k % 2;
    q.g_idx = g_idx;
    assert_refused(layout_encode(&scheme, &q, layout_arena, &t), QL_MISMATCH, "groups of its own");
    scheme.desc_act = true;
    layout_write(&scheme, &q, &t);
    assert_ok(layout_read_back(16, 64, &back));
    layout_assert_same(&q, &back);
    layout_drop(&t, "weight_g_idx");
    layout_save_tensors(&t);
    assert_refused(layout_read_back(16, 64, &back), QL_FORMAT, "weight_g_idx: missing");
}

/* ---- bytes -------------------------------------------------------------------------------------------------------------------- */

static qmodule byte_module(code_type type, int64_t n, int64_t k, int64_t group) {
    int64_t per_row = group == FP8_BLOCK ? FP8_BLOCK : k, groups = ql_groups(k, per_row);
    qmodule q = layout_module(n, k, 8, per_row, true);
    q.type = type;
    uint8_t *codes = (uint8_t *)q.codes;
    for (int64_t i = 0; type == CODE_E4M3 && i < n * k; i++)
        if ((codes[i] & 0x7f) == 0x7f) codes[i] = 0x7e;
    for (int64_t r = 0; r < n; r++) /* FP32 scales that FP16 cannot hold */
        for (int64_t g = 0; g < groups; g++) {
            int64_t shared = group == GROUP_TENSOR ? 0 : group == GROUP_ROW ? r : r / FP8_BLOCK * groups + g;
            q.scale[r * groups + g] = (float)(0.001 + 0.1 * ql_random_uniform(9, (uint64_t)shared));
        }
    return q;
}

static void bytes_round_trip(void **state) {
    (void)state;
    static const struct {
        code_type type;
        int64_t group, n, k;
    } cases[] = {
        {CODE_INT, GROUP_ROW, 32, 48},     {CODE_INT, GROUP_TENSOR, 32, 48}, {CODE_E4M3, GROUP_ROW, 48, 32},
        {CODE_E4M3, GROUP_TENSOR, 16, 64}, {CODE_E4M3, FP8_BLOCK, 256, 384}, {CODE_E4M3, FP8_BLOCK, 144, 272},
        {CODE_E4M3, FP8_BLOCK, 32, 16},
    };
    float input_scale = 0.0123f;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qmodule q = byte_module(cases[i].type, cases[i].n, cases[i].k, cases[i].group), back;
        layout_scheme scheme = bytes(cases[i].type, cases[i].group, i % 2 ? ACTIVATIONS_STATIC : ACTIVATIONS_TOKEN);
        layout_tensors t;
        if (i % 2) q.input_scale = &input_scale;
        layout_write(&scheme, &q, &t);
        assert_ok(layout_read_back(q.n, q.k, &back));
        layout_assert_same(&q, &back);
        assert_int_equal(back.type, cases[i].type);
        assert_int_equal(back.input_scale != NULL, i % 2);
        if (i % 2) assert_true(*back.input_scale == input_scale);
        if (q.type == CODE_INT) layout_assert_weights(&q, &back);
    }
}

static void signed_bytes_are_twos_complement(void **state) {
    (void)state;
    qmodule q = byte_module(CODE_INT, 16, 16, GROUP_ROW);
    layout_scheme scheme = bytes(CODE_INT, GROUP_ROW, ACTIVATIONS_TOKEN);
    layout_tensors t;
    uint8_t *codes = (uint8_t *)q.codes;
    codes[16] = 0, codes[17] = 127, codes[18] = 128, codes[19] = 255;
    assert_ok(layout_encode(&scheme, &q, layout_arena, &t));
    const int8_t *weight = t.data[layout_index(&t, "weight")];
    assert_string_equal(t.tensor[0].dtype_name, "I8");
    assert_int_equal(weight[16], -128);
    assert_int_equal(weight[17], -1);
    assert_int_equal(weight[18], 0);
    assert_int_equal(weight[19], 127);
}

/* Scale [n/128][k/128], multiplied: not the inverse that the name of other exporters' tensor promises. */
static void trap25_fp8_blocks_are_multiplied_by_their_scale(void **state) {
    (void)state;
    qmodule q = byte_module(CODE_E4M3, 144, 272, FP8_BLOCK), back;
    layout_scheme scheme = bytes(CODE_E4M3, FP8_BLOCK, ACTIVATIONS_TOKEN);
    layout_tensors t;
    float *w;
    layout_write(&scheme, &q, &t);
    const uint8_t *weight = t.data[0];
    const float *scale = t.data[1];
    assert_int_equal(t.tensor[1].shape[0], 2);
    assert_int_equal(t.tensor[1].shape[1], 3);
    assert_ok(layout_read_back(q.n, q.k, &back));
    assert_ok(ql_take(layout_arena, (size_t)(q.n * q.k), sizeof *w, &w));
    qmodule_dequantize(&back, w);
    for (int n = 0; n < 144; n++)
        for (int k = 0; k < 272; k++) {
            uint8_t b = weight[n * 272 + k];
            double value = b >> 3 & 15 ? ldexp(1 + (b & 7) / 8.0, (b >> 3 & 15) - 7) : ldexp((b & 7) / 8.0, -6);
            float expected = (float)((b & 0x80 ? -value : value) * (double)scale[n / 128 * 3 + k / 128]);
            if (w[n * 272 + k] != expected) fail_msg("[%d, %d]", n, k);
        }
}

static void trap24_nan_bytes_are_refused(void **state) {
    (void)state;
    layout_scheme scheme = bytes(CODE_E4M3, GROUP_ROW, ACTIVATIONS_16);
    for (int i = 0; i < 2; i++) {
        qmodule q = byte_module(CODE_E4M3, 16, 32, GROUP_ROW), back;
        layout_tensors t;
        layout_write(&scheme, &q, &t);
        ((uint8_t *)t.data[0])[2 * 32 + 5] = i ? 0xff : 0x7f;
        layout_save_tensors(&t);
        assert_refused(layout_read_back(16, 32, &back), QL_FORMAT, "q_proj.weight: [2, 5] is NaN");
        ((uint8_t *)q.codes)[7] = i ? 0xff : 0x7f;
        assert_refused(layout_encode(&scheme, &q, layout_arena, &t), QL_INTERNAL, "[0, 7] is NaN");
    }
}

static void scales_that_differ_inside_their_tile_are_refused(void **state) {
    (void)state;
    layout_tensors t;
    qmodule q = byte_module(CODE_E4M3, 144, 272, FP8_BLOCK), whole = byte_module(CODE_INT, 32, 32, GROUP_TENSOR);
    layout_scheme blocks = bytes(CODE_E4M3, FP8_BLOCK, ACTIVATIONS_TOKEN),
                  tensor = bytes(CODE_INT, GROUP_TENSOR, ACTIVATIONS_TOKEN);
    q.scale[140 * 3 + 2] *= 2;
    whole.scale[31] *= 2;
    assert_refused(layout_encode(&blocks, &q, layout_arena, &t), QL_MISMATCH, "output 140, group 2 has the scale");
    assert_refused(layout_encode(&tensor, &whole, layout_arena, &t), QL_MISMATCH, "output 31, group 0 has the scale");
}

static void static_activations_need_a_scale(void **state) {
    (void)state;
    layout_tensors t;
    qmodule q = byte_module(CODE_INT, 16, 16, GROUP_ROW), back;
    layout_scheme scheme = bytes(CODE_INT, GROUP_ROW, ACTIVATIONS_STATIC);
    assert_refused(layout_encode(&scheme, &q, layout_arena, &t), QL_MISMATCH, "need an input scale");
    float input_scale = 2;
    q.input_scale = &input_scale;
    layout_write(&scheme, &q, &t);
    layout_drop(&t, "input_scale");
    layout_save_tensors(&t);
    assert_refused(layout_read_back(16, 16, &back), QL_FORMAT, "q_proj.input_scale: missing");
}

/* Writers of scalars differ: [], [1] and [1, 1] are one number. */
static void tensor_scale_of_other_writers(void **state) {
    (void)state;
    for (int rank = 0; rank < 3; rank++) {
        qmodule q = byte_module(CODE_E4M3, 16, 32, GROUP_TENSOR), back;
        layout_scheme scheme = bytes(CODE_E4M3, GROUP_TENSOR, ACTIVATIONS_16);
        layout_tensors t;
        layout_write(&scheme, &q, &t);
        t.tensor[1].rank = rank;
        t.tensor[1].shape[0] = t.tensor[1].shape[1] = 1;
        layout_save_tensors(&t);
        assert_ok(layout_read_back(16, 32, &back));
        layout_assert_same(&q, &back);
    }
}

/* ---- what the format cannot say ------------------------------------------------------------------------------------------------ */

static void what_cannot_be_held_is_refused(void **state) {
    (void)state;
    layout_tensors t;
    qmodule three = layout_module(32, 32, 3, 32, true), odd = layout_module(12, 32, 4, 32, true),
            narrow = byte_module(CODE_INT, 24, 32, GROUP_ROW);
    layout_scheme four = packed(4, 32, true), eight = bytes(CODE_INT, GROUP_ROW, ACTIVATIONS_TOKEN);
    assert_refused(layout_encode(&four, &three, layout_arena, &t), QL_MISMATCH, "3 bits; compressed-tensors");
    assert_refused(layout_encode(&four, &odd, layout_arena, &t), QL_MISMATCH, "N = 12 is not a multiple of 8");
    assert_refused(layout_encode(&eight, &narrow, layout_arena, &t), QL_MISMATCH, "N = 24 is not a multiple of 16");
    const layout_scheme bad[] = {
        bytes(CODE_INT, 128, ACTIVATIONS_TOKEN),
        bytes(CODE_E4M3, 64, ACTIVATIONS_TOKEN),
        bytes(CODE_NF4, 64, ACTIVATIONS_16),
        packed(4, GROUP_TENSOR, true),
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (layout_check(&bad[i]) != QL_MISMATCH) fail_msg("scheme %zu is not refused", i);
    layout_scheme asymmetric = bytes(CODE_INT, GROUP_ROW, ACTIVATIONS_TOKEN);
    asymmetric.symmetric = false;
    assert_refused(layout_check(&asymmetric), QL_MISMATCH, "symmetric");
}

/* ---- config.json --------------------------------------------------------------------------------------------------------------- */

/* The ten keys that strict readers know, in every arguments object, and the profile's own values. */
static void config_of_every_profile(void **state) {
    (void)state;
    const struct {
        layout_scheme scheme;
        const char *format, *type, *strategy, *inputs;
        int group;
        bool block, dynamic;
    } cases[] = {
        {packed(4, 128, true), "pack-quantized", "int", "group", NULL, 128, false, false},
        {packed(8, GROUP_ROW, true), "pack-quantized", "int", "channel", NULL, 0, false, false},
        {bytes(CODE_INT, GROUP_ROW, ACTIVATIONS_TOKEN), "int-quantized", "int", "channel", "token", 0, false, true},
        {bytes(CODE_INT, GROUP_TENSOR, ACTIVATIONS_STATIC), "int-quantized", "int", "tensor", "tensor", 0, false,
         false},
        {bytes(CODE_E4M3, GROUP_TENSOR, ACTIVATIONS_STATIC), "float-quantized", "float", "tensor", "tensor", 0, false,
         false},
        {bytes(CODE_E4M3, GROUP_ROW, ACTIVATIONS_TOKEN), "float-quantized", "float", "channel", "token", 0, false,
         true},
        {bytes(CODE_E4M3, FP8_BLOCK, ACTIVATIONS_TOKEN), "float-quantized", "float", "block", "group", 0, true, true},
    };
    static const char *const keys[] = {"num_bits",        "type",    "symmetric", "group_size", "strategy",
                                       "block_structure", "dynamic", "actorder",  "observer",   "observer_kwargs"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *config;
        assert_ok(layout_config(&cases[i].scheme, &config));
        assert_string_equal(json_string_value(json_object_get(config, "quant_method")), "compressed-tensors");
        assert_string_equal(json_string_value(json_object_get(config, "format")), cases[i].format);
        json_t *group = json_object_get(json_object_get(config, "config_groups"), "group_0");
        assert_int_equal(json_object_size(group), 4);
        assert_string_equal(json_string_value(json_array_get(json_object_get(group, "targets"), 0)), "Linear");
        json_t *weights = json_object_get(group, "weights"), *inputs = json_object_get(group, "input_activations");
        assert_int_equal(json_object_size(weights), 10);
        for (int k = 0; k < 10; k++) assert_non_null(json_object_get(weights, keys[k]));
        assert_string_equal(json_string_value(json_object_get(weights, "type")), cases[i].type);
        assert_string_equal(json_string_value(json_object_get(weights, "strategy")), cases[i].strategy);
        assert_int_equal(json_integer_value(json_object_get(weights, "group_size")), cases[i].group);
        assert_int_equal(json_array_size(json_object_get(weights, "block_structure")), cases[i].block ? 2 : 0);
        assert_true(json_is_false(json_object_get(weights, "dynamic")));
        if (!cases[i].inputs) {
            assert_true(json_is_null(inputs));
        } else {
            assert_int_equal(json_object_size(inputs), 10);
            assert_string_equal(json_string_value(json_object_get(inputs, "strategy")), cases[i].inputs);
            assert_true(json_is_true(json_object_get(inputs, "dynamic")) == cases[i].dynamic);
        }
        json_decref(config);
    }
}

/* The object of the specification, byte for byte as JSON goes; without a cache the key is null. */
static void trap26_cache_scheme_has_the_ten_keys(void **state) {
    (void)state;
    json_t *config,
        *expected =
            json_loads("{\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, \"strategy\": \"tensor\", "
                       "\"group_size\": null, \"block_structure\": null, \"dynamic\": false, \"actorder\": null, "
                       "\"observer\": \"minmax\", \"observer_kwargs\": {}}",
                       0, NULL);
    for (int with = 0; with < 2; with++) {
        layout_scheme scheme = packed(4, 32, true);
        scheme.kv_cache = with;
        assert_ok(layout_config(&scheme, &config));
        const json_t *cache = json_object_get(config, "kv_cache_scheme");
        assert_true(with ? json_equal(cache, expected) : json_is_null(cache));
        json_decref(config);
    }
    json_decref(expected);
    layout_scheme other = {.layout = LAYOUT_AWQ, .bits = 4, .group = 128, .kv_cache = true};
    assert_refused(layout_check(&other), QL_MISMATCH, "AWQ files have no scales of a key/value cache");
}

/* Per token nothing is stored but the word; there and back through config.json. */
static void input_zero_points_are_said_by_the_config(void **state) {
    (void)state;
    json_t *config;
    layout_scheme scheme = bytes(CODE_INT, GROUP_ROW, ACTIVATIONS_TOKEN),
                  fp8 = bytes(CODE_E4M3, GROUP_ROW, ACTIVATIONS_TOKEN);
    scheme.input_zeros = true;
    assert_ok(layout_config(&scheme, &config));
    const json_t *group = json_object_get(json_object_get(config, "config_groups"), "group_0");
    assert_true(json_is_false(json_object_get(json_object_get(group, "input_activations"), "symmetric")));
    assert_true(json_is_true(json_object_get(json_object_get(group, "weights"), "symmetric")));
    json_decref(config);
    fp8.input_zeros = true;
    assert_refused(layout_check(&fp8), QL_MISMATCH, "inputs with zero points");
    scheme.activations = ACTIVATIONS_STATIC;
    assert_refused(layout_check(&scheme), QL_MISMATCH, "inputs with zero points");
}

static void trap23_status_is_compressed(void **state) {
    (void)state;
    qmodule q = layout_module(16, 64, 4, 32, true), back;
    layout_scheme scheme = packed(4, 32, true);
    layout_tensors t;
    json_t *config;
    layout_write(&scheme, &q, &t);
    assert_ok(layout_config(&scheme, &config));
    assert_string_equal(json_string_value(json_object_get(config, "quantization_status")), "compressed");
    json_object_set_new(config, "quantization_status", json_string("frozen"));
    layout_save_quantization(config);
    assert_refused(layout_read_back(16, 64, &back), QL_FORMAT, "quantization_status is \"frozen\"");
}

static void trap27_head_is_ignored_and_skipped_modules_by_full_name(void **state) {
    (void)state;
    static const char *const skipped[] = {"model.layers.1.mlp.down_proj", NULL};
    layout_scheme scheme = packed(4, 32, true), read;
    json_t *config;
    layout_rule rule;
    scheme.skipped = skipped;
    assert_ok(layout_config(&scheme, &config));
    json_t *ignore = json_object_get(config, "ignore");
    assert_int_equal(json_array_size(ignore), 2);
    assert_string_equal(json_string_value(json_array_get(ignore, 0)), "lm_head");
    read = (layout_scheme){.layout = LAYOUT_COMPRESSED, .ignored = ignore};
    assert_ok(layout_rule_of(&read, "model.layers.1.mlp.down_proj", &rule));
    assert_true(rule.skipped);
    assert_ok(layout_rule_of(&read, "model.layers.11.mlp.down_proj", &rule));
    assert_false(rule.skipped);
    json_decref(config);
}

static void overrides_become_groups_with_names(void **state) {
    (void)state;
    static const layout_override overrides[] = {
        {"model.layers.0.mlp.down_proj", 8, 32},
        {"model.layers.0.mlp.up_proj", 4, GROUP_ROW},
        {"model.layers.1.mlp.down_proj", 8, 32},
    };
    layout_scheme scheme = packed(4, 64, true), read;
    json_t *config;
    layout_rule rule;
    scheme.overrides = overrides;
    scheme.n_overrides = 3;
    assert_ok(layout_config(&scheme, &config));
    json_t *groups = json_object_get(config, "config_groups");
    assert_int_equal(json_object_size(groups), 3);
    read = (layout_scheme){.layout = LAYOUT_COMPRESSED, .groups = groups, .bits = 4, .group = 64};
    for (int i = 0; i < 3; i++) {
        assert_ok(layout_rule_of(&read, overrides[i].module, &rule));
        assert_int_equal(rule.bits, overrides[i].bits);
        assert_int_equal(rule.group, overrides[i].group);
    }
    assert_ok(layout_rule_of(&read, "model.layers.2.mlp.down_proj", &rule));
    assert_int_equal(rule.bits, 4);
    assert_int_equal(rule.group, 64);
    json_decref(config);
}

/* Names over patterns over the class, in whatever order the groups come; what no target names stays as it is. */
static void the_most_specific_target_decides(void **state) {
    (void)state;
    static const char text[] =
        "{\"b\": {\"targets\": [\"re:.*down_proj\"], \"weights\": {\"num_bits\": 8, \"strategy\": \"channel\"}},"
        " \"a\": {\"targets\": [\"re:.*mlp.*\"], \"weights\": {\"num_bits\": 4, \"strategy\": \"group\", "
        "\"group_size\": 64}}}";
    json_t *groups = json_loads(text, 0, NULL);
    layout_scheme read = {.layout = LAYOUT_COMPRESSED, .groups = groups};
    layout_rule rule;
    assert_ok(layout_rule_of(&read, "model.layers.2.mlp.down_proj", &rule));
    assert_int_equal(rule.bits, 8); /* the first of two patterns */
    assert_ok(layout_rule_of(&read, "model.layers.2.mlp.up_proj", &rule));
    assert_int_equal(rule.group, 64);
    assert_ok(layout_rule_of(&read, "model.layers.2.self_attn.q_proj", &rule));
    assert_true(rule.skipped);
    json_decref(groups);
}

/* ---- directories that contradict themselves ------------------------------------------------------------------------------------ */

#define CONFIG "{\"quant_method\": \"compressed-tensors\", "
#define WEIGHTS(text) "\"config_groups\": {\"g\": {\"targets\": [\"Linear\"], \"weights\": {" text "}}}"

static void trap13_configs_that_lie_or_cannot_be_read(void **state) {
    (void)state;
    static const layout_lie lies[] = {
        {CONFIG
         "\"format\": \"pack-quantized\", " WEIGHTS("\"num_bits\": 8, \"strategy\": \"group\", \"group_size\": 32") "}",
         QL_FORMAT, "q_proj.weight_packed: is [16, 8]"},
        {CONFIG
         "\"format\": \"pack-quantized\", " WEIGHTS("\"num_bits\": 4, \"strategy\": \"group\", \"group_size\": 16") "}",
         QL_FORMAT, "q_proj.weight_scale: is [16, 2]"},
        {CONFIG "\"format\": \"pack-quantized\", " WEIGHTS("\"num_bits\": 4, \"strategy\": \"channel\"") "}", QL_FORMAT,
         "q_proj.weight_scale: is [16, 2]"},
        {CONFIG "\"format\": \"pack-quantized\", " WEIGHTS("\"num_bits\": 3, \"strategy\": \"channel\"") "}",
         QL_MISMATCH, "of 3 bits"},
        {CONFIG "\"format\": \"pack-quantized\", " WEIGHTS("\"num_bits\": 4, \"strategy\": \"group\"") "}", QL_FORMAT,
         "group_size"},
        {CONFIG "\"format\": \"pack-quantized\", " WEIGHTS("\"num_bits\": 4, \"strategy\": \"block\"") "}", QL_MISMATCH,
         "\"block\""},
        {CONFIG "\"format\": \"pack-quantized\", " WEIGHTS("\"strategy\": \"channel\"") "}", QL_FORMAT, "num_bits"},
        {CONFIG "\"format\": \"int-quantized\", " WEIGHTS("\"num_bits\": 8, \"strategy\": \"channel\"") "}", QL_FORMAT,
         "q_proj.weight: missing"},
        {CONFIG "\"format\": \"float-quantized\", " WEIGHTS("\"num_bits\": 8, \"strategy\": \"channel\"") "}",
         QL_FORMAT, "format is \"float-quantized\", but the weights are \"int\""},
        {CONFIG "\"format\": \"nvfp4-pack-quantized\", " WEIGHTS("\"num_bits\": 4, \"strategy\": \"channel\"") "}",
         QL_MISMATCH, "format \"nvfp4-pack-quantized\""},
        {CONFIG WEIGHTS("\"num_bits\": 4, \"strategy\": \"channel\"") "}", QL_FORMAT, "format"},
        {CONFIG "\"format\": \"pack-quantized\", \"config_groups\": {}}", QL_FORMAT, "config_groups"},
        {CONFIG "\"format\": \"pack-quantized\", \"config_groups\": {\"g\": {\"targets\": [\"Linear\"]}}}", QL_FORMAT,
         "g: has no weights"},
        {CONFIG "\"format\": \"pack-quantized\", \"config_groups\": {\"g\": {\"weights\": {}}}}", QL_FORMAT,
         "has no targets"},
        {CONFIG "\"format\": \"pack-quantized\", \"ignore\": [\"re:.*q_proj\"], " WEIGHTS(
             "\"num_bits\": 4, \"strategy\": \"group\", \"group_size\": 32") "}",
         QL_FORMAT, "the config says that it is not"},
        {CONFIG "\"format\": \"pack-quantized\", \"ignore\": [\"re:*\"], " WEIGHTS(
             "\"num_bits\": 4, \"strategy\": \"group\", \"group_size\": 32") "}",
         QL_FORMAT, "no valid pattern"},
        {CONFIG "\"format\": \"pack-quantized\", \"kv_cache_scheme\": {\"num_bits\": 8, \"type\": \"int\"}, " WEIGHTS(
             "\"num_bits\": 4, \"strategy\": \"group\", \"group_size\": 32") "}",
         QL_MISMATCH, "kv_cache_scheme: only 8-bit floats"},
        {CONFIG "\"format\": \"pack-quantized\", \"kv_cache_scheme\": 8, " WEIGHTS(
             "\"num_bits\": 4, \"strategy\": \"group\", \"group_size\": 32") "}",
         QL_FORMAT, "kv_cache_scheme must be an object"},
    };
    qmodule q = layout_module(16, 64, 4, 32, true);
    layout_scheme scheme = packed(4, 32, true);
    layout_tensors t;
    layout_write(&scheme, &q, &t);
    layout_refuse_lies(lies, sizeof lies / sizeof *lies, 16, 64);
}

static void missing_or_wrong_tensors_are_named(void **state) {
    (void)state;
    static const char *const suffixes[] = {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point"};
    for (int i = 0; i < 4; i++) {
        qmodule q = layout_module(16, 64, 4, 32, false), back;
        layout_scheme scheme = packed(4, 32, false);
        layout_tensors t;
        char words[64];
        layout_write(&scheme, &q, &t);
        snprintf(words, sizeof words, "q_proj.%s: missing", suffixes[i]);
        layout_drop(&t, suffixes[i]);
        layout_save_tensors(&t);
        assert_refused(layout_read_back(16, 64, &back), QL_FORMAT, words);
    }
    qmodule q = layout_module(16, 64, 4, 32, false), back;
    layout_scheme scheme = packed(4, 32, false);
    layout_tensors t;
    layout_write(&scheme, &q, &t);
    ((int64_t *)t.data[layout_index(&t, "weight_shape")])[1] = 60;
    layout_save_tensors(&t);
    assert_refused(layout_read_back(16, 64, &back), QL_FORMAT, "weight_shape: says [16, 60]");
}

/* BF16 scales are what llm-compressor writes for BF16 models: read as they are, not rounded again. */
static void trap28_scales_in_bf16_are_read(void **state) {
    (void)state;
    qmodule q = layout_module(16, 64, 4, 32, true), back;
    layout_scheme scheme = packed(4, 32, true);
    layout_tensors t;
    layout_write(&scheme, &q, &t);
    int scale = layout_index(&t, "weight_scale");
    uint16_t *raw = t.data[scale];
    for (int i = 0; i < 32; i++) raw[i] = (uint16_t)(0x3c00 + i); /* about 0.0078 .. 0.0098 */
    t.tensor[scale].dtype = QL_BF16;
    layout_save_tensors(&t);
    assert_ok(layout_read_back(16, 64, &back));
    for (int i = 0; i < 32; i++) assert_true(back.scale[i] == ldexpf(1 + (float)i / 128, -7));
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, layout_setup, layout_teardown)
    const struct CMUnitTest tests[] = {
        TEST(known_words),
        TEST(trap22_zero_points_run_along_outputs),
        TEST(trap22_symmetric_has_no_zero_points),
        TEST(trap21_all_zero_points_survive),
        TEST(packed_weights_follow_the_formula),
        TEST(packed_round_trips),
        TEST(trap10_act_order_keeps_the_group_of_every_input),
        TEST(bytes_round_trip),
        TEST(signed_bytes_are_twos_complement),
        TEST(trap25_fp8_blocks_are_multiplied_by_their_scale),
        TEST(trap24_nan_bytes_are_refused),
        TEST(scales_that_differ_inside_their_tile_are_refused),
        TEST(static_activations_need_a_scale),
        TEST(tensor_scale_of_other_writers),
        TEST(what_cannot_be_held_is_refused),
        TEST(config_of_every_profile),
        TEST(trap26_cache_scheme_has_the_ten_keys),
        TEST(input_zero_points_are_said_by_the_config),
        TEST(trap23_status_is_compressed),
        TEST(trap27_head_is_ignored_and_skipped_modules_by_full_name),
        TEST(overrides_become_groups_with_names),
        TEST(the_most_specific_target_decides),
        TEST(trap13_configs_that_lie_or_cannot_be_read),
        TEST(missing_or_wrong_tensors_are_named),
        TEST(trap28_scales_in_bf16_are_read),
    };
    return cmocka_run_group_tests_name("layout_compressed", tests, NULL, NULL);
}

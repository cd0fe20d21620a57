/* GPTQ files: known words, independent bit-by-bit reading of what the encoder wrote, and files of other tools. */
#include "tests/layout_dir.h"

#include "formats/json.h"
#include "formats/layout.h"
#include "host/mat.h"
#include "host/num.h"
#include "host/rng.h"

/* ---- modules and directories for the tests ---------------------------------------------------------------------------------- */

static uint32_t get_bits(const uint32_t *stream, int64_t stride, int64_t first, int bits) {
    uint32_t value = 0;
    for (int b = 0; b < bits; b++) value |= (stream[(first + b) / 32 * stride] >> (first + b) % 32 & 1u) << b;
    return value;
}

/* Version 1 stores zero - 1. */
static qmodule make_module(int64_t n, int64_t k, int bits, int64_t group) {
    qmodule q = layout_module(n, k, bits, group, false);
    for (int64_t i = 0; i < n * ql_groups(k, group); i++)
        if (q.zero[i] == 0) q.zero[i] = 1;
    return q;
}

static void permute_groups(qmodule *q) {
    assert_ok(ql_take(layout_arena, (size_t)q->k, sizeof *q->g_idx, &q->g_idx));
    for (int64_t k = 0; k < q->k; k++) q->g_idx[k] = (int32_t)(k % ql_groups(q->k, q->group));
}

static layout_scheme scheme_of(const qmodule *q, int version) {
    return (layout_scheme){.bits = q->bits,
                           .group = q->group,
                           .symmetric = false,
                           .static_groups = true,
                           .true_sequential = true,
                           .version = version,
                           .damp = 0.01};
}

static ql_status encode(const qmodule *q, int version, layout_tensors *out) {
    const layout_scheme scheme = {.version = version};
    return layout_encode(&scheme, q, layout_arena, out);
}

static const char *obstacle(int64_t n, int64_t k, int bits, int64_t group) {
    const layout_scheme scheme = {0};
    return layout_obstacle(&scheme, n, k, (layout_rule){.bits = bits, .group = group}, layout_arena);
}

static void save_config(const layout_scheme *scheme) {
    json_t *quantization;
    assert_ok(layout_config(scheme, &quantization));
    layout_save_quantization(quantization);
}

static void write_directory(const qmodule *q, int version, layout_tensors *tensors) {
    layout_scheme scheme = scheme_of(q, version);
    save_config(&scheme);
    assert_ok(encode(q, version, tensors));
    layout_save_tensors(tensors);
}

/* ---- encoding ---------------------------------------------------------------------------------------------------------------- */

static void trap14_known_words_of_every_width(void **state) {
    (void)state;
    static const struct {
        int bits;
        uint32_t words[8], zeros_v1[3], zeros_v2[3];
    } known[] = {
        {2, {0xE4E4E4E4, 0xE4E4E4E4}, {0x55555555, 0x55555555, 0x55555555}, {0xAAAAAAAA, 0xAAAAAAAA, 0xAAAAAAAA}},
        {3,
         {0x88FAC688, 0xC688FAC6, 0xFAC688FA},
         {0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D},
         {0x24924924, 0x49249249, 0x92492492}},
        {4,
         {0x76543210, 0xFEDCBA98, 0x76543210, 0xFEDCBA98},
         {0x77777777, 0x77777777, 0x77777777},
         {0x88888888, 0x88888888, 0x88888888}},
        {8,
         {0x03020100, 0x07060504, 0x0B0A0908},
         {0x7F7F7F7F, 0x7F7F7F7F, 0x7F7F7F7F},
         {0x80808080, 0x80808080, 0x80808080}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        int bits = known[i].bits;
        qmodule q = make_module(64, 32, bits, 32);
        memset(q.codes, 0, (size_t)(64 * bits) * sizeof *q.codes);
        memset(q.zero, 1 << (bits - 1), 64);
        for (int k = 0; k < 32; k++)
            layout_set_bits(q.codes + 5 * bits, k * bits, bits, (uint32_t)k & ((1u << bits) - 1));
        for (int version = 1; version <= 2; version++) {
            layout_tensors t;
            assert_ok(encode(&q, version, &t));
            const uint32_t *qweight = t.data[0], *qzeros = t.data[1];
            for (int w = 0; w < bits && known[i].words[w]; w++) {
                assert_int_equal(qweight[w * 64 + 5], known[i].words[w]);
                assert_int_equal(qweight[w * 64 + 4], 0);
            }
            for (int w = 0; w < 3 && w < bits; w++)
                assert_int_equal(qzeros[w], version == 1 ? known[i].zeros_v1[w] : known[i].zeros_v2[w]);
        }
    }
}

/* Formula of the format, element by element: qweight runs along K in column n, qzeros along N in row g. */
static void encode_every_element_lies_where_the_format_says(void **state) {
    (void)state;
    static const int widths[] = {2, 3, 4, 8};
    for (int i = 0; i < 4; i++) {
        int bits = widths[i];
        qmodule q = make_module(96, 160, bits, 32);
        layout_tensors t;
        assert_ok(encode(&q, 1, &t));
        assert_int_equal(t.count, 4);
        const int64_t shapes[4][2] = {{160 * bits / 32, 96}, {5, 96 * bits / 32}, {5, 96}, {160, 0}};
        for (int j = 0; j < 4; j++) {
            assert_int_equal(t.tensor[j].rank, j == 3 ? 1 : 2);
            assert_int_equal(t.tensor[j].shape[0], shapes[j][0]);
            assert_int_equal(t.tensor[j].shape[1], shapes[j][1]);
            assert_string_equal(t.tensor[j].dtype_name, j == 2 ? "F16" : "I32");
        }
        for (int64_t n = 0; n < 96; n++)
            for (int64_t k = 0; k < 160; k++)
                assert_int_equal(get_bits((uint32_t *)t.data[0] + n, 96, k * bits, bits), layout_code(&q, n, k));
        for (int64_t g = 0; g < 5; g++)
            for (int64_t n = 0; n < 96; n++) {
                assert_int_equal(get_bits((uint32_t *)t.data[1] + g * 96 * bits / 32, 1, n * bits, bits) + 1,
                                 q.zero[n * 5 + g]);
                assert_true(ql_f16_to_f32(((uint16_t *)t.data[2])[g * 96 + n]) == q.scale[n * 5 + g]);
            }
        for (int64_t k = 0; k < 160; k++) assert_int_equal(((int32_t *)t.data[3])[k], k / 32);
    }
}

static void encode_shapes_of_llama_8b(void **state) {
    (void)state;
    qmodule q = {.name = LAYOUT_MODULE, .n = 4096, .k = 14336, .bits = 4, .group = 128};
    layout_tensors t;
    assert_ok(encode(&q, 1, &t));
    assert_int_equal(t.tensor[0].shape[0], 1792);
    assert_int_equal(t.tensor[1].shape[0], 112);
    assert_int_equal(t.tensor[1].shape[1], 512);
    assert_int_equal(t.tensor[0].size, 1792 * 4096 * 4);
    assert_null(t.data[0]);
}

static void obstacles_are_named(void **state) {
    (void)state;
    assert_null(obstacle(96, 160, 3, 32));
    assert_null(obstacle(96, 160, 3, -1));
    assert_string_equal(obstacle(96, 100, 4, -1), "K = 100 is not a multiple of 32");
    assert_string_equal(obstacle(48, 96, 4, 32), "N = 48 is not a multiple of 32");
    assert_string_equal(obstacle(32, 96, 4, 64), "K = 96 is not a multiple of the group size 64");
    assert_string_equal(obstacle(32, 96, 5, 32), "5 bits; GPTQ files hold 2, 3, 4 or 8");
}

static void trap08_v1_zero_point_0_is_refused(void **state) {
    (void)state;
    qmodule q = make_module(32, 64, 4, 32), back;
    layout_tensors t;
    q.zero[3] = 0;
    assert_refused(encode(&q, 1, &t), QL_MISMATCH, "use v2");
    write_directory(&q, 2, &t);
    assert_ok(layout_read_back(32, 64, &back));
    layout_assert_same(&q, &back);
    /* v1 read of a stored 15: kernels make 16 or 0 of it. */
    layout_scheme scheme = scheme_of(&q, 1);
    save_config(&scheme);
    q.zero[3] = 1;
    assert_ok(encode(&q, 1, &t));
    ((uint32_t *)t.data[1])[0] |= 0xf0;
    layout_save_tensors(&t);
    assert_refused(layout_read_back(32, 64, &back), QL_FORMAT, "loaders read differently");
}

static void trap09_a_zero_point_too_large_cannot_damage_its_neighbour(void **state) {
    (void)state;
    qmodule q = make_module(32, 64, 3, 32);
    layout_tensors t;
    q.zero[5] = 8;
    assert_refused(encode(&q, 1, &t), QL_INTERNAL, "does not fit into 3 bits");
}

static void trap12_scales_beyond_f16_are_refused(void **state) {
    (void)state;
    static const float bad[] = {0.0f, -1.0f, 1e-9f, 65520.0f, INFINITY, NAN};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        qmodule q = make_module(32, 64, 4, 32);
        layout_tensors t;
        q.scale[7] = bad[i];
        assert_refused(encode(&q, 1, &t), QL_MISMATCH, "not a positive FP16 number");
    }
}

static void trap10_unequal_groups_are_refused(void **state) {
    (void)state;
    qmodule q = make_module(32, 64, 4, 32), back;
    layout_tensors t;
    permute_groups(&q);
    q.g_idx[0] = 1;
    assert_refused(encode(&q, 1, &t), QL_INTERNAL, "more members");
    q.g_idx[0] = 0;
    write_directory(&q, 1, &t);
    ((int32_t *)t.data[3])[0] = 1;
    layout_save_tensors(&t);
    assert_refused(layout_read_back(32, 64, &back), QL_FORMAT, "more members");
    ((int32_t *)t.data[3])[0] = 2;
    layout_save_tensors(&t);
    assert_refused(layout_read_back(32, 64, &back), QL_FORMAT, "there are 2 groups");
}

/* ---- reading back -------------------------------------------------------------------------------------------------------------- */

static void round_trip_is_exact(void **state) {
    (void)state;
    static const int widths[] = {2, 3, 4, 8};
    for (int i = 0; i < 4; i++)
        for (int version = 1; version <= 2; version++)
            for (int permuted = 0; permuted < 2; permuted++) {
                qmodule q = make_module(96, 128, widths[i], 32), back;
                layout_tensors t;
                if (permuted) permute_groups(&q);
                write_directory(&q, version, &t);
                assert_ok(layout_read_back(96, 128, &back));
                layout_assert_same(&q, &back);
            }
}

static void whole_row_as_one_group(void **state) {
    (void)state;
    qmodule q = make_module(32, 96, 3, 96), back;
    layout_scheme scheme = scheme_of(&q, 1);
    layout_tensors t;
    write_directory(&q, 1, &t);
    scheme.group = -1;
    save_config(&scheme);
    assert_ok(layout_read_back(32, 96, &back));
    layout_assert_same(&q, &back);
}

static void foreign_without_g_idx(void **state) {
    (void)state;
    qmodule q = make_module(32, 96, 4, 32), back;
    layout_tensors t;
    write_directory(&q, 1, &t);
    layout_drop(&t, "g_idx");
    layout_save_tensors(&t);
    assert_ok(layout_read_back(32, 96, &back));
    layout_assert_same(&q, &back);
}

static void trap10_desc_act_without_g_idx_is_refused(void **state) {
    (void)state;
    qmodule q = make_module(32, 96, 4, 32), back;
    layout_scheme scheme = scheme_of(&q, 1);
    layout_tensors t;
    write_directory(&q, 1, &t);
    layout_drop(&t, "g_idx");
    layout_save_tensors(&t);
    scheme.desc_act = true, scheme.static_groups = false;
    save_config(&scheme);
    assert_refused(layout_read_back(32, 96, &back), QL_FORMAT, "g_idx: missing");
}

static void foreign_g_idx_all_zero(void **state) {
    (void)state;
    qmodule q = make_module(32, 96, 4, 32), back;
    layout_tensors t;
    write_directory(&q, 1, &t);
    memset(t.data[3], 0, 96 * sizeof(int32_t));
    layout_save_tensors(&t);
    assert_ok(layout_read_back(32, 96, &back));
    layout_assert_same(&q, &back);
}

static void foreign_scales_in_bf16_and_f32(void **state) {
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        qmodule q = make_module(32, 64, 4, 32), back;
        layout_tensors t;
        float scales[64];
        uint16_t halves[64];
        for (int i = 0; i < 64; i++) { /* q.scale is [n][g], the file [g][n] */
            q.scale[i] = ql_bf16_to_f32(ql_f32_to_bf16(q.scale[i]));
            scales[i % 2 * 32 + i / 2] = q.scale[i];
            halves[i % 2 * 32 + i / 2] = ql_f32_to_bf16(q.scale[i]);
        }
        write_directory(&q, 1, &t);
        t.tensor[2].dtype = wide ? QL_F32 : QL_BF16;
        t.tensor[2].dtype_name = wide ? "F32" : "BF16";
        t.tensor[2].size = wide ? 256 : 128;
        t.data[2] = wide ? (void *)scales : (void *)halves;
        layout_save_tensors(&t);
        assert_ok(layout_read_back(32, 64, &back));
        layout_assert_same(&q, &back);
    }
}

static void foreign_quantize_config_alone(void **state) {
    (void)state;
    qmodule q = make_module(32, 64, 4, 32), back;
    layout_tensors t;
    write_directory(&q, 1, &t);
    layout_save_text("config.json", "{\"model_type\": \"llama\"}");
    assert_refused(layout_read_back(32, 64, &back), QL_FORMAT, "not quantized");
    layout_save_text("quantize_config.json",
                     "{\"bits\": 4, \"group_size\": 32, \"damp_percent\": 0.01, \"desc_act\": false, "
                     "\"sym\": false, \"true_sequential\": true, \"model_name_or_path\": null}");
    assert_ok(layout_read_back(32, 64, &back));
    layout_assert_same(&q, &back);
}

static void trap03_unsigned_words_are_refused(void **state) {
    (void)state;
    qmodule q = make_module(32, 64, 4, 32), back;
    layout_tensors t;
    write_directory(&q, 1, &t);
    t.tensor[0].dtype = QL_F32, t.tensor[0].dtype_name = "F32";
    layout_save_tensors(&t);
    assert_refused(layout_read_back(32, 64, &back), QL_FORMAT, "qweight: is F32, must be I32");
}

/* Read with the other label, every zero point is off by one; the constant zeros of a symmetric grid give it away. */
static void trap07_wrong_version_label_is_noticed(void **state) {
    (void)state;
    static const int widths[] = {2, 3, 4, 8};
    for (int i = 0; i < 4; i++)
        for (int version = 1; version <= 2; version++) {
            qmodule q = make_module(32, 64, widths[i], 32), back;
            layout_tensors t;
            memset(q.zero, 1 << (widths[i] - 1), 64);
            write_directory(&q, version, &t);
            assert_ok(layout_read_back(32, 64, &back));
            assert_true(layout_gptq_label_fits(&back, version));
            layout_scheme wrong = scheme_of(&q, 3 - version);
            save_config(&wrong);
            assert_ok(layout_read_back(32, 64, &back));
            assert_false(layout_gptq_label_fits(&back, 3 - version));
            assert_int_equal(back.zero[9], q.zero[9] + (version == 1 ? -1 : 1));
        }
}

static void trap11_untransposed_weight_is_named(void **state) {
    (void)state;
    qmodule q = make_module(32, 128, 4, 32), back;
    layout_tensors t;
    write_directory(&q, 1, &t);
    t.tensor[0].shape[0] = 32, t.tensor[0].shape[1] = 16;
    layout_save_tensors(&t);
    assert_refused(layout_read_back(32, 128, &back), QL_FORMAT, "untransposed");
}

static void trap13_config_against_tensors(void **state) {
    (void)state;
    qmodule q = make_module(32, 128, 4, 32), back;
    layout_scheme scheme = scheme_of(&q, 1);
    layout_tensors t;
    write_directory(&q, 1, &t);
    scheme.bits = 8;
    save_config(&scheme);
    assert_refused(layout_read_back(32, 128, &back), QL_FORMAT,
                   "is [16, 32], but N = 32, K = 128, 8 bits and groups of 32 need [32, 32] (this would be 4 bits)");
    scheme.bits = 4, scheme.group = 64;
    save_config(&scheme);
    assert_refused(layout_read_back(32, 128, &back), QL_FORMAT,
                   "qzeros: is [4, 4], but N = 32, K = 128, 4 bits and groups of 64 need [2, 4]");
    scheme.group = 32;
    save_config(&scheme);
    layout_save_text("quantize_config.json", "{\"bits\": 4, \"group_size\": 128, \"sym\": false, \"desc_act\": false}");
    assert_refused(layout_read_back(32, 128, &back), QL_FORMAT, "quantize_config.json 4 bits, group 128");
}

static void missing_tensors_are_named(void **state) {
    (void)state;
    qmodule q = make_module(32, 64, 4, 32), back;
    layout_tensors t;
    write_directory(&q, 1, &t);
    layout_drop(&t, "qzeros");
    layout_save_tensors(&t);
    assert_refused(layout_read_back(32, 64, &back), QL_FORMAT, "q_proj.qzeros: missing");
}

/* ---- configuration --------------------------------------------------------------------------------------------------------------- */

static void config_of_the_recommended_profile(void **state) {
    (void)state;
    layout_scheme scheme = {.bits = 4,
                            .group = 128,
                            .symmetric = true,
                            .desc_act = true,
                            .static_groups = true,
                            .true_sequential = true,
                            .version = 1,
                            .damp = 0.01};
    json_t *config;
    assert_ok(layout_config(&scheme, &config));
    char *text = json_dumps(config, JSON_COMPACT);
    assert_string_equal(text, "{\"quant_method\":\"gptq\",\"checkpoint_format\":\"gptq\",\"bits\":4,\"group_size\":128,"
                              "\"sym\":true,\"desc_act\":false,\"static_groups\":true,\"true_sequential\":true,"
                              "\"damp_percent\":0.01,\"lm_head\":false,\"dynamic\":null,"
                              "\"modules_in_block_to_quantize\":null,\"pack_dtype\":\"int32\","
                              "\"meta\":{\"quantizer\":[\"qalib:" QL_VERSION "\"]}}");
    free(text);
    json_decref(config);
}

static void config_desc_act_only_for_permuted_groups(void **state) {
    (void)state;
    for (int i = 0; i < 8; i++) {
        layout_scheme scheme = {
            .bits = 4, .group = i & 4 ? -1 : 128, .desc_act = i & 1, .static_groups = (i & 2) != 0, .version = 2};
        json_t *config;
        assert_ok(layout_config(&scheme, &config));
        assert_int_equal(json_is_true(json_object_get(config, "desc_act")), i == 1);
        assert_string_equal(json_string_value(json_object_get(config, "checkpoint_format")), "gptq_v2");
        assert_null(json_object_get(config, "damp_percent")); /* 0 is outside of what AutoGPTQ accepts */
        json_decref(config);
    }
}

static void config_exceptions_read_back_as_written(void **state) {
    (void)state;
    const char *const skipped[] = {"model.layers.0.self_attn.q_proj",
                                   "model.layers.0.self_attn.k_proj",
                                   "model.layers.0.self_attn.v_proj",
                                   "model.layers.1.mlp.gate_proj",
                                   "model.layers.0.mlp.down_proj",
                                   "model.layers.1.mlp.down_proj",
                                   NULL};
    const layout_override overrides[] = {{"model.layers.1.self_attn.o_proj", 8, 64}};
    layout_scheme scheme = {.bits = 4,
                            .group = 128,
                            .version = 1,
                            .skipped = skipped,
                            .overrides = overrides,
                            .n_overrides = 1,
                            .layers = 2};
    json_t *config;
    assert_ok(layout_config(&scheme, &config));
    const json_t *dynamic = json_object_get(config, "dynamic");
    assert_non_null(json_object_get(dynamic, "-:^model\\.layers\\.0\\.self_attn\\.q(kv)?_proj$"));
    assert_non_null(
        json_object_get(dynamic, "-:^model\\.layers\\.1\\.mlp\\.gate_proj$")); /* up_proj differs: not fused */
    assert_int_equal(json_object_size(dynamic), 7);
    char *kinds = json_dumps(json_object_get(config, "modules_in_block_to_quantize"), JSON_COMPACT);
    assert_string_equal(kinds,
                        "[[\"self_attn.k_proj\",\"self_attn.v_proj\",\"self_attn.q_proj\"],[\"self_attn.o_proj\"],"
                        "[\"mlp.up_proj\",\"mlp.gate_proj\"]]");
    free(kinds);

    layout_scheme read = {.bits = 4, .group = 128, .dynamic = dynamic};
    layout_rule rule;
    for (const char *const *name = skipped; *name; name++) {
        assert_ok(layout_rule_of(&read, *name, &rule));
        assert_true(rule.skipped);
    }
    assert_ok(layout_rule_of(&read, "model.layers.0.self_attn.qkv_proj", &rule));
    assert_true(rule.skipped);
    assert_ok(layout_rule_of(&read, "model.layers.10.self_attn.q_proj", &rule)); /* not layer 1 or 0 */
    assert_true(!rule.skipped && rule.bits == 4 && rule.group == 128);
    assert_ok(layout_rule_of(&read, "model.layers.1.self_attn.o_proj", &rule));
    assert_true(!rule.skipped && rule.bits == 8 && rule.group == 64);
    read = (layout_scheme){
        .bits = 4, .group = 128, .modules_in_block = json_object_get(config, "modules_in_block_to_quantize")};
    assert_ok(layout_rule_of(&read, "model.layers.5.mlp.down_proj", &rule));
    assert_true(rule.skipped);
    assert_ok(layout_rule_of(&read, "model.layers.5.mlp.up_proj", &rule));
    assert_false(rule.skipped);
    json_decref(config);
}

static void config_explosive_pattern_ends(void **state) {
    (void)state;
    json_t *dynamic = json_pack("{s:{}}", "-:(a+)+$");
    layout_scheme read = {.bits = 4, .group = 128, .dynamic = dynamic};
    layout_rule rule;
    assert_refused(layout_rule_of(&read, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", &rule), QL_FORMAT,
                   "PCRE2 error");
    json_decref(dynamic);
    dynamic = json_pack("{s:{}}", "-:(");
    read.dynamic = dynamic;
    assert_refused(layout_rule_of(&read, "a", &rule), QL_FORMAT, "no valid pattern");
    json_decref(dynamic);
}

static void config_that_cannot_be_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {
        "{\"quantization_config\": {\"quant_method\": \"aqlm\", \"bits\": 4, \"group_size\": 32}}",
        "aqlm",
        "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 5, \"group_size\": 32}}",
        "bits = 5",
        "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 0}}",
        "group_size = 0",
        "{\"quantization_config\": {\"bits\": 4, \"group_size\": 32, \"is_marlin_format\": true}}",
        "marlin",
        "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 32, \"dynamic\": 3}}",
        "dynamic",
        "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}}",
        "group_size",
    };
    qmodule q = make_module(32, 64, 4, 32), back;
    layout_tensors t;
    write_directory(&q, 1, &t);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i += 2) {
        layout_save_text("config.json", bad[i]);
        ql_status status = layout_read_back(32, 64, &back);
        if (status == QL_OK || !strstr(ql_last_error(), bad[i + 1])) fail_msg("%s: %s", bad[i], ql_last_error());
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, layout_setup, layout_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(trap14_known_words_of_every_width),
        TEST(encode_every_element_lies_where_the_format_says),
        TEST(encode_shapes_of_llama_8b),
        TEST(obstacles_are_named),
        TEST(round_trip_is_exact),
        TEST(whole_row_as_one_group),
        TEST(foreign_without_g_idx),
        TEST(foreign_g_idx_all_zero),
        TEST(foreign_scales_in_bf16_and_f32),
        TEST(foreign_quantize_config_alone),
        TEST(trap03_unsigned_words_are_refused),
        TEST(trap07_wrong_version_label_is_noticed),
        TEST(trap08_v1_zero_point_0_is_refused),
        TEST(trap09_a_zero_point_too_large_cannot_damage_its_neighbour),
        TEST(trap10_unequal_groups_are_refused),
        TEST(trap10_desc_act_without_g_idx_is_refused),
        TEST(trap11_untransposed_weight_is_named),
        TEST(trap12_scales_beyond_f16_are_refused),
        TEST(trap13_config_against_tensors),
        TEST(missing_tensors_are_named),
        TEST(config_of_the_recommended_profile),
        TEST(config_desc_act_only_for_permuted_groups),
        TEST(config_exceptions_read_back_as_written),
        TEST(config_explosive_pattern_ends),
        TEST(config_that_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

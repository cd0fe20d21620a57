/* config.json: what each architecture reads from it, what is refused by name, rope tables, names and shapes of all tensors. */
#include "tests/test.h"

#include <math.h>

#include "formats/json.h"
#include "formats/model_config.h"
#include "tests/make.h"

static ql_arena *arena;

static int setup(void **state) {
    (void)state;
    return ql_arena_open(NULL, &arena) == QL_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    ql_arena_close(arena);
    return 0;
}

/* A config of this type with `changes` (members of an object) on top, and without the member `absent`. */
static ql_status parse_without(const char *type, const char *changes, const char *absent, model_config *out) {
    char text[4096];
    snprintf(text, sizeof text,
             "{\"model_type\":\"%s\",\"vocab_size\":1000,\"hidden_size\":256,\"intermediate_size\":768,"
             "\"num_hidden_layers\":6,\"num_attention_heads\":8,\"num_key_value_heads\":2,\"sliding_window\":null}",
             type);
    json_t *config, *more;
    assert_ok(ql_json_parse("base", text, strlen(text), &config));
    snprintf(text, sizeof text, "{%s}", changes);
    assert_ok(ql_json_parse("changes", text, strlen(text), &more));
    assert_int_equal(json_object_update(config, more), 0);
    if (absent) json_object_del(config, absent);
    ql_status status = model_config_parse(config, "config.json", arena, out);
    json_decref(more);
    json_decref(config);
    return status;
}

static ql_status parse(const char *type, const char *changes, model_config *out) {
    return parse_without(type, changes, NULL, out);
}

static void fields_of_a_real_config(void **state) {
    (void)state;
    model_config c;
    assert_ok(
        parse("llama",
              "\"architectures\":[\"LlamaForCausalLM\"],\"rms_norm_eps\":1e-05,\"rope_theta\":500000.0,"
              "\"head_dim\":64,\"hidden_act\":\"silu\",\"max_position_embeddings\":8192,\"torch_dtype\":\"bfloat16\","
              "\"tie_word_embeddings\":true,\"attention_bias\":true,\"mlp_bias\":true,\"use_cache\":true,"
              "\"rope_scaling\":null,\"pretraining_tp\":1,\"bos_token_id\":1,\"eos_token_id\":[2,3],"
              "\"quantization_config\":null",
              &c));
    assert_int_equal(c.arch, ARCH_LLAMA);
    assert_string_equal(c.model_type, "llama");
    assert_string_equal(c.torch_dtype, "bfloat16");
    assert_int_equal(c.vocab, 1000);
    assert_int_equal(c.hidden, 256);
    assert_int_equal(c.intermediate, 768);
    assert_int_equal(c.layers, 6);
    assert_int_equal(c.heads, 8);
    assert_int_equal(c.kv_heads, 2);
    assert_int_equal(c.head_dim, 64);
    assert_int_equal(c.max_position, 8192);
    assert_true(c.rms_eps == 1e-5 && c.rope.theta == 500000.0 && c.rope.kind == ROPE_DEFAULT);
    assert_true(c.attention_bias && c.attention_out_bias && c.mlp_bias && c.tied_embeddings);
    assert_false(c.qk_norm || c.is_quantized || c.sliding_window);
}

/* Defaults are those of the classes in transformers 5.23. */
static void absent_fields_have_the_defaults_of_their_class(void **state) {
    (void)state;
    model_config c;
    assert_ok(parse_without("llama", "", "num_key_value_heads", &c));
    assert_int_equal(c.kv_heads, 8);
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(c.max_position, 2048);
    assert_true(c.rms_eps == 1e-6 && c.rope.theta == 10000.0);
    assert_false(c.attention_bias || c.attention_out_bias || c.mlp_bias || c.tied_embeddings || c.qk_norm);
    assert_ok(parse_without("mistral", "", "sliding_window", &c));
    assert_int_equal(c.sliding_window, 4096);
    assert_true(c.layer_is_sliding[0] && c.layer_is_sliding[5]);
    assert_ok(parse("qwen2", "", &c));
    assert_true(c.attention_bias && !c.attention_out_bias && !c.qk_norm);
    assert_int_equal(c.max_position, 32768);
    assert_ok(parse("qwen3", "", &c));
    assert_true(!c.attention_bias && !c.attention_out_bias && c.qk_norm);
    assert_int_equal(c.head_dim, 128);
    assert_ok(parse("qwen3", "\"attention_bias\":true", &c));
    assert_true(c.attention_bias && c.attention_out_bias);
    assert_ok(parse("llama", "\"dtype\":\"torch.float16\",\"quantization_config\":{\"bits\":4}", &c));
    assert_string_equal(c.torch_dtype, "float16");
    assert_true(c.is_quantized);
}

static void check_sliding(const char *type, const char *changes, int64_t window, const char *layers) {
    model_config c;
    assert_ok(parse(type, changes, &c));
    assert_int_equal(c.sliding_window, window);
    for (int64_t i = 0; i < c.layers; i++) assert_int_equal(c.layer_is_sliding[i], layers[i] == 's');
}

#define SLIDING "\"sliding_attention\""
#define FULL "\"full_attention\""

static void sliding_windows_in_every_spelling(void **state) {
    (void)state;
    check_sliding("mistral", "\"sliding_window\":16", 16, "ssssss");
    check_sliding("mistral", "", 0, "ffffff");
    check_sliding("qwen2", "\"sliding_window\":16,\"max_window_layers\":2", 0, "ffffff");
    check_sliding("qwen2", "\"sliding_window\":16,\"max_window_layers\":2,\"use_sliding_window\":false", 0, "ffffff");
    check_sliding("qwen2", "\"sliding_window\":16,\"max_window_layers\":2,\"use_sliding_window\":true", 16, "ffssss");
    check_sliding("qwen3", "\"sliding_window\":16,\"use_sliding_window\":true", 16, "ffffff"); /* from layer 28 on */
    check_sliding("qwen3",
                  "\"sliding_window\":16,\"use_sliding_window\":true,\"layer_types\":[" SLIDING "," FULL "," SLIDING
                  "," FULL "," FULL "," SLIDING "]",
                  16, "sfsffs");
    check_sliding("llama", "\"layer_types\":[" FULL "," FULL "," FULL "," FULL "," FULL "," FULL "]", 0, "ffffff");
}

static void values_that_cannot_be_are_format_errors(void **state) {
    (void)state;
    static const struct {
        const char *changes, *words;
    } cases[] = {
        {"\"hidden_size\":0", "\"hidden_size\" is 0, expected 1 to"},
        {"\"hidden_size\":-1", "\"hidden_size\" is -1"},
        {"\"hidden_size\":1000000000000", "\"hidden_size\" is 1000000000000"},
        {"\"hidden_size\":1e12", "\"hidden_size\" is a real number"},
        {"\"hidden_size\":\"256\"", "\"hidden_size\" is a string, expected an integer"},
        {"\"hidden_size\":null", "\"hidden_size\" is null"},
        {"\"hidden_size\":250", "no multiple of 8 heads"},
        {"\"num_hidden_layers\":1000000000", "\"num_hidden_layers\" is 1000000000"},
        {"\"num_attention_heads\":7", "7 attention heads cannot share 2"},
        {"\"num_key_value_heads\":16", "8 attention heads cannot share 16"},
        {"\"num_key_value_heads\":0", "\"num_key_value_heads\" is 0"},
        {"\"head_dim\":33", "heads of 33 elements"},
        {"\"head_dim\":2", "\"head_dim\" is 2"},
        {"\"vocab_size\":0", "\"vocab_size\" is 0"},
        {"\"intermediate_size\":[]", "\"intermediate_size\" is an array"},
        {"\"max_position_embeddings\":0", "\"max_position_embeddings\" is 0"},
        {"\"rms_norm_eps\":-1", "\"rms_norm_eps\" is -1"},
        {"\"rms_norm_eps\":\"1e-5\"", "\"rms_norm_eps\" is a string"},
        {"\"tie_word_embeddings\":1", "\"tie_word_embeddings\" is an integer, expected true or false"},
        {"\"hidden_act\":3", "\"hidden_act\" is an integer"},
        {"\"architectures\":\"LlamaForCausalLM\"", "\"architectures\" is a string"},
        {"\"architectures\":[]", "\"architectures\" is not a list of names"},
        {"\"torch_dtype\":\"averylongnameoftype\"", "is no type of a model"},
        {"\"layer_types\":[]", "\"layer_types\" is not an array of 6"},
        {"\"layer_types\":[1,2,3,4,5,6]", "\"layer_types\"[0] is not a string"},
        {"\"rope_theta\":0", "\"rope_theta\" is 0"},
        {"\"rope_theta\":\"big\"", "\"rope_theta\" is a string"},
        {"\"rope_scaling\":[]", "\"rope_scaling\" is an array"},
        {"\"rope_scaling\":{\"type\":\"linear\"}", "\"factor\" is missing"},
        {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}", "\"factor\" is 0"},
        {"\"rope_scaling\":{\"type\":3,\"factor\":2}", "\"type\" is an integer"},
        {"\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4}",
         "high_freq_factor 4 is not above"},
        {"\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}", "\"low_freq_factor\" is missing"},
    };
    model_config c;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_refused(parse("llama", cases[i].changes, &c), QL_FORMAT, cases[i].words);
        assert_memory_equal(ql_last_error(), "config.json: ", 13);
    }
    static const char *const needed[] = {"model_type",        "vocab_size",        "hidden_size",
                                         "intermediate_size", "num_hidden_layers", "num_attention_heads"};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
        assert_refused(parse_without("llama", "", needed[i], &c), QL_FORMAT, needed[i]);
    assert_true(ql_arena_peak(arena) < 100000); /* nothing of the claimed sizes was allocated */
}

static void what_changes_results_is_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *type, *changes, *words;
    } cases[] = {
        {"mixtral", "", "model_type \"mixtral\" is not supported; llama, mistral, qwen2 and qwen3 are"},
        {"qwen3_moe", "", "model_type \"qwen3_moe\""},
        {"llama", "\"architectures\":[\"LlamaForSequenceClassification\"]", "LlamaForSequenceClassification"},
        {"llama", "\"hidden_act\":\"gelu\"", "hidden_act \"gelu\" is not supported"},
        {"llama", "\"num_local_experts\":8", "\"num_local_experts\""},
        {"qwen2", "\"num_experts\":60", "\"num_experts\""},
        {"llama", "\"attn_logit_softcapping\":50.0", "\"attn_logit_softcapping\""},
        {"llama", "\"final_logit_softcapping\":30", "\"final_logit_softcapping\""},
        {"llama", "\"residual_multiplier\":0.22", "\"residual_multiplier\""},
        {"llama", "\"attention_multiplier\":1.0", "\"attention_multiplier\""},
        {"llama", "\"logits_scaling\":8", "\"logits_scaling\""},
        {"llama", "\"query_pre_attn_scalar\":1", "\"query_pre_attn_scalar\""},
        {"llama", "\"partial_rotary_factor\":0.5", "\"partial_rotary_factor\""},
        {"llama", "\"qk_layernorm\":true", "\"qk_layernorm\""},
        {"llama", "\"clip_qkv\":8", "\"clip_qkv\""},
        {"llama", "\"alibi\":true", "\"alibi\""},
        {"llama", "\"qkv_bias\":true", "\"qkv_bias\""},
        {"llama", "\"no_rope_layers\":[1,0]", "\"no_rope_layers\""},
        {"llama", "\"pruned_heads\":{\"1\":[0]}", "\"pruned_heads\""},
        {"llama", "\"sliding_window\":16", "\"sliding_window\" is not supported for llama"},
        {"mistral", "\"attention_bias\":true", "\"attention_bias\": true is not supported for mistral"},
        {"qwen2", "\"attention_bias\":false", "\"attention_bias\": false is not supported for qwen2"},
        {"qwen3", "\"mlp_bias\":true", "\"mlp_bias\": true"},
        {"mistral", "\"sliding_window\":16,\"use_sliding_window\":false", "set sliding_window to null"},
        {"qwen3", "\"layer_types\":[" FULL "," FULL "," FULL "," FULL "," FULL ",\"linear_attention\"]",
         "layer type \"linear_attention\""},
        {"qwen3", "\"layer_types\":[" FULL "," FULL "," FULL "," FULL "," FULL "," SLIDING "]",
         "\"layer_types\"[5] is sliding_attention"},
        {"llama", "\"rope_scaling\":{\"type\":\"longrope\",\"factor\":4}", "rope type \"longrope\""},
        {"llama", "\"rope_scaling\":{\"type\":\"su\"}", "rope type \"su\""},
        {"llama", "\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[1]}", "rope type \"mrope\""},
        {"llama", "\"rope_scaling\":{\"type\":\"linear\",\"rope_type\":\"yarn\",\"factor\":4}",
         "\"type\" is \"linear\""},
        {"llama", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4,\"beta_fast\":1}",
         "\"beta_fast\" is not supported"},
        {"llama", "\"rope_scaling\":{\"factor\":4}", "\"factor\" is not supported for rope type \"default\""},
        {"llama", "\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.25}",
         "partial_rotary_factor"},
        {"llama", "\"rope_theta\":1e4,\"rope_parameters\":{\"rope_theta\":1e6}", "rope_theta is 10000, and 1e+06"},
        {"llama", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4},\"rope_parameters\":{\"rope_type\":\"default\"}",
         "rope_scaling and rope_parameters differ"},
    };
    model_config c;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_refused(parse(cases[i].type, cases[i].changes, &c), QL_MISMATCH, cases[i].words);
}

static void switched_off_and_unrelated_fields_pass(void **state) {
    (void)state;
    static const char *const cases[] = {
        "\"num_local_experts\":0",
        "\"num_experts\":null",
        "\"attn_logit_softcapping\":null",
        "\"residual_multiplier\":1.0",
        "\"logits_scaling\":1",
        "\"partial_rotary_factor\":1.0",
        "\"qk_layernorm\":false",
        "\"pruned_heads\":{}",
        "\"no_rope_layers\":[]",
        "\"sliding_window\":null",
        "\"use_sliding_window\":false",
        "\"hidden_act\":\"swish\"",
        "\"attention_dropout\":0.1",
        "\"my_training_note\":\"kept\"", /* one warning */
        "\"architectures\":[\"LLaMAForCausalLM\"]",
        "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1e6}",
        "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4},\"rope_parameters\":{\"type\":\"linear\",\"factor\":4}",
    };
    model_config c;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) assert_ok(parse("llama", cases[i], &c));
}

/* ---- rope -------------------------------------------------------------------------------------------------------------- */

enum { POSITIONS = 40, MOST_PAIRS = 64 };

/* Frequencies and attention factor, read off the table at position 1, where no angle exceeds 1. */
static void read_frequencies(const model_config *config, int64_t seq_len, double *frequency, double *factor) {
    float cosines[2 * MOST_PAIRS], sines[2 * MOST_PAIRS];
    int64_t pairs = config->head_dim / 2;
    assert_ok(rope_tables(config, 2, seq_len, cosines, sines));
    for (int64_t j = 0; j < pairs; j++) {
        double c = (double)cosines[pairs + j], s = (double)sines[pairs + j];
        assert_true(fabs(cosines[j] - hypot(c, s)) < 1e-6 && sines[j] == 0.0f);
        frequency[j] = atan2(s, c);
        factor[j] = hypot(c, s);
    }
}

/* Known answers: ROPE_INIT_FUNCTIONS of transformers 5.23.0, in single precision (so are the tables: 1e-6 is 10 roundings). */
static void rope_frequencies_are_those_of_transformers(void **state) {
    (void)state;
    static const struct {
        const char *changes;
        int64_t seq_len;
        double factor;
        int pairs;
        double frequency[16];
    } cases[] = {
        {"\"head_dim\":16,\"max_position_embeddings\":4096,\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}",
         0,
         1,
         8,
         {0.25, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012,
          7.90569466e-05}},
        {"\"head_dim\":16,\"max_position_embeddings\":4096,\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}",
         8192,
         1,
         8,
         {1, 0.270296127, 0.073059991, 0.0197478328, 0.00533776265, 0.00144277653, 0.000389976951, 0.000105409257}},
        {"\"head_dim\":16,\"max_position_embeddings\":4096,\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2.0}",
         100,
         1,
         8,
         {1, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786, 0.00100000005, 0.000316227786}},
        {"\"head_dim\":32,\"max_position_embeddings\":131072,\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":"
         "\"llama3\","
         "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}",
         0,
         1,
         16,
         {1, 0.440366626, 0.193922758, 0.0853971019, 0.0376060307, 0.0165604409, 0.00729266508, 0.00321144611,
          0.000524846022, 7.78465546e-05, 3.42810235e-05, 1.50962178e-05, 6.64787058e-06, 2.92749974e-06,
          1.28917316e-06, 5.6770881e-07}},
        {"\"head_dim\":32,\"max_position_embeddings\":131072,\"rope_theta\":1000000.0,\"rope_scaling\":{\"type\":"
         "\"yarn\","
         "\"factor\":4.0,\"original_max_position_embeddings\":32768}",
         0,
         1.13862944,
         16,
         {1, 0.421696514, 0.177827939, 0.0749894157, 0.0316227786, 0.0133352149, 0.00477990136, 0.00165996165,
          0.000549999997, 0.000168678613, 4.44569851e-05, 1.87473561e-05, 7.90569356e-06, 3.33380399e-06,
          1.40585337e-06, 5.92843435e-07}},
        {"\"head_dim\":32,\"max_position_embeddings\":16384,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,"
         "\"original_max_position_embeddings\":4096,\"beta_fast\":16,\"beta_slow\":2,\"mscale\":0.7,\"mscale_all_dim\":"
         "1.1,"
         "\"truncate\":false}",
         0,
         0.951885344,
         16,
         {1, 0.562341332, 0.316227764, 0.177827939, 0.100000001, 0.0562341288, 0.0316227786, 0.0157161225,
          0.00676161889, 0.00263480213, 0.000825104478, 0.000444569858, 0.000250000012, 0.000140585325, 7.90569466e-05,
          4.44569851e-05}},
        {"\"head_dim\":16,\"max_position_embeddings\":16384,\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":"
         "50000.0,"
         "\"factor\":4.0,\"attention_factor\":1.25,\"original_max_position_embeddings\":4096}",
         0,
         1.25,
         8,
         {1, 0.258600146, 0.0668740273, 0.012970225, 0.00223606802, 0.000289123738, 7.47674421e-05, 1.93348696e-05}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        model_config c;
        double frequency[MOST_PAIRS], factor[MOST_PAIRS];
        assert_ok(parse("llama", cases[i].changes, &c));
        read_frequencies(&c, cases[i].seq_len, frequency, factor);
        assert_int_equal(c.head_dim, 2 * cases[i].pairs);
        for (int j = 0; j < cases[i].pairs; j++) {
            if (fabs(frequency[j] / cases[i].frequency[j] - 1.0) > 1e-6)
                fail_msg("case %zu, pair %d: %.9g, expected %.9g", i, j, frequency[j], cases[i].frequency[j]);
            assert_true(fabs(factor[j] / cases[i].factor - 1.0) < 1e-6);
        }
    }
}

/* Angles by another route: the frequency as an exponential, the rotation by repeated multiplication of complex numbers. */
static void rope_table_rotates_by_position(void **state) {
    (void)state;
    model_config c;
    float cosines[POSITIONS * MOST_PAIRS], sines[POSITIONS * MOST_PAIRS];
    assert_ok(parse("qwen3", "\"rope_theta\":1000000", &c));
    int64_t pairs = c.head_dim / 2;
    assert_int_equal(pairs, MOST_PAIRS);
    assert_ok(rope_tables(&c, POSITIONS, POSITIONS, cosines, sines));
    for (int64_t j = 0; j < pairs; j++) {
        double angle = exp(-2.0 * (double)j / 128.0 * log(1000000.0)), re = 1.0, im = 0.0;
        for (int64_t i = 0; i < POSITIONS; i++) {
            /* half a unit in the last place of 1, and the drift of 40 products in double, far smaller */
            assert_true(fabs((double)cosines[i * pairs + j] - re) < 6e-8);
            assert_true(fabs((double)sines[i * pairs + j] - im) < 6e-8);
            double next = re * cos(angle) - im * sin(angle);
            im = re * sin(angle) + im * cos(angle);
            re = next;
        }
    }
    assert_refused(rope_tables(&c, -1, 0, cosines, sines), QL_INVALID, "-1 positions");
}

static void yarn_original_context_beside_the_parameters_wins(void **state) {
    (void)state;
    model_config c;
    assert_ok(parse("llama",
                    "\"max_position_embeddings\":65536,\"original_max_position_embeddings\":4096,"
                    "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":16,\"finetuned\":true}",
                    &c));
    assert_int_equal(c.rope.original_max_position, 4096);
    assert_ok(
        parse("llama", "\"max_position_embeddings\":65536,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":16}", &c));
    assert_int_equal(c.rope.original_max_position, 65536);
}

/* ---- names and shapes --------------------------------------------------------------------------------------------------- */

static void check_tensor(const model_config *c, const char *wanted, int64_t n, int64_t k) {
    char name[NAME_SIZE];
    int64_t shape[2], found = 0, count = model_tensor(c, 0, NULL, NULL);
    for (int64_t i = 0; i < count; i++) {
        model_tensor(c, i, name, shape);
        if (strcmp(name, wanted) != 0) continue;
        found++;
        assert_int_equal(shape[0], n);
        assert_int_equal(shape[1], k);
    }
    if (found != (n > 0)) fail_msg("%s: %d times", wanted, (int)found);
}

static void tensors_of_each_architecture(void **state) {
    (void)state;
    model_config c;
    assert_ok(parse("llama", "\"head_dim\":48", &c)); /* 8 heads of 48 over hidden 256: q is [384][256] */
    assert_int_equal(model_tensor(&c, 0, NULL, NULL), 1 + 6 * 9 + 2);
    check_tensor(&c, "model.embed_tokens.weight", 1000, 256);
    check_tensor(&c, "model.layers.0.input_layernorm.weight", 256, 0);
    check_tensor(&c, "model.layers.5.self_attn.q_proj.weight", 384, 256);
    check_tensor(&c, "model.layers.5.self_attn.k_proj.weight", 96, 256);
    check_tensor(&c, "model.layers.5.self_attn.v_proj.weight", 96, 256);
    check_tensor(&c, "model.layers.5.self_attn.o_proj.weight", 256, 384);
    check_tensor(&c, "model.layers.3.post_attention_layernorm.weight", 256, 0);
    check_tensor(&c, "model.layers.3.mlp.gate_proj.weight", 768, 256);
    check_tensor(&c, "model.layers.3.mlp.up_proj.weight", 768, 256);
    check_tensor(&c, "model.layers.3.mlp.down_proj.weight", 256, 768);
    check_tensor(&c, "model.norm.weight", 256, 0);
    check_tensor(&c, "lm_head.weight", 1000, 256);
    check_tensor(&c, "model.layers.0.self_attn.q_proj.bias", 0, 0);
    assert_ok(parse("llama", "\"attention_bias\":true,\"mlp_bias\":true,\"tie_word_embeddings\":true", &c));
    assert_int_equal(model_tensor(&c, 0, NULL, NULL), 1 + 6 * 16 + 1);
    check_tensor(&c, "model.layers.1.self_attn.o_proj.bias", 256, 0);
    check_tensor(&c, "model.layers.1.mlp.gate_proj.bias", 768, 0);
    check_tensor(&c, "lm_head.weight", 0, 0);
    assert_ok(parse("qwen2", "", &c));
    assert_int_equal(model_tensor(&c, 0, NULL, NULL), 1 + 6 * 12 + 2);
    check_tensor(&c, "model.layers.2.self_attn.k_proj.bias", 64, 0);
    check_tensor(&c, "model.layers.2.self_attn.o_proj.bias", 0, 0);
    assert_ok(parse("qwen3", "", &c));
    assert_int_equal(model_tensor(&c, 0, NULL, NULL), 1 + 6 * 11 + 2);
    check_tensor(&c, "model.layers.2.self_attn.q_norm.weight", 128, 0);
    check_tensor(&c, "model.layers.2.self_attn.k_norm.weight", 128, 0);
}

static void sites_feed_their_linears(void **state) {
    (void)state;
    model_config c;
    assert_ok(parse("qwen2", "\"head_dim\":48", &c));
    for (int id = 0; id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(&c, (linear_id)id, &n, &k);
        assert_int_equal(k, site_width(&c, linear_site[id]));
    }
    assert_int_equal(site_width(&c, SITE_ATTN_IN), 256);
    assert_int_equal(site_width(&c, SITE_ATTN_OUT), 384);
    assert_int_equal(site_width(&c, SITE_MLP_IN), 256);
    assert_int_equal(site_width(&c, SITE_MLP_DOWN_IN), 768);
    char name[NAME_SIZE];
    module_name(name, 31, LIN_DOWN);
    assert_string_equal(name, "model.layers.31.mlp.down_proj");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(fields_of_a_real_config, setup, teardown),
        cmocka_unit_test_setup_teardown(absent_fields_have_the_defaults_of_their_class, setup, teardown),
        cmocka_unit_test_setup_teardown(sliding_windows_in_every_spelling, setup, teardown),
        cmocka_unit_test_setup_teardown(values_that_cannot_be_are_format_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(what_changes_results_is_refused_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(switched_off_and_unrelated_fields_pass, setup, teardown),
        cmocka_unit_test_setup_teardown(rope_frequencies_are_those_of_transformers, setup, teardown),
        cmocka_unit_test_setup_teardown(rope_table_rotates_by_position, setup, teardown),
        cmocka_unit_test_setup_teardown(yarn_original_context_beside_the_parameters_wins, setup, teardown),
        cmocka_unit_test_setup_teardown(tensors_of_each_architecture, setup, teardown),
        cmocka_unit_test_setup_teardown(sites_feed_their_linears, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

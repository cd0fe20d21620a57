/* The metadata of a model: from config.json to keys of GGUF, and back. */
#include <math.h>
#include <string.h>

#include "formats/json.h"
#include "formats/layout_gguf.h"

#define PI 3.14159265358979323846
enum { KEY_SIZE = 96, MOST = INT32_MAX };

/* "llama" + "." + "block_count" */
static const char *key_of(char key[KEY_SIZE], const char *architecture, const char *name) {
    snprintf(key, KEY_SIZE, "%s.%s", architecture, name);
    return key;
}

/* ---- to GGUF ------------------------------------------------------------------------------------------------------------------- */

static ql_status put_sizes(const model_config *c, const char *architecture, gguf_meta *meta) {
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {
        {"block_count", c->layers},
        {"context_length", c->max_position},
        {"embedding_length", c->hidden},
        {"feed_forward_length", c->intermediate},
        {"attention.head_count", c->heads},
        {"attention.head_count_kv", c->kv_heads},
        {"attention.key_length", c->head_dim},
        {"attention.value_length", c->head_dim},
        {"rope.dimension_count", c->head_dim},
        {"vocab_size", c->vocab},
    };
    char key[KEY_SIZE];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        QL_TRY(gguf_put_u32(meta, key_of(key, architecture, sizes[i].name), (uint32_t)sizes[i].value));
    return gguf_put_f32(meta, key_of(key, architecture, "attention.layer_norm_rms_epsilon"), (float)c->rms_eps);
}

static ql_status put_rope(const model_config *c, const char *architecture, gguf_meta *meta) {
    char key[KEY_SIZE];
    QL_TRY(gguf_put_f32(meta, key_of(key, architecture, "rope.freq_base"), (float)c->rope.theta));
    if (c->rope.kind != ROPE_LINEAR && c->rope.kind != ROPE_YARN) return QL_OK;
    bool yarn = c->rope.kind == ROPE_YARN;
    QL_TRY(gguf_put_string(meta, key_of(key, architecture, "rope.scaling.type"), yarn ? "yarn" : "linear"));
    QL_TRY(gguf_put_f32(meta, key_of(key, architecture, "rope.scaling.factor"), (float)c->rope.factor));
    if (!yarn) return QL_OK;
    return gguf_put_u32(meta, key_of(key, architecture, "rope.scaling.original_context_length"),
                        (uint32_t)c->rope.original_max_position);
}

ql_status gguf_model_meta(const model_config *config, gguf_mix mix, const char *name, gguf_meta *meta) {
    const char *architecture = gguf_architecture(config->arch);
    QL_TRY(gguf_put_string(meta, "general.architecture", architecture));
    QL_TRY(gguf_put_string(meta, "general.type", "model"));
    QL_TRY(gguf_put_string(meta, "general.name", name));
    QL_TRY(gguf_put_u32(meta, "general.file_type", (uint32_t)gguf_mix_file_type(mix)));
    if (mix != MIX_F16 && mix != MIX_BF16) QL_TRY(gguf_put_u32(meta, "general.quantization_version", 2));
    QL_TRY(put_sizes(config, architecture, meta));
    return put_rope(config, architecture, meta);
}

/* Long waves are stretched by the factor, short ones stay, and between them the change is smooth. */
static double rope_factor(const rope_config *rope, double wave) {
    double context = (double)rope->original_max_position;
    if (wave < context / rope->high_freq_factor) return 1;
    if (wave > context / rope->low_freq_factor) return rope->factor;
    double smooth = (context / wave - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return 1 / ((1 - smooth) / rope->factor + smooth);
}

void gguf_rope_factors(const model_config *config, float *factors) {
    for (int64_t i = 0; i < config->head_dim / 2; i++) {
        double wave = 2 * PI * pow(config->rope.theta, 2.0 * (double)i / (double)config->head_dim);
        factors[i] = (float)rope_factor(&config->rope, wave);
    }
}

/* ---- from GGUF ----------------------------------------------------------------------------------------------------------------- */

static ql_status set(json_t *object, const char *key, json_t *value) {
    return json_object_set_new(object, key, value) == 0 ? QL_OK : ql_fail(QL_NOMEM, "no memory for config.json");
}

/* An f32 as people wrote it: the shortest decimal that rounds to it. */
static double shortest(double value) {
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if ((float)strtod(text, NULL) == (float)value) return strtod(text, NULL);
    }
    return value;
}

/* llama3's factors hold what the keys do not say; its other three numbers are the same in every model there is. */
static ql_status get_factors(const gguf_file *file, const gguf_tensor *t, model_config *c, ql_arena *arena,
                             json_t *config) {
    float *found, *made;
    c->rope = (rope_config){.kind = ROPE_LLAMA3,
                            .theta = c->rope.theta,
                            .low_freq_factor = 1,
                            .high_freq_factor = 4,
                            .original_max_position = 8192};
    if (t->type->dtype != QL_F32 || t->ne[0] != c->head_dim / 2 || t->size != (uint64_t)t->ne[0] * 4 || t->size == 0)
        return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is no list of %lld factors", file->path, t->name,
                       (long long)c->head_dim / 2);
    QL_TRY(ql_take(arena, (size_t)t->ne[0], sizeof *found, &found));
    QL_TRY(ql_take(arena, (size_t)t->ne[0], sizeof *made, &made));
    QL_TRY(gguf_read(file, t, found));
    c->rope.factor = shortest(found[t->ne[0] - 1]);
    gguf_rope_factors(c, made);
    for (int64_t i = 0; i < t->ne[0]; i++)
        if (!(fabsf(found[i] - made[i]) <= 1e-4f * made[i]))
            return ql_fail(QL_MISMATCH, "%s: factor %lld of the rotary embedding is %g, llama3's would be %g",
                           file->path, (long long)i, (double)found[i], (double)made[i]);
    return set(config, "rope_scaling",
               json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor", c->rope.factor,
                         "low_freq_factor", 1.0, "high_freq_factor", 4.0, "original_max_position_embeddings", 8192));
}

static ql_status get_scaling(const gguf_file *file, const char *architecture, ql_arena *arena, json_t *config) {
    char key[KEY_SIZE], *type = NULL;
    double factor = 1;
    int64_t original = 0;
    if (!gguf_key_of(file, key_of(key, architecture, "rope.scaling.type"))) return QL_OK;
    QL_TRY(gguf_string(file, key, arena, &type));
    if (strcmp(type, "none") == 0) return QL_OK;
    if (strcmp(type, "linear") != 0 && strcmp(type, "yarn") != 0)
        return ql_fail(QL_MISMATCH, "%s: key \"%s\" is \"%.50s\", expected none, linear or yarn", file->path, key,
                       type);
    QL_TRY(gguf_real(file, key_of(key, architecture, "rope.scaling.factor"), &factor));
    json_t *scaling = json_pack("{s:s, s:f}", "rope_type", type, "factor", shortest(factor));
    QL_TRY(set(config, "rope_scaling", scaling));
    if (strcmp(type, "linear") == 0) return QL_OK;
    QL_TRY(gguf_int(file, key_of(key, architecture, "rope.scaling.original_context_length"), 1, MOST, &original));
    return set(scaling, "original_max_position_embeddings", json_integer(original));
}

static ql_status get_rope(const gguf_file *file, const char *architecture, model_config *c, ql_arena *arena,
                          json_t *config) {
    char key[KEY_SIZE];
    int64_t rotated = c->head_dim;
    c->rope.theta = 10000;
    QL_TRY(gguf_real_or(file, key_of(key, architecture, "rope.freq_base"), &c->rope.theta));
    QL_TRY(gguf_int_or(file, key_of(key, architecture, "rope.dimension_count"), 1, MOST, &rotated));
    if (rotated != c->head_dim)
        return ql_fail(QL_MISMATCH, "%s: %lld of %lld dimensions of a head are rotated, qalib rotates all", file->path,
                       (long long)rotated, (long long)c->head_dim);
    QL_TRY(set(config, "rope_theta", json_real(shortest(c->rope.theta))));
    const gguf_tensor *factors = gguf_find(file, "rope_freqs.weight");
    return factors ? get_factors(file, factors, c, arena, config) : get_scaling(file, architecture, arena, config);
}

static ql_status get_sizes(const gguf_file *file, const char *architecture, model_config *c, json_t *config) {
    const struct {
        const char *name, *field;
        int64_t *value;
    } sizes[] = {
        {"block_count", "num_hidden_layers", &c->layers},
        {"context_length", "max_position_embeddings", &c->max_position},
        {"embedding_length", "hidden_size", &c->hidden},
        {"feed_forward_length", "intermediate_size", &c->intermediate},
        {"attention.head_count", "num_attention_heads", &c->heads},
    };
    char key[KEY_SIZE];
    double eps;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        QL_TRY(gguf_int(file, key_of(key, architecture, sizes[i].name), 1, MOST, sizes[i].value));
        QL_TRY(set(config, sizes[i].field, json_integer(*sizes[i].value)));
    }
    c->kv_heads = c->heads, c->head_dim = c->hidden / c->heads;
    QL_TRY(gguf_int_or(file, key_of(key, architecture, "attention.head_count_kv"), 1, MOST, &c->kv_heads));
    QL_TRY(gguf_int_or(file, key_of(key, architecture, "attention.key_length"), 1, MOST, &c->head_dim));
    QL_TRY(set(config, "num_key_value_heads", json_integer(c->kv_heads)));
    QL_TRY(set(config, "head_dim", json_integer(c->head_dim)));
    QL_TRY(gguf_real(file, key_of(key, architecture, "attention.layer_norm_rms_epsilon"), &eps));
    return set(config, "rms_norm_eps", json_real(shortest(eps)));
}

/* What the tensors say: vocabulary, biases, a head of its own. */
static ql_status get_tensors(const gguf_file *file, const char *architecture, json_t *config) {
    const gguf_tensor *embedding = gguf_find(file, "token_embd.weight");
    bool llama = strcmp(architecture, "llama") == 0;
    if (!embedding) return ql_fail(QL_FORMAT, "%s: tensor \"token_embd.weight\" is missing", file->path);
    QL_TRY(set(config, "vocab_size", json_integer(embedding->ne[1])));
    QL_TRY(set(config, "tie_word_embeddings", json_boolean(!gguf_find(file, "output.weight"))));
    QL_TRY(set(config, "hidden_act", json_string("silu")));
    QL_TRY(set(config, "torch_dtype", json_string("float32")));
    if (!llama) return QL_OK;
    QL_TRY(set(config, "attention_bias", json_boolean(gguf_find(file, "blk.0.attn_q.bias") != NULL)));
    return set(config, "mlp_bias", json_boolean(gguf_find(file, "blk.0.ffn_up.bias") != NULL));
}

static ql_status make_config(const gguf_file *file, ql_arena *arena, json_t *config) {
    static const struct {
        const char *name, *class;
    } known[] = {{"llama", "LlamaForCausalLM"}, {"qwen2", "Qwen2ForCausalLM"}, {"qwen3", "Qwen3ForCausalLM"}};
    char *architecture;
    size_t which = 0;
    model_config c = {0};
    QL_TRY(gguf_string(file, "general.architecture", arena, &architecture));
    while (which < 3 && strcmp(known[which].name, architecture) != 0) which++;
    if (which == 3)
        return ql_fail(QL_MISMATCH, "%s: architecture \"%.50s\", qalib reads llama, qwen2 and qwen3", file->path,
                       architecture);
    QL_TRY(set(config, "architectures", json_pack("[s]", known[which].class)));
    QL_TRY(set(config, "model_type", json_string(architecture)));
    QL_TRY(get_sizes(file, architecture, &c, config));
    QL_TRY(get_rope(file, architecture, &c, arena, config));
    return get_tensors(file, architecture, config);
}

ql_status gguf_config(const gguf_file *file, json_t **config) {
    ql_arena *arena;
    *config = NULL;
    QL_TRY(ql_arena_open(NULL, &arena));
    json_t *made = json_object();
    ql_status status = made ? make_config(file, arena, made) : ql_fail(QL_NOMEM, "no memory for config.json");
    ql_arena_close(arena);
    if (status == QL_OK) *config = made;
    else json_decref(made);
    return status;
}

#include "formats/model_config.h"

#include <string.h>
#include <strings.h>

#include "formats/model_config_parts.h"

/* Bounds that no real model reaches; beyond them a config is damaged, and sizes could overflow. */
enum {
    MOST_VOCAB = 1 << 24,
    MOST_HIDDEN = 1 << 20,
    MOST_INTERMEDIATE = 1 << 22,
    MOST_LAYERS = 4096,
    MOST_HEADS = 1 << 16,
    MOST_HEAD_DIM = 4096,
    MOST_POSITIONS = INT32_MAX,
};

/* What transformers (5.23) takes where a config says nothing.  kv_heads 0: as many as heads. */
static const struct {
    const char *model_type, *class_name;
    int64_t kv_heads, max_position, head_dim, sliding_window;
} archs[] = {
    [ARCH_LLAMA] = {"llama", "LlamaForCausalLM", 0, 2048, 0, 0},
    [ARCH_MISTRAL] = {"mistral", "MistralForCausalLM", 8, 131072, 0, 4096},
    [ARCH_QWEN2] = {"qwen2", "Qwen2ForCausalLM", 32, 32768, 0, 4096},
    [ARCH_QWEN3] = {"qwen3", "Qwen3ForCausalLM", 32, 32768, 128, 4096},
};
enum { ARCHS = sizeof archs / sizeof archs[0] };

/* ---- architecture ------------------------------------------------------------------------------------------------------ */

/* A classifier or a bare trunk of the same family has other tensors; remote code may compute anything. */
static ql_status check_class(const json_t *config, const char *place, arch which) {
    const json_t *classes = json_object_get(config, "architectures"), *first = json_array_get(classes, 0);
    if (!classes || json_is_null(classes)) return QL_OK;
    if (!json_is_string(first))
        return ql_fail(QL_FORMAT, "%s: \"architectures\" is %s, expected [\"%s\"]", place,
                       json_is_array(classes) ? "not a list of names" : ql_json_type_name(classes),
                       archs[which].class_name);
    if (strcasecmp(json_string_value(first), archs[which].class_name) == 0) return QL_OK;
    return ql_fail(QL_MISMATCH, "%s: \"architectures\" is \"%.100s\", qalib supports %s for model_type \"%s\"", place,
                   json_string_value(first), archs[which].class_name, archs[which].model_type);
}

static ql_status parse_arch(const json_t *config, const char *place, model_config *out) {
    const char *model_type;
    QL_TRY(ql_json_string(config, place, "model_type", &model_type));
    int which = 0;
    while (which < ARCHS && strcmp(model_type, archs[which].model_type) != 0) which++;
    if (which == ARCHS)
        return ql_fail(QL_MISMATCH, "%s: model_type \"%.100s\" is not supported; llama, mistral, qwen2 and qwen3 are",
                       place, model_type);
    out->arch = (arch)which;
    strcpy(out->model_type, model_type);
    return check_class(config, place, out->arch);
}

/* "dtype" is the newer name.  Informative only: every tensor has its own. */
static ql_status parse_dtype(const json_t *config, const char *place, model_config *out) {
    const char *name = "", *prefix = "torch.";
    QL_TRY(ql_json_string_or(config, place, "torch_dtype", &name));
    QL_TRY(ql_json_string_or(config, place, "dtype", &name));
    if (strncmp(name, prefix, strlen(prefix)) == 0) name += strlen(prefix);
    if (strlen(name) >= sizeof out->torch_dtype)
        return ql_fail(QL_FORMAT, "%s: dtype \"%.100s\" is no type of a model", place, name);
    strcpy(out->torch_dtype, name);
    return QL_OK;
}

/* ---- sizes and flags --------------------------------------------------------------------------------------------------- */

static ql_status parse_heads(const json_t *config, const char *place, model_config *out) {
    QL_TRY(ql_json_int(config, place, "num_attention_heads", 1, MOST_HEADS, &out->heads));
    out->kv_heads = archs[out->arch].kv_heads ? archs[out->arch].kv_heads : out->heads;
    QL_TRY(ql_json_int_or(config, place, "num_key_value_heads", 1, MOST_HEADS, &out->kv_heads));
    if (out->heads % out->kv_heads != 0)
        return ql_fail(QL_FORMAT, "%s: %lld attention heads cannot share %lld key-value heads", place,
                       (long long)out->heads, (long long)out->kv_heads);
    out->head_dim = archs[out->arch].head_dim;
    QL_TRY(ql_json_int_or(config, place, "head_dim", 4, MOST_HEAD_DIM, &out->head_dim));
    if (out->head_dim == 0 && out->hidden % out->heads != 0)
        return ql_fail(QL_FORMAT, "%s: hidden_size %lld is no multiple of %lld heads, and there is no head_dim", place,
                       (long long)out->hidden, (long long)out->heads);
    if (out->head_dim == 0) out->head_dim = out->hidden / out->heads;
    if (out->head_dim < 4 || out->head_dim > MOST_HEAD_DIM || out->head_dim % 2 != 0)
        return ql_fail(QL_FORMAT, "%s: heads of %lld elements, expected an even number from 4 to %d", place,
                       (long long)out->head_dim, MOST_HEAD_DIM);
    return QL_OK;
}

static ql_status parse_sizes(const json_t *config, const char *place, model_config *out) {
    QL_TRY(ql_json_int(config, place, "vocab_size", 1, MOST_VOCAB, &out->vocab));
    QL_TRY(ql_json_int(config, place, "hidden_size", 1, MOST_HIDDEN, &out->hidden));
    QL_TRY(ql_json_int(config, place, "intermediate_size", 1, MOST_INTERMEDIATE, &out->intermediate));
    QL_TRY(ql_json_int(config, place, "num_hidden_layers", 1, MOST_LAYERS, &out->layers));
    QL_TRY(parse_heads(config, place, out));
    out->max_position = archs[out->arch].max_position;
    QL_TRY(ql_json_int_or(config, place, "max_position_embeddings", 1, MOST_POSITIONS, &out->max_position));
    out->rms_eps = 1e-6;
    return ql_json_real_or(config, place, "rms_norm_eps", 0.0, 1.0, &out->rms_eps);
}

static ql_status parse_biases(const json_t *config, const char *place, model_config *out) {
    bool attention = out->arch == ARCH_QWEN2, mlp = false;
    QL_TRY(ql_json_bool_or(config, place, "attention_bias", &attention));
    QL_TRY(ql_json_bool_or(config, place, "mlp_bias", &mlp));
    /* transformers builds q, k, v of qwen2 with a bias and mistral without one, whatever the field says. */
    bool is_fixed = out->arch == ARCH_QWEN2 || out->arch == ARCH_MISTRAL;
    if (is_fixed && attention != (out->arch == ARCH_QWEN2))
        return ql_fail(QL_MISMATCH, "%s: \"attention_bias\": %s is not supported for %s", place,
                       attention ? "true" : "false", out->model_type);
    if (mlp && out->arch != ARCH_LLAMA)
        return ql_fail(QL_MISMATCH, "%s: \"mlp_bias\": true is not supported for %s", place, out->model_type);
    out->attention_bias = attention;
    out->attention_out_bias = attention && !is_fixed;
    out->mlp_bias = mlp;
    return QL_OK;
}

static ql_status parse_flags(const json_t *config, const char *place, model_config *out) {
    const char *activation = "silu";
    QL_TRY(ql_json_string_or(config, place, "hidden_act", &activation));
    if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0)
        return ql_fail(QL_MISMATCH, "%s: hidden_act \"%.100s\" is not supported; silu is", place, activation);
    QL_TRY(parse_biases(config, place, out));
    QL_TRY(ql_json_bool_or(config, place, "tie_word_embeddings", &out->tied_embeddings));
    out->qk_norm = out->arch == ARCH_QWEN3;
    const json_t *quantization = json_object_get(config, "quantization_config");
    out->is_quantized = quantization && !json_is_null(quantization);
    return QL_OK;
}

/* ---- sliding windows --------------------------------------------------------------------------------------------------- */

/* The window in use, and the first layer that has it: all of mistral, those from max_window_layers on of qwen. */
static ql_status parse_window(const json_t *config, const char *place, model_config *out, int64_t *first) {
    bool is_qwen = out->arch == ARCH_QWEN2 || out->arch == ARCH_QWEN3, in_use = !is_qwen;
    int64_t window = archs[out->arch].sliding_window;
    if (json_is_null(json_object_get(config, "sliding_window"))) window = 0;
    QL_TRY(ql_json_int_or(config, place, "sliding_window", 1, INT64_MAX, &window));
    QL_TRY(ql_json_bool_or(config, place, "use_sliding_window", &in_use));
    *first = is_qwen ? 28 : 0; /* the default of transformers */
    if (is_qwen) QL_TRY(ql_json_int_or(config, place, "max_window_layers", 0, INT64_MAX, first));
    out->sliding_window = in_use ? window : 0;
    if (out->arch == ARCH_LLAMA && out->sliding_window)
        return ql_fail(QL_MISMATCH, "%s: \"sliding_window\" is not supported for llama", place);
    if (out->arch == ARCH_MISTRAL && window && !in_use)
        return ql_fail(QL_MISMATCH,
                       "%s: \"use_sliding_window\": false is not supported for mistral; "
                       "set sliding_window to null",
                       place);
    return QL_OK;
}

static ql_status parse_layer_type(const json_t *types, int64_t layer, const char *place, model_config *out) {
    const char *type = json_string_value(json_array_get(types, (size_t)layer));
    if (!type) return ql_fail(QL_FORMAT, "%s: \"layer_types\"[%lld] is not a string", place, (long long)layer);
    bool is_sliding = strcmp(type, "sliding_attention") == 0, was_sliding = out->layer_is_sliding[layer];
    if (!is_sliding && strcmp(type, "full_attention") != 0)
        return ql_fail(QL_MISMATCH, "%s: layer type \"%.100s\" is not supported", place, type);
    bool is_fixed = out->arch == ARCH_LLAMA || out->arch == ARCH_MISTRAL;
    if (is_sliding != was_sliding && (is_fixed || !out->sliding_window))
        return ql_fail(QL_MISMATCH, "%s: \"layer_types\"[%lld] is %s, which contradicts the other fields of a %s",
                       place, (long long)layer, type, out->model_type);
    out->layer_is_sliding[layer] = is_sliding;
    return QL_OK;
}

static ql_status parse_layers(const json_t *config, const char *place, ql_arena *arena, model_config *out) {
    int64_t first;
    QL_TRY(parse_window(config, place, out, &first));
    QL_TRY(ql_take(arena, (size_t)out->layers, sizeof *out->layer_is_sliding, &out->layer_is_sliding));
    for (int64_t i = 0; i < out->layers; i++) out->layer_is_sliding[i] = out->sliding_window && i >= first;
    const json_t *types = json_object_get(config, "layer_types");
    if (!types || json_is_null(types)) return QL_OK;
    if (!json_is_array(types) || json_array_size(types) != (size_t)out->layers)
        return ql_fail(QL_FORMAT, "%s: \"layer_types\" is not an array of %lld names", place, (long long)out->layers);
    for (int64_t i = 0; i < out->layers; i++) QL_TRY(parse_layer_type(types, i, place, out));
    return QL_OK;
}

ql_status model_config_parse(const json_t *config, const char *place, ql_arena *arena, model_config *out) {
    *out = (model_config){0};
    QL_TRY(parse_arch(config, place, out));
    QL_TRY(check_fields(config, place));
    QL_TRY(parse_dtype(config, place, out));
    QL_TRY(parse_sizes(config, place, out));
    QL_TRY(parse_flags(config, place, out));
    QL_TRY(parse_layers(config, place, arena, out));
    return rope_parse(config, place, out);
}

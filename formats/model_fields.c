/* Which fields of config.json may be passed over: the policy stated in model_config.h. */
#include <string.h>

#include "formats/model_config_parts.h"
#include "host/log.h"

/* Read by model_config.c and rope.c. */
static const char *const understood[] = {
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "quantization_config",
    NULL,
};

/* Nothing of a forward pass depends on these.  pretraining_tp splits products without changing their sum. */
static const char *const harmless[] = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "attention_dropout",
    "attn_implementation",
    "bos_token_id",
    "classifier_dropout",
    "decoder_start_token_id",
    "embd_pdrop",
    "eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "label2id",
    "max_length",
    "max_sequence_length",
    "model_max_length",
    "pad_token_id",
    "pretraining_tp",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "sep_token_id",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    NULL,
};

/* Words of names that change results in one model family or another, and the number that switches them off.  The first one in
 * a name decides.  attention_multiplier and query_pre_attn_scalar replace 1/sqrt(head_dim): no number is neutral. */
enum { NEVER = -1 };
static const struct {
    const char *word;
    int neutral;
} numeric_words[] = {
    {"attention_multiplier", NEVER},
    {"query_pre_attn_scalar", NEVER},
    {"expert", 0},
    {"moe", 0},
    {"softcap", 0},
    {"multiplier", 1},
    {"scal", 1},
    {"factor", 1},
    {"rope", 0},
    {"rotary", 0},
    {"norm", 0},
    {"bias", 0},
    {"window", 0},
    {"sink", 0},
    {"clip", 0},
    {"alibi", 0},
    {"activation", 0},
    {"attn", 0},
    {"attention", 0},
    {"lora", 0},
    {"mup", 0},
    {"residual", 0},
    {"position", 0},
    {"pruned", 0},
    {"sparse", 0},
    {"mamba", 0},
    {"conv", 0},
    {"encoder", 0},
};

static bool is_among(const char *key, const char *const list[]) {
    while (*list && strcmp(key, *list) != 0) list++;
    return *list != NULL;
}

static bool is_off(const json_t *value, int neutral) {
    switch (json_typeof(value)) {
    case JSON_NULL:
    case JSON_FALSE: return true;
    case JSON_TRUE: return false;
    case JSON_STRING: return json_string_length(value) == 0;
    case JSON_ARRAY: return json_array_size(value) == 0;
    case JSON_OBJECT: return json_object_size(value) == 0;
    default: return neutral != NEVER && json_number_value(value) == neutral;
    }
}

static ql_status check_numeric(const char *key, const json_t *value, const char *place, bool *is_numeric) {
    *is_numeric = false;
    for (size_t i = 0; i < sizeof numeric_words / sizeof numeric_words[0] && !*is_numeric; i++) {
        if (!strstr(key, numeric_words[i].word)) continue;
        *is_numeric = true;
        if (!is_off(value, numeric_words[i].neutral))
            return ql_fail(QL_MISMATCH, "%s: \"%s\" may change the model's results and is not supported", place, key);
    }
    return QL_OK;
}

ql_status check_fields(const json_t *config, const char *place) {
    char ignored[512] = "";
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)config, key, value) {
        if (is_among(key, understood) || is_among(key, harmless)) continue;
        bool is_numeric;
        QL_TRY(check_numeric(key, value, place, &is_numeric));
        size_t used = strlen(ignored);
        if (!is_numeric && !is_off(value, 0) && used < sizeof ignored - 1)
            snprintf(ignored + used, sizeof ignored - used, "%s%.60s", used ? ", " : "", key);
    }
    if (ignored[0]) ql_log(QL_WARNING, "%s: fields that qalib does not know are ignored: %s", place, ignored);
    return QL_OK;
}

/* config.json as a struct.  What changes the numerics is either understood here or refused by name, never ignored:
 * an unknown architecture, activation or rope type, a sliding window in an unknown form, mixture-of-experts, logit soft-capping...
 *
 * A field is
 *   understood           parsed; where a config leaves it out, the default of transformers for its model_type holds;
 *   harmless             on a list (token ids, dropout, generation settings, ...): ignored silently;
 *   unknown and off      null, false, 0, "", [], {} (or 1 for a multiplier): ignored silently;
 *   unknown, numeric     its name speaks of the arithmetic (expert, rope, norm, bias, window, scale, cap, attention...): QL_MISMATCH;
 *   unknown, else        ignored, all of them in one warning: configs carry the notes of many training tools.
 * Fields of rope_scaling and rope_parameters are numeric without exception.
 */
#ifndef FORMATS_MODEL_CONFIG_H
#define FORMATS_MODEL_CONFIG_H

#include <jansson.h>

#include "host/mem.h"

typedef enum arch { ARCH_LLAMA, ARCH_MISTRAL, ARCH_QWEN2, ARCH_QWEN3 } arch;
typedef enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_LLAMA3, ROPE_YARN } rope_kind;

typedef struct rope_config {
    rope_kind kind;
    double theta, factor;
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn */
    double attention_factor;                  /* yarn: given, or 0.1 ln(factor) + 1, or from mscale; 1 elsewhere */
    bool truncate;                            /* yarn */
    int64_t original_max_position;            /* llama3 and yarn: max_position if the config has none */
} rope_config;

typedef struct model_config {
    arch arch;
    char model_type[16], torch_dtype[16];
    int64_t vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, max_position;
    double rms_eps;
    bool attention_bias;     /* on q, k, v */
    bool attention_out_bias; /* on o */
    bool mlp_bias, qk_norm, tied_embeddings;
    int64_t sliding_window; /* 0 = none */
    bool *layer_is_sliding; /* [layers], from layer_types or max_window_layers */
    rope_config rope;
    bool is_quantized; /* quantization_config is present */
} model_config;

/* place: for messages.  QL_FORMAT for values that cannot be, QL_MISMATCH for what qalib does not support. */
ql_status model_config_parse(const json_t *config, const char *place, ql_arena *arena, model_config *out);

/* cos and sin tables of the config, [positions][head_dim / 2], attention factor included, computed in double as
 * transformers does.  seq_len matters for ROPE_DYNAMIC only. */
ql_status rope_tables(const model_config *config, int64_t positions, int64_t seq_len, float *cos, float *sin);

/* The Linear modules of one block, in the order in which they are applied. */
typedef enum linear_id { LIN_Q, LIN_K, LIN_V, LIN_O, LIN_GATE, LIN_UP, LIN_DOWN, LINEARS } linear_id;

/* Distinct inputs of a block's linears, one Hessian each. */
typedef enum site_id { SITE_ATTN_IN, SITE_ATTN_OUT, SITE_MLP_IN, SITE_MLP_DOWN_IN, SITES } site_id;

extern const char *const linear_names[LINEARS]; /* "self_attn.q_proj", ... */
extern const char *const site_names[SITES];     /* "attn_in", "attn_out", "mlp_in", "mlp_down_in" */
extern const site_id linear_site[LINEARS];

void linear_shape(const model_config *config, linear_id id, int64_t *n, int64_t *k);
bool linear_has_bias(const model_config *config, linear_id id);
int64_t site_width(const model_config *config, site_id site); /* k of the linears it feeds */

/* "model.layers.3.self_attn.q_proj" into a caller's buffer. */
enum { NAME_SIZE = 128 };
void module_name(char name[NAME_SIZE], int64_t layer, linear_id id);

/* Every tensor that a checkpoint of this config must have in 16 or 32 bits, by index; shape[1] = 0 for vectors.
 * Returns their number when name is NULL. */
int64_t model_tensor(const model_config *config, int64_t index, char name[NAME_SIZE], int64_t shape[2]);

#endif

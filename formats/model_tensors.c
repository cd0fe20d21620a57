/* Names and shapes that follow from a config: the Linear modules of a block, and every tensor of a checkpoint. */
#include <string.h>

#include "formats/model_config.h"

const char *const linear_names[LINEARS] = {
    [LIN_Q] = "self_attn.q_proj", [LIN_K] = "self_attn.k_proj", [LIN_V] = "self_attn.v_proj",
    [LIN_O] = "self_attn.o_proj", [LIN_GATE] = "mlp.gate_proj", [LIN_UP] = "mlp.up_proj",
    [LIN_DOWN] = "mlp.down_proj",
};

const char *const site_names[SITES] = {
    [SITE_ATTN_IN] = "attn_in",
    [SITE_ATTN_OUT] = "attn_out",
    [SITE_MLP_IN] = "mlp_in",
    [SITE_MLP_DOWN_IN] = "mlp_down_in",
};

const site_id linear_site[LINEARS] = {
    [LIN_Q] = SITE_ATTN_IN,   [LIN_K] = SITE_ATTN_IN, [LIN_V] = SITE_ATTN_IN,        [LIN_O] = SITE_ATTN_OUT,
    [LIN_GATE] = SITE_MLP_IN, [LIN_UP] = SITE_MLP_IN, [LIN_DOWN] = SITE_MLP_DOWN_IN,
};

int64_t site_width(const model_config *config, site_id site) {
    switch (site) {
    case SITE_ATTN_OUT: return config->heads * config->head_dim;
    case SITE_MLP_DOWN_IN: return config->intermediate;
    default: return config->hidden;
    }
}

void linear_shape(const model_config *config, linear_id id, int64_t *n, int64_t *k) {
    *k = site_width(config, linear_site[id]);
    switch (id) {
    case LIN_Q: *n = config->heads * config->head_dim; break;
    case LIN_K:
    case LIN_V: *n = config->kv_heads * config->head_dim; break;
    case LIN_GATE:
    case LIN_UP: *n = config->intermediate; break;
    default: *n = config->hidden;
    }
}

bool linear_has_bias(const model_config *config, linear_id id) {
    if (id == LIN_O) return config->attention_out_bias;
    return id < LIN_O ? config->attention_bias : config->mlp_bias;
}

void module_name(char name[NAME_SIZE], int64_t layer, linear_id id) {
    snprintf(name, NAME_SIZE, "model.layers.%lld.%s", (long long)layer, linear_names[id]);
}

/* ---- all tensors ------------------------------------------------------------------------------------------------------- */

typedef struct part {
    const char *module, *kind;
    int64_t n, k;
} part;

enum { MOST_PARTS = 4 + 2 * LINEARS };

static int block_parts(const model_config *config, part parts[MOST_PARTS]) {
    int count = 0;
    parts[count++] = (part){"input_layernorm", "weight", config->hidden, 0};
    for (int id = 0; id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(config, (linear_id)id, &n, &k);
        if (id == LIN_GATE) parts[count++] = (part){"post_attention_layernorm", "weight", config->hidden, 0};
        parts[count++] = (part){linear_names[id], "weight", n, k};
        if (linear_has_bias(config, (linear_id)id)) parts[count++] = (part){linear_names[id], "bias", n, 0};
    }
    if (config->qk_norm) {
        parts[count++] = (part){"self_attn.q_norm", "weight", config->head_dim, 0};
        parts[count++] = (part){"self_attn.k_norm", "weight", config->head_dim, 0};
    }
    return count;
}

int64_t model_tensor(const model_config *config, int64_t index, char name[NAME_SIZE], int64_t shape[2]) {
    part parts[MOST_PARTS], chosen;
    int64_t per_block = block_parts(config, parts), in_blocks = config->layers * per_block;
    int64_t count = 1 + in_blocks + 1 + !config->tied_embeddings;
    if (!name) return count;
    if (index >= 1 && index <= in_blocks) {
        chosen = parts[(index - 1) % per_block];
        snprintf(name, NAME_SIZE, "model.layers.%lld.%s.%s", (long long)((index - 1) / per_block), chosen.module,
                 chosen.kind);
    } else {
        chosen = index == 0               ? (part){"model.embed_tokens", "weight", config->vocab, config->hidden}
                 : index == in_blocks + 1 ? (part){"model.norm", "weight", config->hidden, 0}
                                          : (part){"lm_head", "weight", config->vocab, config->hidden};
        snprintf(name, NAME_SIZE, "%s.%s", chosen.module, chosen.kind);
    }
    shape[0] = chosen.n;
    shape[1] = chosen.k;
    return count;
}

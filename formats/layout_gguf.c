/* Names and types of formats/layout_gguf.h: the rules of llama.cpp's llama-quantize. */
#include "formats/layout_gguf.h"

#include <math.h>
#include <string.h>

#include "host/kquant.h"

static const struct {
    const char *name;
    int file_type, number;
} mixes[] = {
#define MIX(id, name, file_type, number) [id] = {name, file_type, number},
    GGUF_MIXES(MIX)
#undef MIX
};

const char *gguf_mix_name(gguf_mix mix) { return mixes[mix].name; }
int gguf_mix_file_type(gguf_mix mix) { return mixes[mix].file_type; }

const gguf_type *gguf_mix_type(gguf_mix mix) { return gguf_type_of((uint32_t)mixes[mix].number); }

/* Values of 16 bits and Q8_0 are rounded one by one. */
bool gguf_mix_reads_importance(gguf_mix mix) { return mix != MIX_F16 && mix != MIX_BF16 && mix != MIX_Q8_0; }

int gguf_bits(const gguf_type *type) {
    return type->block < QL_BLOCK_TYPE_COUNT ? ql_code_bits(type->block) : (int)(8 * type->bytes);
}

int64_t gguf_group(const gguf_type *type) {
    return type->block < QL_BLOCK_TYPE_COUNT ? ql_sub_weights(type->block) : 1;
}

gguf_mix gguf_mix_of(const char *name) {
    gguf_mix mix = 0;
    while (mix < GGUF_MIX_COUNT && strcmp(mixes[mix].name, name) != 0) mix++;
    return mix;
}

const char *gguf_architecture(arch which) {
    return which == ARCH_QWEN2 ? "qwen2" : which == ARCH_QWEN3 ? "qwen3" : "llama";
}

/* ---- names --------------------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *source, *name;
} block_names[] = {
    {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"}, {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};

static const struct {
    const char *source, *name;
} other_names[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};

#define COUNT(list) (sizeof(list) / sizeof *(list))

bool gguf_tensor_name(const char *source, char name[GGUF_NAME_SIZE]) {
    long long layer;
    int used = 0;
    for (size_t i = 0; i < COUNT(other_names); i++)
        if (strcmp(source, other_names[i].source) == 0) {
            strcpy(name, other_names[i].name);
            return true;
        }
    if (sscanf(source, "model.layers.%lld.%n", &layer, &used) != 1 || used == 0) return false;
    const char *module = source + used, *kind = strrchr(module, '.');
    for (size_t i = 0; kind && i < COUNT(block_names); i++) {
        size_t length = strlen(block_names[i].source);
        if (module + length != kind || strncmp(module, block_names[i].source, length) != 0) continue;
        snprintf(name, GGUF_NAME_SIZE, "blk.%lld.%s%s", layer, block_names[i].name, kind);
        return true;
    }
    return false;
}

bool gguf_is_linear(const gguf_entry *e) { return e->tensor.rank == 2 && strncmp(e->tensor.name, "blk.", 4) == 0; }

/* ---- types --------------------------------------------------------------------------------------------------------------------- */

/* The first and the last eighth of the layers, and every third between. */
static bool deserves_more(int64_t i, int64_t n) { return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2; }

typedef struct question {
    const model_config *config;
    gguf_mix mix;
    bool important;
    int64_t layer;
    int base; /* number of the type of the mix */
} question;

enum { F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL = 20 };

static int type_of_v(const question *q) {
    int64_t layers = q->config->layers, shared = q->config->heads / q->config->kv_heads;
    int type = q->base;
    switch (q->mix) {
    case MIX_Q2_K: type = shared >= 4 ? Q4_K : Q3_K; break;
    case MIX_Q3_K_M: type = q->layer < 2 ? Q5_K : Q4_K; break;
    case MIX_Q3_K_L: type = Q5_K; break;
    case MIX_IQ4_NL: type = shared >= 4 ? Q5_K : type; break;
    case MIX_Q4_K_M:
    case MIX_Q5_K_M: type = deserves_more(q->layer, layers) ? Q6_K : type; break;
    case MIX_Q4_K_S: type = q->layer < 4 ? Q5_K : type; break;
    default: break;
    }
    /* The 70B models: eight query heads share v, so it is small, and its errors count. */
    bool is_70b = layers == 80 && (q->config->arch == ARCH_QWEN2 || shared > 1) && q->config->arch != ARCH_QWEN3;
    return is_70b && (type == Q3_K || type == Q4_K) ? Q5_K : type;
}

static int type_of_down(const question *q) {
    int64_t layers = q->config->layers;
    bool early = q->layer < layers / 8;
    switch (q->mix) {
    case MIX_Q2_K: return Q3_K;
    case MIX_Q3_K_M: return q->layer < layers / 16 ? Q5_K : Q4_K;
    case MIX_Q3_K_L: return Q5_K;
    case MIX_Q4_K_S: return early ? Q5_K : Q4_K;
    case MIX_Q4_K_M:
    case MIX_Q5_K_M: return deserves_more(q->layer, layers) ? Q6_K : q->base;
    case MIX_IQ4_NL: return !q->important && early ? Q5_K : IQ4_NL;
    case MIX_Q4_0: return q->important && early ? Q4_1 : Q4_0;
    case MIX_Q5_0: return q->important && early ? Q5_1 : Q5_0;
    default: return q->base;
    }
}

static int type_of_output(const question *q, int64_t k) {
    if (q->mix == MIX_F16 || q->mix == MIX_BF16 || q->mix == MIX_Q8_0) return q->base;
    return k % gguf_type_of((uint32_t)q->base)->count ? Q8_0 : Q6_K;
}

static bool ends_with(const char *name, const char *end) {
    size_t a = strlen(name), b = strlen(end);
    return a >= b && strcmp(name + a - b, end) == 0;
}

static int wanted_type(const question *q, const gguf_entry *e) {
    const char *name = e->tensor.name;
    bool head =
        strcmp(name, "output.weight") == 0 || (q->config->tied_embeddings && strcmp(name, "token_embd.weight") == 0);
    if (head) return type_of_output(q, e->k);
    if (ends_with(name, ".attn_v.weight")) return type_of_v(q);
    if (ends_with(name, ".ffn_down.weight")) return type_of_down(q);
    if (ends_with(name, ".attn_output.weight")) {
        if (q->mix == MIX_Q2_K) return Q3_K;
        if (q->mix == MIX_Q3_K_M) return Q4_K;
        if (q->mix == MIX_Q3_K_L) return Q5_K;
    }
    return q->base;
}

/* Rows that are no multiple of the block take another type of about the size. */
static int fitting_type(int type, int64_t k) {
    if (type >= Q2_K && type <= Q6_K && k % 256)
        type = type == Q6_K ? Q8_0 : type == Q5_K ? Q5_1 : type == Q4_K ? Q5_0 : Q4_0;
    return k % gguf_type_of((uint32_t)type)->count ? F16 : type;
}

/* ---- the plan -------------------------------------------------------------------------------------------------------------------- */

const char *gguf_obstacle(const model_config *c) {
    bool llama = c->arch == ARCH_LLAMA || c->arch == ARCH_MISTRAL;
    for (int64_t i = 0; c->sliding_window && i < c->layers; i++)
        if (c->layer_is_sliding[i]) return "llama.cpp has no sliding window for this architecture";
    if (c->rope.kind == ROPE_DYNAMIC) return "GGUF has no key for a dynamic rotary embedding";
    if (c->rope.kind == ROPE_LLAMA3 && !llama) return "llama.cpp reads factors of the rotary embedding for llama alone";
    if (c->rope.kind == ROPE_YARN && (c->rope.beta_fast != 32 || c->rope.beta_slow != 1 || !c->rope.truncate))
        return "llama.cpp knows yarn with beta_fast 32 and beta_slow 1 alone";
    if (c->rope.kind == ROPE_YARN && fabs(c->rope.attention_factor - (0.1 * log(c->rope.factor) + 1)) > 1e-6)
        return "llama.cpp knows yarn with the attention factor 0.1 ln(factor) + 1 alone";
    if (c->mlp_bias && !llama) return "llama.cpp has no biases in the MLP of this architecture";
    if (c->attention_out_bias && !llama) return "llama.cpp has no bias behind the attention of this architecture";
    if (c->arch == ARCH_QWEN3 && c->attention_bias) return "llama.cpp has no biases in the attention of qwen3";
    if (c->qk_norm && c->arch != ARCH_QWEN3) return "llama.cpp has no norms of q and k for this architecture";
    return NULL;
}

/* Norms, biases and factors are vectors and stay F32. */
static void set_type(const question *q, gguf_entry *e) {
    int type = 0, wanted = 0;
    if (e->tensor.rank == 2) {
        wanted = wanted_type(q, e);
        type = fitting_type(wanted, e->k);
    }
    e->tensor.type = gguf_type_of((uint32_t)type);
    e->fallback = type != wanted;
}

static ql_status add_entry(question *q, const char *source, const int64_t shape[2], ql_arena *arena, gguf_entry *e) {
    char name[GGUF_NAME_SIZE], *copy;
    const model_config *c = q->config;
    *e = (gguf_entry){.n = shape[1] ? shape[0] : 1, .k = shape[1] ? shape[1] : shape[0]};
    if (!gguf_tensor_name(source, name)) return ql_fail(QL_INTERNAL, "%s has no name in GGUF", source);
    QL_TRY(ql_arena_string(arena, source, &copy));
    e->source = copy;
    QL_TRY(ql_arena_string(arena, name, &copy));
    e->tensor = (gguf_tensor){.name = copy, .rank = shape[1] ? 2 : 1, .ne = {e->k, e->n, 1, 1}};
    bool moves = c->arch == ARCH_LLAMA || c->arch == ARCH_MISTRAL;
    if (moves && strstr(name, ".attn_q.")) e->heads = c->heads;
    if (moves && strstr(name, ".attn_k.")) e->heads = c->kv_heads;
    q->layer = 0;
    sscanf(name, "blk.%ld.", &q->layer);
    set_type(q, e);
    return QL_OK;
}

ql_status gguf_plan_make(const model_config *config, gguf_mix mix, bool important, ql_arena *arena, gguf_plan *out) {
    const char *obstacle = gguf_obstacle(config);
    if (obstacle) return ql_fail(QL_MISMATCH, "GGUF: %s", obstacle);
    bool factors = config->rope.kind == ROPE_LLAMA3;
    int64_t shape[2], tensors = model_tensor(config, 0, NULL, shape);
    question q = {.config = config, .mix = mix, .important = important, .base = mixes[mix].number};
    *out = (gguf_plan){.config = config, .mix = mix, .count = tensors + factors};
    QL_TRY(ql_take(arena, (size_t)out->count, sizeof *out->entries, &out->entries));
    QL_TRY(ql_take(arena, (size_t)out->count, sizeof *out->tensors, &out->tensors));
    for (int64_t i = 0; i < tensors; i++) {
        char source[NAME_SIZE];
        model_tensor(config, i, source, shape);
        QL_TRY(add_entry(&q, source, shape, arena, &out->entries[i]));
    }
    int64_t half = config->head_dim / 2;
    if (factors)
        out->entries[tensors] = (gguf_entry){
            .tensor = {.name = "rope_freqs.weight", .type = gguf_dtype(QL_F32), .rank = 1, .ne = {half, 1, 1, 1}},
            .n = 1,
            .k = half};
    for (int64_t i = 0; i < out->count; i++) out->tensors[i] = out->entries[i].tensor;
    return QL_OK;
}

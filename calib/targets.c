#include "calib/targets.h"

#include <stdio.h>
#include <string.h>

#include "host/status.h"

const char *const target_names[TARGETS + 1] = {
    [TARGET_VLLM] = "vllm",           [TARGET_TRANSFORMERS] = "transformers",
    [TARGET_EXLLAMAV2] = "exllamav2", [TARGET_LLAMA_CPP] = "llama.cpp",
    [TARGET_OLLAMA] = "ollama",
};

/* Kinds of files that loaders treat differently. */
typedef enum file_kind { FILE_GPTQ, FILE_AWQ, FILE_PACKED, FILE_BYTES, FILE_BLOCKS, FILE_NF4, FILES } file_kind;
static const char *const file_names[FILES] = {
    [FILE_GPTQ] = "GPTQ",
    [FILE_AWQ] = "AWQ",
    [FILE_PACKED] = "compressed-tensors",
    [FILE_BYTES] = "compressed-tensors",
    [FILE_BLOCKS] = "FP8",
    [FILE_NF4] = "bitsandbytes",
};

/* What one loader demands of a module. */
typedef struct loader_limits {
    const char *loader; /* NULL: the target does not read such files */
    int bits[5];        /* ends with 0 */
    const char *bits_text;
    int k_multiple, n_multiple;
    int64_t groups[5];    /* ends with 0; empty: any that the file holds */
    bool symmetric_only;  /* no zero points */
    bool symmetric_bytes; /* none beside codes of 8 bits */
    bool fused_alike;     /* q, k, v (and gate, up) are one parameter: the same bits and group, quantized or not */
    bool last_is_free;    /* N of the last of them does not matter */
    bool uniform;         /* one number of bits and one group size for the whole file */
} loader_limits;

static const loader_limits limits[TARGETS][FILES] =
    {
        [TARGET_VLLM] =
            {
                [FILE_GPTQ] = {"vLLM gptq_marlin",
                               {4, 8},
                               "4 or 8",
                               128,
                               64,
                               {32, 64, 128, -1},
                               .symmetric_only = true,
                               .fused_alike = true},
                [FILE_AWQ] = {"vLLM awq_marlin", {4}, "4", 128, 64, {32, 64, 128, -1}, .fused_alike = true},
                [FILE_PACKED] = {"vLLM compressed-tensors W4A16 and W8A16",
                                 {4, 8},
                                 "4 or 8",
                                 128,
                                 64,
                                 {32, 64, 128, -1},
                                 .symmetric_bytes = true,
                                 .fused_alike = true},
                [FILE_BYTES] = {"vLLM compressed-tensors W8A8 and FP8", {8}, "8", 16, 16, {0}, .fused_alike = true},
                [FILE_BLOCKS] = {"vLLM FP8 blocks", {8}, "8", 128, 128, {0}, .fused_alike = true, .last_is_free = true},
                [FILE_NF4] = {"vLLM bitsandbytes", {4}, "4", 1, 1, {0}, .fused_alike = true},
            },
        [TARGET_TRANSFORMERS] =
            {
                [FILE_GPTQ] =
                    {"transformers (GPTQModel)", {2, 3, 4, 8}, "2, 3, 4 or 8", 32, 32, {0}, .fused_alike = false},
                [FILE_AWQ] = {"transformers (AutoAWQ)", {4}, "4", 1, 8, {0}, .fused_alike = false},
                [FILE_PACKED] =
                    {"transformers (compressed-tensors)", {4, 8}, "4 or 8", 1, 1, {0}, .fused_alike = false},
                [FILE_BYTES] = {"transformers (compressed-tensors)", {8}, "8", 1, 1, {0}, .fused_alike = false},
                [FILE_BLOCKS] = {"transformers (FP8)", {8}, "8", 1, 1, {0}, .fused_alike = false},
                [FILE_NF4] = {"transformers (bitsandbytes)", {4}, "4", 1, 1, {0}, .fused_alike = false},
            },
        [TARGET_EXLLAMAV2] = {[FILE_GPTQ] = {"exllamav2", {4}, "4", 32, 32, {0}, .uniform = true}},
};

static file_kind kind_of(layout_id layout, const recipe *r) {
    bool bytes = r->base.type == CODE_E4M3 || r->activations != ACTIVATIONS_16;
    if (layout == LAYOUT_AWQ) return FILE_AWQ;
    if (layout == LAYOUT_BITSANDBYTES) return FILE_NF4;
    if (layout == LAYOUT_FP8 || (r->base.type == CODE_E4M3 && r->base.group == FP8_BLOCK)) return FILE_BLOCKS;
    return layout != LAYOUT_COMPRESSED ? FILE_GPTQ : bytes ? FILE_BYTES : FILE_PACKED;
}

static bool has_bits(const loader_limits *limit, int bits) {
    for (const int *b = limit->bits; *b; b++)
        if (*b == bits) return true;
    return false;
}

static bool has_group(const loader_limits *limit, int64_t group) {
    for (const int64_t *g = limit->groups; *g; g++)
        if (*g == group) return true;
    return !limit->groups[0];
}

/* A Linear as one of `ranks` holds it; *whole is what was split, 0 if nothing was. */
typedef struct shard {
    int64_t n, k, whole;
} shard;

static shard shard_of(const model_config *config, linear_id id, int64_t ranks) {
    shard s = {0};
    linear_shape(config, id, &s.n, &s.k);
    if (ranks == 1) return s;
    bool by_inputs = id == LIN_O || id == LIN_DOWN, is_kv = id == LIN_K || id == LIN_V;
    s.whole = by_inputs ? s.k : s.n;
    if (by_inputs) s.k = s.k % ranks ? 0 : s.k / ranks;
    else if (is_kv && config->kv_heads < ranks) s.n = config->head_dim; /* heads are repeated */
    else s.n = s.n % ranks ? 0 : s.n / ranks;
    return s;
}

static bool is_last_fused(linear_id id) { return id + 1 == LINEARS || linear_site[id + 1] != linear_site[id]; }

/* The limit that one module breaks by itself. */
static ql_status module_obstacle(const loader_limits *limit, const recipe *r, const module_rule *rule,
                                 const model_config *config, linear_id id, int64_t ranks, ql_arena *arena,
                                 char **reason) {
    shard s = shard_of(config, id, ranks);
    char split[64] = "";
    if (s.whole) snprintf(split, sizeof split, " on each of %lld ranks", (long long)ranks);
    if (!has_bits(limit, rule->bits))
        return ql_arena_format(arena, reason, "%s bits, but bits = %d", limit->bits_text, rule->bits);
    if (!r->symmetric && (limit->symmetric_only || (limit->symmetric_bytes && rule->bits == 8)))
        return ql_arena_format(arena, reason, "only symmetric grids (sym)%s",
                               limit->symmetric_only ? "" : " of 8 bits");
    if (rule->type == CODE_INT && !has_group(limit, rule->group))
        return ql_arena_format(arena, reason, "a group size of 32, 64, 128 or -1, but group_size = %lld",
                               (long long)rule->group);
    if (!s.n || !s.k)
        return ql_arena_format(arena, reason, "%s %% %lld == 0, but %s = %lld", s.n ? "K" : "N", (long long)ranks,
                               s.n ? "K" : "N", (long long)s.whole);
    if (s.k % limit->k_multiple)
        return ql_arena_format(arena, reason, "K %% %d == 0, but K = %lld%s", limit->k_multiple, (long long)s.k, split);
    if (s.n % limit->n_multiple && !(limit->last_is_free && is_last_fused(id)))
        return ql_arena_format(arena, reason, "N %% %d == 0, but N = %lld%s", limit->n_multiple, (long long)s.n, split);
    if (rule->type == CODE_INT && rule->group > 0 && s.k % rule->group)
        return ql_arena_format(arena, reason, "K %% %lld == 0 (group_size), but K = %lld%s", (long long)rule->group,
                               (long long)s.k, split);
    return QL_OK;
}

static bool stored_alike(const module_rule *a, const module_rule *b) {
    if (a->skip || b->skip) return a->skip == b->skip;
    return a->bits == b->bits && a->group == b->group;
}

/* The first module that must be stored like this one and is not. */
static ql_status unequal_obstacle(const loader_limits *limit, const module_table *table, int64_t module,
                                  ql_arena *arena, char **reason) {
    linear_id id = (linear_id)(module % LINEARS);
    const module_rule *rule = &table->rules[module];
    for (int64_t other = 0; other < table->layers * LINEARS; other++) {
        linear_id other_id = (linear_id)(other % LINEARS);
        bool fused = other / LINEARS == module / LINEARS && linear_site[other_id] == linear_site[id];
        bool everywhere = limit->uniform && !rule->skip && !table->rules[other].skip;
        if (!(limit->fused_alike && fused) && !everywhere) continue;
        if (stored_alike(rule, &table->rules[other])) continue;
        char name[NAME_SIZE];
        module_name(name, other / LINEARS, other_id);
        return ql_arena_format(arena, reason, "%s, but %s differs",
                               everywhere ? "one number of bits and one group size for all modules"
                                          : "equal bits and groups inside fused q, k, v and gate, up",
                               name);
    }
    return QL_OK;
}

ql_status target_obstacle(const module_table *table, const recipe *r, const model_config *config, layout_id layout,
                          target_id target, int64_t ranks, ql_arena *arena, char **reason) {
    file_kind kind = kind_of(layout, r);
    const loader_limits *limit = &limits[target][kind];
    bool reads_gguf = target == TARGET_LLAMA_CPP || target == TARGET_OLLAMA, is_gguf = r->base.type == CODE_BLOCKS;
    *reason = NULL;
    if (is_gguf && reads_gguf) return QL_OK;
    if (is_gguf) return ql_arena_format(arena, reason, "%s does not read GGUF files", target_names[target]);
    if (!limit->loader)
        return ql_arena_format(arena, reason, "%s reads %s files, not %s", target_names[target],
                               reads_gguf ? "GGUF" : "GPTQ", file_names[kind]);
    for (int64_t module = 0; module < table->layers * LINEARS; module++) {
        char name[NAME_SIZE], *broken = NULL;
        linear_id id = (linear_id)(module % LINEARS);
        const module_rule *rule = &table->rules[module];
        if (!rule->skip) QL_TRY(module_obstacle(limit, r, rule, config, id, ranks, arena, &broken));
        if (!broken) QL_TRY(unequal_obstacle(limit, table, module, arena, &broken));
        if (!broken) continue;
        module_name(name, module / LINEARS, id);
        return ql_arena_format(arena, reason, "%s: %s demands %s", name, limit->loader, broken);
    }
    return QL_OK;
}

#include "calib/schemes.h"

#include <stdio.h>
#include <string.h>

/* Here, because who only reads recipes links no layouts. */
const char *const output_format_names[] = {
    [OUTPUT_GPTQ] = "gptq",
    [OUTPUT_GPTQ_V2] = "gptq_v2",
    [OUTPUT_AWQ] = "awq",
    [OUTPUT_COMPRESSED] = "compressed-tensors",
    [OUTPUT_FP8] = "fp8",
    [OUTPUT_BITSANDBYTES] = "bitsandbytes",
    [OUTPUT_DENSE] = "dense",
    [OUTPUT_GGUF] = "gguf",
    NULL,
};

const char *const scheme_names[] = {
    "W4A16-GPTQ-g128",
    "W4A16-GPTQ-g64",
    "W4A16-GPTQ-g32",
    "W4A16-GPTQ",
    "W8A16-GPTQ-g128",
    "W8A16-GPTQ",
    "W3A16-GPTQ-g128",
    "W2A16-GPTQ-g64",
    "W4A16-AWQ",
    "W4A16-AWQ-g64",
    "W4A16-AWQ-g32",
    "W4A16-RTN-g128",
    "W8A16-RTN-g128",
    "W4A16-HQQ-g128",
    "W3A16-HQQ-g64",
    "W8A8-INT8",
    "W8A8-INT8-static",
    "FP8",
    "FP8-static",
    "FP8-KV",
    "FP8-block",
    "NF4",
#define MIX_NAME(id, name, file_type, number) name,
    GGUF_MIXES(MIX_NAME)
#undef MIX_NAME
        NULL,
};

/* ---- W4A16-GPTQ-g128 and its kind -------------------------------------------------------------------------------------------- */

typedef struct integer_name {
    int bits;
    int64_t group; /* 0: not said */
    char method[8];
} integer_name;

static bool parse_integer(const char *name, integer_name *out) {
    int read = 0, group = 0;
    *out = (integer_name){0};
    if (sscanf(name, "W%1dA16-%7[A-Z]%n", &out->bits, out->method, &read) != 2) return false;
    if (!name[read]) return true;
    const char *rest = name + read;
    out->group = sscanf(rest, "-g%3d%n", &group, &read) == 1 && !rest[read] ? group : -1;
    return out->group == 32 || out->group == 64 || out->group == 128;
}

static bool set_awq(const integer_name *name, named_scheme *s) {
    recipe *r = &s->recipe;
    r->base = (module_rule){.method = METHOD_RTN, .bits = 4, .group = name->group ? name->group : 128};
    r->symmetric = false;
    r->smoothing = SMOOTHING_AWQ;
    r->clip = true;
    s->format = OUTPUT_AWQ;
    s->targets = "vllm,transformers";
    return name->bits == 4;
}

/* Of what vLLM reads, AWQ files alone have zero points at 4 bits. */
static void set_hqq(const integer_name *name, named_scheme *s) {
    s->recipe.base.method = METHOD_HQQ;
    s->recipe.symmetric = false;
    if (name->bits != 4) s->targets = "transformers";
    else s->format = OUTPUT_AWQ, s->targets = "vllm,transformers";
}

static bool set_integer(const integer_name *name, named_scheme *s) {
    bool gptq = strcmp(name->method, "GPTQ") == 0, hqq = strcmp(name->method, "HQQ") == 0;
    s->granularity = name->group ? "group" : "row";
    if (strcmp(name->method, "AWQ") == 0) return s->granularity = "group", set_awq(name, s);
    s->recipe.base = (module_rule){
        .method = gptq ? METHOD_GPTQ : METHOD_RTN, .bits = name->bits, .group = name->group ? name->group : GROUP_ROW};
    s->format = OUTPUT_GPTQ;
    s->targets = name->bits == 4   ? "vllm,transformers,exllamav2"
                 : name->bits == 8 ? "vllm,transformers"
                                   : "transformers";
    if (hqq) set_hqq(name, s);
    bool bits_exist = name->bits == 2 || name->bits == 3 || name->bits == 4 || name->bits == 8;
    return bits_exist && (gptq || hqq || strcmp(name->method, "RTN") == 0);
}

/* ---- the others -------------------------------------------------------------------------------------------------------------- */

typedef struct fixed_scheme {
    const char *name, *granularity, *targets;
    module_rule rule;
    activation_mode activations;
    smoothing_id smoothing;
    range_id range; /* of inputs */
    output_format format;
    bool kv_cache;
} fixed_scheme;

static const fixed_scheme fixed[] = {
    {"W8A8-INT8",
     "row",
     "vllm,transformers",
     {METHOD_GPTQ, CODE_INT, 8, GROUP_ROW, false, NULL},
     ACTIVATIONS_TOKEN,
     SMOOTHING_SMOOTHQUANT,
     RANGE_MINMAX,
     OUTPUT_COMPRESSED,
     false},
    {"W8A8-INT8-static",
     "row",
     "vllm,transformers",
     {METHOD_GPTQ, CODE_INT, 8, GROUP_ROW, false, NULL},
     ACTIVATIONS_STATIC,
     SMOOTHING_SMOOTHQUANT,
     RANGE_MSE,
     OUTPUT_COMPRESSED,
     false},
    {"FP8",
     "row",
     "vllm,transformers",
     {METHOD_RTN, CODE_E4M3, 8, GROUP_ROW, false, NULL},
     ACTIVATIONS_TOKEN,
     SMOOTHING_NONE,
     RANGE_MINMAX,
     OUTPUT_COMPRESSED,
     false},
    {"FP8-static",
     "tensor",
     "vllm,transformers",
     {METHOD_RTN, CODE_E4M3, 8, GROUP_TENSOR, false, NULL},
     ACTIVATIONS_STATIC,
     SMOOTHING_NONE,
     RANGE_MINMAX,
     OUTPUT_COMPRESSED,
     false},
    {"FP8-KV",
     "row",
     "vllm",
     {METHOD_RTN, CODE_E4M3, 8, GROUP_ROW, false, NULL},
     ACTIVATIONS_TOKEN,
     SMOOTHING_NONE,
     RANGE_MINMAX,
     OUTPUT_COMPRESSED,
     true},
    {"FP8-block",
     "block 128x128",
     "vllm,transformers",
     {METHOD_RTN, CODE_E4M3, 8, FP8_BLOCK, false, NULL},
     ACTIVATIONS_TOKEN,
     SMOOTHING_NONE,
     RANGE_MINMAX,
     OUTPUT_FP8,
     false},
    {"NF4",
     "block 64",
     "transformers,vllm",
     {METHOD_RTN, CODE_NF4, 4, 64, false, NULL},
     ACTIVATIONS_16,
     SMOOTHING_NONE,
     RANGE_MINMAX,
     OUTPUT_BITSANDBYTES,
     false},
};

static bool set_fixed(const char *name, named_scheme *s) {
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        if (strcmp(fixed[i].name, name) != 0) continue;
        s->granularity = fixed[i].granularity;
        s->targets = fixed[i].targets;
        s->format = fixed[i].format;
        s->recipe.base = fixed[i].rule;
        s->recipe.activations = fixed[i].activations;
        s->recipe.smoothing = fixed[i].smoothing;
        s->recipe.range = fixed[i].range;
        s->recipe.kv_cache = fixed[i].kv_cache;
        return true;
    }
    return false;
}

/* ---- GGUF ------------------------------------------------------------------------------------------------------------------- */

static bool set_mix(const char *name, named_scheme *s) {
    gguf_mix mix = gguf_mix_of(name);
    if (mix == GGUF_MIX_COUNT) return false;
    const gguf_type *type = gguf_mix_type(mix);
    s->granularity = type->count == 1 ? "none" : type->count == 32 ? "block 32" : "block 256";
    s->targets = "llama.cpp,ollama";
    s->format = OUTPUT_GGUF;
    s->recipe.mix = mix;
    s->recipe.base =
        (module_rule){.method = METHOD_RTN, .type = CODE_BLOCKS, .bits = gguf_bits(type), .group = gguf_group(type)};
    return true;
}

/* The linears of Llama-3-8B: which tensors of a mix get more bits depends on the layer. */
static double bits_of_mix(gguf_mix mix) {
    static const model_config usual = {.arch = ARCH_LLAMA,
                                       .layers = 32,
                                       .hidden = 4096,
                                       .intermediate = 14336,
                                       .heads = 32,
                                       .kv_heads = 8,
                                       .head_dim = 128,
                                       .vocab = 128256};
    double bytes = 0, weights = 0;
    gguf_plan plan;
    ql_arena *arena;
    if (ql_arena_open(NULL, &arena) != QL_OK) return 0;
    ql_status status = gguf_plan_make(&usual, mix, false, arena, &plan);
    for (int64_t i = 0; status == QL_OK && i < plan.count; i++) {
        const gguf_entry *e = &plan.entries[i];
        if (e->tensor.rank != 2 || strncmp(e->tensor.name, "blk.", 4) != 0) continue;
        weights += (double)e->n * (double)e->k;
        bytes += (double)e->n * (double)gguf_row_bytes(e->tensor.type, e->k);
    }
    ql_arena_close(arena);
    return weights > 0 ? 8 * bytes / weights : 0;
}

ql_status scheme_find(const char *name, named_scheme *out) {
    integer_name integer;
    *out = (named_scheme){.targets = ""};
    recipe_defaults(&out->recipe);
    out->recipe.asked |= ASKED_METHOD | ASKED_BITS | ASKED_GROUP;
    if (set_fixed(name, out) || set_mix(name, out) || (parse_integer(name, &integer) && set_integer(&integer, out)))
        return QL_OK;
    return ql_fail(QL_USAGE,
                   "scheme \"%.60s\": expected W2A16, W3A16, W4A16 or W8A16 with -GPTQ, -RTN or -HQQ, or W4A16-AWQ, "
                   "then -g32, -g64, "
                   "-g128 or nothing; or W8A8-INT8, W8A8-INT8-static, FP8, FP8-static, FP8-KV, FP8-block, NF4; or a "
                   "GGUF file, Q4_K_M and its kind; for instance "
                   "W4A16-GPTQ-g128; qalib schemes "
                   "lists them",
                   name);
}

statistics_mode scheme_statistics(const recipe *r) {
    return r->base.method == METHOD_GPTQ && r->base.bits < 4 ? STATISTICS_PROPAGATED : STATISTICS_FP;
}

double scheme_bits_per_weight(const recipe *r, int64_t k) {
    const module_rule *rule = &r->base;
    if (rule->type == CODE_BLOCKS) return bits_of_mix(r->mix);
    double scale = rule->type == CODE_INT && r->activations == ACTIVATIONS_16 ? 16 : 32;
    double zero = rule->type == CODE_INT && r->activations == ACTIVATIONS_16 ? rule->bits : 0;
    if (rule->group == GROUP_TENSOR) return rule->bits;
    if (rule->type == CODE_NF4)
        return rule->bits + (8 + 32.0 / 256) / 64; /* absmax in 8 bits, scales of those per 256 */
    if (rule->type == CODE_E4M3 && rule->group == FP8_BLOCK) return rule->bits + scale / (FP8_BLOCK * FP8_BLOCK);
    return rule->bits + (scale + zero) / (double)(rule->group == GROUP_ROW ? k : rule->group);
}

#include "calib/schemes.h"

#include <stdio.h>
#include <string.h>

const char *const scheme_names[] = {
    "W4A16-GPTQ-g128", "W4A16-GPTQ-g64",  "W4A16-GPTQ-g32",
    "W4A16-GPTQ",      "W8A16-GPTQ-g128", "W8A16-GPTQ",
    "W3A16-GPTQ-g128", "W2A16-GPTQ-g64",  "W4A16-AWQ",
    "W4A16-AWQ-g64",   "W4A16-AWQ-g32",   "W4A16-RTN-g128",
    "W8A16-RTN-g128",  "W8A8-INT8",       "FP8",
    "FP8-static",      "FP8-block",       NULL,
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

static bool set_integer(const integer_name *name, named_scheme *s) {
    bool gptq = strcmp(name->method, "GPTQ") == 0;
    s->granularity = name->group ? "group" : "row";
    if (strcmp(name->method, "AWQ") == 0) return s->granularity = "group", set_awq(name, s);
    s->recipe.base = (module_rule){
        .method = gptq ? METHOD_GPTQ : METHOD_RTN, .bits = name->bits, .group = name->group ? name->group : GROUP_ROW};
    s->format = OUTPUT_GPTQ;
    s->targets = name->bits == 4   ? "vllm,transformers,exllamav2"
                 : name->bits == 8 ? "vllm,transformers"
                                   : "transformers";
    bool bits_exist = name->bits == 2 || name->bits == 3 || name->bits == 4 || name->bits == 8;
    return bits_exist && (gptq || strcmp(name->method, "RTN") == 0);
}

/* ---- the others -------------------------------------------------------------------------------------------------------------- */

typedef struct fixed_scheme {
    const char *name, *granularity, *targets;
    module_rule rule;
    activation_mode activations;
    smoothing_id smoothing;
    output_format format;
} fixed_scheme;

static const fixed_scheme fixed[] = {
    {"W8A8-INT8",
     "row",
     "vllm,transformers",
     {METHOD_GPTQ, CODE_INT, 8, GROUP_ROW, false},
     ACTIVATIONS_TOKEN,
     SMOOTHING_SMOOTHQUANT,
     OUTPUT_COMPRESSED},
    {"FP8",
     "row",
     "vllm,transformers",
     {METHOD_RTN, CODE_E4M3, 8, GROUP_ROW, false},
     ACTIVATIONS_TOKEN,
     SMOOTHING_NONE,
     OUTPUT_COMPRESSED},
    {"FP8-static",
     "tensor",
     "vllm,transformers",
     {METHOD_RTN, CODE_E4M3, 8, GROUP_TENSOR, false},
     ACTIVATIONS_STATIC,
     SMOOTHING_NONE,
     OUTPUT_COMPRESSED},
    {"FP8-block",
     "block 128x128",
     "vllm,transformers",
     {METHOD_RTN, CODE_E4M3, 8, FP8_BLOCK, false},
     ACTIVATIONS_TOKEN,
     SMOOTHING_NONE,
     OUTPUT_FP8},
    {"NF4",
     "block 64",
     "transformers,vllm",
     {METHOD_RTN, CODE_NF4, 4, 64, false},
     ACTIVATIONS_16,
     SMOOTHING_NONE,
     OUTPUT_BITSANDBYTES},
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
        return true;
    }
    return false;
}

ql_status scheme_find(const char *name, named_scheme *out) {
    integer_name integer;
    *out = (named_scheme){.targets = ""};
    recipe_defaults(&out->recipe);
    out->recipe.asked |= ASKED_METHOD | ASKED_BITS | ASKED_GROUP;
    if (set_fixed(name, out) || (parse_integer(name, &integer) && set_integer(&integer, out))) return QL_OK;
    return ql_fail(
        QL_USAGE,
        "scheme \"%.60s\": expected W2A16, W3A16, W4A16 or W8A16 with -GPTQ or -RTN, or W4A16-AWQ, then -g32, -g64, "
        "-g128 or nothing; or W8A8-INT8, FP8, FP8-static, FP8-block, NF4; for instance W4A16-GPTQ-g128; qalib schemes "
        "lists them",
        name);
}

statistics_mode scheme_statistics(const recipe *r) {
    return r->base.method == METHOD_GPTQ && r->base.bits < 4 ? STATISTICS_PROPAGATED : STATISTICS_FP;
}

double scheme_bits_per_weight(const recipe *r, int64_t k) {
    const module_rule *rule = &r->base;
    double scale = rule->type == CODE_INT && r->activations == ACTIVATIONS_16 ? 16 : 32;
    double zero = rule->type == CODE_INT && r->activations == ACTIVATIONS_16 ? rule->bits : 0;
    if (rule->group == GROUP_TENSOR) return rule->bits;
    if (rule->type == CODE_NF4)
        return rule->bits + (8 + 32.0 / 256) / 64; /* absmax in 8 bits, scales of those per 256 */
    if (rule->type == CODE_E4M3 && rule->group == FP8_BLOCK) return rule->bits + scale / (FP8_BLOCK * FP8_BLOCK);
    return rule->bits + (scale + zero) / (double)(rule->group == GROUP_ROW ? k : rule->group);
}

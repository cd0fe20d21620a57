/* The table of layouts, and the canonical form decoded. */
#include "formats/layout.h"

#include <string.h>

#include "formats/json.h"
#include "formats/layout_parts.h"

#include "host/mat.h"
#include "host/nf4.h"
#include "host/num.h"

void qmodule_dequantize(const qmodule *q, float *w) {
    int64_t words = ql_packed_words(q->k, q->bits), groups = ql_groups(q->k, q->group);
    uint64_t mask = (1u << q->bits) - 1;
    for (int64_t n = 0; n < q->n; n++) {
        const uint32_t *row = q->codes + n * words;
        for (int64_t k = 0; k < q->k; k++) {
            int64_t word = k * q->bits / 32, g = n * groups + (q->g_idx ? q->g_idx[k] : k / q->group);
            uint64_t pair = row[word] | (word + 1 < words ? (uint64_t)row[word + 1] << 32 : 0);
            int code = (int)(pair >> (k * q->bits % 32) & mask);
            if (q->type == CODE_NF4) {
                w[n * q->k + k] = ql_nf4_value(code) * q->scale[(n * q->k + k) / QL_NF4_BLOCK];
                continue;
            }
            w[n * q->k + k] = q->type == CODE_E4M3 ? q->scale[g] * ql_e4m3_to_f32((uint8_t)code)
                                                   : ql_decode(code, q->scale[g], q->zero[g]);
        }
    }
}

/* ---- the table -------------------------------------------------------------------------------------------------------------- */

static const layout *const layouts[LAYOUTS] = {
    [LAYOUT_GPTQ] = &layout_gptq,
    [LAYOUT_AWQ] = &layout_awq,
    [LAYOUT_COMPRESSED] = &layout_compressed,
    [LAYOUT_FP8] = &layout_fp8,
    [LAYOUT_BITSANDBYTES] = &layout_bitsandbytes,
};

const char *layout_name(layout_id id) { return layouts[id]->name; }

const char *layout_method(const layout_scheme *scheme) { return layouts[scheme->layout]->quant_method; }

ql_status layout_check(const layout_scheme *scheme) {
    if (scheme->kv_cache && scheme->layout != LAYOUT_COMPRESSED)
        return ql_fail(QL_MISMATCH, "%s files have no scales of a key/value cache, compressed-tensors files have",
                       layout_name(scheme->layout));
    if (scheme->input_zeros &&
        (scheme->layout != LAYOUT_COMPRESSED || scheme->type != CODE_INT || scheme->activations != ACTIVATIONS_TOKEN))
        return ql_fail(QL_MISMATCH,
                       "inputs with zero points: compressed-tensors files have them, for integers per token");
    return layouts[scheme->layout]->check(scheme);
}

ql_status layout_config(const layout_scheme *scheme, json_t **quantization_config) {
    *quantization_config = NULL;
    QL_TRY(layout_check(scheme));
    return layouts[scheme->layout]->config(scheme, quantization_config);
}

const char *layout_obstacle(const layout_scheme *scheme, int64_t n, int64_t k, layout_rule rule, ql_arena *arena) {
    return layouts[scheme->layout]->obstacle(scheme, n, k, rule, arena);
}

ql_status layout_encode(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out) {
    layout_rule rule = {.bits = q->bits, .group = q->group};
    const char *obstacle = layout_obstacle(scheme, q->n, q->k, rule, arena);
    if (obstacle) return ql_fail(QL_MISMATCH, "%s: %s", q->name, obstacle);
    return layouts[scheme->layout]->encode(scheme, q, arena, out);
}

/* Old GPTQ directories say in a side file what newer ones say in config.json. */
ql_status layout_read(const checkpoint *ck, layout_scheme *out) {
    const json_t *config = json_object_get(checkpoint_config(ck), "quantization_config");
    const char *method = layout_gptq.quant_method;
    *out = (layout_scheme){0};
    if (config) QL_TRY(ql_json_string_or(config, "quantization_config", "quant_method", &method));
    for (int id = 0; id < LAYOUTS; id++) {
        if (strcmp(layouts[id]->quant_method, method) != 0) continue;
        QL_TRY(layouts[id]->read(ck, out));
        out->layout = (layout_id)id;
        return QL_OK;
    }
    return ql_fail(QL_MISMATCH, "%s: quant_method \"%s\" cannot be read", checkpoint_dir(ck), method);
}

ql_status layout_rule_of(const layout_scheme *scheme, const char *module, layout_rule *rule) {
    return layouts[scheme->layout]->rule(scheme, module, rule);
}

bool layout_has(const checkpoint *ck, const layout_scheme *scheme, const char *module) {
    return layout_find(ck, module, layouts[scheme->layout]->marker) != NULL;
}

const char *const *layout_suffixes(const layout_scheme *scheme) { return layouts[scheme->layout]->suffixes; }

bool layout_is_part(const checkpoint *ck, const layout_scheme *scheme, const char *tensor) {
    for (const char *const *suffix = layout_suffixes(scheme); *suffix; suffix++) {
        char module[NAME_SIZE];
        size_t length = strlen(tensor), tail = strlen(*suffix) + 1;
        if (length <= tail || length - tail >= sizeof module || tensor[length - tail] != '.') continue;
        if (strcmp(tensor + length - tail + 1, *suffix) != 0) continue;
        memcpy(module, tensor, length - tail);
        module[length - tail] = 0;
        if (layout_has(ck, scheme, module)) return true;
    }
    return false;
}

ql_status layout_decode(const checkpoint *ck, const layout_scheme *scheme, const char *module, int64_t n, int64_t k,
                        ql_arena *arena, qmodule *out) {
    char *name;
    layout_rule rule;
    *out = (qmodule){.name = module, .n = n, .k = k};
    QL_TRY(layout_rule_of(scheme, module, &rule));
    if (rule.skipped) return ql_fail(QL_FORMAT, "%s: is quantized, but the config says that it is not", module);
    if (n <= 0 || k <= 0) return ql_fail(QL_FORMAT, "%s: N = %lld, K = %lld", module, (long long)n, (long long)k);
    QL_TRY(ql_arena_string(arena, module, &name));
    out->name = name;
    out->bits = rule.bits;
    out->type = scheme->type;
    out->group = rule.group < 0 ? k : rule.group;
    return layouts[scheme->layout]->decode(ck, scheme, arena, out);
}

/* GPTQ checkpoints, what config.json says: quantization_config out and in.
 *
 * Exceptions have two spellings, and loaders read one or the other: `dynamic` (GPTQModel, vLLM) maps patterns on module
 * names to "not at all" or to other bits; `modules_in_block_to_quantize` (transformers) lists what is quantized in every block.
 */
#include <string.h>

#include "formats/json.h"
#include "formats/layout_parts.h"
#include "host/log.h"

/* In vLLM q, k, v are one module and gate, up another; it looks the fused name up in `dynamic`. */
static const struct {
    const char *suffix, *pattern, *siblings[3];
} fused[] = {
    {".self_attn.q_proj", "\\.self_attn\\.q(kv)?_proj", {".self_attn.k_proj", ".self_attn.v_proj", NULL}},
    {".mlp.gate_proj", "\\.mlp\\.gate(_up)?_proj", {".mlp.up_proj", NULL}},
};

/* The Linears of a block as transformers expects them: one list per common input. */
static const char *const blocks[][4] = {
    {"self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", NULL},
    {"self_attn.o_proj", NULL},
    {"mlp.up_proj", "mlp.gate_proj", NULL},
    {"mlp.down_proj", NULL},
};

/* ---- writing ------------------------------------------------------------------------------------------------------------- */

static bool same_rule(layout_rule a, layout_rule b) {
    return a.skipped == b.skipped && (a.skipped || (a.bits == b.bits && a.group == b.group));
}

/* "-:^model\.layers\.0\.mlp\.down_proj$"; covers the fused name if all parts of the fused module are stored alike. */
static ql_status pattern_of(const layout_scheme *scheme, const char *sign, const char *module, ql_arena *arena,
                            char **key) {
    size_t length = strlen(module);
    const char *tail = "";
    for (size_t f = 0; f < sizeof fused / sizeof *fused; f++) {
        if (!layout_ends_with(module, fused[f].suffix)) continue;
        size_t stem = length - strlen(fused[f].suffix);
        layout_rule own = layout_listed_rule(scheme, module, stem, fused[f].suffix);
        bool alike = true;
        for (const char *const *s = fused[f].siblings; *s; s++)
            alike = alike && same_rule(own, layout_listed_rule(scheme, module, stem, *s));
        if (alike) length = stem, tail = fused[f].pattern;
    }
    char *escaped, *to;
    QL_TRY(ql_take(arena, 2 * length + 1, 1, &escaped));
    to = escaped;
    for (size_t i = 0; i < length; i++) {
        if (strchr("\\.^$|?*+()[]{}", module[i])) *to++ = '\\';
        *to++ = module[i];
    }
    return ql_arena_format(arena, key, "%s^%s%s$", sign, escaped, tail);
}

static ql_status write_dynamic(const layout_scheme *scheme, ql_arena *arena, json_t *dynamic) {
    char *key;
    int failed = 0;
    for (const char *const *name = scheme->skipped; name && *name; name++) {
        QL_TRY(pattern_of(scheme, "-:", *name, arena, &key));
        failed |= json_object_set_new(dynamic, key, json_object());
    }
    for (int64_t i = 0; i < scheme->n_overrides; i++) {
        const layout_override *o = &scheme->overrides[i];
        QL_TRY(pattern_of(scheme, "+:", o->module, arena, &key));
        failed |= json_object_set_new(dynamic, key,
                                      json_pack("{s:i, s:I}", "bits", o->bits, "group_size", (json_int_t)o->group));
    }
    return failed ? ql_fail(QL_NOMEM, "no memory for quantization_config") : QL_OK;
}

/* Does this kind of module stay in 16 bits in every block?  That only some blocks keep it cannot be said to transformers. */
static bool is_never_quantized(const layout_scheme *scheme, const char *kind) {
    int64_t skipped = 0;
    for (const char *const *name = scheme->skipped; name && *name; name++) skipped += layout_ends_with(*name, kind);
    if (skipped > 0 && skipped < scheme->layers)
        ql_log(QL_WARNING,
               "%s stays in 16 bits in %lld of %lld layers: vLLM and GPTQModel load this, transformers does not", kind,
               (long long)skipped, (long long)scheme->layers);
    return skipped > 0 && skipped >= scheme->layers;
}

/* modules_in_block_to_quantize; stays NULL if it is all of them. */
static ql_status quantized_kinds(const layout_scheme *scheme, json_t **out) {
    json_t *list = json_array();
    bool complete = true;
    int failed = 0;
    *out = NULL;
    for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++) {
        json_t *kinds = json_array();
        for (const char *const *kind = blocks[b]; *kind; kind++) {
            if (is_never_quantized(scheme, *kind)) complete = false;
            else failed |= json_array_append_new(kinds, json_string(*kind));
        }
        if (json_array_size(kinds) > 0) failed |= json_array_append_new(list, kinds);
        else json_decref(kinds);
    }
    if (!complete && !failed) *out = list;
    else json_decref(list);
    return failed ? ql_fail(QL_NOMEM, "no memory for quantization_config") : QL_OK;
}

static ql_status dynamic_map(const layout_scheme *scheme, json_t **dynamic) {
    *dynamic = NULL;
    if (!(scheme->skipped && scheme->skipped[0]) && scheme->n_overrides == 0) return QL_OK;
    ql_arena *arena;
    QL_TRY(ql_arena_open(NULL, &arena));
    *dynamic = json_object();
    ql_status status = write_dynamic(scheme, arena, *dynamic);
    ql_arena_close(arena);
    return status;
}

ql_status layout_gptq_config(const layout_scheme *scheme, json_t **quantization_config) {
    /* Static groups keep the natural order of inputs; desc_act asks loaders for the slow path of a permuted g_idx. */
    bool desc_act = scheme->desc_act && !scheme->static_groups && scheme->group != -1;
    bool has_damp = scheme->damp > 0 && scheme->damp < 1; /* AutoGPTQ refuses other values */
    json_t *dynamic, *kinds = NULL;
    ql_status status = dynamic_map(scheme, &dynamic);
    if (status == QL_OK) status = quantized_kinds(scheme, &kinds);
    *quantization_config = json_pack(
        "{s:s, s:s, s:i, s:I, s:b, s:b, s:b, s:b, s:o*, s:b, s:o?, s:o?, s:s, s:{s:[s]}}", "quant_method", "gptq",
        "checkpoint_format", scheme->version == 2 ? "gptq_v2" : "gptq", "bits", scheme->bits, "group_size",
        (json_int_t)scheme->group, "sym", scheme->symmetric, "desc_act", desc_act, "static_groups",
        scheme->static_groups, "true_sequential", scheme->true_sequential, "damp_percent",
        has_damp ? json_real(scheme->damp) : NULL, "lm_head", 0, "dynamic", dynamic, "modules_in_block_to_quantize",
        kinds, "pack_dtype", "int32", "meta", "quantizer", "qalib:" QL_VERSION);
    if (status == QL_OK && !*quantization_config) status = ql_fail(QL_NOMEM, "no memory for quantization_config");
    if (status == QL_OK) return QL_OK;
    json_decref(*quantization_config);
    *quantization_config = NULL;
    return status;
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

static ql_status check_bits(const char *place, const char *what, int64_t bits, int64_t group) {
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
        return ql_fail(QL_FORMAT, "%s: %s has bits = %lld; GPTQ files hold 2, 3, 4 or 8", place, what, (long long)bits);
    if (group == 0) return ql_fail(QL_FORMAT, "%s: %s has group_size = 0", place, what);
    return QL_OK;
}

static ql_status parse(const json_t *config, const char *place, layout_scheme *out) {
    int64_t bits, group = -1;
    const char *format = "gptq";
    bool marlin = false;
    *out = (layout_scheme){.symmetric = true, .true_sequential = true};
    QL_TRY(ql_json_int(config, place, "bits", 1, 64, &bits));
    QL_TRY(ql_json_int(config, place, "group_size", -1, 1 << 30, &group));
    QL_TRY(check_bits(place, "quantization_config", bits, group));
    QL_TRY(ql_json_bool_or(config, place, "sym", &out->symmetric));
    QL_TRY(ql_json_bool_or(config, place, "desc_act", &out->desc_act));
    QL_TRY(ql_json_bool_or(config, place, "static_groups", &out->static_groups));
    QL_TRY(ql_json_bool_or(config, place, "true_sequential", &out->true_sequential));
    QL_TRY(ql_json_real_or(config, place, "damp_percent", 0, 1, &out->damp));
    QL_TRY(ql_json_string_or(config, place, "checkpoint_format", &format));
    QL_TRY(ql_json_bool_or(config, place, "is_marlin_format", &marlin));
    if (marlin || (strcmp(format, "gptq") != 0 && strcmp(format, "gptq_v2") != 0))
        return ql_fail(QL_MISMATCH, "%s: checkpoint_format \"%s\"; only \"gptq\" and \"gptq_v2\" can be read", place,
                       marlin ? "marlin" : format);
    out->bits = (int)bits;
    out->group = group;
    out->version = strcmp(format, "gptq_v2") == 0 ? 2 : 1;
    const json_t *dynamic = json_object_get(config, "dynamic"),
                 *kinds = json_object_get(config, "modules_in_block_to_quantize");
    if (dynamic && !json_is_null(dynamic) && !json_is_object(dynamic))
        return ql_fail(QL_FORMAT, "%s: dynamic must be an object", place);
    if (json_object_size(dynamic) > 0) out->dynamic = dynamic;
    if (json_array_size(kinds) > 0) out->modules_in_block = kinds;
    return QL_OK;
}

/* Two files that say the same thing can say different things. */
static ql_status compare(const layout_scheme *a, const layout_scheme *b, const char *dir) {
    if (a->bits == b->bits && a->group == b->group && a->version == b->version && a->symmetric == b->symmetric &&
        a->desc_act == b->desc_act)
        return QL_OK;
    return ql_fail(
        QL_FORMAT,
        "%s: config.json says %d bits, group %lld, v%d, sym %d, desc_act %d; quantize_config.json %d bits, group %lld, "
        "v%d, sym %d, desc_act %d",
        dir, a->bits, (long long)a->group, a->version, a->symmetric, a->desc_act, b->bits, (long long)b->group,
        b->version, b->symmetric, b->desc_act);
}

static ql_status load_side_file(const checkpoint *ck, json_t **document) {
    enum { LIMIT = 16 << 20 };
    ql_arena *arena;
    char *path;
    *document = NULL;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = ql_arena_format(arena, &path, "%s/quantize_config.json", checkpoint_dir(ck));
    if (status == QL_OK && ql_path_exists(path)) status = ql_json_load(path, LIMIT, document);
    ql_arena_close(arena);
    return status;
}

ql_status layout_gptq_read(const checkpoint *ck, layout_scheme *out) {
    const json_t *config = json_object_get(checkpoint_config(ck), "quantization_config");
    const char *method = "gptq";
    layout_scheme side_scheme;
    json_t *side;
    if (config) {
        QL_TRY(ql_json_string_or(config, "quantization_config", "quant_method", &method));
        if (strcmp(method, "gptq") != 0)
            return ql_fail(QL_MISMATCH, "%s: quant_method \"%s\" cannot be read", checkpoint_dir(ck), method);
        QL_TRY(parse(config, "quantization_config", out));
    }
    QL_TRY(load_side_file(ck, &side));
    if (!config && !side) return ql_fail(QL_FORMAT, "%s: is not quantized", checkpoint_dir(ck));
    ql_status status = side ? parse(side, "quantize_config.json", &side_scheme) : QL_OK;
    if (status == QL_OK && side && config) status = compare(out, &side_scheme, checkpoint_dir(ck));
    if (status == QL_OK && !config && (side_scheme.dynamic || side_scheme.modules_in_block))
        status =
            ql_fail(QL_MISMATCH, "%s: quantize_config.json has exceptions for modules, which belong into config.json",
                    checkpoint_dir(ck));
    if (status == QL_OK && !config) *out = side_scheme;
    json_decref(side);
    return status == QL_OK ? layout_gptq_warn_label(ck, out) : status;
}

/* Is the module's kind among the quantized ones?  Lists of lists, sometimes a flat list. */
static bool is_listed(const json_t *kinds, const char *module) {
    size_t i;
    json_t *kind;
    json_array_foreach(kinds, i, kind) {
        if (json_is_array(kind) ? is_listed(kind, module)
                                : json_is_string(kind) && layout_ends_with(module, json_string_value(kind)))
            return true;
    }
    return false;
}

ql_status layout_gptq_rule(const layout_scheme *scheme, const char *module, layout_rule *rule) {
    *rule = layout_listed_rule(scheme, module, strlen(module), "");
    if (scheme->modules_in_block && !is_listed(scheme->modules_in_block, module)) rule->skipped = true;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)scheme->dynamic, key, value) {
        bool negative = strncmp(key, "-:", 2) == 0, hit;
        QL_TRY(layout_matches("dynamic", negative || strncmp(key, "+:", 2) == 0 ? key + 2 : key, module, &hit));
        if (!hit) continue;
        int64_t bits = rule->bits, group = rule->group;
        QL_TRY(ql_json_int_or(value, key, "bits", 1, 64, &bits));
        QL_TRY(ql_json_int_or(value, key, "group_size", -1, 1 << 30, &group));
        QL_TRY(check_bits("quantization_config", key, bits, group));
        *rule = (layout_rule){.skipped = rule->skipped || negative, .bits = (int)bits, .group = group};
        return QL_OK; /* the first pattern that matches decides */
    }
    return QL_OK;
}

/* compressed-tensors checkpoints, what config.json says: quantization_config out and in.
 *
 * config_groups map targets (names, "re:" patterns, or "Linear" for all) to schemes; `ignore` takes modules out.  The most specific target
 * decides.  Keys inside a scheme are checked by strict readers: exactly the ten that every version knows are written.
 */
#include <string.h>

#include "formats/json.h"
#include "formats/layout_parts.h"

static const char place[] = "quantization_config";

/* ---- writing ------------------------------------------------------------------------------------------------------------- */

static ql_status no_memory(void) { return ql_fail(QL_NOMEM, "no memory for quantization_config"); }

static const char *strategy_of(const layout_scheme *s, int64_t group) {
    if (group == GROUP_TENSOR) return "tensor";
    if (group == GROUP_ROW) return "channel";
    return s->type == CODE_E4M3 ? "block" : "group";
}

/* NULL: out of memory. */
static json_t *arguments(const char *type, int bits, bool symmetric, const char *strategy, int64_t group, bool dynamic,
                         const char *actorder) {
    bool grouped = strcmp(strategy, "group") == 0, block = strcmp(strategy, "block") == 0;
    return json_pack("{s:i, s:s, s:b, s:s, s:o, s:o, s:b, s:s?, s:s?, s:{}}", "num_bits", bits, "type", type,
                     "symmetric", symmetric, "strategy", strategy, "group_size",
                     grouped ? json_integer((json_int_t)group) : json_null(), "block_structure",
                     block ? json_pack("[i, i]", FP8_BLOCK, FP8_BLOCK) : json_null(), "dynamic", dynamic, "actorder",
                     actorder, "observer", dynamic ? NULL : "minmax", "observer_kwargs");
}

static json_t *weight_arguments(const layout_scheme *s, int bits, int64_t group) {
    const char *actorder = s->desc_act ? "group" : s->static_groups && !s->bytes ? "weight" : NULL;
    return arguments(s->type == CODE_E4M3 ? "float" : "int", bits, s->symmetric || s->type == CODE_E4M3,
                     strategy_of(s, group), group, false, actorder);
}

static json_t *input_arguments(const layout_scheme *s) {
    const char *type = s->type == CODE_E4M3 ? "float" : "int";
    bool blocks = s->type == CODE_E4M3 && s->group > 0;
    if (s->activations == ACTIVATIONS_16) return json_null();
    if (s->activations == ACTIVATIONS_STATIC) return arguments(type, 8, true, "tensor", 0, false, NULL);
    return arguments(type, 8, !s->input_zeros, blocks ? "group" : "token", FP8_BLOCK, true, NULL);
}

static json_t *config_group(const layout_scheme *s, json_t *targets, int bits, int64_t group) {
    return json_pack("{s:o, s:o, s:o, s:n}", "targets", targets, "weights", weight_arguments(s, bits, group),
                     "input_activations", input_arguments(s), "output_activations");
}

/* Modules with the bits and the group of override `first`; NULL if an earlier override had them. */
static json_t *names_like(const layout_scheme *s, int64_t first) {
    const layout_override *same = &s->overrides[first];
    json_t *names = json_array();
    for (int64_t i = 0; i < s->n_overrides; i++) {
        const layout_override *o = &s->overrides[i];
        if (o->bits != same->bits || o->group != same->group) continue;
        if (i < first) {
            json_decref(names);
            return NULL;
        }
        json_array_append_new(names, json_string(o->module));
    }
    return names;
}

static ql_status config_groups(const layout_scheme *s, json_t *groups) {
    int number = 0, failed;
    failed = json_object_set_new(groups, "group_0", config_group(s, json_pack("[s]", "Linear"), s->bits, s->group));
    for (int64_t i = 0; i < s->n_overrides && !failed; i++) {
        char key[32];
        json_t *names = names_like(s, i);
        if (!names) continue;
        snprintf(key, sizeof key, "group_%d", ++number);
        failed = json_object_set_new(groups, key, config_group(s, names, s->overrides[i].bits, s->overrides[i].group));
    }
    return failed ? no_memory() : QL_OK;
}

static const char *format_of(const layout_scheme *s) {
    return !s->bytes ? "pack-quantized" : s->type == CODE_E4M3 ? "float-quantized" : "int-quantized";
}

ql_status layout_compressed_config(const layout_scheme *scheme, json_t **quantization_config) {
    json_t *ignore, *groups = json_object();
    ql_status status = groups ? config_groups(scheme, groups) : no_memory();
    if (status == QL_OK) status = layout_skipped_list(scheme, "lm_head", false, &ignore);
    if (status != QL_OK) {
        json_decref(groups);
        return status;
    }
    json_t *cache = scheme->kv_cache ? arguments("float", 8, true, "tensor", 0, false, NULL) : json_null();
    *quantization_config =
        json_pack("{s:s, s:s, s:s, s:n, s:o, s:o, s:o}", "quant_method", "compressed-tensors", "format",
                  format_of(scheme), "quantization_status", "compressed", "global_compression_ratio", "kv_cache_scheme",
                  cache, "ignore", ignore, "config_groups", groups);
    return *quantization_config ? QL_OK : no_memory();
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

/* "128x128" is how older files say it. */
static bool is_known_block(const json_t *block) {
    if (json_is_string(block)) return strcmp(json_string_value(block), "128x128") == 0;
    return json_array_size(block) == 2 && json_integer_value(json_array_get(block, 0)) == FP8_BLOCK &&
           json_integer_value(json_array_get(block, 1)) == FP8_BLOCK;
}

static ql_status read_group(const json_t *weights, const char *key, code_type type, int64_t *group) {
    const char *strategy = "";
    *group = GROUP_ROW;
    QL_TRY(ql_json_string(weights, key, "strategy", &strategy));
    if (strcmp(strategy, "channel") == 0) return QL_OK;
    if (strcmp(strategy, "tensor") == 0) {
        *group = GROUP_TENSOR;
        return QL_OK;
    }
    if (strcmp(strategy, "group") == 0 && type == CODE_INT)
        return ql_json_int(weights, key, "group_size", 1, 1 << 30, group);
    *group = FP8_BLOCK;
    if (strcmp(strategy, "block") == 0 && type == CODE_E4M3 &&
        is_known_block(json_object_get(weights, "block_structure")))
        return QL_OK;
    return ql_fail(QL_MISMATCH, "%s: %s: weights of strategy \"%s\" (or this block_structure) cannot be read", place,
                   key, strategy);
}

static ql_status read_activations(const json_t *group, const char *key, activation_mode *mode, bool *zeros) {
    const json_t *inputs = json_object_get(group, "input_activations"),
                 *outputs = json_object_get(group, "output_activations");
    bool dynamic = false, symmetric = true;
    *mode = ACTIVATIONS_16;
    if (outputs && !json_is_null(outputs))
        return ql_fail(QL_MISMATCH, "%s: %s: output_activations cannot be read", place, key);
    if (!inputs || json_is_null(inputs)) return QL_OK;
    QL_TRY(ql_json_bool_or(inputs, key, "dynamic", &dynamic));
    QL_TRY(ql_json_bool_or(inputs, key, "symmetric", &symmetric));
    if (!symmetric && !dynamic)
        return ql_fail(QL_MISMATCH, "%s: %s: static asymmetric input_activations cannot be read", place, key);
    *zeros = !symmetric;
    *mode = dynamic ? ACTIVATIONS_TOKEN : ACTIVATIONS_STATIC;
    return QL_OK;
}

/* FP8 with one scale is all that loaders know. */
static ql_status read_kv_cache(const json_t *config, bool *kv_cache) {
    static const char key[] = "kv_cache_scheme";
    const json_t *cache = json_object_get(config, key);
    const char *type = "", *strategy = "tensor";
    bool symmetric = true, dynamic = false;
    int64_t bits = 0;
    *kv_cache = cache && !json_is_null(cache);
    if (!*kv_cache) return QL_OK;
    if (!json_is_object(cache)) return ql_fail(QL_FORMAT, "%s: %s must be an object", place, key);
    QL_TRY(ql_json_int(cache, key, "num_bits", 1, 64, &bits));
    QL_TRY(ql_json_string(cache, key, "type", &type));
    QL_TRY(ql_json_string_or(cache, key, "strategy", &strategy));
    QL_TRY(ql_json_bool_or(cache, key, "symmetric", &symmetric));
    QL_TRY(ql_json_bool_or(cache, key, "dynamic", &dynamic));
    if (bits == 8 && strcmp(type, "float") == 0 && strcmp(strategy, "tensor") == 0 && symmetric && !dynamic)
        return QL_OK;
    return ql_fail(QL_MISMATCH, "%s: %s: only 8-bit floats with one static scale can be read", place, key);
}

/* One of config_groups as a scheme of its own. */
static ql_status read_scheme(const json_t *group, const char *key, bool bytes, layout_scheme *out) {
    const json_t *weights = json_object_get(group, "weights");
    const char *type = "int", *actorder = NULL;
    int64_t bits = 0;
    *out = (layout_scheme){.symmetric = true, .bytes = bytes};
    if (!json_is_object(weights)) return ql_fail(QL_FORMAT, "%s: %s: has no weights", place, key);
    QL_TRY(ql_json_int(weights, key, "num_bits", 1, 64, &bits));
    QL_TRY(ql_json_string_or(weights, key, "type", &type));
    QL_TRY(ql_json_bool_or(weights, key, "symmetric", &out->symmetric));
    const json_t *order = json_object_get(weights, "actorder"); /* true is an old way to say "group" */
    if (json_is_string(order)) actorder = json_string_value(order);
    out->desc_act = json_is_true(order) || (actorder && strcmp(actorder, "group") == 0);
    out->static_groups = actorder && strcmp(actorder, "weight") == 0;
    out->type = strcmp(type, "float") == 0 ? CODE_E4M3 : CODE_INT;
    out->bits = (int)bits;
    if (bits != 8 && (bytes || bits != 4 || out->type != CODE_INT))
        return ql_fail(QL_MISMATCH, "%s: %s: \"%s\" weights of %lld bits cannot be read", place, key, type,
                       (long long)bits);
    QL_TRY(read_activations(group, key, &out->activations, &out->input_zeros));
    return read_group(weights, key, out->type, &out->group);
}

static ql_status check_targets(const json_t *group, const char *key) {
    size_t i;
    json_t *target;
    const json_t *targets = json_object_get(group, "targets");
    if (json_array_size(targets) == 0) return ql_fail(QL_FORMAT, "%s: %s: has no targets", place, key);
    json_array_foreach(targets, i, target) if (!json_is_string(target)) return ql_fail(
        QL_FORMAT, "%s: %s: target %zu is no string", place, key, i);
    return QL_OK;
}

/* The first group speaks for the checkpoint; the others may differ in bits and group size. */
static ql_status read_groups(const json_t *groups, bool bytes, layout_scheme *out) {
    const char *key;
    json_t *group;
    bool first = true;
    layout_scheme one;
    if (!json_is_object(groups) || json_object_size(groups) == 0)
        return ql_fail(QL_FORMAT, "%s: config_groups must be an object of schemes", place);
    json_object_foreach((json_t *)(uintptr_t)groups, key, group) {
        QL_TRY(check_targets(group, key));
        QL_TRY(read_scheme(group, key, bytes, &one));
        if (first) *out = one;
        if (one.type != out->type || one.symmetric != out->symmetric || one.activations != out->activations ||
            one.input_zeros != out->input_zeros || one.desc_act != out->desc_act || (bytes && one.group != out->group))
            return ql_fail(QL_MISMATCH, "%s: %s: differs from the first group in more than bits and group size", place,
                           key);
        first = false;
    }
    return QL_OK;
}

ql_status layout_compressed_read(const checkpoint *ck, layout_scheme *out) {
    const json_t *config = json_object_get(checkpoint_config(ck), place),
                 *groups = json_object_get(config, "config_groups"), *ignored;
    const char *format = "", *status = "compressed";
    QL_TRY(ql_json_string(config, place, "format", &format));
    QL_TRY(ql_json_string_or(config, place, "quantization_status", &status));
    bool packed = strcmp(format, "pack-quantized") == 0, ints = strcmp(format, "int-quantized") == 0,
         floats = strcmp(format, "float-quantized") == 0;
    if (!packed && !ints && !floats)
        return ql_fail(QL_MISMATCH,
                       "%s: format \"%s\"; only pack-quantized, int-quantized and float-quantized can be read", place,
                       format);
    if (strcmp(status, "compressed") != 0)
        return ql_fail(QL_FORMAT, "%s: quantization_status is \"%s\"; loaders take only \"compressed\" as packed",
                       place, status);
    QL_TRY(layout_read_list(config, "ignore", &ignored));
    QL_TRY(read_groups(groups, !packed, out));
    if (floats != (out->type == CODE_E4M3))
        return ql_fail(QL_FORMAT, "%s: format is \"%s\", but the weights are \"%s\"", place, format,
                       out->type == CODE_E4M3 ? "float" : "int");
    out->ignored = ignored;
    out->groups = groups;
    QL_TRY(read_kv_cache(config, &out->kv_cache));
    return QL_OK;
}

/* A name, a pattern behind "re:", or the class of all modules here. */
static ql_status hits(const char *target, const char *module, const char *key, int *precision) {
    bool hit;
    *precision = strcmp(target, module) == 0 ? 3 : strcmp(target, "Linear") == 0 ? 1 : 0;
    if (strncmp(target, "re:", 3) != 0) return QL_OK;
    QL_TRY(layout_matches(key, target + 3, module, &hit));
    *precision = hit ? 2 : 0;
    return QL_OK;
}

static ql_status best_hit(const json_t *targets, const char *module, const char *key, int *best) {
    size_t i;
    json_t *target;
    int precision;
    *best = 0;
    json_array_foreach(targets, i, target) {
        QL_TRY(hits(json_string_value(target), module, key, &precision));
        if (precision > *best) *best = precision;
    }
    return QL_OK;
}

ql_status layout_compressed_rule(const layout_scheme *scheme, const char *module, layout_rule *rule) {
    const char *key;
    json_t *group;
    int ignored, precision, best = 0;
    *rule = layout_listed_rule(scheme, module, strlen(module), "");
    QL_TRY(best_hit(scheme->ignored, module, "ignore", &ignored));
    if (ignored > 0) rule->skipped = true;
    if (!scheme->groups) return QL_OK;
    json_object_foreach((json_t *)(uintptr_t)scheme->groups, key, group) {
        layout_scheme one;
        QL_TRY(best_hit(json_object_get(group, "targets"), module, key, &precision));
        if (precision <= best) continue;
        best = precision;
        QL_TRY(read_scheme(group, key, scheme->bytes, &one));
        rule->bits = one.bits;
        rule->group = one.group;
    }
    if (best == 0) rule->skipped = true;
    return QL_OK;
}

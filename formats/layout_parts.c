#include "formats/layout_parts.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "host/mat.h"
#include "host/num.h"

/* ---- names and bits -------------------------------------------------------------------------------------------------------- */

void layout_put_field(uint32_t *stream, int64_t i, int bits, uint32_t value) {
    int64_t word = i * bits / 32;
    int shift = (int)(i * bits % 32);
    stream[word] |= value << shift;
    if (shift + bits > 32) stream[word + 1] |= value >> (32 - shift);
}

uint32_t layout_get_field(const uint32_t *stream, int64_t i, int bits) {
    int64_t word = i * bits / 32;
    int shift = (int)(i * bits % 32);
    uint32_t value = stream[word] >> shift;
    if (shift + bits > 32) value |= stream[word + 1] << (32 - shift);
    return value & ((1u << bits) - 1);
}

st_tensor layout_tensor(ql_dtype dtype, int64_t rows, int64_t cols) {
    st_tensor tensor = {
        .dtype = dtype, .dtype_name = ql_dtype_name(dtype), .rank = cols ? 2 : 1, .shape = {rows, cols}};
    tensor.size = (uint64_t)(rows * (cols ? cols : 1)) * ql_dtype_size(dtype);
    return tensor;
}

ql_status layout_begin(const qmodule *q, const char *const suffixes[], ql_arena *arena, layout_tensors *out) {
    for (int t = 0; t < out->count; t++) {
        char *name;
        QL_TRY(ql_arena_format(arena, &name, "%s.%s", q->name, suffixes[t]));
        out->tensor[t].name = name;
        out->data[t] = NULL;
        if (q->codes) QL_TRY(ql_arena_take(arena, out->tensor[t].size, 1, &out->data[t]));
    }
    return QL_OK;
}

bool layout_ends_with(const char *text, const char *suffix) {
    size_t length = strlen(text), tail = strlen(suffix);
    return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

const st_tensor *layout_find(const checkpoint *ck, const char *module, const char *suffix) {
    char name[256];
    int length = snprintf(name, sizeof name, "%s.%s", module, suffix);
    return length > 0 && (size_t)length < sizeof name ? checkpoint_find(ck, name) : NULL;
}

/* ---- tensors of a module --------------------------------------------------------------------------------------------------- */

static bool is_float(ql_dtype dtype) { return dtype == QL_F16 || dtype == QL_BF16 || dtype == QL_F32; }

ql_status layout_check_tensor(const qmodule *q, const char *suffix, const st_tensor *want, const st_tensor *found,
                              const char *hint) {
    if (!found) return ql_fail(QL_FORMAT, "%s.%s: missing", q->name, suffix);
    if (is_float(want->dtype) ? !is_float(found->dtype) : found->dtype != want->dtype)
        return ql_fail(QL_FORMAT, "%s.%s: is %s, must be %s", q->name, suffix, found->dtype_name, want->dtype_name);
    if (found->rank == 1 && want->rank == 1 && found->shape[0] == want->shape[0]) return QL_OK;
    if (found->rank != want->rank || want->rank == 1)
        return ql_fail(QL_FORMAT, "%s.%s: rank %d with %lld elements in front, must be rank %d with %lld", q->name,
                       suffix, found->rank, found->rank ? (long long)found->shape[0] : 1, want->rank,
                       (long long)want->shape[0]);
    if (found->shape[0] == want->shape[0] && found->shape[1] == want->shape[1]) return QL_OK;
    return ql_fail(
        QL_FORMAT, "%s.%s: is [%lld, %lld], but N = %lld, K = %lld, %d bits and groups of %lld need [%lld, %lld]%s",
        q->name, suffix, (long long)found->shape[0], (long long)found->shape[1], (long long)q->n, (long long)q->k,
        q->bits, (long long)q->group, (long long)want->shape[0], (long long)want->shape[1], hint);
}

ql_status layout_take(ql_arena *arena, qmodule *q) {
    size_t groups = (size_t)(q->n * ql_groups(q->k, q->group));
    QL_TRY(ql_take(arena, (size_t)(q->n * ql_packed_words(q->k, q->bits)), sizeof *q->codes, &q->codes));
    QL_TRY(ql_take(arena, groups, sizeof *q->scale, &q->scale));
    return ql_take(arena, groups, sizeof *q->zero, &q->zero);
}

ql_status layout_read_tensor(const checkpoint *ck, const st_tensor *tensor, ql_arena *arena, void *data) {
    void **to = data;
    QL_TRY(ql_arena_take(arena, tensor->size, 1, to));
    return checkpoint_read(ck, tensor, *to);
}

/* ---- scales and zero points ------------------------------------------------------------------------------------------------ */

ql_status layout_put_scales(const qmodule *q, bool transposed, uint16_t *scales) {
    int64_t groups = ql_groups(q->k, q->group);
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t g = 0; g < groups; g++) {
            float scale = q->scale[n * groups + g];
            uint16_t half = ql_f32_to_f16(scale);
            if (half == 0 || half >= 0x7c00 || ql_f16_to_f32(half) != scale) /* zero, infinite, NaN, negative, longer */
                return ql_fail(QL_MISMATCH, "%s: the scale %g of output %lld, group %lld is not a positive FP16 number",
                               q->name, (double)scale, (long long)n, (long long)g);
            scales[transposed ? g * q->n + n : n * groups + g] = half;
        }
    return QL_OK;
}

static float element(const void *raw, ql_dtype dtype, int64_t i) {
    return dtype == QL_F32    ? ((const float *)raw)[i]
           : dtype == QL_BF16 ? ql_bf16_to_f32(((const uint16_t *)raw)[i])
                              : ql_f16_to_f32(((const uint16_t *)raw)[i]);
}

ql_status layout_read_floats(const checkpoint *ck, const st_tensor *tensor, ql_arena *arena, float **values) {
    void *raw;
    int64_t count = (int64_t)(tensor->size / ql_dtype_size(tensor->dtype));
    QL_TRY(ql_take(arena, (size_t)count, sizeof **values, values));
    QL_TRY(layout_read_tensor(ck, tensor, arena, &raw));
    for (int64_t i = 0; i < count; i++) (*values)[i] = element(raw, tensor->dtype, i);
    return QL_OK;
}

ql_status layout_check_scale(const qmodule *q, const char *suffix, int64_t n, int64_t g, float scale) {
    if (scale > 0 && isfinite(scale)) return QL_OK;
    return ql_fail(QL_FORMAT, "%s.%s: output %lld, group %lld has the scale %g", q->name, suffix, (long long)n,
                   (long long)g, (double)scale);
}

ql_status layout_get_scales(const checkpoint *ck, const st_tensor *tensor, const char *suffix, bool transposed,
                            ql_arena *arena, qmodule *q) {
    float *values;
    int64_t groups = ql_groups(q->k, q->group);
    QL_TRY(layout_read_floats(ck, tensor, arena, &values));
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t g = 0; g < groups; g++) {
            float scale = values[transposed ? g * q->n + n : n * groups + g];
            QL_TRY(layout_check_scale(q, suffix, n, g, scale));
            q->scale[n * groups + g] = scale;
        }
    return QL_OK;
}

ql_status layout_check_zero(const qmodule *q, int64_t n, int64_t g) {
    int zero = q->zero[n * ql_groups(q->k, q->group) + g];
    if (zero >> q->bits == 0) return QL_OK;
    return ql_fail(QL_INTERNAL, "%s: zero point %d of output %lld does not fit into %d bits", q->name, zero,
                   (long long)n, q->bits);
}

ql_status layout_check_symmetric(const qmodule *q) {
    int64_t groups = ql_groups(q->k, q->group);
    for (int64_t i = 0; i < q->n * groups; i++)
        if (q->zero[i] != 1 << (q->bits - 1))
            return ql_fail(QL_MISMATCH, "%s: output %lld, group %lld has the zero point %d, but the file has none",
                           q->name, (long long)(i / groups), (long long)(i % groups), q->zero[i]);
    return QL_OK;
}

ql_status layout_check_integers(const layout_scheme *s, const char *name) {
    if (s->type == CODE_INT && s->group != GROUP_TENSOR && s->activations == ACTIVATIONS_16) return QL_OK;
    return ql_fail(QL_MISMATCH, "%s files hold integers in groups or rows beside 16-bit inputs, not %s", name,
                   s->type == CODE_E4M3       ? "FP8"
                   : s->type == CODE_NF4      ? "NF4"
                   : s->group == GROUP_TENSOR ? "one scale per tensor"
                                              : "8-bit inputs");
}

/* ---- groups of inputs ------------------------------------------------------------------------------------------------------ */

/* With K a multiple of the group size this makes all groups equal. */
ql_status layout_check_g_idx(ql_status status, const char *suffix, const qmodule *q, ql_arena *arena) {
    int64_t groups = ql_groups(q->k, q->group), *members;
    QL_TRY(ql_take(arena, (size_t)groups, sizeof *members, &members));
    for (int64_t i = 0; i < q->k; i++) {
        if (q->g_idx[i] < 0 || q->g_idx[i] >= groups)
            return ql_fail(status, "%s.%s: input %lld has group %d, there are %lld groups", q->name, suffix,
                           (long long)i, q->g_idx[i], (long long)groups);
        if (++members[q->g_idx[i]] > q->group)
            return ql_fail(status, "%s.%s: group %d has more members than the group size %lld", q->name, suffix,
                           q->g_idx[i], (long long)q->group);
    }
    return QL_OK;
}

ql_status layout_put_g_idx(const qmodule *q, const char *suffix, ql_arena *arena, int32_t *g_idx) {
    if (q->g_idx) {
        QL_TRY(layout_check_g_idx(QL_INTERNAL, suffix, q, arena));
        memcpy(g_idx, q->g_idx, (size_t)q->k * sizeof *g_idx);
        return QL_OK;
    }
    for (int64_t k = 0; k < q->k; k++) g_idx[k] = (int32_t)(k / q->group);
    return QL_OK;
}

/* Leaves q->g_idx where groups are not simply k / group.  All zeros with several groups is how some tools say "trivial". */
ql_status layout_get_g_idx(const checkpoint *ck, const st_tensor *tensor, const char *suffix, ql_arena *arena,
                           qmodule *q) {
    QL_TRY(ql_take(arena, (size_t)q->k, sizeof *q->g_idx, &q->g_idx));
    QL_TRY(checkpoint_read(ck, tensor, q->g_idx));
    bool trivial = true, all_zero = true;
    for (int64_t k = 0; k < q->k; k++) {
        trivial = trivial && q->g_idx[k] == k / q->group;
        all_zero = all_zero && q->g_idx[k] == 0;
    }
    ql_mark mark = ql_arena_mark(arena);
    QL_TRY(trivial || all_zero ? QL_OK : layout_check_g_idx(QL_FORMAT, suffix, q, arena));
    ql_arena_release(arena, mark);
    if (trivial || all_zero) q->g_idx = NULL;
    return QL_OK;
}

/* ---- rules ------------------------------------------------------------------------------------------------------------------ */

layout_rule layout_listed_rule(const layout_scheme *scheme, const char *stem, size_t length, const char *suffix) {
    layout_rule rule = {.bits = scheme->bits, .group = scheme->group};
    for (const char *const *name = scheme->skipped; name && *name; name++)
        if (strncmp(*name, stem, length) == 0 && strcmp(*name + length, suffix) == 0) rule.skipped = true;
    for (int64_t i = 0; i < scheme->n_overrides; i++) {
        const layout_override *o = &scheme->overrides[i];
        if (strncmp(o->module, stem, length) == 0 && strcmp(o->module + length, suffix) == 0)
            rule.bits = o->bits, rule.group = o->group;
    }
    return rule;
}

ql_status layout_ignored_rule(const layout_scheme *scheme, const char *module, layout_rule *rule) {
    *rule = layout_listed_rule(scheme, module, strlen(module), "");
    if (layout_is_listed(scheme->ignored, module)) rule->skipped = true;
    return QL_OK;
}

ql_status layout_skipped_list(const layout_scheme *scheme, const char *first, bool with_fused, json_t **list) {
    static const char *const fused[][2] = {{".self_attn.q_proj", "qkv_proj"}, {".mlp.gate_proj", "gate_up_proj"}};
    *list = NULL;
    if (!first && !(scheme->skipped && scheme->skipped[0])) return QL_OK;
    json_t *names = json_array();
    int failed = names ? 0 : 1;
    if (first) failed |= json_array_append_new(names, json_string(first));
    for (const char *const *name = scheme->skipped; name && *name; name++) {
        failed |= json_array_append_new(names, json_string(*name));
        for (int f = 0; with_fused && f < 2; f++)
            if (layout_ends_with(*name, fused[f][0]))
                failed |= json_array_append_new(
                    names, json_sprintf("%.*s%s", (int)(strrchr(*name, '.') + 1 - *name), *name, fused[f][1]));
    }
    if (!failed) *list = names;
    else json_decref(names);
    return failed ? ql_fail(QL_NOMEM, "no memory for quantization_config") : QL_OK;
}

ql_status layout_read_list(const json_t *config, const char *key, const json_t **list) {
    size_t i;
    json_t *name;
    const json_t *found = json_object_get(config, key);
    *list = NULL;
    if (!found || json_is_null(found)) return QL_OK;
    if (!json_is_array(found)) return ql_fail(QL_FORMAT, "quantization_config: %s must be a list", key);
    json_array_foreach(found, i, name) if (!json_is_string(name)) return ql_fail(
        QL_FORMAT, "quantization_config: %s: element %zu is no string", key, i);
    *list = found;
    return QL_OK;
}

bool layout_is_listed(const json_t *list, const char *module) {
    size_t i;
    json_t *name;
    json_array_foreach(list, i, name) if (strstr(module, json_string_value(name))) return true;
    return false;
}

/* The limits stop patterns that explode. */
ql_status layout_matches(const char *place, const char *pattern, const char *module, bool *hit) {
    enum { MATCH_LIMIT = 100000 };
    int code;
    size_t offset;
    *hit = false;
    pcre2_code *regex = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED, &code, &offset, NULL);
    if (!regex)
        return ql_fail(QL_FORMAT, "quantization_config: %s \"%s\" is no valid pattern at %zu", place, pattern, offset);
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(regex, NULL);
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    if (limits) pcre2_set_match_limit(limits, MATCH_LIMIT);
    code = match && limits ? pcre2_match(regex, (PCRE2_SPTR)module, PCRE2_ZERO_TERMINATED, 0, 0, match, limits)
                           : PCRE2_ERROR_NOMEMORY;
    pcre2_match_context_free(limits);
    pcre2_match_data_free(match);
    pcre2_code_free(regex);
    *hit = code >= 0;
    if (code >= 0 || code == PCRE2_ERROR_NOMATCH) return QL_OK;
    return ql_fail(code == PCRE2_ERROR_NOMEMORY ? QL_NOMEM : QL_FORMAT,
                   "quantization_config: %s \"%s\" on %s: PCRE2 error %d", place, pattern, module, code);
}

#define PCRE2_CODE_UNIT_WIDTH 8
#include "calib/recipe.h"

#include <jansson.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "formats/stats.h"
#include "host/status.h"

const char *const method_names[METHODS] = {[METHOD_RTN] = "rtn", [METHOD_GPTQ] = "gptq", [METHOD_HQQ] = "hqq"};
const char *const act_order_names[3] = {
    [QL_ORDER_NONE] = "none", [QL_ORDER_STATIC] = "static", [QL_ORDER_DYNAMIC] = "dynamic"};

const char *const smoothing_names[SMOOTHINGS] = {
    [SMOOTHING_NONE] = "none", [SMOOTHING_AWQ] = "awq", [SMOOTHING_SMOOTHQUANT] = "smoothquant"};

const char *const type_names[CODE_TYPES] = {
    [CODE_INT] = "int", [CODE_E4M3] = "fp8", [CODE_NF4] = "nf4", [CODE_BLOCKS] = "gguf"};
const char *const activation_names[ACTIVATION_MODES] = {
    [ACTIVATIONS_16] = "none", [ACTIVATIONS_TOKEN] = "token", [ACTIVATIONS_STATIC] = "static"};

const char *const kv_cache_names[2] = {"none", "fp8"};
const char *const range_names[RANGES] = {
    [RANGE_MINMAX] = "minmax", [RANGE_PERCENTILE] = "percentile", [RANGE_MSE] = "mse", [RANGE_KL] = "kl"};
const char *const scale_search_names[SEARCHES] = {
    [SEARCH_OFF] = "false", [SEARCH_ON] = "true", [SEARCH_IMPORTANCE] = "importance"};

static const double literature_damp = 0.01;

void recipe_defaults(recipe *r) {
    *r = (recipe){
        .base = {.method = METHOD_GPTQ, .bits = 4, .group = 128},
        .symmetric = true,
        .sequential = true,
        .scale_search = SEARCH_ON,
        .percentile = 99.99,
        .act_order = QL_ORDER_STATIC,
        .mix = MIX_Q4_K_M,
        .damp = 0.05,
        .drift = 0.75,
        .refine = 4,
    };
}

/* ---- checks ----------------------------------------------------------------------------------------------------------- */

static bool bits_exist(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }
static bool group_exists(int64_t group) { return group == 32 || group == 64 || group == 128 || group == -1; }

static ql_status check_rule(const module_rule *rule, const char *where) {
    if (!bits_exist(rule->bits)) return ql_fail(QL_MISMATCH, "%sbits %d: expected 2, 3, 4 or 8", where, rule->bits);
    bool whole = rule->group == GROUP_TENSOR && rule->bits == 8 && rule->method == METHOD_RTN;
    if (!group_exists(rule->group) && !whole)
        return ql_fail(QL_MISMATCH, "%sgroup_size %lld: expected 32, 64, 128 or -1 (one group per row)", where,
                       (long long)rule->group);
    return QL_OK;
}

static ql_status settle_literature(recipe *r) {
    if ((r->asked & ASKED_SCALE_SEARCH) && r->scale_search)
        return ql_fail(QL_MISMATCH,
                       "literature has no scale search, but scale_search was asked for; drop one of the two");
    if ((r->asked & ASKED_SEQUENTIAL) && r->sequential)
        return ql_fail(QL_MISMATCH,
                       "literature quantizes all linears of a block from the same inputs, but sequential was "
                       "asked for; drop one of the two");
    if ((r->asked & ASKED_DAMP) && r->damp != literature_damp)
        return ql_fail(QL_MISMATCH, "literature has damp %g, but %g was asked for; drop one of the two",
                       literature_damp, r->damp);
    if (((r->asked & ASKED_DRIFT) && r->drift > 0) || ((r->asked & ASKED_REFINE) && r->refine > 0))
        return ql_fail(QL_MISMATCH,
                       "literature has neither drift nor refine, but one was asked for; drop one of the two");
    r->scale_search = SEARCH_OFF;
    r->sequential = false;
    r->drift = 0;
    r->refine = 0;
    r->damp = literature_damp;
    if (!(r->asked & ASKED_ACT_ORDER)) r->act_order = QL_ORDER_NONE;
    return QL_OK;
}

/* Any module? */
static bool rounds_to_nearest(const recipe *r) {
    bool found = r->base.method == METHOD_RTN;
    for (int i = 0; i < r->n_overrides; i++)
        found = found || (r->overrides[i].has_method && r->overrides[i].rule.method == METHOD_RTN);
    return found;
}

static ql_status check_smoothing(const recipe *r) {
    bool named = r->smooth_alpha == SMOOTH_ALPHA_SEARCH || r->smooth_alpha == SMOOTH_ALPHA_FAMILY;
    if (!named && !(r->smooth_alpha >= 0.05 && r->smooth_alpha <= 1))
        return ql_fail(QL_MISMATCH, "smooth_alpha %g: expected 0.05 to 1, family or search", r->smooth_alpha);
    if (r->input_zeros && (r->activations != ACTIVATIONS_TOKEN || r->base.type != CODE_INT))
        return ql_fail(QL_MISMATCH, "input_zeros: integers with activations token have them");
    if (r->kv_cache && r->smoothing == SMOOTHING_AWQ)
        return ql_fail(QL_MISMATCH, "kv_cache fp8: AWQ's scales change the values whose range is measured before; "
                                    "smoothing none or smoothquant");
    if (r->literature && r->kv_cache)
        return ql_fail(QL_MISMATCH, "literature has no kv_cache, but one was asked for; drop one of the two");
    if (r->literature && (r->smoothing != SMOOTHING_NONE || r->clip))
        return ql_fail(QL_MISMATCH,
                       "literature has neither smoothing nor clip, but one was asked for; drop one of the two");
    if (r->clip && !rounds_to_nearest(r))
        return ql_fail(QL_MISMATCH, "clip is for method rtn: %s finds its ranges by itself",
                       method_names[r->base.method]);
    if (r->scale_search == SEARCH_IMPORTANCE && !rounds_to_nearest(r))
        return ql_fail(QL_MISMATCH,
                       "scale_search importance is for method rtn: gptq weighs by the data always, hqq never");
    if (r->clip && r->base.group < 0)
        return ql_fail(QL_MISMATCH, "clip looks at groups: group_size 32, 64 or 128, not -1");
    return QL_OK;
}

/* FP8 and NF4 have their own grids: bits and groups follow, and there is nothing that GPTQ could compensate on them yet. */
static ql_status settle_type(recipe *r) {
    static const struct {
        int bits;
        int64_t group;
    } usual[CODE_TYPES] = {[CODE_E4M3] = {8, GROUP_ROW}, [CODE_NF4] = {4, 64}};
    const char *name = type_names[r->base.type];
    if (r->base.type == CODE_INT) return QL_OK;
    if (!(r->asked & ASKED_METHOD)) r->base.method = METHOD_RTN;
    if (!(r->asked & ASKED_BITS)) r->base.bits = usual[r->base.type].bits;
    if (!(r->asked & ASKED_GROUP)) r->base.group = usual[r->base.type].group;
    if (r->base.method != METHOD_RTN || r->base.bits != usual[r->base.type].bits || r->clip || r->literature)
        return ql_fail(QL_MISMATCH, "type %s: has %d bits, method rtn, neither clip nor literature", name,
                       usual[r->base.type].bits);
    bool group = r->base.type == CODE_NF4 ? r->base.group == 64 : r->base.group < 0 || r->base.group == FP8_BLOCK;
    if (!group)
        return ql_fail(QL_MISMATCH, "type %s: group_size %lld: expected %s", name, (long long)r->base.group,
                       r->base.type == CODE_NF4 ? "64" : "-1 (a scale per row), -2 (per tensor) or 128 (blocks)");
    for (int i = 0; i < r->n_overrides; i++)
        if (r->overrides[i].has_bits || r->overrides[i].has_group || r->overrides[i].has_method)
            return ql_fail(QL_MISMATCH, "type %s: override %d can only skip modules", name, i + 1);
    return QL_OK;
}

/* A kind of file fixes the type of each of its tensors. */
static ql_status settle_blocks(recipe *r) {
    const char *mix = gguf_mix_name(r->mix);
    int bits = gguf_bits(gguf_mix_type(r->mix));
    int64_t group = gguf_group(gguf_mix_type(r->mix));
    if (!(r->asked & ASKED_METHOD)) r->base.method = METHOD_RTN;
    if (!(r->asked & ASKED_BITS)) r->base.bits = bits;
    if (!(r->asked & ASKED_GROUP)) r->base.group = group;
    if (r->base.method != METHOD_RTN || r->base.bits != bits || r->base.group != group)
        return ql_fail(QL_MISMATCH, "mix %s: has method rtn, %d bits and group_size %lld", mix, bits, (long long)group);
    if (r->literature || r->clip || r->smoothing != SMOOTHING_NONE || r->activations != ACTIVATIONS_16)
        return ql_fail(QL_MISMATCH, "mix %s: goes with neither literature, clip, smoothing nor activations", mix);
    if (r->n_overrides > 0)
        return ql_fail(QL_MISMATCH, "mix %s: says itself how each tensor is stored; drop the overrides", mix);
    return QL_OK;
}

/* Rows and groups: the calibrators that look at magnitudes take the place of the search by squares. */
static ql_status check_group_range(const recipe *r) {
    const char *name = range_names[r->range];
    bool searched = r->asked & ASKED_SCALE_SEARCH && r->scale_search != SEARCH_OFF;
    if (r->base.method != METHOD_RTN || r->base.type != CODE_INT || r->literature)
        return ql_fail(
            QL_MISMATCH,
            "range %s: is for static inputs, weights with one scale per tensor, and method rtn with integers", name);
    if (r->range == RANGE_MSE && r->scale_search == SEARCH_OFF)
        return ql_fail(QL_MISMATCH, "range mse: is scale_search, which is off; drop one of the two");
    if (r->range == RANGE_MSE) return QL_OK;
    if (searched || r->clip)
        return ql_fail(QL_MISMATCH, "range %s: takes the place of scale_search and clip; drop one of the two", name);
    bool groups = r->base.group > 0;
    for (int i = 0; i < r->n_overrides; i++)
        groups = groups || (r->overrides[i].has_group && r->overrides[i].rule.group > 0);
    if (r->range == RANGE_KL && groups)
        return ql_fail(QL_MISMATCH, "range kl: groups are too small to have a distribution; group_size -1 or -2");
    return QL_OK;
}

static ql_status check_range(const recipe *r) {
    bool weights = r->base.group == GROUP_TENSOR, inputs = r->activations == ACTIVATIONS_STATIC;
    if (!(r->percentile > 0 && r->percentile <= 100))
        return ql_fail(QL_MISMATCH, "percentile %g: expected more than 0, at most 100", r->percentile);
    if (r->range == RANGE_MINMAX) return QL_OK;
    if (!weights && !inputs) return check_group_range(r);
    if (r->range == RANGE_KL && r->base.type != CODE_INT)
        return ql_fail(QL_MISMATCH, "range kl: compares with evenly spaced levels, type %s has none",
                       type_names[r->base.type]);
    return QL_OK;
}

/* HQQ has a zero point to solve for, and that is all it does. */
static ql_status settle_hqq(recipe *r) {
    bool everywhere = r->base.method == METHOD_HQQ;
    if (everywhere && !(r->asked & ASKED_SYMMETRIC)) r->symmetric = false;
    for (int i = 0; i < r->n_overrides; i++)
        if (r->overrides[i].has_method && r->overrides[i].rule.method == METHOD_HQQ && r->symmetric)
            return ql_fail(QL_MISMATCH, "override %d (%.40s): method hqq solves zero points: symmetric must be false",
                           i + 1, r->overrides[i].match);
    if (!everywhere) return QL_OK;
    if (r->symmetric)
        return ql_fail(QL_MISMATCH, "method hqq solves zero points: it is asymmetric, but symmetric was "
                                    "asked for; drop one of the two");
    if (r->literature || r->clip)
        return ql_fail(QL_MISMATCH, "method hqq finds grids by itself: neither clip nor literature goes with it");
    return QL_OK;
}

ql_status recipe_check(recipe *r) {
    if (r->base.type == CODE_BLOCKS) return settle_blocks(r);
    QL_TRY(settle_type(r));
    QL_TRY(settle_hqq(r));
    QL_TRY(check_range(r));
    if (r->literature) QL_TRY(settle_literature(r));
    QL_TRY(check_smoothing(r));
    QL_TRY(check_rule(&r->base, ""));
    if (!(r->damp > 0 && r->damp < 1))
        return ql_fail(QL_MISMATCH, "damp %g: expected more than 0 and less than 1", r->damp);
    if (!(r->drift >= 0 && r->drift <= 1)) return ql_fail(QL_MISMATCH, "drift %g: expected 0 to 1", r->drift);
    if (r->refine < 0 || r->refine > 100)
        return ql_fail(QL_MISMATCH, "refine %lld: expected 0 to 100 sweeps", (long long)r->refine);
    for (int i = 0; i < r->n_overrides; i++) {
        const recipe_override *o = &r->overrides[i];
        module_rule rule = r->base;
        char where[64];
        snprintf(where, sizeof where, "override %d (%.40s): ", i + 1, o->match);
        if (o->has_bits) rule.bits = o->rule.bits;
        if (o->has_group) rule.group = o->rule.group;
        QL_TRY(check_rule(&rule, where));
    }
    return QL_OK;
}

/* ---- regular expressions ------------------------------------------------------------------------------------------------ */

/* A module's name has at most 127 characters: an honest pattern needs some hundred steps, a catastrophic one stops here within
 * a millisecond or two. */
enum { MATCH_LIMIT = 100000, DEPTH_LIMIT = 10000, HEAP_LIMIT_KIB = 4096, LONGEST_PATTERN = 1000 };

static void *take_from_arena(size_t size, void *arena) {
    void *data;
    return ql_arena_take(arena, size, 1, &data) == QL_OK ? data : NULL;
}
static void leave_in_arena(void *data, void *arena) { (void)data, (void)arena; }

ql_status recipe_compile(recipe_override *o, ql_arena *arena) {
    size_t length = strlen(o->match);
    if (length == 0 || length > LONGEST_PATTERN)
        return ql_fail(QL_MISMATCH, "match has %zu characters; expected 1 to %d", length, LONGEST_PATTERN);
    /* recipe.yaml writes the pattern on one line and must read back the same. */
    for (const unsigned char *c = (const unsigned char *)o->match; *c; c++)
        if (*c < 0x20 || *c > 0x7e)
            return ql_fail(QL_MISMATCH, "match: only printable ASCII is possible; \\x.. stands for others");
    pcre2_general_context *general = pcre2_general_context_create(take_from_arena, leave_in_arena, arena);
    if (!general) return ql_fail(QL_NOMEM, "no memory for a regular expression");
    pcre2_compile_context *context = pcre2_compile_context_create(general);
    if (!context) return ql_fail(QL_NOMEM, "no memory for a regular expression");
    int error;
    size_t offset;
    o->regex = pcre2_compile((PCRE2_SPTR)o->match, length, PCRE2_NEVER_UTF, &error, &offset, context);
    if (o->regex) return QL_OK;
    if (error == PCRE2_ERROR_HEAP_FAILED) return ql_fail(QL_NOMEM, "no memory for a regular expression");
    char reason[160];
    pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof reason);
    return ql_fail(QL_MISMATCH, "match \"%.80s\": %s at character %zu", o->match, reason, offset + 1);
}

ql_status recipe_matches(const recipe_override *o, const char *module, bool *matches) {
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    int found = PCRE2_ERROR_NOMEMORY;
    if (context && data) {
        pcre2_set_match_limit(context, MATCH_LIMIT);
        pcre2_set_depth_limit(context, DEPTH_LIMIT);
        pcre2_set_heap_limit(context, HEAP_LIMIT_KIB);
        found = pcre2_match(o->regex, (PCRE2_SPTR)module, strlen(module), 0, 0, data, context);
    }
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    *matches = found >= 0;
    if (found >= 0 || found == PCRE2_ERROR_NOMATCH) return QL_OK;
    if (found == PCRE2_ERROR_NOMEMORY) return ql_fail(QL_NOMEM, "no memory for a regular expression");
    char reason[160];
    pcre2_get_error_message(found, (PCRE2_UCHAR *)reason, sizeof reason);
    return ql_fail(QL_MISMATCH, "match \"%.80s\" on %s: %s; write it without nested repetition", o->match, module,
                   reason);
}

bool recipe_needs_data(const recipe *r) {
    return r->base.type != CODE_BLOCKS && (recipe_statistics(r) != 0 || r->kv_cache);
}

int recipe_statistics(const recipe *r) {
    bool importance = r->base.type == CODE_BLOCKS && gguf_mix_reads_importance(r->mix);
    bool hessian = r->base.method == METHOD_GPTQ || r->scale_search == SEARCH_IMPORTANCE || r->clip ||
                   r->smoothing != SMOOTHING_NONE;
    for (int i = 0; i < r->n_overrides; i++)
        hessian = hessian || (r->overrides[i].has_method && r->overrides[i].rule.method == METHOD_GPTQ);
    return (hessian ? STATS_HESSIAN : 0) | (importance || recipe_needs_moments(r) ? STATS_MOMENTS : 0) |
           (recipe_needs_histograms(r) ? STATS_HIST : 0);
}

ql_status recipe_rule(const recipe *r, const char *module, module_rule *rule) {
    *rule = r->base;
    for (int i = r->n_overrides; i-- > 0;) {
        const recipe_override *o = &r->overrides[i];
        bool matches;
        QL_TRY(recipe_matches(o, module, &matches));
        if (!matches) continue;
        if (o->has_method) rule->method = o->rule.method;
        if (o->has_bits) rule->bits = o->rule.bits;
        if (o->has_group) rule->group = o->rule.group;
        rule->skip = o->rule.skip;
        return QL_OK;
    }
    return QL_OK;
}

/* ---- the resolved recipe ------------------------------------------------------------------------------------------------ */

/* The shortest decimal that reads back as the same double. */
static void exact_real(char text[32], double value) {
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, 32, "%.*g", digits, value);
        if (strtod(text, NULL) == value) return;
    }
}

static const char *yes(bool value) { return value ? "true" : "false"; }

/* 'as written', inner quotes doubled. */
static ql_status quote(const char *text, ql_arena *arena, char **quoted) {
    QL_TRY(ql_take(arena, 2 * strlen(text) + 3, 1, quoted));
    char *to = *quoted;
    *to++ = '\'';
    for (; *text; text++) {
        if (*text == '\'') *to++ = '\'';
        *to++ = *text;
    }
    *to++ = '\'';
    *to = 0;
    return QL_OK;
}

static ql_status override_yaml(const recipe_override *o, ql_arena *arena, char **text) {
    char *match, bits[32] = "", group[48] = "", method[32] = "";
    QL_TRY(quote(o->match, arena, &match));
    if (o->has_bits) snprintf(bits, sizeof bits, "    bits: %d\n", o->rule.bits);
    if (o->has_group) snprintf(group, sizeof group, "    group_size: %lld\n", (long long)o->rule.group);
    if (o->has_method) snprintf(method, sizeof method, "    method: %s\n", method_names[o->rule.method]);
    bool only_skip = !o->has_bits && !o->has_group && !o->has_method;
    const char *skip = o->rule.skip ? "    skip: true\n" : only_skip ? "    skip: false\n" : "";
    return ql_arena_format(arena, text, "%s  - match: %s\n%s%s%s%s", *text, match, bits, group, method, skip);
}

static void alpha_text(char text[32], double alpha) {
    if (alpha == SMOOTH_ALPHA_SEARCH) strcpy(text, "search");
    else if (alpha == SMOOTH_ALPHA_FAMILY) strcpy(text, "family");
    else exact_real(text, alpha);
}

ql_status recipe_yaml(const recipe *r, ql_arena *arena, char **text) {
    char damp[32], drift[32], alpha[32], percentile[32], mix[32] = "";
    exact_real(percentile, r->percentile);
    if (r->base.type == CODE_BLOCKS) snprintf(mix, sizeof mix, "mix: %s\n", gguf_mix_name(r->mix));
    exact_real(damp, r->damp);
    exact_real(drift, r->drift);
    alpha_text(alpha, r->smooth_alpha);
    QL_TRY(ql_arena_format(
        arena, text,
        "version: 1\nmethod: %s\ntype: %s\n%sbits: %d\ngroup_size: %lld\nsymmetric: %s\nact_order: %s\n"
        "sequential: %s\ndamp: %s\ndrift: %s\nrefine: %lld\nscale_search: %s\nclip: %s\n"
        "activations: %s\ninput_zeros: %s\nrange: %s\npercentile: %s\nkv_cache: %s\nsmoothing: %s\nsmooth_alpha: "
        "%s\nliterature: %s\n%s",
        method_names[r->base.method], type_names[r->base.type], mix, r->base.bits, (long long)r->base.group,
        yes(r->symmetric), act_order_names[r->act_order], yes(r->sequential), damp, drift, (long long)r->refine,
        scale_search_names[r->scale_search], yes(r->clip), activation_names[r->activations], yes(r->input_zeros),
        range_names[r->range], percentile, kv_cache_names[r->kv_cache], smoothing_names[r->smoothing], alpha,
        yes(r->literature), r->n_overrides ? "overrides:\n" : ""));
    for (int i = 0; i < r->n_overrides; i++) QL_TRY(override_yaml(&r->overrides[i], arena, text));
    return QL_OK;
}

static json_t *override_json(const recipe_override *o) {
    json_t *object = json_pack("{s:s, s:b}", "match", o->match, "skip", o->rule.skip);
    if (object && o->has_bits) json_object_set_new(object, "bits", json_integer(o->rule.bits));
    if (object && o->has_group) json_object_set_new(object, "group_size", json_integer(o->rule.group));
    if (object && o->has_method) json_object_set_new(object, "method", json_string(method_names[o->rule.method]));
    return object;
}

json_t *recipe_json(const recipe *r) {
    json_t *overrides = json_array();
    for (int i = 0; i < r->n_overrides; i++)
        if (json_array_append_new(overrides, override_json(&r->overrides[i])) != 0) {
            json_decref(overrides);
            return NULL;
        }
    char alpha[32];
    alpha_text(alpha, r->smooth_alpha);
    json_t *object = json_pack(
        "{s:i, s:s, s:s, s:i, s:I, s:b, s:s, s:b, s:f, s:f, s:I, s:s, s:b, s:s, s:b, s:s, s:f, s:s, s:s, "
        "s:s, s:b, s:o}",
        "version", 1, "method", method_names[r->base.method], "type", type_names[r->base.type], "bits", r->base.bits,
        "group_size", (json_int_t)r->base.group, "symmetric", r->symmetric, "act_order", act_order_names[r->act_order],
        "sequential", r->sequential, "damp", r->damp, "drift", r->drift, "refine", (json_int_t)r->refine,
        "scale_search", scale_search_names[r->scale_search], "clip", r->clip, "activations",
        activation_names[r->activations], "input_zeros", r->input_zeros, "range", range_names[r->range], "percentile",
        r->percentile, "kv_cache", kv_cache_names[r->kv_cache], "smoothing", smoothing_names[r->smoothing],
        "smooth_alpha", alpha, "literature", r->literature, "overrides", overrides);
    if (object && r->base.type == CODE_BLOCKS) json_object_set_new(object, "mix", json_string(gguf_mix_name(r->mix)));
    return object;
}

/* Rotary position embedding: its fields of config.json in the old and the new spelling, and the tables that follow from them.
 * Formulas as in transformers 5.23 (modeling_rope_utils). */
#include <math.h>
#include <string.h>

#include "formats/model_config_parts.h"

#define PI 3.14159265358979323846
#define LEAST_FACTOR 1e-3
#define MOST_FACTOR 1e6

/* ---- the fields -------------------------------------------------------------------------------------------------------- */

static const char *const kind_names[] = {
    [ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear", [ROPE_DYNAMIC] = "dynamic",
    [ROPE_LLAMA3] = "llama3",   [ROPE_YARN] = "yarn",
};
enum { KINDS = sizeof kind_names / sizeof kind_names[0] };

/* Fields of each kind besides the type, rope_theta and partial_rotary_factor.  `finetuned` is a note of the first yarn models;
 * dynamic scaling starts from max_position_embeddings, whatever original_max_position_embeddings says. */
static const char *const kind_fields[KINDS][11] = {
    [ROPE_DEFAULT] = {NULL},
    [ROPE_LINEAR] = {"factor", NULL},
    [ROPE_DYNAMIC] = {"factor", "original_max_position_embeddings", NULL},
    [ROPE_LLAMA3] = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", NULL},
    [ROPE_YARN] = {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
                   "mscale_all_dim", "truncate", "finetuned", NULL},
};

static bool is_among(const char *key, const char *const list[]) {
    while (*list && strcmp(key, *list) != 0) list++;
    return *list != NULL;
}

/* The object that describes the scaling, NULL if none does.  A file with both spellings must say the same twice. */
static ql_status find_object(const json_t *config, const char *place, const json_t **object) {
    const json_t *old = json_object_get(config, "rope_scaling"), *new = json_object_get(config, "rope_parameters");
    if (json_is_null(old)) old = NULL;
    if (json_is_null(new)) new = NULL;
    *object = new ? new : old;
    if (old && new && !json_equal((json_t *)old, (json_t *)new))
        return ql_fail(QL_MISMATCH, "%s: rope_scaling and rope_parameters differ", place);
    if (*object && !json_is_object(*object))
        return ql_fail(QL_FORMAT, "%s: \"%s\" is %s, expected an object", place,
                       new ? "rope_parameters" : "rope_scaling", ql_json_type_name(*object));
    return QL_OK;
}

static ql_status parse_kind(const json_t *object, const char *place, rope_config *rope) {
    const char *name = NULL, *old_name = NULL;
    QL_TRY(ql_json_string_or(object, place, "rope_type", &name));
    QL_TRY(ql_json_string_or(object, place, "type", &old_name));
    if (name && old_name && strcmp(name, old_name) != 0)
        return ql_fail(QL_MISMATCH, "%s: \"rope_type\" is \"%.60s\", \"type\" is \"%.60s\"", place, name, old_name);
    if (!name) name = old_name ? old_name : "default";
    int kind = 0;
    while (kind < KINDS && strcmp(name, kind_names[kind]) != 0) kind++;
    if (kind == KINDS)
        return ql_fail(QL_MISMATCH, "%s: rope type \"%.60s\" is not supported; linear, dynamic, llama3 and yarn are",
                       place, name);
    rope->kind = (rope_kind)kind;
    return QL_OK;
}

static ql_status check_keys(const json_t *object, const char *place, rope_kind kind) {
    static const char *const common[] = {"rope_type", "type", "rope_theta", "partial_rotary_factor", NULL};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        if (!json_is_null(value) && !is_among(key, common) && !is_among(key, kind_fields[kind]))
            return ql_fail(QL_MISMATCH, "%s: \"%.100s\" is not supported for rope type \"%s\"", place, key,
                           kind_names[kind]);
    }
    return QL_OK;
}

/* Part of the head without rotation: not in these architectures. */
static ql_status check_partial(const json_t *object, const char *place) {
    double part = 1.0;
    QL_TRY(ql_json_real_or(object, place, "partial_rotary_factor", 0.0, 1.0, &part));
    return part == 1.0 ? QL_OK : ql_fail(QL_MISMATCH, "%s: \"partial_rotary_factor\" %g is not supported", place, part);
}

/* Both places may name it, old files only the first. */
static ql_status parse_theta(const json_t *config, const json_t *object, const char *place, rope_config *rope) {
    double inner = 0.0, outer = 0.0;
    QL_TRY(ql_json_real_or(config, place, "rope_theta", 2.0, 1e15, &outer));
    QL_TRY(ql_json_real_or(object, place, "rope_theta", 2.0, 1e15, &inner));
    if (inner > 0.0 && outer > 0.0 && inner != outer)
        return ql_fail(QL_MISMATCH, "%s: rope_theta is %g, and %g in rope_parameters", place, outer, inner);
    rope->theta = inner > 0.0 ? inner : outer > 0.0 ? outer : 10000.0;
    return QL_OK;
}

static ql_status parse_original(const json_t *config, const json_t *object, const char *place, model_config *out) {
    const char *key = "original_max_position_embeddings";
    out->rope.original_max_position = out->max_position;
    QL_TRY(ql_json_int_or(object, place, key, 1, INT32_MAX, &out->rope.original_max_position));
    return ql_json_int_or(config, place, key, 1, INT32_MAX, &out->rope.original_max_position);
}

static ql_status parse_llama3(const json_t *object, const char *place, rope_config *rope) {
    QL_TRY(ql_json_real(object, place, "low_freq_factor", LEAST_FACTOR, MOST_FACTOR, &rope->low_freq_factor));
    QL_TRY(ql_json_real(object, place, "high_freq_factor", LEAST_FACTOR, MOST_FACTOR, &rope->high_freq_factor));
    if (rope->high_freq_factor > rope->low_freq_factor) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: high_freq_factor %g is not above low_freq_factor %g", place, rope->high_freq_factor,
                   rope->low_freq_factor);
}

static double yarn_mscale(double factor, double mscale) {
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

static ql_status parse_yarn(const json_t *object, const char *place, rope_config *rope) {
    double mscale = 0.0, mscale_all_dim = 0.0;
    rope->beta_fast = rope->beta_slow = 0.0;
    rope->truncate = true;
    QL_TRY(ql_json_real_or(object, place, "beta_fast", 0.0, MOST_FACTOR, &rope->beta_fast));
    QL_TRY(ql_json_real_or(object, place, "beta_slow", 0.0, MOST_FACTOR, &rope->beta_slow));
    QL_TRY(ql_json_real_or(object, place, "mscale", 0.0, MOST_FACTOR, &mscale));
    QL_TRY(ql_json_real_or(object, place, "mscale_all_dim", 0.0, MOST_FACTOR, &mscale_all_dim));
    QL_TRY(ql_json_bool_or(object, place, "truncate", &rope->truncate));
    if (rope->beta_fast == 0.0) rope->beta_fast = 32.0; /* 0 counts as absent */
    if (rope->beta_slow == 0.0) rope->beta_slow = 1.0;
    bool both = mscale > 0.0 && mscale_all_dim > 0.0;
    rope->attention_factor = both ? yarn_mscale(rope->factor, mscale) / yarn_mscale(rope->factor, mscale_all_dim)
                                  : yarn_mscale(rope->factor, 1.0);
    return ql_json_real_or(object, place, "attention_factor", LEAST_FACTOR, MOST_FACTOR, &rope->attention_factor);
}

ql_status rope_parse(const json_t *config, const char *place, model_config *out) {
    rope_config *rope = &out->rope;
    *rope = (rope_config){.kind = ROPE_DEFAULT, .factor = 1.0, .attention_factor = 1.0};
    const json_t *object;
    QL_TRY(find_object(config, place, &object));
    QL_TRY(check_partial(config, place));
    QL_TRY(parse_theta(config, object, place, rope));
    QL_TRY(parse_original(config, object, place, out));
    if (!object) return QL_OK;
    QL_TRY(parse_kind(object, place, rope));
    QL_TRY(check_keys(object, place, rope->kind));
    QL_TRY(check_partial(object, place));
    if (rope->kind == ROPE_DEFAULT) return QL_OK;
    QL_TRY(ql_json_real(object, place, "factor", LEAST_FACTOR, MOST_FACTOR, &rope->factor));
    if (rope->kind == ROPE_LLAMA3) return parse_llama3(object, place, rope);
    return rope->kind == ROPE_YARN ? parse_yarn(object, place, rope) : QL_OK;
}

/* ---- the tables -------------------------------------------------------------------------------------------------------- */

/* Low frequencies (wavelengths beyond the original context) are divided by the factor, high ones are kept, a smooth step
 * between. */
static double llama3_frequency(const rope_config *rope, double frequency) {
    double turns = (double)rope->original_max_position * frequency / (2.0 * PI); /* in the original context */
    if (turns > rope->high_freq_factor) return frequency;
    if (turns < rope->low_freq_factor) return frequency / rope->factor;
    double smooth = (turns - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return (1.0 - smooth) * frequency / rope->factor + smooth * frequency;
}

/* The (fractional) index of the pair that turns `rotations` times within the original context. */
static double yarn_index(const rope_config *rope, double rotations, double dim) {
    return dim * log((double)rope->original_max_position / (rotations * 2.0 * PI)) / (2.0 * log(rope->theta));
}

/* Pairs below `low` are kept, those above `high` interpolated, a linear ramp between. */
static double yarn_frequency(const rope_config *rope, int64_t pair, double dim, double frequency) {
    double low = yarn_index(rope, rope->beta_fast, dim), high = yarn_index(rope, rope->beta_slow, dim);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0.0);
    high = fmin(high, dim - 1.0);
    if (low == high) high += 0.001;
    double ramp = fmin(fmax(((double)pair - low) / (high - low), 0.0), 1.0);
    return frequency / rope->factor * ramp + frequency * (1.0 - ramp);
}

/* Dynamic scaling raises theta so that seq_len positions fit; shorter sequences are left alone. */
static double dynamic_theta(const model_config *config, int64_t seq_len, double dim) {
    double longest = (double)(seq_len > config->max_position ? seq_len : config->max_position);
    double stretch = config->rope.factor * longest / (double)config->max_position - (config->rope.factor - 1.0);
    return config->rope.theta * pow(stretch, dim / (dim - 2.0));
}

static double pair_frequency(const model_config *config, int64_t pair, int64_t seq_len) {
    const rope_config *rope = &config->rope;
    double dim = (double)config->head_dim, theta = rope->theta;
    if (rope->kind == ROPE_DYNAMIC) theta = dynamic_theta(config, seq_len, dim);
    double frequency = pow(theta, -2.0 * (double)pair / dim);
    if (rope->kind == ROPE_LINEAR) return frequency / rope->factor;
    if (rope->kind == ROPE_LLAMA3) return llama3_frequency(rope, frequency);
    if (rope->kind == ROPE_YARN) return yarn_frequency(rope, pair, dim, frequency);
    return frequency;
}

ql_status rope_tables(const model_config *config, int64_t positions, int64_t seq_len, float *cos_out, float *sin_out) {
    int64_t pairs = config->head_dim / 2;
    double scale = config->rope.attention_factor;
    if (positions < 0 || seq_len < 0)
        return ql_fail(QL_INVALID, "rope tables of %lld positions for sequences of %lld", (long long)positions,
                       (long long)seq_len);
    for (int64_t j = 0; j < pairs; j++) {
        double frequency = pair_frequency(config, j, seq_len);
        for (int64_t i = 0; i < positions; i++) {
            cos_out[i * pairs + j] = (float)(cos((double)i * frequency) * scale);
            sin_out[i * pairs + j] = (float)(sin((double)i * frequency) * scale);
        }
    }
    return QL_OK;
}

/* A recipe from YAML.  libyaml only says what comes next; what may come is the two tables of keys below.  They nest three levels
 * deep, so neither depth nor references need any other limit: whatever else comes is refused where it stands. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "calib/schemes.h"
#include "formats/json.h"
#include "host/file.h"
#include "host/status.h"

enum { LARGEST_FILE = 1 << 20, MOST_OVERRIDES = 1000 };

enum {
    KEY_VERSION,
    KEY_SCHEME,
    KEY_METHOD,
    KEY_TYPE,
    KEY_MIX,
    KEY_BITS,
    KEY_GROUP_SIZE,
    KEY_SYMMETRIC,
    KEY_ACT_ORDER,
    KEY_SEQUENTIAL,
    KEY_DAMP,
    KEY_DRIFT,
    KEY_REFINE,
    KEY_SCALE_SEARCH,
    KEY_CLIP,
    KEY_ACTIVATIONS,
    KEY_INPUT_ZEROS,
    KEY_RANGE,
    KEY_PERCENTILE,
    KEY_KV_CACHE,
    KEY_SMOOTHING,
    KEY_SMOOTH_ALPHA,
    KEY_LITERATURE,
    KEY_OVERRIDES,
    KEY_OUTPUTS, /* of the file; the others behind it of one output */
    KEY_NAME,
    KEY_FORMAT,
};
static const char *const recipe_keys[] = {
    "version",      "scheme",      "method",      "type",    "mix",        "bits",     "group_size",
    "symmetric",    "act_order",   "sequential",  "damp",    "drift",      "refine",   "scale_search",
    "clip",         "activations", "input_zeros", "range",   "percentile", "kv_cache", "smoothing",
    "smooth_alpha", "literature",  "overrides",   "outputs", "name",       "format",   NULL};

enum { KEY_MATCH, KEY_OVERRIDE_BITS, KEY_OVERRIDE_GROUP_SIZE, KEY_OVERRIDE_METHOD, KEY_SKIP };
static const char *const override_keys[] = {"match", "bits", "group_size", "method", "skip", NULL};

typedef struct reader {
    const char *place;
    ql_arena *arena;
    recipe *recipe;
    recipe_outputs *outputs; /* NULL: the file holds one recipe */
    yaml_parser_t parser;
    yaml_event_t event;
} reader;

/* ---- events -------------------------------------------------------------------------------------------------------------- */

static int line_of(const reader *r) { return (int)r->event.start_mark.line + 1; }

#define REFUSE(r, ...) ql_context(ql_fail(QL_MISMATCH, __VA_ARGS__), "%s: line %d", (r)->place, line_of(r))

static const char *text_of(const reader *r) { return (const char *)r->event.data.scalar.value; }

/* Anchors and tags are how a small file becomes a large or a different one; a recipe needs neither. */
static ql_status refuse_references(const reader *r) {
    const void *anchor = NULL, *tag = NULL;
    switch (r->event.type) {
    case YAML_ALIAS_EVENT: return REFUSE(r, "an alias (*name); recipes have none, write the value itself");
    case YAML_SCALAR_EVENT:
        anchor = r->event.data.scalar.anchor;
        tag = r->event.data.scalar.tag;
        if (strlen(text_of(r)) != r->event.data.scalar.length) return REFUSE(r, "a NUL character in a value");
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = r->event.data.sequence_start.anchor;
        tag = r->event.data.sequence_start.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = r->event.data.mapping_start.anchor;
        tag = r->event.data.mapping_start.tag;
        break;
    default: break;
    }
    if (anchor) return REFUSE(r, "an anchor (&name); recipes have none, write the value where it is needed");
    if (tag) return REFUSE(r, "a tag (!name); recipes have none");
    return QL_OK;
}

static ql_status next(reader *r) {
    yaml_event_delete(&r->event);
    if (yaml_parser_parse(&r->parser, &r->event)) return refuse_references(r);
    if (r->parser.error == YAML_MEMORY_ERROR) return ql_fail(QL_NOMEM, "%s: no memory for the YAML parser", r->place);
    size_t line = r->parser.error == YAML_READER_ERROR ? 0 : r->parser.problem_mark.line + 1;
    return ql_fail(QL_MISMATCH, "%s: line %zu: not YAML: %s", r->place, line,
                   r->parser.problem ? r->parser.problem : "unreadable");
}

static ql_status expect(reader *r, yaml_event_type_t type, const char *what) {
    QL_TRY(next(r));
    return r->event.type == type ? QL_OK : REFUSE(r, "expected %s", what);
}

/* Calls `take` with the event of each value; `seen` tells it which keys came before. */
typedef ql_status (*take_value)(reader *r, int key, unsigned seen, void *to);

static ql_status read_mapping(reader *r, const char *const keys[], take_value take, void *to, unsigned *seen) {
    for (*seen = 0;;) {
        QL_TRY(next(r));
        if (r->event.type == YAML_MAPPING_END_EVENT) return QL_OK;
        if (r->event.type != YAML_SCALAR_EVENT) return REFUSE(r, "a key must be a word");
        int key = 0;
        while (keys[key] && strcmp(keys[key], text_of(r)) != 0) key++;
        if (!keys[key]) {
            const char *meant = ql_nearest_word(text_of(r), keys);
            return meant ? REFUSE(r, "unknown key \"%.60s\"; did you mean \"%s\"?", text_of(r), meant)
                         : REFUSE(r, "unknown key \"%.60s\"", text_of(r));
        }
        if (*seen & 1u << key) return REFUSE(r, "key \"%s\" is given twice", keys[key]);
        QL_TRY(next(r));
        QL_TRY(take(r, key, *seen, to));
        *seen |= 1u << key;
    }
}

/* ---- values -------------------------------------------------------------------------------------------------------------- */

static ql_status need_scalar(const reader *r, const char *key, const char *what) {
    return r->event.type == YAML_SCALAR_EVENT ? QL_OK : REFUSE(r, "%s: expected %s", key, what);
}

/* A quoted number or truth value is a string, as everywhere in YAML. */
static bool is_plain(const reader *r) { return r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE; }

static ql_status take_int(const reader *r, const char *key, int64_t *value) {
    QL_TRY(need_scalar(r, key, "a whole number"));
    const char *text = text_of(r);
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    size_t digits = strspn(text + (text[0] == '-'), "0123456789");
    if (!is_plain(r) || digits == 0 || *end || errno || text[0] == '+')
        return REFUSE(r, "%s \"%.60s\": expected a whole number", key, text);
    *value = number;
    return QL_OK;
}

/* An int that is checked against its few possible values later: anything too wide becomes an impossible one. */
static ql_status take_bits(const reader *r, const char *key, int *bits) {
    int64_t value;
    QL_TRY(take_int(r, key, &value));
    if (value < 0 || value > 64) return REFUSE(r, "%s %lld: expected 2, 3, 4 or 8", key, (long long)value);
    *bits = (int)value;
    return QL_OK;
}

static ql_status take_real(const reader *r, const char *key, double *value) {
    QL_TRY(need_scalar(r, key, "a number"));
    const char *text = text_of(r);
    char *end;
    *value = strtod(text, &end);
    if (!is_plain(r) || !*text || *end || strspn(text, "+-0123456789.eE") != strlen(text))
        return REFUSE(r, "%s \"%.60s\": expected a number", key, text);
    return QL_OK;
}

static ql_status take_bool(const reader *r, const char *key, bool *value) {
    QL_TRY(need_scalar(r, key, "true or false"));
    bool is_true = strcmp(text_of(r), "true") == 0;
    if (!is_plain(r) || (!is_true && strcmp(text_of(r), "false") != 0))
        return REFUSE(r, "%s \"%.60s\": expected true or false", key, text_of(r));
    *value = is_true;
    return QL_OK;
}

static ql_status take_word(const reader *r, const char *key, const char *const words[], int count, int *value) {
    char list[128] = "";
    for (int i = 0; i < count; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", words[i]);
    QL_TRY(need_scalar(r, key, list));
    for (int i = 0; i < count; i++)
        if (strcmp(text_of(r), words[i]) == 0) {
            *value = i;
            return QL_OK;
        }
    return REFUSE(r, "%s \"%.60s\": expected one of %s", key, text_of(r), list);
}

static ql_status take_method(const reader *r, method_id *method) {
    int value = 0;
    QL_TRY(take_word(r, "method", method_names, METHODS, &value));
    *method = (method_id)value;
    return QL_OK;
}

/* ---- overrides ----------------------------------------------------------------------------------------------------------- */

static ql_status take_override_value(reader *r, int key, unsigned seen, void *to) {
    (void)seen;
    recipe_override *o = to;
    switch (key) {
    case KEY_MATCH: {
        QL_TRY(need_scalar(r, "match", "a regular expression"));
        char *match;
        QL_TRY(ql_arena_string(r->arena, text_of(r), &match));
        o->match = match;
        return ql_context(recipe_compile(o, r->arena), "%s: line %d", r->place, line_of(r));
    }
    case KEY_OVERRIDE_BITS: o->has_bits = true; return take_bits(r, "bits", &o->rule.bits);
    case KEY_OVERRIDE_GROUP_SIZE: o->has_group = true; return take_int(r, "group_size", &o->rule.group);
    case KEY_OVERRIDE_METHOD: o->has_method = true; return take_method(r, &o->rule.method);
    default: return take_bool(r, "skip", &o->rule.skip);
    }
}

static ql_status take_overrides(reader *r) {
    if (r->event.type != YAML_SEQUENCE_START_EVENT) return REFUSE(r, "overrides: expected a list (\"- match: ...\")");
    recipe *to = r->recipe;
    to->n_overrides = 0;
    QL_TRY(ql_take(r->arena, MOST_OVERRIDES, sizeof *to->overrides, &to->overrides));
    for (;;) {
        QL_TRY(next(r));
        if (r->event.type == YAML_SEQUENCE_END_EVENT) return QL_OK;
        if (r->event.type != YAML_MAPPING_START_EVENT) return REFUSE(r, "overrides: expected \"- match: ...\"");
        if (to->n_overrides == MOST_OVERRIDES) return REFUSE(r, "more than %d overrides", MOST_OVERRIDES);
        recipe_override *o = &to->overrides[to->n_overrides];
        unsigned seen;
        QL_TRY(read_mapping(r, override_keys, take_override_value, o, &seen));
        if (!(seen & 1u << KEY_MATCH)) return REFUSE(r, "this override has no \"match\"");
        if (seen == 1u << KEY_MATCH)
            return REFUSE(r, "this override changes nothing; give bits, group_size, method or skip");
        if (o->rule.skip && (seen & ~(1u << KEY_MATCH | 1u << KEY_SKIP)))
            return REFUSE(r, "this override skips the modules and also says how to quantize them");
        to->n_overrides++;
    }
}

/* ---- the recipe ---------------------------------------------------------------------------------------------------------- */

static ql_status take_version(const reader *r) {
    int64_t version;
    QL_TRY(take_int(r, "version", &version));
    return version == 1 ? QL_OK : REFUSE(r, "version %lld: this qalib reads version 1", (long long)version);
}

static ql_status take_scheme(const reader *r) {
    named_scheme scheme;
    QL_TRY(need_scalar(r, "scheme", "a name"));
    if (scheme_find(text_of(r), &scheme) != QL_OK) return ql_context(QL_MISMATCH, "%s: line %d", r->place, line_of(r));
    *r->recipe = scheme.recipe;
    return QL_OK;
}

static ql_status take_act_order(const reader *r) {
    int value = 0;
    QL_TRY(take_word(r, "act_order", act_order_names, 3, &value));
    r->recipe->act_order = (ql_act_order)value;
    r->recipe->asked |= ASKED_ACT_ORDER;
    return QL_OK;
}

static ql_status take_type(const reader *r) {
    int value = 0;
    QL_TRY(take_word(r, "type", type_names, CODE_TYPES, &value));
    r->recipe->base.type = (code_type)value;
    return QL_OK;
}

static ql_status take_mix(const reader *r) {
    QL_TRY(need_scalar(r, "mix", "a kind of GGUF file"));
    gguf_mix mix = gguf_mix_of(text_of(r));
    if (mix == GGUF_MIX_COUNT)
        return REFUSE(r, "mix \"%.60s\": expected a kind of GGUF file, for instance Q4_K_M", text_of(r));
    r->recipe->mix = mix;
    return QL_OK;
}

static ql_status take_activations(const reader *r) {
    int value = 0;
    QL_TRY(take_word(r, "activations", activation_names, ACTIVATION_MODES, &value));
    r->recipe->activations = (activation_mode)value;
    return QL_OK;
}

static ql_status take_scale_search(const reader *r) {
    int value = 0;
    QL_TRY(take_word(r, "scale_search", scale_search_names, SEARCHES, &value));
    r->recipe->scale_search = (scale_search_mode)value;
    r->recipe->asked |= ASKED_SCALE_SEARCH;
    return QL_OK;
}

static ql_status take_range(const reader *r) {
    int value = 0;
    QL_TRY(take_word(r, "range", range_names, RANGES, &value));
    r->recipe->range = (range_id)value;
    return QL_OK;
}

static ql_status take_kv_cache(const reader *r) {
    int value = 0;
    QL_TRY(take_word(r, "kv_cache", kv_cache_names, 2, &value));
    r->recipe->kv_cache = value == 1;
    return QL_OK;
}

static ql_status take_smoothing(const reader *r) {
    int value = 0;
    QL_TRY(take_word(r, "smoothing", smoothing_names, SMOOTHINGS, &value));
    r->recipe->smoothing = (smoothing_id)value;
    return QL_OK;
}

static ql_status take_smooth_alpha(const reader *r) {
    QL_TRY(need_scalar(r, "smooth_alpha", "a number, family or search"));
    if (strcmp(text_of(r), "search") == 0) r->recipe->smooth_alpha = SMOOTH_ALPHA_SEARCH;
    else if (strcmp(text_of(r), "family") == 0) r->recipe->smooth_alpha = SMOOTH_ALPHA_FAMILY;
    else return take_real(r, "smooth_alpha", &r->recipe->smooth_alpha);
    return QL_OK;
}

static ql_status take_outputs(reader *r, unsigned seen);

static ql_status take_recipe_value(reader *r, int key, unsigned seen, void *to) {
    recipe *into = to;
    unsigned harmless = 1u << KEY_VERSION | 1u << KEY_NAME | 1u << KEY_FORMAT;
    unsigned rule_keys = 1u << KEY_METHOD | 1u << KEY_BITS | 1u << KEY_GROUP_SIZE;
    if (seen & 1u << KEY_OUTPUTS && key != KEY_VERSION)
        return REFUSE(r, "outputs: goes with no other key than version");
    bool both = (key == KEY_SCHEME && (seen & rule_keys)) || ((1u << key & rule_keys) && (seen & 1u << KEY_SCHEME));
    if (both) return REFUSE(r, "a scheme already says method, bits and group_size; give one or the other");
    if (key == KEY_SCHEME && (seen & ~harmless)) return REFUSE(r, "scheme comes before the keys that change it");
    switch (key) {
    case KEY_VERSION: return take_version(r);
    case KEY_SCHEME: return take_scheme(r);
    case KEY_METHOD: into->asked |= ASKED_METHOD; return take_method(r, &into->base.method);
    case KEY_TYPE: return take_type(r);
    case KEY_MIX: return take_mix(r);
    case KEY_BITS: into->asked |= ASKED_BITS; return take_bits(r, "bits", &into->base.bits);
    case KEY_GROUP_SIZE: into->asked |= ASKED_GROUP; return take_int(r, "group_size", &into->base.group);
    case KEY_SYMMETRIC: into->asked |= ASKED_SYMMETRIC; return take_bool(r, "symmetric", &into->symmetric);
    case KEY_ACT_ORDER: return take_act_order(r);
    case KEY_SEQUENTIAL: into->asked |= ASKED_SEQUENTIAL; return take_bool(r, "sequential", &into->sequential);
    case KEY_DAMP: into->asked |= ASKED_DAMP; return take_real(r, "damp", &into->damp);
    case KEY_DRIFT: into->asked |= ASKED_DRIFT; return take_real(r, "drift", &into->drift);
    case KEY_REFINE: into->asked |= ASKED_REFINE; return take_int(r, "refine", &into->refine);
    case KEY_SCALE_SEARCH: return take_scale_search(r);
    case KEY_INPUT_ZEROS: return take_bool(r, "input_zeros", &into->input_zeros);
    case KEY_RANGE: return take_range(r);
    case KEY_PERCENTILE: return take_real(r, "percentile", &into->percentile);
    case KEY_CLIP: return take_bool(r, "clip", &into->clip);
    case KEY_ACTIVATIONS: return take_activations(r);
    case KEY_KV_CACHE: return take_kv_cache(r);
    case KEY_SMOOTHING: return take_smoothing(r);
    case KEY_SMOOTH_ALPHA: return take_smooth_alpha(r);
    case KEY_LITERATURE: return take_bool(r, "literature", &into->literature);
    case KEY_OVERRIDES: return take_overrides(r);
    case KEY_OUTPUTS: return take_outputs(r, seen);
    default: return REFUSE(r, "%s: belongs to one of \"outputs\"", recipe_keys[key]);
    }
}

/* ---- several outputs ------------------------------------------------------------------------------------------------------- */

/* A directory of its own beneath another. */
static ql_status take_name(const reader *r, recipe_output *o) {
    char *name;
    QL_TRY(need_scalar(r, "name", "a name"));
    const char *text = text_of(r);
    bool fits = text[0] && text[0] != '.' && strlen(text) <= 64;
    for (const char *c = text; *c; c++) fits = fits && (isalnum((unsigned char)*c) || strchr("._-", *c));
    if (!fits) return REFUSE(r, "name \"%.60s\": expected letters, digits, \".\", \"_\" or \"-\"", text);
    QL_TRY(ql_arena_string(r->arena, text, &name));
    o->name = name;
    return QL_OK;
}

/* A scheme brings its format, and its name where there is none yet. */
static ql_status take_output_scheme(reader *r, unsigned seen, recipe_output *o) {
    named_scheme scheme;
    QL_TRY(take_recipe_value(r, KEY_SCHEME, seen, &o->recipe));
    QL_TRY(scheme_find(text_of(r), &scheme));
    if (!(seen & 1u << KEY_FORMAT)) o->format = (int)scheme.format;
    return o->name ? QL_OK : take_name(r, o);
}

static ql_status take_output_value(reader *r, int key, unsigned seen, void *to) {
    recipe_output *o = to;
    switch (key) {
    case KEY_NAME: return take_name(r, o);
    case KEY_FORMAT: return take_word(r, "format", output_format_names, OUTPUT_DENSE + 1, &o->format);
    case KEY_SCHEME: return take_output_scheme(r, seen, o);
    case KEY_VERSION:
    case KEY_OUTPUTS: return REFUSE(r, "%s: stands outside of \"outputs\"", recipe_keys[key]);
    default: return take_recipe_value(r, key, seen, &o->recipe);
    }
}

static ql_status take_output(reader *r, recipe_output *o) {
    recipe *whole = r->recipe, checked;
    int line = line_of(r);
    unsigned seen;
    ql_status status;
    *o = (recipe_output){.format = OUTPUT_GPTQ};
    recipe_defaults(&o->recipe);
    r->recipe = &o->recipe;
    if (r->event.type == YAML_SCALAR_EVENT) status = take_output_scheme(r, 0, o);
    else if (r->event.type == YAML_MAPPING_START_EVENT)
        status = read_mapping(r, recipe_keys, take_output_value, o, &seen);
    else status = REFUSE(r, "outputs: expected \"- SCHEME\" or \"- name: ...\"");
    r->recipe = whole;
    QL_TRY(status);
    if (!o->name) return REFUSE(r, "this output has neither name nor scheme");
    checked = o->recipe; /* options of the command line come before it is settled */
    return ql_context(recipe_check(&checked), "%s: line %d", r->place, line);
}

static ql_status take_outputs(reader *r, unsigned seen) {
    recipe_outputs *to = r->outputs;
    if (!to) return REFUSE(r, "outputs: here a file with one recipe is expected; quantize alone makes several");
    if (seen & ~(1u << KEY_VERSION)) return REFUSE(r, "outputs: goes with no other key than version");
    if (r->event.type != YAML_SEQUENCE_START_EVENT) return REFUSE(r, "outputs: expected a list (\"- W4A16-AWQ\")");
    for (;;) {
        QL_TRY(next(r));
        if (r->event.type == YAML_SEQUENCE_END_EVENT) break;
        if (to->count == MOST_OUTPUTS) return REFUSE(r, "more than %d outputs", MOST_OUTPUTS);
        recipe_output *o = &to->output[to->count];
        int line = line_of(r);
        QL_TRY(take_output(r, o));
        for (int i = 0; i < to->count; i++)
            if (strcmp(to->output[i].name, o->name) == 0)
                return ql_fail(QL_MISMATCH, "%s: line %d: two outputs are named %s", r->place, line, o->name);
        to->count++;
    }
    return to->count ? QL_OK : REFUSE(r, "outputs: an empty list");
}

static ql_status read_document(reader *r) {
    QL_TRY(expect(r, YAML_STREAM_START_EVENT, "a recipe"));
    QL_TRY(expect(r, YAML_DOCUMENT_START_EVENT, "\"version: 1\" and what to do; the file is empty"));
    QL_TRY(expect(r, YAML_MAPPING_START_EVENT, "\"key: value\" lines"));
    unsigned seen;
    QL_TRY(read_mapping(r, recipe_keys, take_recipe_value, r->recipe, &seen));
    if (!(seen & 1u << KEY_VERSION)) return REFUSE(r, "\"version: 1\" is missing");
    QL_TRY(expect(r, YAML_DOCUMENT_END_EVENT, "the end of the recipe"));
    return expect(r, YAML_STREAM_END_EVENT, "one document; a second one follows");
}

ql_status recipe_parse_outputs(const char *place, const char *text, size_t size, ql_arena *arena, recipe *into,
                               recipe_outputs *outputs) {
    reader r = {.place = place, .arena = arena, .recipe = into, .outputs = outputs};
    if (outputs) outputs->count = 0;
    if (size > LARGEST_FILE)
        return ql_fail(QL_MISMATCH, "%s: %zu bytes; a recipe has at most %d", place, size, LARGEST_FILE);
    if (!yaml_parser_initialize(&r.parser)) return ql_fail(QL_NOMEM, "%s: no memory for the YAML parser", place);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, size);
    ql_status status = read_document(&r);
    yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    return status;
}

ql_status recipe_parse(const char *place, const char *text, size_t size, ql_arena *arena, recipe *into) {
    return recipe_parse_outputs(place, text, size, arena, into, NULL);
}

ql_status recipe_load_outputs(const char *path, ql_arena *arena, recipe *into, recipe_outputs *outputs) {
    char *text;
    size_t size;
    ql_status status = ql_file_load(path, LARGEST_FILE, arena, &text, &size);
    if (status == QL_FORMAT) return QL_MISMATCH; /* too large, or no regular file: a recipe that cannot be one */
    QL_TRY(status);
    return recipe_parse_outputs(path, text, size, arena, into, outputs);
}

ql_status recipe_load(const char *path, ql_arena *arena, recipe *into) {
    return recipe_load_outputs(path, arena, into, NULL);
}

#include "calib/daemon/spec.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "calib/recipe.h"
#include "calib/schemes.h"
#include "formats/json.h"

typedef enum field_kind {
    FIELD_PATH,
    FIELD_WORD,
    FIELD_INT,
    FIELD_REAL,
    FIELD_SWITCH,
    FIELD_RECIPE, /* passed on as a file */
    FIELD_OWN     /* the daemon's */
} field_kind;

enum { ONLY_QUANTIZE = 1 }; /* qalib plan does not take it */

static const struct {
    const char *name; /* of the option; the field has _ for - */
    field_kind kind;
    int only;
} fields[] = {
    {"model", FIELD_PATH, 0},
    {"output", FIELD_PATH, 0},
    {"calib", FIELD_PATH, 0},
    {"stats", FIELD_PATH, 0},
    {"work", FIELD_PATH, ONLY_QUANTIZE},
    {"recipe", FIELD_RECIPE, 0},
    {"scheme", FIELD_WORD, 0},
    {"statistics", FIELD_WORD, 0},
    {"format", FIELD_WORD, 0},
    {"shard-size", FIELD_WORD, 0},
    {"method", FIELD_WORD, 0},
    {"bits", FIELD_INT, 0},
    {"type", FIELD_WORD, 0},
    {"group-size", FIELD_INT, 0},
    {"activations", FIELD_WORD, 0},
    {"input-zeros", FIELD_WORD, 0},
    {"range", FIELD_WORD, 0},
    {"percentile", FIELD_REAL, 0},
    {"kv-cache", FIELD_WORD, 0},
    {"sym", FIELD_SWITCH, 0},
    {"asym", FIELD_SWITCH, 0},
    {"act-order", FIELD_WORD, 0},
    {"damp", FIELD_REAL, 0},
    {"drift", FIELD_REAL, 0},
    {"refine", FIELD_INT, 0},
    {"sequential", FIELD_WORD, 0},
    {"scale-search", FIELD_WORD, 0},
    {"clip", FIELD_WORD, 0},
    {"smoothing", FIELD_WORD, 0},
    {"smooth-alpha", FIELD_WORD, 0},
    {"literature", FIELD_SWITCH, 0},
    {"imatrix", FIELD_PATH, 0},
    {"deterministic", FIELD_SWITCH, ONLY_QUANTIZE},
    {"comm-timeout", FIELD_REAL, ONLY_QUANTIZE},
    {"threads", FIELD_INT, 0},
    {"precision", FIELD_WORD, 0},
    {"max-device-mem", FIELD_WORD, 0},
    {"save-every", FIELD_REAL, ONLY_QUANTIZE},
    {"gpus", FIELD_OWN, 0},
    {"ranks", FIELD_OWN, 0},
    {"priority", FIELD_OWN, 0},
};
enum { FIELDS = sizeof fields / sizeof fields[0], NAME_MOST = 32 };

static const char place[] = "request";

static const char *field_name(int i, char name[NAME_MOST]) {
    snprintf(name, NAME_MOST, "%s", fields[i].name);
    for (char *c = name; *c; c++)
        if (*c == '-') *c = '_';
    return name;
}

bool spec_has_option(const char *option) {
    for (int i = 0; i < FIELDS; i++)
        if (strcmp(fields[i].name, option) == 0) return true;
    return false;
}

/* ---- checking ----------------------------------------------------------------------------------------------------------- */

static ql_status check_keys(const json_t *spec) {
    char names[FIELDS][NAME_MOST];
    const char *known[FIELDS + 1];
    for (int i = 0; i < FIELDS; i++) known[i] = field_name(i, names[i]);
    known[FIELDS] = NULL;
    return ql_json_only_keys(spec, place, known);
}

/* What a command line can carry, and nobody mistakes for an option. */
static ql_status check_word(const char *name, const char *word) {
    if (!*word) return ql_fail(QL_USAGE, "%s: \"%s\" is empty", place, name);
    if (strlen(word) >= PATH_MAX) return ql_fail(QL_USAGE, "%s: \"%s\" has %zu bytes", place, name, strlen(word));
    for (const char *c = word; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return ql_fail(QL_USAGE, "%s: \"%s\" holds a control character", place, name);
    return QL_OK;
}

static ql_status check_path(const char *name, const char *path) {
    QL_TRY(check_word(name, path));
    if (path[0] != '/')
        return ql_fail(QL_USAGE, "%s: \"%s\": \"%.200s\" is not an absolute path; the client of qalib makes it one",
                       place, name, path);
    return QL_OK;
}

/* ---- from the command line --------------------------------------------------------------------------------------------------- */

static bool read_whole(const char *text, const char **end, json_t **value) {
    char *behind;
    long long number = strtoll(text, &behind, 10);
    *end = behind;
    *value = behind > text && strlen(text) < 19 ? json_integer(number) : NULL;
    return *value != NULL;
}

/* A number, or ids with commas; a comma behind a single one makes it an id. */
static json_t *read_gpus(const char *text) {
    json_t *list = json_array(), *id = NULL;
    const char *end = text;
    bool good = list && *text;
    while (good && *text) {
        good = read_whole(text, &end, &id) && (*end == 0 || *end == ',');
        if (good) json_array_append(list, id);
        json_decref(id);
        id = NULL;
        text = *end == ',' ? end + 1 : end;
    }
    if (good && end[0] != ',' && json_array_size(list) == 1) {
        id = json_incref(json_array_get(list, 0));
        json_decref(list);
        return id;
    }
    if (good) return list;
    json_decref(list);
    return NULL;
}

static json_t *read_value(const char *option, field_kind kind, const char *text) {
    const char *end = text;
    char *behind;
    json_t *value = NULL;
    if (kind == FIELD_SWITCH) return json_true();
    if (strcmp(option, "gpus") == 0) return read_gpus(text);
    if (kind == FIELD_INT || kind == FIELD_OWN) {
        if (read_whole(text, &end, &value) && !*end) return value;
        json_decref(value);
        return NULL;
    }
    if (kind != FIELD_REAL) return json_string(text);
    double real = strtod(text, &behind);
    return behind > text && !*behind ? json_real(real) : NULL;
}

ql_status spec_set(json_t *spec, const char *option, const char *text) {
    char name[NAME_MOST];
    for (int i = 0; i < FIELDS; i++) {
        if (strcmp(fields[i].name, option) != 0) continue;
        json_t *value = read_value(option, fields[i].kind, text);
        if (value && json_object_set_new(spec, field_name(i, name), value) == 0) return QL_OK;
        return ql_fail(QL_USAGE, "--%s \"%.60s\": expected %s", option, text,
                       fields[i].kind == FIELD_INT || fields[i].kind == FIELD_OWN ? "a whole number"
                                                                                  : "a number, or UTF-8");
    }
    return ql_fail(QL_INTERNAL, "the daemon knows no option --%s", option);
}

/* ---- one field ------------------------------------------------------------------------------------------------------------------- */

static ql_status check_field(const json_t *spec, int i) {
    char name[NAME_MOST];
    const char *text = "";
    int64_t whole;
    double real;
    bool on;
    field_name(i, name);
    switch (fields[i].kind) {
    case FIELD_PATH: QL_TRY(ql_json_string(spec, place, name, &text)); return check_path(name, text);
    case FIELD_WORD: QL_TRY(ql_json_string(spec, place, name, &text)); return check_word(name, text);
    case FIELD_INT: return ql_json_int(spec, place, name, -2, 1000000, &whole);
    case FIELD_REAL: return ql_json_real(spec, place, name, -1e6, 1e6, &real);
    case FIELD_SWITCH: return ql_json_bool(spec, place, name, &on);
    case FIELD_RECIPE: return ql_json_string(spec, place, name, &text);
    default: return QL_OK;
    }
}

static ql_status check_gpus(const json_t *spec) {
    const json_t *gpus = json_object_get(spec, "gpus"), *id;
    int64_t count;
    size_t i, k;
    if (!gpus) return QL_OK;
    if (!json_is_array(gpus)) return ql_json_int(spec, place, "gpus", 0, SPEC_MOST_GPUS, &count);
    if (json_array_size(gpus) == 0 || json_array_size(gpus) > SPEC_MOST_GPUS)
        return ql_fail(QL_USAGE, "%s: \"gpus\" lists %zu, expected 1 to %d", place, json_array_size(gpus),
                       SPEC_MOST_GPUS);
    json_array_foreach(gpus, i, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > 1023)
            return ql_fail(QL_USAGE, "%s: \"gpus\": entry %zu is no id, expected 0 to 1023", place, i);
        for (k = 0; k < i; k++)
            if (json_equal(id, json_array_get(gpus, k)))
                return ql_fail(QL_USAGE, "%s: \"gpus\": %lld is given twice", place, (long long)json_integer_value(id));
    }
    return QL_OK;
}

/* One GPU for each rank. */
static ql_status check_ranks(const json_t *spec) {
    int64_t ranks = 0;
    spec_gpus gpus;
    QL_TRY(ql_json_int_or(spec, place, "ranks", 1, SPEC_MOST_GPUS, &ranks));
    spec_find_gpus(spec, &gpus);
    if (ranks > 0 && gpus.count > 0 && ranks != gpus.count)
        return ql_fail(QL_USAGE, "%s: \"ranks\" is %lld and \"gpus\" %d: each rank takes one GPU", place,
                       (long long)ranks, gpus.count);
    return QL_OK;
}

/* Recipe and schemes are read as quantize will: a slip is said now and not in an hour. */
static ql_status check_recipe(const json_t *spec, ql_arena *arena) {
    const char *text = json_string_value(json_object_get(spec, "recipe"));
    recipe r;
    named_scheme named;
    char *name;
    if (text && json_object_get(spec, "scheme"))
        return ql_fail(QL_USAGE, "%s: \"recipe\" and \"scheme\": give one of them", place);
    if (text) {
        recipe_defaults(&r);
        return recipe_parse("recipe", text, strlen(text), arena, &r);
    }
    for (int i = 0;; i++) {
        QL_TRY(spec_scheme(spec, i, arena, &name));
        if (!name || (!*name && !json_object_get(spec, "scheme"))) return QL_OK;
        QL_TRY(scheme_find(name, &named));
    }
}

static ql_status check(const json_t *spec, ql_arena *arena) {
    char name[NAME_MOST];
    int64_t priority = 0;
    QL_TRY(check_keys(spec));
    for (int i = 0; i < FIELDS; i++) {
        bool required = strcmp(fields[i].name, "model") == 0 || strcmp(fields[i].name, "output") == 0;
        if (required || json_object_get(spec, field_name(i, name))) QL_TRY(check_field(spec, i));
    }
    if (json_object_get(spec, "calib") && json_object_get(spec, "stats"))
        return ql_fail(QL_USAGE, "%s: \"calib\" and \"stats\": give the rows or the statistics, not both", place);
    if (json_object_get(spec, "imatrix") && (json_object_get(spec, "calib") || json_object_get(spec, "stats")))
        return ql_fail(QL_USAGE, "%s: \"imatrix\": goes without \"calib\" and \"stats\"", place);
    QL_TRY(ql_json_int_or(spec, place, "priority", -SPEC_MOST_PRIORITY, SPEC_MOST_PRIORITY, &priority));
    QL_TRY(check_gpus(spec));
    QL_TRY(check_ranks(spec));
    return check_recipe(spec, arena);
}

ql_status spec_parse(const char *text, size_t size, json_t **spec) {
    ql_arena *arena;
    *spec = NULL;
    if (size > SPEC_MOST_BYTES)
        return ql_fail(QL_USAGE, "%s: %zu bytes, at most %d are allowed", place, size, SPEC_MOST_BYTES);
    QL_TRY(ql_json_parse(place, text, size, spec));
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) {
        status = check(*spec, arena);
        ql_arena_close(arena);
    }
    if (status == QL_OK) return QL_OK;
    json_decref(*spec);
    *spec = NULL;
    return status;
}

/* ---- reading -------------------------------------------------------------------------------------------------------------- */

int64_t spec_priority(const json_t *spec) { return json_integer_value(json_object_get(spec, "priority")); }

void spec_find_gpus(const json_t *spec, spec_gpus *out) {
    const json_t *gpus = json_object_get(spec, "gpus"), *ranks = json_object_get(spec, "ranks"), *id;
    size_t i;
    *out = (spec_gpus){.count = json_is_integer(gpus) ? (int)json_integer_value(gpus) : -1};
    if (json_is_array(gpus)) {
        out->by_id = true;
        out->count = (int)json_array_size(gpus);
    }
    out->ranks = out->count > 0 ? out->count : 1;
    if (json_is_integer(ranks)) out->ranks = (int)json_integer_value(ranks);
    json_array_foreach(gpus, i, id) out->id[i] = (int)json_integer_value(id);
}

ql_status spec_scheme(const json_t *spec, int i, ql_arena *arena, char **name) {
    const char *list = json_string_value(json_object_get(spec, "scheme"));
    *name = NULL;
    if (!list) return i == 0 ? ql_arena_string(arena, "", name) : QL_OK;
    for (; i > 0 && list; i--) {
        list = strchr(list, ',');
        if (list) list++;
    }
    return list ? ql_arena_format(arena, name, "%.*s", (int)strcspn(list, ","), list) : QL_OK;
}

/* ---- words ------------------------------------------------------------------------------------------------------------------ */

static ql_status field_word(const json_t *value, const char *option, ql_arena *arena, char **word) {
    if (json_is_string(value)) return ql_arena_format(arena, word, "--%s=%s", option, json_string_value(value));
    if (json_is_integer(value))
        return ql_arena_format(arena, word, "--%s=%lld", option, (long long)json_integer_value(value));
    if (json_is_real(value)) return ql_arena_format(arena, word, "--%s=%.17g", option, json_real_value(value));
    return ql_arena_format(arena, word, "--%s", option);
}

static ql_status words_of(const json_t *spec, const char *recipe_path, const char *scheme, ql_arena *arena,
                          char ***words) {
    char name[NAME_MOST];
    int count = 0;
    QL_TRY(ql_take(arena, FIELDS + 1, sizeof **words, words));
    for (int i = 0; i < FIELDS; i++) {
        const json_t *value = json_object_get(spec, field_name(i, name));
        if (!value || fields[i].kind == FIELD_OWN || json_is_false(value)) continue;
        if (scheme && fields[i].only == ONLY_QUANTIZE) continue;
        char **word = &(*words)[count++];
        if (fields[i].kind == FIELD_RECIPE) QL_TRY(ql_arena_format(arena, word, "--recipe=%s", recipe_path));
        else if (scheme && *scheme && strcmp(fields[i].name, "scheme") == 0)
            QL_TRY(ql_arena_format(arena, word, "--scheme=%s", scheme));
        else QL_TRY(field_word(value, fields[i].name, arena, word));
    }
    return QL_OK;
}

ql_status spec_quantize_words(const json_t *spec, const char *recipe_path, ql_arena *arena, char ***words) {
    return words_of(spec, recipe_path, NULL, arena, words);
}

ql_status spec_plan_words(const json_t *spec, const char *recipe_path, const char *scheme, ql_arena *arena,
                          char ***words) {
    return words_of(spec, recipe_path, scheme, arena, words);
}

#include "formats/json.h"

#include <string.h>

#include "formats/json_memory.h"
#include "host/file.h"

enum { DEEPEST = 64 };

/* ---- parsing --------------------------------------------------------------------------------------------------------- */

typedef struct position {
    int line, column;
} position;

static position position_of(const char *text, size_t at) {
    position p = {1, 1};
    for (size_t i = 0; i < at; i++) {
        p.column = text[i] == '\n' ? 1 : p.column + 1;
        p.line += text[i] == '\n';
    }
    return p;
}

/* Depth is bounded before jansson recurses.  Text that is not JSON may be counted wrongly; the parser refuses it afterwards. */
ql_status ql_json_survey(const char *place, const char *text, size_t size, size_t *members) {
    bool in_string = false;
    int depth = 0;
    *members = 0;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\') i++;
            else if (c == '"') in_string = false;
            continue;
        }
        if (c == '"') in_string = true;
        else if (c == '{' || c == '[') depth++;
        else if (c == '}' || c == ']') depth--;
        else if (c == ':' && depth == 1) ++*members;
        if (depth > DEEPEST) {
            position p = position_of(text, i);
            return ql_fail(QL_FORMAT, "%s: line %d, column %d: nested deeper than %d levels", place, p.line, p.column,
                           DEEPEST);
        }
    }
    return QL_OK;
}

static ql_status fail_parse(const char *place, const json_error_t *error) {
    if (json_starved()) return ql_fail(QL_NOMEM, "%s: no memory to parse it", place);
    return ql_fail(QL_FORMAT, "%s: line %d, column %d: %s", place, error->line, error->column, error->text);
}

ql_status ql_json_parse(const char *place, const char *text, size_t size, json_t **document) {
    *document = NULL;
    if (size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
        return ql_fail(QL_FORMAT, "%s: line 1, column 1: starts with a byte order mark; save it as UTF-8 without one",
                       place);
    size_t members;
    QL_TRY(ql_json_survey(place, text, size, &members));
    json_error_t error = {0};
    json_t *parsed = json_parse_text(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!parsed) return fail_parse(place, &error);
    if (!json_is_object(parsed)) {
        json_decref(parsed);
        return ql_fail(QL_FORMAT, "%s: line 1, column 1: expected an object, {...}", place);
    }
    *document = parsed;
    return QL_OK;
}

ql_status ql_json_prefix(const char *place, const char *text, size_t size, json_t **value, size_t *used) {
    json_error_t error = {0};
    *value = json_parse_text(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_DISABLE_EOF_CHECK, &error);
    if (!*value) return fail_parse(place, &error);
    *used = (size_t)error.position;
    return QL_OK;
}

ql_status ql_json_load(const char *path, size_t limit, json_t **document) {
    ql_arena *arena;
    *document = NULL;
    QL_TRY(ql_arena_open(NULL, &arena));
    char *text;
    size_t size;
    ql_status status = ql_file_load(path, limit, arena, &text, &size);
    if (status == QL_OK) status = ql_json_parse(path, text, size, document);
    ql_arena_close(arena);
    return status;
}

/* ---- getters --------------------------------------------------------------------------------------------------------- */

const char *ql_json_type_name(const json_t *value) {
    if (!value) return "missing";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a real number";
    case JSON_NULL: return "null";
    default: return "a boolean";
    }
}

static ql_status fail_type(const json_t *value, const char *place, const char *key, const char *expected) {
    if (!value) return ql_fail(QL_FORMAT, "%s: \"%s\" is missing (%s)", place, key, expected);
    return ql_fail(QL_FORMAT, "%s: \"%s\" is %s, expected %s", place, key, ql_json_type_name(value), expected);
}

ql_status ql_json_int(const json_t *object, const char *place, const char *key, int64_t least, int64_t most,
                      int64_t *value) {
    const json_t *found = json_object_get(object, key);
    if (!json_is_integer(found)) return fail_type(found, place, key, "an integer");
    int64_t number = json_integer_value(found);
    if (number < least || number > most)
        return ql_fail(QL_FORMAT, "%s: \"%s\" is %lld, expected %lld to %lld", place, key, (long long)number,
                       (long long)least, (long long)most);
    *value = number;
    return QL_OK;
}

ql_status ql_json_real(const json_t *object, const char *place, const char *key, double least, double most,
                       double *value) {
    const json_t *found = json_object_get(object, key);
    if (!json_is_number(found)) return fail_type(found, place, key, "a number");
    double number = json_number_value(found);
    if (!(number >= least && number <= most))
        return ql_fail(QL_FORMAT, "%s: \"%s\" is %g, expected %g to %g", place, key, number, least, most);
    *value = number;
    return QL_OK;
}

ql_status ql_json_bool(const json_t *object, const char *place, const char *key, bool *value) {
    const json_t *found = json_object_get(object, key);
    if (!json_is_boolean(found)) return fail_type(found, place, key, "true or false");
    *value = json_is_true(found);
    return QL_OK;
}

ql_status ql_json_string(const json_t *object, const char *place, const char *key, const char **value) {
    const json_t *found = json_object_get(object, key);
    if (!json_is_string(found)) return fail_type(found, place, key, "a string");
    *value = json_string_value(found);
    return QL_OK;
}

static bool is_given(const json_t *object, const char *key) {
    const json_t *found = json_object_get(object, key);
    return found && !json_is_null(found);
}

ql_status ql_json_int_or(const json_t *object, const char *place, const char *key, int64_t least, int64_t most,
                         int64_t *value) {
    return is_given(object, key) ? ql_json_int(object, place, key, least, most, value) : QL_OK;
}

ql_status ql_json_real_or(const json_t *object, const char *place, const char *key, double least, double most,
                          double *value) {
    return is_given(object, key) ? ql_json_real(object, place, key, least, most, value) : QL_OK;
}

ql_status ql_json_bool_or(const json_t *object, const char *place, const char *key, bool *value) {
    return is_given(object, key) ? ql_json_bool(object, place, key, value) : QL_OK;
}

ql_status ql_json_string_or(const json_t *object, const char *place, const char *key, const char **value) {
    return is_given(object, key) ? ql_json_string(object, place, key, value) : QL_OK;
}

/* ---- names ----------------------------------------------------------------------------------------------------------- */

static bool is_among(const char *word, const char *const words[]) {
    for (; *words; words++)
        if (strcmp(word, *words) == 0) return true;
    return false;
}

ql_status ql_json_only_keys(const json_t *object, const char *place, const char *const known[]) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        if (is_among(key, known)) continue;
        const char *nearest = ql_nearest_word(key, known);
        if (nearest) return ql_fail(QL_FORMAT, "%s: unknown key \"%s\"; did you mean \"%s\"?", place, key, nearest);
        return ql_fail(QL_FORMAT, "%s: unknown key \"%s\"", place, key);
    }
    return QL_OK;
}

/* ---- writing --------------------------------------------------------------------------------------------------------- */

ql_status ql_json_text(const json_t *document, size_t flags, char **text) {
    *text = json_print_text(document, flags);
    if (*text) return QL_OK;
    return json_starved() ? ql_fail(QL_NOMEM, "no memory to write JSON")
                          : ql_fail(QL_INVALID, "JSON that is no document");
}

ql_status ql_json_canonical(const json_t *document, ql_arena *arena, char **text) {
    char *dumped;
    QL_TRY(ql_json_text(document, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY, &dumped));
    ql_status status = ql_arena_string(arena, dumped, text);
    ql_mfree(dumped);
    return status;
}

ql_status ql_json_save(const json_t *document, const char *path) {
    char *dumped;
    QL_TRY(ql_context(ql_json_text(document, JSON_INDENT(2), &dumped), "%s", path));
    size_t length = strlen(dumped);
    dumped[length] = '\n'; /* in the place of the 0 byte: the file is bytes, not a C string */
    ql_status status = ql_file_save(path, dumped, length + 1);
    ql_mfree(dumped);
    return status;
}

/* Strict JSON over jansson: duplicate keys, depth beyond 64, integers beyond 64 bits, NUL in keys and invalid UTF-8 are refused,
 * and every message names the file and the field.  Getters take the object, the place for messages ("config.json"), the
 * key, and bounds; a missing key is QL_FORMAT unless the getter has a fallback.
 */
#ifndef FORMATS_JSON_H
#define FORMATS_JSON_H

#include <jansson.h>

#include "host/mem.h"

/* The document belongs to the caller (json_decref).  The top level must be an object. */
ql_status ql_json_parse(const char *place, const char *text, size_t size, json_t **document);
ql_status ql_json_load(const char *path, size_t limit, json_t **document);

/* For readers of texts too large for a tree.  survey: one pass that builds nothing, refuses depth beyond 64 and counts the
 * members of the top-level object (at least as many as there are).  prefix: the value of any type at the start of `text`, and
 * how many bytes it takes; its depth must have been surveyed. */
ql_status ql_json_survey(const char *place, const char *text, size_t size, size_t *members);
ql_status ql_json_prefix(const char *place, const char *text, size_t size, json_t **value, size_t *used);

/* "a string", "an integer"...; NULL is "missing".  For messages. */
const char *ql_json_type_name(const json_t *value);

ql_status ql_json_int(const json_t *object, const char *place, const char *key, int64_t least, int64_t most,
                      int64_t *value);
ql_status ql_json_real(const json_t *object, const char *place, const char *key, double least, double most,
                       double *value);
ql_status ql_json_bool(const json_t *object, const char *place, const char *key, bool *value);
ql_status ql_json_string(const json_t *object, const char *place, const char *key,
                         const char **value); /* lives as long as object */

/* The same, but an absent or null key leaves *value as it is. */
ql_status ql_json_int_or(const json_t *object, const char *place, const char *key, int64_t least, int64_t most,
                         int64_t *value);
ql_status ql_json_real_or(const json_t *object, const char *place, const char *key, double least, double most,
                          double *value);
ql_status ql_json_bool_or(const json_t *object, const char *place, const char *key, bool *value);
ql_status ql_json_string_or(const json_t *object, const char *place, const char *key, const char **value);

/* QL_FORMAT with a suggestion for the first key of `object` that is not among the `known` ones (NULL-terminated). */
ql_status ql_json_only_keys(const json_t *object, const char *place, const char *const known[]);

/* json_dumps with these flags (ql_mfree), but sure to fail when memory does. */
ql_status ql_json_text(const json_t *document, size_t flags, char **text);

/* Sorted keys, compact: the text that fingerprints hash.  And indented by 2 with a final newline, saved through host/file. */
ql_status ql_json_canonical(const json_t *document, ql_arena *arena, char **text);
ql_status ql_json_save(const json_t *document, const char *path);

/* The candidate nearest to `word` by edit distance if it is close enough to be a typo, else NULL. */
const char *ql_nearest_word(const char *word, const char *const candidates[]);

#endif

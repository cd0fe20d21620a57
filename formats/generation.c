#include "formats/generation.h"

#include "formats/json.h"
#include "host/file.h"

static const char key[] = "eos_token_id";

static ql_status check_id(const json_t *value, const char *place, int64_t vocab) {
    if (!json_is_integer(value))
        return ql_fail(QL_FORMAT, "%s: \"%s\" is %s, expected a token id or a list of them", place, key,
                       ql_json_type_name(value));
    json_int_t id = json_integer_value(value);
    if (id >= 0 && id < vocab) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: \"%s\" is %lld, the vocabulary has %lld tokens", place, key, (long long)id,
                   (long long)vocab);
}

ql_status generation_parse_ends(const json_t *document, const char *place, int64_t vocab, ql_arena *arena,
                                const int32_t **ids, int64_t *count) {
    const json_t *value = json_object_get(document, key);
    int32_t *list;
    *ids = NULL;
    *count = 0;
    if (!value || json_is_null(value)) return QL_OK;
    bool many = json_is_array(value);
    size_t n = many ? json_array_size(value) : 1;
    if (n > (size_t)vocab)
        return ql_fail(QL_FORMAT, "%s: \"%s\" lists %zu ids, the vocabulary has %lld tokens", place, key, n,
                       (long long)vocab);
    QL_TRY(ql_take(arena, n, sizeof *list, &list));
    for (size_t i = 0; i < n; i++) {
        const json_t *id = many ? json_array_get(value, i) : value;
        QL_TRY(check_id(id, place, vocab));
        list[i] = (int32_t)json_integer_value(id);
    }
    *ids = list;
    *count = (int64_t)n;
    return QL_OK;
}

ql_status generation_ends(const checkpoint *ck, int64_t vocab, ql_arena *arena, const int32_t **ids, int64_t *count) {
    enum { LIMIT = 1 << 20 };
    char *path;
    json_t *document = NULL;
    *ids = NULL;
    *count = 0;
    QL_TRY(ql_arena_format(arena, &path, "%s/generation_config.json", checkpoint_dir(ck)));
    if (ql_path_exists(path)) QL_TRY(ql_json_load(path, LIMIT, &document));
    ql_status status = generation_parse_ends(document, path, vocab, arena, ids, count);
    json_decref(document);
    if (status != QL_OK || *count > 0) return status;
    return generation_parse_ends(checkpoint_config(ck), "config.json", vocab, arena, ids, count);
}

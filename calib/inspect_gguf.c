/* What a GGUF file holds: its keys, and its tensors as they lie there. */
#include <math.h>
#include <string.h>

#include "calib/inspect_parts.h"
#include "formats/gguf.h"

static ql_status put(json_t *object, const char *key, json_t *value) {
    return json_object_set_new(object, key, value) == 0 ? QL_OK : ql_fail(QL_NOMEM, "no memory for a description");
}

/* A value for people: arrays by their length, texts that are no UTF-8 by theirs. */
static ql_status describe_key(const gguf_file *file, const gguf_key *key, ql_arena *arena, json_t *metadata) {
    int64_t integer = 0;
    double real = 0;
    char *text = NULL;
    json_t *value = NULL;
    switch (key->kind) {
    case GGUF_ARRAY:
        value = json_pack("{s:s, s:I}", "array", gguf_kind_name(key->element), "count", (json_int_t)key->count);
        break;
    case GGUF_STRING:
        if (gguf_string(file, key->name, arena, &text) == QL_OK) value = json_string(text);
        if (!value) value = json_pack("{s:I}", "bytes", (json_int_t)key->count);
        break;
    case GGUF_BOOL: value = json_boolean(*key->value); break;
    case GGUF_F32:
    case GGUF_F64:
        QL_TRY(gguf_real(file, key->name, &real));
        value = isfinite(real) ? json_real(real) : json_null();
        break;
    default: QL_TRY(gguf_int(file, key->name, INT64_MIN, INT64_MAX, &integer)); value = json_integer(integer);
    }
    return put(metadata, key->name, value);
}

/* Shapes as everywhere in qalib, the longest run last: ne reversed. */
static ql_status describe_tensor(const gguf_tensor *t, json_t *tensors, json_t *dtypes) {
    json_t *shape = json_array(), *sums = json_object_get(dtypes, t->type->name);
    double elements = 1;
    for (int i = t->rank; i-- > 0; elements *= (double)t->ne[i]) json_array_append_new(shape, json_integer(t->ne[i]));
    json_t *entry = json_pack("{s:s, s:s, s:o, s:I}", "name", t->name, "dtype", t->type->name, "shape", shape, "bytes",
                              (json_int_t)t->size);
    if (json_array_append_new(tensors, entry) != 0) return ql_fail(QL_NOMEM, "no memory for a description");
    json_int_t count = json_integer_value(json_object_get(sums, "tensors")) + 1;
    json_int_t values = json_integer_value(json_object_get(sums, "elements")) + (json_int_t)elements;
    json_int_t bytes = json_integer_value(json_object_get(sums, "bytes")) + (json_int_t)t->size;
    return put(dtypes, t->type->name,
               json_pack("{s:I, s:I, s:I}", "tensors", count, "elements", values, "bytes", bytes));
}

static ql_status describe(const gguf_file *file, ql_arena *arena, json_t *document) {
    QL_TRY(put(document, "kind", json_string("gguf")));
    QL_TRY(put(document, "version", json_integer(file->version)));
    QL_TRY(put(document, "bytes", json_integer((json_int_t)ql_source_size(file->source))));
    json_t *metadata = json_object();
    QL_TRY(put(document, "metadata", metadata));
    json_t *dtypes = json_object();
    QL_TRY(put(document, "dtypes", dtypes));
    json_t *tensors = json_array();
    QL_TRY(put(document, "tensors", tensors));
    for (int64_t i = 0; i < file->key_count; i++) QL_TRY(describe_key(file, &file->keys[i], arena, metadata));
    for (int64_t i = 0; i < file->count; i++) QL_TRY(describe_tensor(&file->tensors[i], tensors, dtypes));
    return QL_OK;
}

ql_status inspect_gguf(const char *path, ql_arena *arena, json_t *document) {
    gguf_file file;
    QL_TRY(gguf_open(path, arena, &file));
    ql_status status = describe(&file, arena, document);
    gguf_close(&file);
    return status;
}

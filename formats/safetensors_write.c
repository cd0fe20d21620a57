/* The writing half of formats/safetensors.h. */
#include <stdlib.h>
#include <string.h>

#include "formats/json.h"
#include "formats/safetensors.h"

enum { LENGTH_SIZE = 8, HEADER_ALIGNMENT = 8, MAX_HEADER = 100000000 };

struct st_writer {
    ql_file *file;
    const st_tensor *tensors; /* the caller's */
    int64_t count, next;
};

/* ---- the header -------------------------------------------------------------------------------------------------------- */

static int by_element_size(const void *left, const void *right) {
    const st_tensor *a = left, *b = right;
    size_t size_a = ql_dtype_size(a->dtype), size_b = ql_dtype_size(b->dtype);
    if (size_a != size_b) return size_a > size_b ? -1 : 1;
    return strcmp(a->name, b->name);
}

static ql_status measure(st_tensor *tensor) {
    if ((unsigned)tensor->dtype >= QL_DTYPE_COUNT || tensor->rank < 0 || tensor->rank > ST_MAX_RANK)
        return ql_fail(QL_INVALID, "tensor \"%.200s\": dtype %d, rank %d", tensor->name, (int)tensor->dtype,
                       tensor->rank);
    tensor->dtype_name = ql_dtype_name(tensor->dtype);
    tensor->size = ql_dtype_size(tensor->dtype);
    for (int i = 0; i < tensor->rank; i++)
        if (tensor->shape[i] < 0 || !ql_mul_size(tensor->size, (uint64_t)tensor->shape[i], &tensor->size))
            return ql_fail(QL_INVALID, "tensor \"%.200s\": dimension %lld", tensor->name, (long long)tensor->shape[i]);
    return QL_OK;
}

static void sort(st_tensor *tensors, int64_t count) { qsort(tensors, (size_t)count, sizeof *tensors, by_element_size); }

/* Sets begin (from the start of the data) and size of every tensor. */
static ql_status place(st_tensor *tensors, int64_t count, uint64_t *data_size) {
    *data_size = 0;
    for (int64_t i = 0; i < count; i++) {
        QL_TRY(measure(&tensors[i]));
        tensors[i].begin = *data_size;
        if (!ql_add_size(*data_size, tensors[i].size, data_size) || *data_size > INT64_MAX)
            return ql_fail(QL_INVALID, "tensor \"%.200s\" ends beyond 2^63 bytes", tensors[i].name);
    }
    return QL_OK;
}

static json_t *entry_of(const st_tensor *tensor) {
    json_t *shape = json_array();
    for (int i = 0; shape && i < tensor->rank; i++)
        if (json_array_append_new(shape, json_integer(tensor->shape[i])) != 0) {
            json_decref(shape);
            shape = NULL;
        }
    json_int_t begin = (json_int_t)tensor->begin, end = (json_int_t)(tensor->begin + tensor->size);
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", tensor->dtype_name, "shape", shape, "data_offsets", begin, end);
}

static ql_status add_metadata(json_t *header, const json_t *metadata) {
    json_t *copy = json_object(), *value;
    const char *key;
    bool done = copy && json_object_set_new(copy, "format", json_string("pt")) == 0;
    json_object_foreach((json_t *)metadata, key, value) {
        if (strcmp(key, "format") == 0) continue;
        if (!json_is_string(value)) {
            json_decref(copy);
            return ql_fail(QL_INVALID, "metadata \"%s\" is %s, expected a string", key, ql_json_type_name(value));
        }
        done = done && json_object_set(copy, key, value) == 0;
    }
    if (json_object_set_new(header, "__metadata__", copy) == 0 && done) return QL_OK;
    return ql_fail(QL_NOMEM, "no memory for a safetensors header");
}

static ql_status add_tensors(json_t *header, const st_tensor *tensors, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const char *name = tensors[i].name;
        if (json_object_get(header, name)) return ql_fail(QL_INVALID, "tensor \"%.200s\" twice", name);
        if (json_object_set_new(header, name, entry_of(&tensors[i])) != 0)
            return ql_fail(QL_NOMEM, "tensor \"%.200s\": no memory for its header, or its name is not UTF-8", name);
    }
    return QL_OK;
}

/* Length and text of the header (ql_mfree), padded with spaces so that the data begin at a multiple of 8. */
static ql_status build(const st_tensor *tensors, int64_t count, const json_t *metadata, char **text, size_t *length) {
    *text = NULL;
    json_t *header = json_object(); /* keeps the order of insertion, so metadata come first */
    if (!header) return ql_fail(QL_NOMEM, "no memory for a safetensors header");
    char *json = NULL;
    ql_status status = add_metadata(header, metadata);
    if (status == QL_OK) status = add_tensors(header, tensors, count);
    if (status == QL_OK) status = ql_json_text(header, JSON_COMPACT, &json);
    json_decref(header);
    if (status != QL_OK) return status;

    size_t size = strlen(json), padded = (size + HEADER_ALIGNMENT - 1) / HEADER_ALIGNMENT * HEADER_ALIGNMENT;
    if (padded > MAX_HEADER) status = ql_fail(QL_INVALID, "a safetensors header of %zu bytes", padded);
    else if (!(*text = ql_malloc(LENGTH_SIZE + padded))) status = ql_fail(QL_NOMEM, "no memory for %zu bytes", padded);
    if (*text) {
        for (int i = 0; i < LENGTH_SIZE; i++) (*text)[i] = (char)(padded >> 8 * i);
        memcpy(*text + LENGTH_SIZE, json, size);
        memset(*text + LENGTH_SIZE + size, ' ', padded - size);
        *length = LENGTH_SIZE + padded;
    }
    ql_mfree(json);
    return status;
}

/* Offsets in the header have as many digits as the order gives them. */
static ql_status file_size(const st_tensor *tensors, int64_t count, bool sorted, const json_t *metadata,
                           uint64_t *size) {
    st_tensor *copy = ql_malloc((size_t)count * sizeof *copy + 1);
    if (!copy) return ql_fail(QL_NOMEM, "no memory for %lld tensors", (long long)count);
    memcpy(copy, tensors, (size_t)count * sizeof *copy);
    char *header = NULL;
    size_t length = 0;
    if (sorted) sort(copy, count);
    ql_status status = place(copy, count, size);
    if (status == QL_OK) status = build(copy, count, metadata, &header, &length);
    *size += length;
    ql_mfree(header);
    ql_mfree(copy);
    return status;
}

ql_status st_file_size(const st_tensor *tensors, int64_t count, const json_t *metadata, uint64_t *size) {
    return file_size(tensors, count, true, metadata, size);
}

ql_status st_file_size_in_order(const st_tensor *tensors, int64_t count, const json_t *metadata, uint64_t *size) {
    return file_size(tensors, count, false, metadata, size);
}

/* ---- the file ---------------------------------------------------------------------------------------------------------- */

static ql_status start_file(const char *path, const st_tensor *tensors, int64_t count, const json_t *metadata,
                            uint64_t data_size, ql_file **file) {
    char *header;
    size_t length;
    QL_TRY(build(tensors, count, metadata, &header, &length));
    ql_status status = ql_file_create(path, length + data_size, file);
    if (status == QL_OK) status = ql_file_write(*file, header, length);
    ql_mfree(header);
    return status;
}

ql_status st_writer_open(const char *path, st_tensor *tensors, int64_t count, const json_t *metadata, st_writer **out) {
    sort(tensors, count);
    return st_writer_open_in_order(path, tensors, count, metadata, out);
}

ql_status st_writer_open_in_order(const char *path, st_tensor *tensors, int64_t count, const json_t *metadata,
                                  st_writer **out) {
    *out = NULL;
    uint64_t data_size;
    QL_TRY(ql_context(place(tensors, count, &data_size), "%s", path));
    ql_file *file = NULL;
    ql_status status = ql_context(start_file(path, tensors, count, metadata, data_size, &file), "%s", path);
    st_writer *writer = status == QL_OK ? ql_malloc(sizeof *writer) : NULL;
    if (status == QL_OK && !writer) status = ql_fail(QL_NOMEM, "%s: no memory", path);
    if (status != QL_OK) {
        ql_file_abort(file);
        return status;
    }
    *writer = (st_writer){file, tensors, count, 0};
    *out = writer;
    return QL_OK;
}

ql_status st_writer_put(st_writer *writer, const st_tensor *tensor, const void *data) {
    if (writer->next == writer->count || strcmp(writer->tensors[writer->next].name, tensor->name) != 0)
        return ql_fail(QL_INVALID, "tensor \"%.200s\" is put out of order; \"%.200s\" comes next", tensor->name,
                       writer->next == writer->count ? "nothing" : writer->tensors[writer->next].name);
    return ql_file_write(writer->file, data, writer->tensors[writer->next++].size);
}

ql_status st_writer_commit(st_writer *writer, unsigned char sha256[32]) {
    ql_status status = QL_OK;
    if (writer->next != writer->count) {
        status =
            ql_fail(QL_INVALID, "%lld of %lld tensors were put", (long long)writer->next, (long long)writer->count);
        ql_file_abort(writer->file);
    } else {
        status = ql_file_commit(writer->file, sha256);
    }
    ql_mfree(writer);
    return status;
}

void st_writer_abort(st_writer *writer) {
    if (!writer) return;
    ql_file_abort(writer->file);
    ql_mfree(writer);
}

/* The writing half of formats/gguf.h. */
#include <stdlib.h>
#include <string.h>

#include "formats/gguf.h"

/* ---- bytes in memory --------------------------------------------------------------------------------------------------------- */

static ql_status put(gguf_meta *meta, const void *data, size_t size) {
    if (size > meta->room - meta->size) {
        uint64_t room;
        if (!ql_add_size(meta->size, size, &room) || !ql_mul_size(room, 2, &room))
            return ql_fail(QL_NOMEM, "metadata beyond 2^63 bytes");
        uint8_t *bytes = ql_malloc(room);
        if (!bytes) return ql_fail(QL_NOMEM, "no memory for %llu bytes of metadata", (unsigned long long)room);
        if (meta->size) memcpy(bytes, meta->bytes, meta->size);
        ql_mfree(meta->bytes);
        meta->bytes = bytes;
        meta->room = room;
    }
    if (size) memcpy(meta->bytes + meta->size, data, size);
    meta->size += size;
    return QL_OK;
}

static ql_status put_number(gguf_meta *meta, uint64_t value, int size) {
    uint8_t bytes[8];
    for (int i = 0; i < size; i++) bytes[i] = (uint8_t)(value >> (8 * i));
    return put(meta, bytes, (size_t)size);
}

static ql_status put_text(gguf_meta *meta, const char *text) {
    QL_TRY(put_number(meta, strlen(text), 8));
    return put(meta, text, strlen(text));
}

static ql_status put_key(gguf_meta *meta, const char *key, gguf_kind kind) {
    meta->count++;
    QL_TRY(put_text(meta, key));
    return put_number(meta, kind, 4);
}

void gguf_meta_free(gguf_meta *meta) {
    ql_mfree(meta->bytes);
    *meta = (gguf_meta){0};
}

ql_status gguf_put_u32(gguf_meta *meta, const char *key, uint32_t value) {
    QL_TRY(put_key(meta, key, GGUF_U32));
    return put_number(meta, value, 4);
}

ql_status gguf_put_f32(gguf_meta *meta, const char *key, float value) {
    QL_TRY(put_key(meta, key, GGUF_F32));
    return put(meta, &value, sizeof value);
}

ql_status gguf_put_bool(gguf_meta *meta, const char *key, bool value) {
    QL_TRY(put_key(meta, key, GGUF_BOOL));
    return put_number(meta, value, 1);
}

ql_status gguf_put_string(gguf_meta *meta, const char *key, const char *value) {
    QL_TRY(put_key(meta, key, GGUF_STRING));
    return put_text(meta, value);
}

ql_status gguf_put_array(gguf_meta *meta, const char *key, gguf_kind kind, const void *values, uint64_t count) {
    QL_TRY(put_key(meta, key, GGUF_ARRAY));
    QL_TRY(put_number(meta, kind, 4));
    QL_TRY(put_number(meta, count, 8));
    if (kind != GGUF_STRING) return put(meta, values, count * 4);
    for (uint64_t i = 0; i < count; i++) QL_TRY(put_text(meta, ((const char *const *)values)[i]));
    return QL_OK;
}

/* ---- the header ---------------------------------------------------------------------------------------------------------------- */

static uint64_t padding(uint64_t size) { return (GGUF_ALIGNMENT - size % GGUF_ALIGNMENT) % GGUF_ALIGNMENT; }

static ql_status measure(gguf_tensor *t) {
    uint64_t elements = 1;
    bool fits = t->rank >= 1 && t->rank <= GGUF_MAX_DIMS && strlen(t->name) < GGUF_NAME_SIZE;
    for (int i = 0; fits && i < t->rank; i++)
        fits = t->ne[i] >= 0 && ql_mul_size(elements, (uint64_t)t->ne[i], &elements);
    fits = fits && t->ne[0] % t->type->count == 0 &&
           ql_mul_size(elements / (uint64_t)t->type->count, (uint64_t)t->type->bytes, &t->size) && t->size < INT64_MAX;
    return fits ? QL_OK
                : ql_fail(QL_INVALID, "tensor \"%.200s\": %d dimensions of %s, rows of %lld, cannot be stored", t->name,
                          t->rank, t->type->name, (long long)t->ne[0]);
}

static ql_status put_tensor(gguf_meta *header, const gguf_tensor *t) {
    QL_TRY(put_text(header, t->name));
    QL_TRY(put_number(header, (uint64_t)t->rank, 4));
    for (int i = 0; i < t->rank; i++) QL_TRY(put_number(header, (uint64_t)t->ne[i], 8));
    QL_TRY(put_number(header, (uint64_t)t->type->number, 4));
    return put_number(header, t->begin, 8);
}

/* The header, padded, and the size of the data.  Leaves begin as an offset into the data. */
static ql_status build(const gguf_meta *meta, gguf_tensor *tensors, int64_t count, gguf_meta *header, uint64_t *size) {
    static const uint8_t zeros[GGUF_ALIGNMENT];
    *header = (gguf_meta){0};
    *size = 0;
    QL_TRY(put(header, "GGUF", 4));
    QL_TRY(put_number(header, GGUF_VERSION, 4));
    QL_TRY(put_number(header, (uint64_t)count, 8));
    QL_TRY(put_number(header, meta->count, 8));
    QL_TRY(put(header, meta->bytes, meta->size));
    for (int64_t i = 0; i < count; i++) {
        QL_TRY(measure(&tensors[i]));
        tensors[i].begin = *size;
        if (!ql_add_size(*size, tensors[i].size + padding(tensors[i].size), size) || *size > INT64_MAX)
            return ql_fail(QL_INVALID, "tensor \"%s\" ends beyond 2^63 bytes", tensors[i].name);
        QL_TRY(put_tensor(header, &tensors[i]));
    }
    return put(header, zeros, padding(header->size));
}

ql_status gguf_file_size(const gguf_meta *meta, gguf_tensor *tensors, int64_t count, uint64_t *size) {
    gguf_meta header;
    ql_status status = build(meta, tensors, count, &header, size);
    for (int64_t i = 0; i < count && status == QL_OK; i++) tensors[i].begin += header.size;
    *size += header.size;
    gguf_meta_free(&header);
    return status;
}

/* ---- the file ------------------------------------------------------------------------------------------------------------------ */

struct gguf_writer {
    ql_file *file;
    const gguf_tensor *tensors; /* the caller's */
    int64_t count, next;
    uint64_t done; /* bytes of tensor `next` */
};

static ql_status start_file(const char *path, const gguf_meta *header, uint64_t data, ql_file **file) {
    QL_TRY(ql_file_create(path, header->size + data, file));
    return ql_file_write(*file, header->bytes, header->size);
}

ql_status gguf_writer_open(const char *path, const gguf_meta *meta, gguf_tensor *tensors, int64_t count,
                           gguf_writer **out) {
    gguf_meta header;
    uint64_t data;
    ql_file *file = NULL;
    *out = NULL;
    ql_status status = build(meta, tensors, count, &header, &data);
    if (status == QL_OK) status = start_file(path, &header, data, &file);
    gguf_meta_free(&header);
    gguf_writer *writer = status == QL_OK ? ql_malloc(sizeof *writer) : NULL;
    if (status == QL_OK && !writer) status = ql_fail(QL_NOMEM, "no memory");
    if (status != QL_OK) {
        ql_file_abort(file);
        return ql_context(status, "%s", path);
    }
    *writer = (gguf_writer){.file = file, .tensors = tensors, .count = count};
    *out = writer;
    return QL_OK;
}

/* Past tensors that are complete, empty ones among them; writes their padding. */
static ql_status finish_tensors(gguf_writer *w) {
    static const uint8_t zeros[GGUF_ALIGNMENT];
    while (w->next < w->count && w->done == w->tensors[w->next].size) {
        QL_TRY(ql_file_write(w->file, zeros, padding(w->done)));
        w->next++;
        w->done = 0;
    }
    return QL_OK;
}

ql_status gguf_writer_append(gguf_writer *w, const void *data, uint64_t size) {
    QL_TRY(finish_tensors(w));
    if (w->next == w->count || size > w->tensors[w->next].size - w->done)
        return ql_fail(QL_INVALID, "%llu bytes too many for tensor \"%s\"", (unsigned long long)size,
                       w->next == w->count ? "nothing" : w->tensors[w->next].name);
    QL_TRY(ql_file_write(w->file, data, size));
    w->done += size;
    return QL_OK;
}

ql_status gguf_writer_commit(gguf_writer *w, unsigned char sha256[32]) {
    ql_status status = finish_tensors(w);
    if (status == QL_OK && w->next < w->count)
        status = ql_fail(QL_INVALID, "%lld of %lld tensors were written", (long long)w->next, (long long)w->count);
    if (status == QL_OK) status = ql_file_commit(w->file, sha256);
    else ql_file_abort(w->file);
    ql_mfree(w);
    return status;
}

void gguf_writer_abort(gguf_writer *w) {
    if (!w) return;
    ql_file_abort(w->file);
    ql_mfree(w);
}

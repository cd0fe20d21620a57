/* GGUF, the file of llama.cpp: metadata, a list of tensors, their data.  All numbers little-endian.
 *
 *   "GGUF", u32 version, u64 tensors, u64 keys
 *   per key      string, u32 type, value          string: u64 length, UTF-8 bytes; an array: u32 element type, u64 count, elements
 *   per tensor   string of less than 64 bytes, u32 n_dims 1 .. 4, u64 ne[n_dims], u32 type, u64 offset
 *   zeros up to a multiple of general.alignment (32 if there is no such key), counted from the start of the file: here the data begin
 *   per tensor   data, zeros up to a multiple of the alignment
 * ne[0] is the length of a row: a weight [n][k] has ne = {k, n}.  Offsets count from the data and follow from the sizes: the reader
 * accepts no other.  Versions 2 and 3 are alike and read; 3 is written.
 *
 * The header is read as a whole, at most 1 GiB of it; every length and count is compared with the bytes that are left first.
 */
#ifndef FORMATS_GGUF_H
#define FORMATS_GGUF_H

#include "host/file.h"

enum { GGUF_MAX_DIMS = 4, GGUF_NAME_SIZE = 64, GGUF_ALIGNMENT = 32, GGUF_VERSION = 3 };

/* Types of values: number, bytes of one (0: a string, an array). */
typedef enum gguf_kind {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_KINDS
} gguf_kind;

/* A type of tensors: every one that ggml has, so that files can be listed.  Values of `count` weights take `bytes`. */
typedef struct gguf_type {
    int number;
    const char *name;
    int64_t count, bytes;
    ql_dtype dtype;      /* QL_DTYPE_COUNT: none */
    ql_block_type block; /* QL_BLOCK_TYPE_COUNT: none */
} gguf_type;

const gguf_type *gguf_type_of(uint32_t number); /* NULL if there is none */
const gguf_type *gguf_dtype(ql_dtype dtype);
const gguf_type *gguf_block(ql_block_type block);
static inline int64_t gguf_row_bytes(const gguf_type *type, int64_t k) { return k / type->count * type->bytes; }

typedef struct gguf_tensor {
    const char *name;
    const gguf_type *type;
    int rank;
    int64_t ne[GGUF_MAX_DIMS]; /* 1 beyond rank */
    uint64_t begin, size;      /* bytes; begin counts from the start of the file */
} gguf_tensor;

/* One key.  A value stays as the bytes of the file; strings in arrays too, each with its length. */
typedef struct gguf_key {
    const char *name;
    gguf_kind kind, element; /* element: of an array */
    uint64_t count;          /* of an array; bytes of a string */
    const uint8_t *value;
} gguf_key;

typedef struct gguf_file {
    const char *path;
    uint32_t version;
    uint64_t alignment, data; /* where the data begin */
    gguf_key *keys;
    int64_t key_count;
    gguf_tensor *tensors; /* in file order, which is that of their data */
    int64_t count;
    ql_source *source;
} gguf_file;

/* Memory of the header comes from `arena`; close releases the file. */
ql_status gguf_open(const char *path, ql_arena *arena, gguf_file *file);
void gguf_close(gguf_file *file);
ql_status gguf_read(const gguf_file *file, const gguf_tensor *tensor, void *data); /* tensor->size bytes */
const gguf_tensor *gguf_find(const gguf_file *file, const char *name);
bool gguf_is_file(const char *path); /* does it begin like one? */
/* What a path to a model stands for: the file itself, or model.gguf of a directory that has no config.json; *file NULL: neither. */
#define GGUF_MODEL "model.gguf"
ql_status gguf_model_file(const char *path, ql_arena *arena, char **file);

/* Values.  Where *_or is asked, a missing key leaves the value as it is; a wrong type is QL_FORMAT. */
const gguf_key *gguf_key_of(const gguf_file *file, const char *name); /* NULL if there is none */
ql_status gguf_int(const gguf_file *file, const char *name, int64_t least, int64_t most, int64_t *value);
ql_status gguf_int_or(const gguf_file *file, const char *name, int64_t least, int64_t most, int64_t *value);
ql_status gguf_real(const gguf_file *file, const char *name, double *value);
ql_status gguf_real_or(const gguf_file *file, const char *name, double *value);
ql_status gguf_string(const gguf_file *file, const char *name, ql_arena *arena, char **value);
const char *gguf_kind_name(gguf_kind kind); /* "u32" */

/* Writing.  Metadata are collected, then the tensors declared (name, type, rank, ne), then the data appended in their order, each
 * tensor in as many pieces as wanted.  The same calls give the same bytes. */
typedef struct gguf_meta {
    uint8_t *bytes;
    size_t size, room;
    uint64_t count;
} gguf_meta; /* {0} is empty */

void gguf_meta_free(gguf_meta *meta);
ql_status gguf_put_u32(gguf_meta *meta, const char *key, uint32_t value);
ql_status gguf_put_f32(gguf_meta *meta, const char *key, float value);
ql_status gguf_put_bool(gguf_meta *meta, const char *key, bool value);
ql_status gguf_put_string(gguf_meta *meta, const char *key, const char *value);
/* kind: GGUF_F32, GGUF_I32 or GGUF_STRING; values: float, int32_t or const char * [count]. */
ql_status gguf_put_array(gguf_meta *meta, const char *key, gguf_kind kind, const void *values, uint64_t count);

typedef struct gguf_writer gguf_writer;
ql_status gguf_writer_open(const char *path, const gguf_meta *meta, gguf_tensor *tensors, int64_t count,
                           gguf_writer **writer);
ql_status gguf_writer_append(gguf_writer *writer, const void *data, uint64_t size);
ql_status gguf_writer_commit(gguf_writer *writer,
                             unsigned char sha256[32]); /* sha256 may be NULL; ends the writer either way */
void gguf_writer_abort(gguf_writer *writer);            /* NULL is allowed */

/* Bytes of the file that would be written; sets begin and size of the tensors. */
ql_status gguf_file_size(const gguf_meta *meta, gguf_tensor *tensors, int64_t count, uint64_t *size);

#endif

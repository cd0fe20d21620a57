/* safetensors: u64 header length N, N bytes of JSON, then the tensors without gap or overlap.
 *
 *   byte 0     u64 little-endian N <= 100,000,000; 8 + N <= file size
 *   byte 8     {"name": {"dtype": "F16", "shape": [n, k], "data_offsets": [begin, end]}, ..., "__metadata__": {"format": "pt"}}
 *   byte 8+N   data; offsets count from here; the last `end` is the end of the file
 *
 * The reader gives the verdicts of the reference reader (safetensors 0.8), with these differences on files that no writer makes;
 * all are refused here: white space before the first {, duplicate names and metadata keys, a tensor as an array instead of an
 * object, NUL in names, nesting beyond 64, rank beyond 8, dimensions from 2^63 on.  Tensors may be unaligned.
 * The header is scanned in place: a listing costs its text and one st_tensor each.
 */
#ifndef FORMATS_SAFETENSORS_H
#define FORMATS_SAFETENSORS_H

#include <jansson.h>

#include "host/file.h"

enum { ST_MAX_RANK = 8 };

typedef struct st_tensor {
    const char *name;
    const char *dtype_name; /* as in the file: "BF16", "F8_E4M3", ... */
    ql_dtype dtype;         /* QL_DTYPE_COUNT if qalib has no such type (F8_E4M3, U16...): listed, not understood */
    int rank;
    int64_t shape[ST_MAX_RANK];
    uint64_t begin, size; /* bytes; begin counts from the start of the file */
} st_tensor;

typedef struct st_file {
    const char *path;
    st_tensor *tensors; /* in the order of their data */
    int64_t count;
    json_t *metadata;                /* object of strings, or NULL */
    uint64_t header_size;            /* 8 + N */
    unsigned char header_sha256[32]; /* of the N bytes of JSON, padding included */
    ql_source *source;
} st_file;

/* root as in ql_source_open.  Memory of the listing comes from `arena`; close releases file and metadata. */
ql_status st_open(const char *path, const char *root, ql_arena *arena, st_file *file);
void st_close(st_file *file);
ql_status st_read(const st_file *file, const st_tensor *tensor, void *data); /* tensor->size bytes */
ql_status st_read_part(const st_file *file, const st_tensor *tensor, size_t offset, size_t size, void *data);

/* Writing: declare all tensors (name, dtype, rank, shape), then put each once, in the order that st_writer_open leaves in
 * `tensors` (which must live until the end): by element size descending, then by name, so that every tensor is aligned to its
 * element.  QL_INVALID: wrong order, a name twice, a tensor missing at commit.
 * metadata: object of strings; "format": "pt" is added. */
typedef struct st_writer st_writer;
ql_status st_writer_open(const char *path, st_tensor *tensors, int64_t count, const json_t *metadata,
                         st_writer **writer);
/* The same in the order given, for tensors that are made one after the other; aligning them is then the caller's care. */
ql_status st_writer_open_in_order(const char *path, st_tensor *tensors, int64_t count, const json_t *metadata,
                                  st_writer **writer);
ql_status st_writer_put(st_writer *writer, const st_tensor *tensor, const void *data);
ql_status st_writer_commit(st_writer *writer,
                           unsigned char sha256[32]); /* sha256 may be NULL; ends the writer either way */
void st_writer_abort(st_writer *writer);              /* NULL is allowed */

/* Bytes of the file that would be written: header included.  In the writer's order, or in the order given. */
ql_status st_file_size(const st_tensor *tensors, int64_t count, const json_t *metadata, uint64_t *size);
ql_status st_file_size_in_order(const st_tensor *tensors, int64_t count, const json_t *metadata, uint64_t *size);

#endif

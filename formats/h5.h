/* HDF5 files as tables of items.  A format is a table; h5_save writes it and h5_load reads it back.
 *
 *   h5_item items[] = {
 *       {.kind = H5_INT, .group = "/", .name = "vocab_size", .least = 1, .most = INT32_MAX},
 *       {.kind = H5_ARRAY, .group = "/", .name = "length", .dtype = QL_I32, .rank = 1, .dims = {-1}},
 *   };
 *   QL_TRY(h5_load(path, "calib-tokens", items, 2, arena));        // items[1].data, items[1].dims
 *
 * libhdf5 was not written for hostile bytes: damaged files crash it or make it loop, and links, external storage and
 * plugins let a file read others; after a failed write it cannot even close.  So the process that does the job never calls it.
 * A forked child does.  When reading, it can open no second file, has limits on memory and processor time, and sends what was
 * asked for through a pipe; whatever happens to it is a sentence here.  Only hard links, plain layouts, the filters deflate,
 * shuffle and fletcher32, and the types and shapes of the table are read, and shapes are compared before anything is allocated.
 *
 * Beside the items every file carries format, version = 1, content_sha256 (over all items; a file of another program may lack it,
 * but a wrong one is damage) and complete = 1.
 */
#ifndef FORMATS_H5_H
#define FORMATS_H5_H

#include "host/mem.h"

typedef enum h5_kind {
    H5_INT,   /* attribute, an integer of any width; written as U64, so never negative */
    H5_TEXT,  /* attribute, one string of fixed or variable length */
    H5_TEXTS, /* attribute, several strings; written, never read */
    H5_ARRAY  /* dataset */
} h5_kind;

/* How a dataset is written, always with fletcher32. */
typedef enum h5_storage {
    H5_COMPRESSED, /* gzip and shuffle */
    H5_UPPER       /* by tiles; those below the diagonal are left out and read as zero */
} h5_storage;

enum { H5_TEXT_SIZE = 4096 }; /* bytes of a string that is read, with its 0 */

typedef struct h5_item {
    h5_kind kind;
    const char *group, *name; /* "/" or "/inputs/attn_in"; plain names, no links on the way */
    bool optional;            /* reading: may be missing */
    bool absent;              /* reading: it was; one that is absent from the start is neither written nor looked for */
    int64_t value, least, most;
    const char *text, *const *texts; /* texts: NULL-terminated */
    ql_dtype dtype;                  /* F32, F64, I32, I64, U64; integers of another width are converted when read */
    int rank;                        /* 1 or 2 */
    int64_t dims[2];                 /* reading: -1 accepts any length that the file could hold */
    const void *data;
    h5_storage storage;
    bool extendable; /* writing: the first axis is unlimited */
} h5_item;

/* QL_FORMAT names file and item.  Texts and data come from `arena`. */
ql_status h5_load(const char *path, const char *format, h5_item *items, int count, ql_arena *arena);

/* Temporary file beside `path`, closed, read back and compared with memory (on a full disk HDF5 1.10 can close a file
 * without an error whose data are gone), then synced and renamed. */
ql_status h5_save(const char *path, const char *format, const h5_item *items, int count);

/* ---- between the files of this module ----------------------------------------------------------------------------------- */

/* What the child says about one item; `bytes` of text or, if status is not QL_OK, of its sentence follow.  The message of an array
 * has its dims alone; then come its slabs of whole rows, each with a message of its own. */
typedef struct h5_message {
    int32_t status, absent;
    int64_t value, dims[2];
    uint64_t bytes;
} h5_message;

/* h5_read.c: reads the items and writes their messages to `out`.  Runs in the child. */
_Noreturn void h5_read_child(const char *path, uint64_t file_bytes, const h5_item *items, int count, int out);

/* Do these dims fit the item, and 64 MiB beside a hundred times the size of the file? */
ql_status h5_check_dims(const char *path, uint64_t file_bytes, const h5_item *item, const int64_t dims[2]);

/* h5_write.c: writes the items to a new file `path`, sends one message.  Runs in the child. */
_Noreturn void h5_write_child(const char *path, const h5_item *items, int count, int out);

void h5_send(int out, h5_message message, const void *data); /* data: message.bytes of them, or NULL */
_Noreturn void h5_end(int out, ql_status status);            /* the last message if it failed; ends the child */

/* The failure that HDF5 just met, with its own words: QL_DISK, QL_IO, ... if it was an errno, else `status`. */
ql_status h5_fail(ql_status status, const char *format, ...) __attribute__((format(printf, 2, 3), cold));
/* HDF5 prints nothing by itself and loads no plugin.  *access: properties with which files are opened. */
ql_status h5_setup(const char *path, int64_t *access);

#endif

/* The only door to the disk.  Writing: a temporary file beside the target, checksum on the way, fsync, rename, fsync of the
 * directory; a target is either the whole new file or untouched.  Reading: pread with the size fixed at open, never mmap, so a
 * file truncated meanwhile is an error and not a signal.
 *
 *   ql_file *file;
 *   QL_TRY(ql_file_create(path, size, &file));        // size reserves disk space; 0 = unknown
 *   ql_status status = ql_file_write(file, data, n);
 *   if (status == QL_OK) status = ql_file_commit(file, NULL); else ql_file_abort(file);     // either one ends it
 */
#ifndef HOST_FILE_H
#define HOST_FILE_H

#include "host/mem.h"

typedef struct ql_file ql_file;

ql_status ql_file_create(const char *path, uint64_t size, ql_file **file);
ql_status ql_file_write(ql_file *file, const void *data, size_t size);
/* On success the file stands under its name.  sha256: NULL or where the digest of all bytes goes.  On failure the temporary
 * file is gone.  A failed fsync is final: the pages may be marked clean, so nobody retries it. */
ql_status ql_file_commit(ql_file *file, unsigned char sha256[32]);
void ql_file_abort(ql_file *file); /* NULL is allowed */

/* All of the above for data in memory. */
ql_status ql_file_save(const char *path, const void *data, size_t size);

/* The end of the protocol for a file that a library (HDF5) wrote under a temporary name: fsync, rename, fsync directory. */
ql_status ql_file_adopt(const char *temporary, const char *path);

/* An append-only file whose lines count once they are synced (the journal). */
ql_status ql_file_append(const char *path, const void *data, size_t size);

/* For a file that a killed process may have written: what was read from it will be there after a power loss too. */
ql_status ql_file_sync(const char *path);

typedef struct ql_source ql_source;

/* Opens a regular file for reading; directories, FIFOs and devices are refused (QL_FORMAT).  root: NULL, or a directory that
 * the file must lie beneath after symlinks are followed (QL_FORMAT otherwise). */
ql_status ql_source_open(const char *path, const char *root, ql_source **source);
void ql_source_close(ql_source *source); /* NULL is allowed */
uint64_t ql_source_size(const ql_source *source);
const char *ql_source_path(const ql_source *source);
/* Exactly `size` bytes from `offset`; QL_IO if the file has become shorter or was replaced in place. */
ql_status ql_source_read(ql_source *source, void *data, size_t size, uint64_t offset);

/* A whole small file, with a 0 byte behind it.  QL_FORMAT if it is larger than `limit`. */
ql_status ql_file_load(const char *path, size_t limit, ql_arena *arena, char **data, size_t *size);

ql_status ql_file_sha256(const char *path, unsigned char sha256[32]);
void ql_hex(const unsigned char *bytes, size_t count, char *text); /* 2 * count + 1 chars, lower case */
void ql_sha256(const void *data, size_t size, unsigned char sha256[32]);

/* Directories.  make: with parents, existing is fine.  is_empty: a missing directory counts as empty. */
ql_status ql_dir_make(const char *path);
ql_status ql_dir_is_empty(const char *path, bool *empty);
ql_status ql_dir_remove(const char *path); /* with everything in it; missing is fine */
/* Of the file system that holds it or its nearest parent; UINT64_MAX where the file system does not count. */
ql_status ql_dir_free_bytes(const char *path, uint64_t *bytes);
bool ql_path_exists(const char *path);

#endif

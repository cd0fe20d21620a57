#include "host/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "host/fault.h"

struct ql_file {
    int fd;
    char *path, *temporary;
    EVP_MD_CTX *sha256;
};

struct ql_source {
    int fd;
    uint64_t size;
    struct timespec modified, changed; /* at opening */
    nlink_t links;                     /* likewise */
    char *path;
};

/* ---- writing --------------------------------------------------------------------------------------------------------- */

/* What is missing where we write is no input: a directory was removed under us. */
static ql_status fail_writing(const char *what, const char *path) {
    ql_status status = ql_fail_errno("%s: cannot %s", path, what);
    return status == QL_MISSING ? QL_DISK : status;
}

static ql_status sync_parent(const char *path) {
    char parent[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int length = slash ? (int)(slash - path) : 1;
    if (slash == path) length = 1;
    snprintf(parent, sizeof parent, "%.*s", length, slash ? path : ".");
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail_writing("open the directory", parent);
    ql_status status = QL_OK;
    if (ql_fault("fsync") || fsync(fd) != 0) status = ql_fail_errno("%s: cannot sync the directory", parent);
    close(fd);
    return status;
}

static ql_status sync_bytes(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_writing("open", path);
    ql_status status = QL_OK;
    if (ql_fault("fsync") || fsync(fd) != 0) status = ql_fail_errno("%s: cannot sync", path);
    close(fd);
    return status;
}

ql_status ql_file_sync(const char *path) {
    QL_TRY(sync_bytes(path));
    return sync_parent(path);
}

ql_status ql_file_adopt(const char *temporary, const char *path) {
    ql_status status = sync_bytes(temporary);
    if (status == QL_OK && (ql_fault("rename") || rename(temporary, path) != 0))
        status = fail_writing("rename", temporary);
    if (status != QL_OK) {
        unlink(temporary);
        return status;
    }
    return sync_parent(path);
}

static void free_file(ql_file *file) {
    EVP_MD_CTX_free(file->sha256);
    if (file->fd >= 0) close(file->fd);
    free(file->path);
    free(file->temporary);
    free(file);
}

/* Disk space is claimed before the work that fills it.  File systems without fallocate are written to as they are. */
static ql_status reserve(ql_file *file, uint64_t size) {
    if (ql_fault("allocate"))
        return ql_fail_errno("%s: cannot reserve %llu bytes", file->path, (unsigned long long)size);
    if (size == 0) return QL_OK;
    if (size > INT64_MAX) return ql_fail(QL_DISK, "%s: a file of %llu bytes", file->path, (unsigned long long)size);
    if (fallocate(file->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)size) != 0 &&
        (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
        return ql_fail_errno("%s: cannot reserve %llu bytes", file->path, (unsigned long long)size);
    return QL_OK;
}

ql_status ql_file_create(const char *path, uint64_t size, ql_file **out) {
    *out = NULL;
    ql_file *file = ql_malloc(sizeof *file);
    if (!file) return ql_fail(QL_NOMEM, "%s: no memory", path);
    *file = (ql_file){.fd = -1, .path = strdup(path), .sha256 = EVP_MD_CTX_new()};
    if (!file->path || !file->sha256 || asprintf(&file->temporary, "%s.tmp", path) < 0 ||
        !EVP_DigestInit_ex(file->sha256, EVP_sha256(), NULL)) {
        free_file(file);
        return ql_fail(QL_NOMEM, "%s: no memory", path);
    }
    unlink(file->temporary); /* a leftover of a killed process: the job's lock says that nobody writes it now */
    if (!ql_fault("open")) file->fd = open(file->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    ql_status status = file->fd < 0 ? fail_writing("create", file->temporary) : reserve(file, size);
    if (status != QL_OK) ql_file_abort(file);
    else *out = file;
    return status;
}

static ql_status write_all(int fd, const char *path, const char *data, size_t size) {
    while (size > 0) {
        ssize_t written = ql_fault("write") ? -1 : write(fd, data, size < (1u << 30) ? size : 1u << 30);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return ql_fail_errno("%s: cannot write", path);
        data += written;
        size -= (size_t)written;
    }
    return QL_OK;
}

ql_status ql_file_write(ql_file *file, const void *data, size_t size) {
    if (!EVP_DigestUpdate(file->sha256, data, size)) return ql_fail(QL_INTERNAL, "%s: SHA-256 failed", file->path);
    return write_all(file->fd, file->temporary, data, size);
}

ql_status ql_file_commit(ql_file *file, unsigned char sha256[32]) {
    ql_status status = QL_OK;
    if (sha256 && !EVP_DigestFinal_ex(file->sha256, sha256, NULL))
        status = ql_fail(QL_INTERNAL, "%s: SHA-256 failed", file->path);
    if (status == QL_OK) status = ql_file_adopt(file->temporary, file->path);
    if (status != QL_OK) unlink(file->temporary);
    free_file(file);
    return status;
}

void ql_file_abort(ql_file *file) {
    if (!file) return;
    if (file->fd >= 0) unlink(file->temporary);
    free_file(file);
}

ql_status ql_file_save(const char *path, const void *data, size_t size) {
    ql_file *file;
    QL_TRY(ql_file_create(path, size, &file));
    ql_status status = ql_file_write(file, data, size);
    if (status == QL_OK) return ql_file_commit(file, NULL);
    ql_file_abort(file);
    return status;
}

ql_status ql_file_append(const char *path, const void *data, size_t size) {
    bool existed = ql_path_exists(path);
    int fd = ql_fault("open") ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) return fail_writing("open for appending", path);
    ql_status status = write_all(fd, path, data, size);
    if (status == QL_OK && (ql_fault("fsync") || fdatasync(fd) != 0)) status = ql_fail_errno("%s: cannot sync", path);
    close(fd);
    return status == QL_OK && !existed ? sync_parent(path) : status;
}

/* ---- reading --------------------------------------------------------------------------------------------------------- */

static ql_status check_beneath(const char *path, const char *root) {
    char real_path[PATH_MAX], real_root[PATH_MAX];
    if (!realpath(path, real_path)) return ql_fail_errno("%s", path);
    if (!realpath(root, real_root)) return ql_fail_errno("%s", root);
    size_t length = strlen(real_root);
    if (strncmp(real_path, real_root, length) == 0 && (real_path[length] == '/' || strcmp(real_root, "/") == 0))
        return QL_OK;
    return ql_fail(QL_FORMAT, "%s: points to %s, outside of %s; refused", path, real_path, real_root);
}

ql_status ql_source_open(const char *path, const char *root, ql_source **out) {
    *out = NULL;
    if (root) QL_TRY(check_beneath(path, root));
    /* O_NONBLOCK: opening a FIFO must not wait for its writer. */
    int fd = ql_fault("open") ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return ql_fail_errno("%s: cannot open", path);
    struct stat info;
    ql_status status = QL_OK;
    if (fstat(fd, &info) != 0) status = ql_fail_errno("%s", path);
    else if (!S_ISREG(info.st_mode)) status = ql_fail(QL_FORMAT, "%s: not a regular file", path);
    ql_source *source = status == QL_OK ? ql_malloc(sizeof *source) : NULL;
    if (source)
        *source = (ql_source){.fd = fd,
                              .size = (uint64_t)info.st_size,
                              .modified = info.st_mtim,
                              .changed = info.st_ctim,
                              .links = info.st_nlink,
                              .path = strdup(path)};
    if (source && source->path) {
        *out = source;
        return QL_OK;
    }
    free(source);
    close(fd);
    return status != QL_OK ? status : ql_fail(QL_NOMEM, "%s: no memory", path);
}

void ql_source_close(ql_source *source) {
    if (!source) return;
    close(source->fd);
    free(source->path);
    free(source);
}

uint64_t ql_source_size(const ql_source *source) { return source->size; }
const char *ql_source_path(const ql_source *source) { return source->path; }

static bool same_time(struct timespec a, struct timespec b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

/* After a read: bytes that somebody wrote meanwhile are no part of the file that was opened.  The time of modification can be
 * set back (cp -p, rsync -t); the inode's own cannot, but it also moves when names come and go: another file under this
 * name is no change of the one that was opened.  A write within one tick of the file system's clock (4 ms; 2 s on FAT) after the
 * last one before opening is not seen. */
static ql_status check_unchanged(const ql_source *source) {
    struct stat info;
    if (fstat(source->fd, &info) != 0) return ql_fail_errno("%s", source->path);
    if ((uint64_t)info.st_size == source->size && same_time(info.st_mtim, source->modified) &&
        (info.st_nlink != source->links || same_time(info.st_ctim, source->changed)))
        return QL_OK;
    return ql_fail(QL_IO, "%s: changed while it was read", source->path);
}

ql_status ql_source_read(ql_source *source, void *data, size_t size, uint64_t offset) {
    if (offset > source->size || size > source->size - offset)
        return ql_fail(QL_FORMAT, "%s: bytes %llu to %llu asked for, file has %llu", source->path,
                       (unsigned long long)offset, (unsigned long long)(offset + size),
                       (unsigned long long)source->size);
    char *to = data;
    while (size > 0) {
        ssize_t got = ql_fault("read") ? -1 : pread(source->fd, to, size < (1u << 30) ? size : 1u << 30, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return ql_fail_errno("%s: cannot read at byte %llu", source->path, (unsigned long long)offset);
        if (got == 0)
            return ql_fail(QL_IO, "%s: became shorter while it was read (%llu bytes at opening)", source->path,
                           (unsigned long long)source->size);
        to += got;
        offset += (uint64_t)got;
        size -= (size_t)got;
    }
    return check_unchanged(source);
}

ql_status ql_file_load(const char *path, size_t limit, ql_arena *arena, char **data, size_t *size) {
    ql_source *source;
    QL_TRY(ql_source_open(path, NULL, &source));
    ql_status status = QL_OK;
    if (source->size > limit)
        status = ql_fail(QL_FORMAT, "%s: %llu bytes, at most %zu are allowed", path, (unsigned long long)source->size,
                         limit);
    if (status == QL_OK) status = ql_take(arena, source->size + 1, 1, data);
    if (status == QL_OK) status = ql_source_read(source, *data, source->size, 0);
    *size = source->size;
    ql_source_close(source);
    return status;
}

/* ---- hashes ------------------------------------------------------------------------------------------------------------ */

void ql_hex(const unsigned char *bytes, size_t count, char *text) {
    for (size_t i = 0; i < count; i++) snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    text[2 * count] = 0;
}

void ql_sha256(const void *data, size_t size, unsigned char sha256[32]) {
    EVP_Digest(data, size, sha256, NULL, EVP_sha256(), NULL);
}

ql_status ql_file_sha256(const char *path, unsigned char sha256[32]) {
    enum { STEP = 1 << 20 };
    ql_source *source;
    QL_TRY(ql_source_open(path, NULL, &source));
    char *buffer = ql_malloc(STEP);
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    ql_status status = QL_OK;
    if (!buffer || !digest || !EVP_DigestInit_ex(digest, EVP_sha256(), NULL))
        status = ql_fail(QL_NOMEM, "%s: no memory", path);
    for (uint64_t at = 0; status == QL_OK && at < source->size; at += STEP) {
        size_t part = source->size - at < STEP ? (size_t)(source->size - at) : STEP;
        status = ql_source_read(source, buffer, part, at);
        if (status == QL_OK) EVP_DigestUpdate(digest, buffer, part);
    }
    if (status == QL_OK) EVP_DigestFinal_ex(digest, sha256, NULL);
    EVP_MD_CTX_free(digest);
    free(buffer);
    ql_source_close(source);
    return status;
}

/* ---- directories ------------------------------------------------------------------------------------------------------- */

bool ql_path_exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0;
}

/* The name of a new directory is synced like a file's, but where the parent may not be read, nobody can. */
static ql_status make_one(const char *path) {
    char parent[PATH_MAX + 4];
    if (mkdir(path, 0777) != 0) return errno == EEXIST ? QL_OK : fail_writing("create the directory", path);
    snprintf(parent, sizeof parent, "%s/..", path);
    ql_status status = access(parent, R_OK) == 0 ? sync_parent(path) : QL_OK;
    if (status != QL_OK) rmdir(path); /* the next attempt makes and syncs it again */
    return status;
}

ql_status ql_dir_make(const char *path) {
    char part[PATH_MAX];
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof part) return ql_fail(QL_DISK, "%.60s...: a path of %zu bytes", path, length);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != 0) continue;
        memcpy(part, path, i);
        part[i] = 0;
        QL_TRY(make_one(part));
    }
    struct stat info;
    if (stat(path, &info) != 0) return fail_writing("find the directory again", path);
    return S_ISDIR(info.st_mode) ? QL_OK : ql_fail(QL_DISK, "%s: exists and is not a directory", path);
}

ql_status ql_dir_is_empty(const char *path, bool *empty) {
    *empty = true;
    DIR *dir = opendir(path);
    if (!dir && errno == ENOTDIR) return ql_fail(QL_DISK, "%s: exists and is not a directory", path);
    if (!dir) return errno == ENOENT ? QL_OK : ql_fail_errno("%s: cannot read the directory", path);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) *empty = false;
    closedir(dir);
    return QL_OK;
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *ftw) {
    (void)info, (void)type, (void)ftw;
    return remove(path);
}

ql_status ql_dir_remove(const char *path) {
    if (!ql_path_exists(path)) return QL_OK;
    if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) != 0)
        return ql_fail_errno("%s: cannot remove", path);
    return QL_OK;
}

ql_status ql_dir_free_bytes(const char *path, uint64_t *bytes) {
    char part[PATH_MAX];
    snprintf(part, sizeof part, "%s", path);
    struct statvfs info;
    while (statvfs(part[0] ? part : ".", &info) != 0) {
        if (errno != ENOENT) return ql_fail_errno("%s", part);
        char *slash = strrchr(part, '/');
        if (slash == part) part[1] = 0;
        else if (slash) *slash = 0;
        else part[0] = 0;
    }
    /* Some file systems (ramfs, many in user space) count nothing: nobody knows before the writes. */
    *bytes = info.f_blocks == 0 ? UINT64_MAX : (uint64_t)info.f_bavail * info.f_frsize;
    return QL_OK;
}

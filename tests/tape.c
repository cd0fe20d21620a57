#include "tests/tape.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAMES = 16, FILE_BYTES = 4096 };

tape_state tape;

static change *add(change_kind kind, int node) {
    assert_true(tape.count < CHANGES);
    change *c = &tape.changes[tape.count++];
    *c = (change){.kind = kind, .node = node};
    return c;
}

static int node_of(const struct stat *info) {
    for (int i = tape.nodes; i-- > 0;)
        if (tape.node[i].lives && tape.node[i].number == info->st_ino) return i;
    return -1;
}

static int node_at(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 ? node_of(&info) : -1;
}

static int new_node(const char *path) {
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_true(tape.nodes < NODES);
    tape.node[tape.nodes].number = info.st_ino;
    tape.node[tape.nodes].lives = true;
    tape.node[tape.nodes].is_dir = S_ISDIR(info.st_mode);
    return tape.nodes++;
}

static const char *last_part(const char *path) { return strrchr(path, '/') + 1; }

static int parent_of(const char *path) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%.*s", (int)(last_part(path) - path), path);
    return node_at(parent);
}

/* A change of names in a directory that is taped. */
static void add_name(change_kind kind, const char *path, const char *to, int child) {
    int parent = parent_of(path);
    if (!tape.on || parent < 0 || strcmp(last_part(path), "lock") == 0) return;
    change *c = add(kind, parent);
    c->child = child;
    snprintf(c->name, sizeof c->name, "%s", last_part(path));
    if (to) snprintf(c->to, sizeof c->to, "%s", last_part(to));
}

static void add_new(const char *path) {
    if (tape.on && parent_of(path) >= 0 && strcmp(last_part(path), "lock") != 0)
        add_name(NAME, path, NULL, new_node(path));
}

static void forget(int node) {
    if (node >= 0) tape.node[node].lives = false; /* its number may be given to another file */
}

void tape_begin(const char *root, int fail_at) {
    memset(&tape, 0, sizeof tape);
    new_node(root);
    tape.on = true;
    tape.fail_at = fail_at;
    tape_promise(0, 0);
}

void tape_promise(int lowest, int highest) {
    if (!tape.on) return;
    change *c = add(PROMISE, -1);
    c->lowest = lowest, c->highest = highest;
}

/* ---- the wrappers ---------------------------------------------------------------------------------------------------------- */

int __real_open(const char *path, int flags, ...), __wrap_open(const char *path, int flags, ...);
int __real_mkdir(const char *path, mode_t mode), __wrap_mkdir(const char *path, mode_t mode);
ssize_t __real_write(int fd, const void *data, size_t size), __wrap_write(int fd, const void *data, size_t size);
int __real_ftruncate(int fd, off_t size), __wrap_ftruncate(int fd, off_t size);
int __wrap_fsync(int fd), __wrap_fdatasync(int fd);
int __real_rename(const char *from, const char *to), __wrap_rename(const char *from, const char *to);
int __real_rmdir(const char *path), __wrap_rmdir(const char *path);
int __real_unlink(const char *path), __wrap_unlink(const char *path);
int __real_unlinkat(int dir, const char *name, int flags), __wrap_unlinkat(int dir, const char *name, int flags);

static bool fails(void) { return tape.on && ++tape.calls == tape.fail_at; }

int __wrap_open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    bool is_new = (flags & O_CREAT) && !ql_path_exists(path);
    int fd = __real_open(path, flags, mode);
    if (fd >= 0 && is_new) add_new(path);
    return fd;
}

int __wrap_mkdir(const char *path, mode_t mode) {
    int result = __real_mkdir(path, mode);
    if (result == 0) add_new(path);
    return result;
}

/* A write that fails is a half one: its beginning had arrived by then. */
ssize_t __wrap_write(int fd, const void *data, size_t size) {
    struct stat info;
    bool failed = fails();
    ssize_t written = __real_write(fd, data, failed ? size / 2 : size);
    int node = tape.on && fstat(fd, &info) == 0 ? node_of(&info) : -1;
    if (written > 0 && node >= 0) {
        change *c = add(WRITE, node);
        c->size = (size_t)written;
        c->offset = (size_t)(lseek(fd, 0, SEEK_CUR) - written);
        assert_true(c->size <= sizeof c->bytes && c->offset + c->size <= FILE_BYTES);
        memcpy(c->bytes, data, c->size);
    }
    if (failed) errno = EIO;
    return failed ? -1 : written;
}

int __wrap_ftruncate(int fd, off_t size) {
    struct stat info;
    int node = tape.on && fstat(fd, &info) == 0 ? node_of(&info) : -1;
    if (node >= 0) add(CUT, node)->size = (size_t)size;
    return __real_ftruncate(fd, size);
}

/* Nobody pulls the plug of the test itself: nothing needs to reach a disk. */
int __wrap_fsync(int fd) {
    struct stat info;
    errno = EIO;
    if (fails()) return -1;
    int node = tape.on && fstat(fd, &info) == 0 ? node_of(&info) : -1;
    if (node >= 0) add(SYNC, node);
    return 0;
}

int __wrap_fdatasync(int fd) { return __wrap_fsync(fd); }

int __wrap_rename(const char *from, const char *to) {
    errno = EIO;
    if (fails()) return -1;
    forget(node_at(to));
    int result = __real_rename(from, to);
    assert_int_equal(parent_of(from), parent_of(to));
    if (result == 0) add_name(RENAME, from, to, node_at(to));
    return result;
}

static int remove_as(const char *path, int (*real)(const char *)) {
    int node = node_at(path), result = real(path);
    if (result == 0) add_name(REMOVE, path, NULL, node), forget(node);
    return result;
}

int __wrap_rmdir(const char *path) { return remove_as(path, __real_rmdir); }
int __wrap_unlink(const char *path) { return remove_as(path, __real_unlink); }

int __wrap_unlinkat(int dir, const char *name, int flags) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    ssize_t length = readlink(link, path, sizeof path - 64);
    assert_true(length > 0 && flags == 0);
    snprintf(path + length, 64, "/%s", name);
    return __wrap_unlink(path);
}

/* ---- what a file system may show ------------------------------------------------------------------------------------------- */

int tape_outcomes(const change *c) { return c->kind == WRITE ? OUTCOMES : LOST + 1; }

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static size_t file_bytes(const world *w, int node, char bytes[FILE_BYTES]) {
    size_t size = 0;
    memset(bytes, 0, FILE_BYTES);
    for (int i = 0; i < w->moment; i++) {
        const change *c = &tape.changes[i];
        if (c->node != node || w->what[i] == LOST) continue;
        if (c->kind == CUT) {
            memset(bytes + c->size, 0, FILE_BYTES - c->size);
            size = c->size;
        } else if (c->kind == WRITE) {
            const size_t parts[] = {c->size, 0, c->size, c->size / 2};
            if (w->what[i] != ZEROS) memcpy(bytes + c->offset, c->bytes, parts[w->what[i]]);
            size = larger(size, c->offset + parts[w->what[i]]);
        }
    }
    return size;
}

typedef struct listed {
    char name[32];
    int node; /* -1: removed */
} listed;

static void set_entry(listed *entries, int *count, const char *name, int node) {
    int i = 0;
    while (i < *count && strcmp(entries[i].name, name) != 0) i++;
    assert_true(i < NAMES);
    if (i == *count) snprintf(entries[(*count)++].name, sizeof entries->name, "%s", name);
    entries[i].node = node;
}

static void build(const world *w, int dir, const char *path) {
    listed entries[NAMES];
    int count = 0;
    for (int i = 0; i < w->moment; i++) {
        const change *c = &tape.changes[i];
        if (c->node != dir || w->what[i] == LOST || c->kind > REMOVE) continue;
        set_entry(entries, &count, c->name, c->kind == NAME ? c->child : -1);
        if (c->kind == RENAME) set_entry(entries, &count, c->to, c->child);
    }
    assert_int_equal(mkdir(path, 0777), 0);
    for (int i = 0; i < count; i++) {
        char inner[PATH_MAX], bytes[FILE_BYTES];
        snprintf(inner, sizeof inner, "%s/%s", path, entries[i].name);
        if (entries[i].node < 0) continue;
        if (tape.node[entries[i].node].is_dir) build(w, entries[i].node, inner);
        else scratch_write(inner, bytes, file_bytes(w, entries[i].node, bytes));
    }
}

void tape_build(const world *w, const char *path) { build(w, 0, path); }

bool tape_is_open(int i, int moment, int ignored) {
    if (tape.changes[i].kind >= SYNC) return false;
    for (int s = i + 1; s < moment; s++)
        if (tape.changes[s].kind == SYNC && tape.changes[s].node == tape.changes[i].node && s != ignored) return false;
    return true;
}

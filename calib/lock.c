#include "calib/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/fault.h"

/* A process, told from every other one: numbers are reused, but not with the same start (clock ticks since boot). */
typedef struct owner {
    char host[65], boot[65];
    long long pid, start;
} owner;

static void read_line(const char *path, char *text, int size) {
    FILE *file = fopen(path, "re");
    text[0] = 0;
    if (!file) return;
    if (!fgets(text, size, file)) text[0] = 0;
    fclose(file);
}

/* Field 22 of /proc/PID/stat, counted behind the name, which may hold anything; -1: no such process, or one that is dead and only
 * waits for its parent to notice. */
static long long start_of(long long pid) {
    char path[64], text[1024];
    long long start;
    char state;
    snprintf(path, sizeof path, "/proc/%lld/stat", pid);
    read_line(path, text, sizeof text);
    const char *behind = strrchr(text, ')');
    if (!behind ||
        sscanf(behind + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %lld", &state,
               &start) != 2)
        return -1;
    return state == 'Z' || state == 'X' ? -1 : start;
}

static owner myself(void) {
    owner me = {.pid = getpid(), .start = start_of(getpid())};
    gethostname(me.host, sizeof me.host - 1);
    read_line("/proc/sys/kernel/random/boot_id", me.boot, sizeof me.boot);
    me.boot[strcspn(me.boot, "\n")] = 0;
    return me;
}

/* A lock without a legible owner is what a process leaves that died while it wrote it. */
static bool read_owner(int fd, owner *who) {
    char text[512] = {0};
    *who = (owner){.pid = -1};
    if (pread(fd, text, sizeof text - 1, 0) <= 0) return false;
    return sscanf(text, "host %64s boot %64s pid %lld start %lld", who->host, who->boot, &who->pid, &who->start) == 4;
}

static ql_status write_owner(const char *path, int fd) {
    owner me = myself();
    char text[512];
    int length =
        snprintf(text, sizeof text, "host %s boot %s pid %lld start %lld\n", me.host, me.boot, me.pid, me.start);
    if (ftruncate(fd, 0) != 0 || ql_fault("write") || pwrite(fd, text, (size_t)length, 0) != length)
        return ql_fail_errno("%s: cannot write", path);
    return QL_OK;
}

/* Asked when flock is ours. */
static ql_status check_dead(const char *path, int fd) {
    owner me = myself(), who;
    if (!read_owner(fd, &who)) return QL_OK;
    bool same_boot = strcmp(who.boot, me.boot) == 0;
    if (same_boot && start_of(who.pid) != who.start) return QL_OK;
    if (!same_boot && strcmp(who.host, me.host) == 0) return QL_OK;
    if (same_boot)
        return ql_fail(QL_DISK, "%s: the directory is in use by process %lld on %s", path, who.pid, who.host);
    return ql_fail(QL_DISK,
                   "%s: the directory was taken by process %lld on %s; if that process is gone, remove this file", path,
                   who.pid, who.host);
}

static ql_status held(const char *path, int fd) {
    owner who;
    if (!read_owner(fd, &who)) return ql_fail(QL_DISK, "%s: the directory is in use by another process", path);
    return ql_fail(QL_DISK, "%s: the directory is in use by process %lld on %s", path, who.pid, who.host);
}

/* The owner before us may have removed the file between our open and our flock: then we hold a file that nobody else sees. */
static bool stands(const char *path, int fd) {
    struct stat named, opened;
    return stat(path, &named) == 0 && fstat(fd, &opened) == 0 && named.st_ino == opened.st_ino &&
           named.st_dev == opened.st_dev;
}

ql_status lock_take(const char *path, int *out) {
    *out = -1;
    for (;;) {
        int fd = ql_fault("open") ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (fd < 0) return ql_fail_errno("%s: cannot open", path);
        /* A file system without flock is left to the names alone. */
        bool taken = flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
        ql_status status = !taken ? held(path, fd) : stands(path, fd) ? check_dead(path, fd) : QL_OK;
        if (taken && status == QL_OK && stands(path, fd)) {
            status = write_owner(path, fd);
            if (status == QL_OK) {
                *out = fd;
                return QL_OK;
            }
        }
        close(fd);
        if (status != QL_OK) return status;
    }
}

void lock_release(const char *path, int fd) {
    if (fd < 0) return;
    unlink(path); /* before flock goes: a taker that opened this file sees that it no longer stands */
    close(fd);
}

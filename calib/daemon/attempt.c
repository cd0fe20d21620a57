#include "calib/daemon/attempt.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "formats/json.h"
#include "host/file.h"

enum { EXIT_MOST = 1 << 16, EXIT_ROOM = 1 << 13, KEPT_AT_THE_END = 2, KEPT_AT_THE_START = 2, SEGMENT_RECORD_SIZE = 24 };

static void path_of(char path[ATTEMPT_PATH], const char *dir, const char *name) {
    snprintf(path, ATTEMPT_PATH, "%s/%s", dir, name);
}

/* ---- the end --------------------------------------------------------------------------------------------------------------- */

void attempt_reserve_room(const char *dir) {
    char path[ATTEMPT_PATH];
    path_of(path, dir, "exit.room");
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return;
    if (fallocate(fd, 0, 0, EXIT_ROOM) != 0) errno = 0; /* then it is luck */
    close(fd);
}

void attempt_release_room(const char *dir) {
    char path[ATTEMPT_PATH];
    path_of(path, dir, "exit.room");
    unlink(path);
}

ql_status attempt_write_exit(const char *dir, const attempt_exit *e) {
    char path[ATTEMPT_PATH];
    path_of(path, dir, "exit.json");
    json_t *d = json_pack("{s:i, s:i, s:s, s:I, s:b, s:b, s:b, s:I, s:f}", "exit_code", e->end.exit_code, "signal",
                          e->end.signal, "reason", e->reason, "steps_done", (json_int_t)e->steps_done, "hung", e->hung,
                          "out_of_memory", e->end.out_of_memory, "log_lost", e->log_lost, "peak_bytes",
                          (json_int_t)e->peak_bytes, "seconds", e->seconds);
    if (!d) return ql_fail(QL_NOMEM, "%s: no memory", path);
    ql_status status = ql_json_save(d, path);
    json_decref(d);
    return status;
}

/* A full disk and a full quota, in the words of the C library. */
static bool says_no_space(const char *reason) {
    return strstr(reason, "No space left on device") || strstr(reason, "Disk quota exceeded") ||
           strstr(reason, "cannot reserve");
}

ql_status attempt_read_exit(const char *dir, attempt_exit *e) {
    char path[ATTEMPT_PATH];
    const char *reason = "";
    int64_t code = -1, number = 0;
    json_t *d;
    *e = (attempt_exit){.end = {.exit_code = -1}};
    path_of(path, dir, "exit.json");
    QL_TRY(ql_json_load(path, EXIT_MOST, &d));
    ql_status status = ql_json_int(d, path, "exit_code", -1, 255, &code);
    if (status == QL_OK) status = ql_json_int(d, path, "signal", 0, 128, &number);
    if (status == QL_OK) status = ql_json_string(d, path, "reason", &reason);
    if (status == QL_OK) status = ql_json_int(d, path, "steps_done", 0, INT64_MAX, &e->steps_done);
    if (status == QL_OK) status = ql_json_bool(d, path, "out_of_memory", &e->end.out_of_memory);
    if (status == QL_OK) status = ql_json_bool(d, path, "hung", &e->hung);
    if (status == QL_OK) status = ql_json_bool_or(d, path, "log_lost", &e->log_lost);
    if (status == QL_OK) status = ql_json_int(d, path, "peak_bytes", 0, INT64_MAX, &e->peak_bytes);
    if (status == QL_OK) status = ql_json_real(d, path, "seconds", 0, 1e12, &e->seconds);
    snprintf(e->reason, sizeof e->reason, "%s", reason);
    e->end.exit_code = (int)code;
    e->end.signal = (int)number;
    e->end.no_space = (code == 73 || code == 74) && says_no_space(e->reason);
    json_decref(d);
    return status;
}

/* ---- the log ---------------------------------------------------------------------------------------------------------------- */

/* log.start holds the size of a segment: what a number stands for. */
static void segment_path(char path[ATTEMPT_PATH], const char *dir, int64_t number) {
    snprintf(path, ATTEMPT_PATH, "%s/log.%04lld", dir, (long long)number);
}

void log_open(log_writer *log, const char *dir, int64_t limit_bytes) {
    char path[ATTEMPT_PATH], text[SEGMENT_RECORD_SIZE];
    *log = (log_writer){.segment_bytes = limit_bytes / 4 > 4096 ? limit_bytes / 4 : 4096, .fd = -1};
    snprintf(log->dir, sizeof log->dir, "%s", dir);
    path_of(path, dir, "log.start");
    int length = snprintf(text, sizeof text, "%lld\n", (long long)log->segment_bytes);
    log->failed = ql_file_save(path, text, (size_t)length) != QL_OK;
}

static void next_segment(log_writer *log) {
    char path[ATTEMPT_PATH];
    int64_t number = log->position / log->segment_bytes;
    if (log->fd >= 0) close(log->fd);
    segment_path(path, log->dir, number);
    log->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    log->failed = log->fd < 0;
    if (number - KEPT_AT_THE_END < KEPT_AT_THE_START) return;
    segment_path(path, log->dir, number - KEPT_AT_THE_END);
    unlink(path); /* one that stays takes room and harms nobody */
}

/* There is no room: the log gives back what it took last, so that those who must write can. */
static void give_up(log_writer *log) {
    char path[ATTEMPT_PATH];
    int64_t number = log->position / log->segment_bytes;
    log->failed = true;
    log_close(log);
    for (int64_t i = number; i >= 0 && i > number - 2; i--) {
        segment_path(path, log->dir, i);
        unlink(path);
    }
}

void log_write(log_writer *log, const void *data, size_t size) {
    const char *at = data;
    while (size > 0 && !log->failed) {
        int64_t room = log->segment_bytes - log->position % log->segment_bytes;
        size_t part = (int64_t)size < room ? size : (size_t)room;
        if (log->fd < 0 || log->position % log->segment_bytes == 0) next_segment(log);
        if (log->failed) give_up(log);
        if (log->failed) return;
        ssize_t written = write(log->fd, at, part);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) {
            give_up(log);
            return;
        }
        at += written;
        size -= (size_t)written;
        log->position += written;
    }
}

void log_close(log_writer *log) {
    if (log->fd >= 0) close(log->fd);
    log->fd = -1;
}

static int64_t segment_size(const char *dir) {
    char path[ATTEMPT_PATH], text[SEGMENT_RECORD_SIZE] = {0};
    path_of(path, dir, "log.start");
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return 0;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    long long size = got > 0 ? strtoll(text, NULL, 10) : 0;
    return size > 0 ? size : 0;
}

/* The smallest kept segment from `least` on, and the largest; -1: none. */
static void find_segments(const char *dir, int64_t least, int64_t *first, int64_t *last) {
    *first = *last = -1;
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *entry; (entry = readdir(d));) {
        char *end;
        if (strncmp(entry->d_name, "log.", 4) != 0) continue;
        long long number = strtoll(entry->d_name + 4, &end, 10);
        if (*end || end == entry->d_name + 4) continue;
        if (number > *last) *last = number;
        if (number >= least && (*first < 0 || number < *first)) *first = number;
    }
    closedir(d);
}

int64_t log_end(const char *dir) {
    char path[ATTEMPT_PATH];
    struct stat info;
    int64_t size = segment_size(dir), first, last;
    if (size == 0) return 0;
    find_segments(dir, 0, &first, &last);
    if (last < 0) return 0;
    segment_path(path, dir, last);
    return last * size + (stat(path, &info) == 0 ? (int64_t)info.st_size : 0);
}

ql_status log_read(const char *dir, int64_t *position, char *data, size_t room, size_t *size) {
    char path[ATTEMPT_PATH];
    int64_t segment = segment_size(dir), first, last;
    *size = 0;
    if (segment == 0) return QL_OK;
    find_segments(dir, *position / segment, &first, &last);
    if (first < 0) return QL_OK;
    if (first * segment > *position) *position = first * segment; /* what lay between is no longer kept */
    segment_path(path, dir, first);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return errno == ENOENT ? QL_OK : ql_fail_errno("%s: cannot open", path);
    ssize_t got = pread(fd, data, room, *position % segment);
    ql_status status = got < 0 ? ql_fail_errno("%s: cannot read", path) : QL_OK;
    if (got > 0) *size = (size_t)got;
    if (got > 0) *position += got;
    close(fd);
    return status;
}

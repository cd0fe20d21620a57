#include "calib/daemon/events.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "formats/json.h"

enum { READ_MOST = 1 << 16 };

/* A line that its writer did not finish must not swallow the next one. */
static bool ends_in_a_line(int fd) {
    struct stat info;
    char last = 0;
    if (fstat(fd, &info) != 0 || info.st_size == 0) return true;
    return pread(fd, &last, 1, info.st_size - 1) == 1 && last == '\n';
}

void events_append(const char *path, const json_t *event) {
    char *text;
    if (!event || ql_json_text(event, JSON_COMPACT, &text) != QL_OK) return;
    size_t length = strlen(text);
    char *line = ql_malloc(length + 2); /* a line end on either side */
    ;
    int fd = line ? open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666) : -1;
    if (fd >= 0) {
        size_t used = 0;
        if (!ends_in_a_line(fd)) line[used++] = '\n';
        memcpy(line + used, text, length);
        used += length;
        line[used++] = '\n';
        if (write(fd, line, used) < 0) errno = 0; /* one write, so that two writers do not mix */
        close(fd);
    }
    ql_mfree(line);
    ql_mfree(text);
}

int64_t events_end(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 ? (int64_t)info.st_size : 0;
}

static ql_status take_line(json_t *events, const char *line, size_t length, int64_t seq) {
    json_t *event;
    ql_status status = ql_json_parse("event", line, length, &event);
    if (status == QL_NOMEM) return status;
    if (status != QL_OK) return QL_OK;
    bool taken = json_object_set_new(event, "seq", json_integer(seq)) == 0 && json_array_append(events, event) == 0;
    json_decref(event);
    return taken ? QL_OK : ql_fail(QL_NOMEM, "no memory for events");
}

static ql_status take_lines(json_t *events, const char *text, size_t size, int64_t *next) {
    const char *line = text, *end = text + size;
    for (const char *stop; (stop = memchr(line, '\n', (size_t)(end - line))); line = stop + 1) {
        *next += stop + 1 - line;
        if (stop > line) QL_TRY(take_line(events, line, (size_t)(stop - line), *next));
    }
    if (line == text && size == READ_MOST) *next += READ_MOST; /* no event is that long */
    return QL_OK;
}

ql_status events_read(const char *path, int64_t after, json_t **events, int64_t *next) {
    *next = after;
    *events = json_array();
    char *text = ql_malloc(READ_MOST);
    ql_status status = *events && text ? QL_OK : ql_fail(QL_NOMEM, "no memory for events");
    int fd = status == QL_OK ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    if (status == QL_OK && fd < 0 && errno != ENOENT) status = ql_fail_errno("%s: cannot open", path);
    if (fd >= 0) {
        ssize_t got = pread(fd, text, READ_MOST, after);
        if (got < 0) status = ql_fail_errno("%s: cannot read", path);
        else status = take_lines(*events, text, (size_t)got, next);
        close(fd);
    }
    ql_mfree(text);
    if (status != QL_OK) {
        json_decref(*events);
        *events = NULL;
    }
    return status;
}

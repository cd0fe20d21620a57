#include "host/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static bool json_lines;
static atomic_bool over_line; /* the watchdog of ranks speaks beside the main thread */
static ql_level least_level = QL_INFO;
static const char *const level_name[] = {"debug", "info", "warning", "error"};

void ql_log_open(bool json, ql_level least) {
    json_lines = json;
    least_level = least;
}

bool ql_log_is_json(void) { return json_lines; }

void ql_log_over_line(bool redrawn) { over_line = redrawn; }

/* One write per line, so that lines of several processes do not mix. */
static void put_line(const char *line, size_t length) {
    while (length > 0) {
        ssize_t written = write(STDERR_FILENO, line, length);
        if (written <= 0) return;
        line += written;
        length -= (size_t)written;
    }
}

static void escape_json(const char *text, char *out, size_t size) {
    size_t used = 0;
    for (; *text && used + 7 < size; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            out[used++] = '\\';
            out[used++] = (char)c;
        } else if (c < 0x20) {
            used += (size_t)snprintf(out + used, size - used, "\\u%04x", c);
        } else {
            out[used++] = (char)c;
        }
    }
    out[used] = 0;
}

void ql_log(ql_level level, const char *format, ...) {
    if (level < least_level) return;
    char message[3000], line[7000];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    int length;
    if (json_lines) {
        char escaped[6400], stamp[32];
        time_t now = time(NULL);
        struct tm utc;
        gmtime_r(&now, &utc);
        strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &utc);
        escape_json(message, escaped, sizeof escaped);
        length = snprintf(line, sizeof line, "{\"ts\":\"%s\",\"level\":\"%s\",\"message\":\"%s\"}\n", stamp,
                          level_name[level], escaped);
    } else if (level == QL_INFO) {
        length = snprintf(line, sizeof line, "%s\n", message);
    } else {
        length = snprintf(line, sizeof line, "qalib: %s: %s\n", level_name[level], message);
    }
    static const char erase[] = "\r\033[K";
    if (over_line) put_line(erase, sizeof erase - 1);
    over_line = false;
    if (length > 0) put_line(line, (size_t)length < sizeof line ? (size_t)length : sizeof line - 1);
}

#include "host/status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { SENTENCE_SIZE = 2048 };
static _Thread_local char sentence[SENTENCE_SIZE];

static const struct {
    const char *name, *text;
    int exit_code;
} table[] = {
#define ROW(name, code, text) [name] = {#name, text, code},
    QL_STATUSES(ROW)
#undef ROW
};

static int known(ql_status status) { return (size_t)status < sizeof table / sizeof table[0]; }

const char *ql_status_name(ql_status status) { return known(status) ? table[status].name : "QL_?"; }
const char *ql_status_text(ql_status status) { return known(status) ? table[status].text : "unknown status"; }
int ql_status_exit_code(ql_status status) { return known(status) ? table[status].exit_code : 70; }
const char *ql_last_error(void) { return sentence; }
const char *ql_version(void) { return QL_VERSION; }

/* Names and paths come from files: their control bytes must not reach a terminal or a log. */
static void escape_controls(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = '?';
}

ql_status ql_fail(ql_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    escape_controls(sentence);
    return status;
}

ql_status ql_fail_errno(const char *format, ...) {
    int error = errno;
    va_list args;
    va_start(args, format);
    int length = vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    if (length >= 0 && length < SENTENCE_SIZE)
        snprintf(sentence + length, sizeof sentence - (size_t)length, ": %s", strerror(error));
    escape_controls(sentence);
    switch (error) {
    case ENOENT:
    case ENOTDIR: return QL_MISSING;
    case EACCES:
    case EPERM: return QL_DENIED;
    case ENOSPC:
    case EDQUOT:
    case EEXIST:
    case EROFS:
    case ENAMETOOLONG: return QL_DISK;
    case ENOMEM: return QL_NOMEM;
    default: return QL_IO;
    }
}

ql_status ql_context(ql_status status, const char *format, ...) {
    if (status == QL_OK) return QL_OK;
    char old[SENTENCE_SIZE];
    memcpy(old, sentence, sizeof old);
    va_list args;
    va_start(args, format);
    int length = vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    if (length >= 0 && length < SENTENCE_SIZE)
        snprintf(sentence + length, sizeof sentence - (size_t)length, ": %s", old);
    escape_controls(sentence);
    return status;
}

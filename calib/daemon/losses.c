#include "calib/daemon/losses.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "calib/daemon/events.h"
#include "calib/daemon/job.h"
#include "formats/json.h"

enum { READ_MOST = 1 << 18, CHECKSUM = 9 /* eight digits and a blank */ };

static const char *value_of(char *const words[], const char *option) {
    size_t length = strlen(option);
    for (; *words; words++)
        if (strncmp(*words, option, length) == 0) return *words + length;
    return NULL;
}

/* OUT.work or --work, and beneath it a directory per scheme: as qalib quantize chooses them. */
void losses_open(losses *l, char *const words[]) {
    const char *output = value_of(words, "--output="), *work = value_of(words, "--work="),
               *scheme = value_of(words, "--scheme=");
    char base[ATTEMPT_PATH - 128];
    *l = (losses){.count = 0};
    if (!output) return;
    snprintf(base, sizeof base, "%s%s", work ? work : output, work ? "" : ".work");
    for (const char *name = scheme ? scheme : ""; l->count < MOST_JOURNALS;) {
        int length = (int)strcspn(name, ",");
        snprintf(l->journal[l->count].scheme, sizeof l->journal[0].scheme, "%.*s", length, name);
        snprintf(l->journal[l->count].path, ATTEMPT_PATH, "%s%s%.*s/journal.jsonl", base, length ? "/" : "",
                 length < 64 ? length : 64, name);
        l->count++;
        if (!name[length]) return;
        name += length + 1;
    }
}

static json_t *event_of(const json_t *line, const char *scheme) {
    double relative = 0, loss = 0, rtn = 0;
    size_t i, modules = 0;
    json_t *module;
    char ts[JOB_TIME_SIZE];
    json_array_foreach(json_object_get(line, "record"), i, module) {
        if (!json_object_get(module, "method")) continue;
        relative += json_number_value(json_object_get(module, "relative_error"));
        loss += json_number_value(json_object_get(module, "loss"));
        rtn += json_number_value(json_object_get(module, "rtn_loss"));
        modules++;
    }
    job_now(ts);
    return json_pack("{s:s, s:s, s:s, s:I, s:f, s:f}", "type", "layer", "ts", ts, "scheme", scheme, "layer",
                     json_integer_value(json_object_get(line, "layer")), "relative_error",
                     modules ? relative / (double)modules : 0.0, "loss_over_rtn", rtn > 0 ? loss / rtn : 1.0);
}

static void tell_line(const char *text, size_t size, const char *scheme, const char *events) {
    json_t *line;
    if (size <= CHECKSUM || ql_json_parse("journal", text + CHECKSUM, size - CHECKSUM, &line) != QL_OK) return;
    const char *kind = json_string_value(json_object_get(line, "event"));
    if (kind && strcmp(kind, "layer") == 0 && json_is_array(json_object_get(line, "record"))) {
        json_t *event = event_of(line, scheme);
        events_append(events, event);
        json_decref(event);
    }
    json_decref(line);
}

void losses_tell(losses *l, const char *events) {
    char *text = ql_malloc(READ_MOST);
    for (int i = 0; text && i < l->count; i++) {
        int fd = open(l->journal[i].path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        ssize_t got = fd >= 0 ? pread(fd, text, READ_MOST, l->journal[i].offset) : 0;
        if (fd >= 0) close(fd);
        const char *line = text;
        for (const char *end; got > 0 && (end = memchr(line, '\n', (size_t)(text + got - line))); line = end + 1)
            tell_line(line, (size_t)(end - line), l->journal[i].scheme, events);
        l->journal[i].offset += line - text;
    }
    ql_mfree(text);
}

#include "calib/daemon/job.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "formats/json.h"

static const char digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

void job_free(job *j) {
    json_decref(j->plan);
    json_decref(j->spec);
    j->plan = j->spec = NULL;
}

/* Bytes of the character at `c`; 0: it is none. */
static size_t character(const unsigned char *c) {
    size_t length = c[0] < 0x80                   ? 1
                    : c[0] >= 0xc2 && c[0] < 0xe0 ? 2
                    : (c[0] & 0xf0) == 0xe0       ? 3
                    : c[0] >= 0xf0 && c[0] < 0xf5 ? 4
                                                  : 0;
    for (size_t i = 1; i < length; i++)
        if ((c[i] & 0xc0) != 0x80) return 0;
    if ((c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f)) return 0; /* overlong; surrogates */
    if ((c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f)) return 0; /* overlong; beyond Unicode */
    return length;
}

void job_set_reason(job *j, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(j->reason, sizeof j->reason, format, args);
    va_end(args);
    for (unsigned char *c = (unsigned char *)j->reason; *c;) {
        size_t length = *c < 0x20 || *c == 0x7f ? 0 : character(c);
        if (length == 0) *c = '?';
        c += length ? length : 1;
    }
}

/* ---- identity ------------------------------------------------------------------------------------------------------------ */

/* One more, as a number of base 32; past the last there is none. */
static bool increment(char id[JOB_ID_LENGTH + 1]) {
    for (int i = JOB_ID_LENGTH; i-- > 0;) {
        const char *digit = strchr(digits, id[i]);
        if (digit[1]) {
            id[i] = digit[1];
            return true;
        }
        id[i] = '0';
    }
    return false;
}

ql_status job_make_id(const char *after, char id[JOB_ID_LENGTH + 1]) {
    unsigned char random[16];
    struct timespec now;
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) return ql_fail_errno("no random numbers");
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    for (int i = 10; i-- > 0; ms >>= 5) id[i] = digits[ms & 31];
    for (int i = 0; i < 16; i++) id[10 + i] = digits[random[i] & 31];
    id[JOB_ID_LENGTH] = 0;
    if (job_is_id(after) && strcmp(id, after) <= 0) {
        memcpy(id, after, JOB_ID_LENGTH + 1);
        if (!increment(id)) return ql_fail(QL_INTERNAL, "the job ids are used up; remove job %s", after);
    }
    return QL_OK;
}

bool job_is_id(const char *text) {
    return strlen(text) == JOB_ID_LENGTH && strspn(text, digits) == JOB_ID_LENGTH && text[0] <= '7';
}

void job_now(char text[JOB_TIME_SIZE]) {
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t used = strftime(text, JOB_TIME_SIZE, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text + used, JOB_TIME_SIZE - used, ".%03ldZ", now.tv_nsec / 1000000);
}

/* ---- the record ---------------------------------------------------------------------------------------------------------- */

ql_status job_show(const job *j, json_t **out) {
    *out = json_pack("{s:i, s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:I, s:I, s:s, s:s, s:O?, s:O?}", "version", 1, "id",
                     j->id, "state", job_state_name(j->state), "rev", (json_int_t)j->rev, "attempt",
                     (json_int_t)j->attempt, "priority", (json_int_t)j->priority, "created", j->created, "changed",
                     j->changed, "stuck", (json_int_t)j->stuck, "steps_done", (json_int_t)j->steps_done, "reason",
                     j->reason, "gpus", j->gpus, "plan", j->plan, "spec", j->spec);
    json_t *code = j->exit_code < 0 ? json_null() : json_integer(j->exit_code);
    json_t *key = j->key[0] ? json_string(j->key) : json_null();
    bool whole = *out && json_object_set_new(*out, "exit_code", code) == 0;
    whole = *out ? json_object_set_new(*out, "key", key) == 0 && whole : false;
    if (whole) return QL_OK;
    if (!*out) json_decref(code), json_decref(key);
    json_decref(*out);
    *out = NULL;
    return ql_fail(QL_NOMEM, "job %s: no memory", j->id);
}

ql_status job_to_json(const job *j, json_t **out) {
    QL_TRY(job_show(j, out));
    if (json_object_set_new(*out, "body_sha256", json_string(j->body_sha256)) == 0) return QL_OK;
    json_decref(*out);
    *out = NULL;
    return ql_fail(QL_NOMEM, "job %s: no memory", j->id);
}

static ql_status take_text(const json_t *document, const char *place, const char *key, char *text, size_t size) {
    const char *value = "";
    QL_TRY(ql_json_string_or(document, place, key, &value));
    if (strlen(value) >= size) return ql_fail(QL_FORMAT, "%s: \"%s\" has %zu bytes", place, key, strlen(value));
    strcpy(text, value);
    return QL_OK;
}

static ql_status take_numbers(const json_t *d, const char *place, job *j) {
    int64_t version, code = -1;
    QL_TRY(ql_json_int(d, place, "version", 1, 1, &version));
    QL_TRY(ql_json_int(d, place, "rev", 0, INT64_MAX, &j->rev));
    QL_TRY(ql_json_int(d, place, "attempt", 0, INT32_MAX, &j->attempt));
    QL_TRY(ql_json_int(d, place, "priority", -100, 100, &j->priority));
    QL_TRY(ql_json_int(d, place, "stuck", 0, INT32_MAX, &j->stuck));
    QL_TRY(ql_json_int(d, place, "steps_done", 0, INT64_MAX, &j->steps_done));
    QL_TRY(ql_json_int_or(d, place, "exit_code", -1, 255, &code));
    j->exit_code = (int)code;
    return QL_OK;
}

ql_status job_from_json(const json_t *d, const char *place, job *j) {
    const char *state;
    *j = (job){.exit_code = -1};
    QL_TRY(take_text(d, place, "id", j->id, sizeof j->id));
    QL_TRY(take_text(d, place, "created", j->created, sizeof j->created));
    QL_TRY(take_text(d, place, "changed", j->changed, sizeof j->changed));
    QL_TRY(take_text(d, place, "reason", j->reason, sizeof j->reason));
    QL_TRY(take_text(d, place, "gpus", j->gpus, sizeof j->gpus));
    QL_TRY(take_text(d, place, "key", j->key, sizeof j->key));
    QL_TRY(take_text(d, place, "body_sha256", j->body_sha256, sizeof j->body_sha256));
    QL_TRY(take_numbers(d, place, j));
    QL_TRY(ql_json_string(d, place, "state", &state));
    json_t *plan = json_object_get(d, "plan"), *spec = json_object_get(d, "spec");
    if (!job_is_id(j->id)) return ql_fail(QL_FORMAT, "%s: \"id\" is \"%s\"", place, j->id);
    if (!job_state_find(state, &j->state)) return ql_fail(QL_FORMAT, "%s: \"state\" is \"%s\"", place, state);
    if (!json_is_object(spec))
        return ql_fail(QL_FORMAT, "%s: \"spec\" is %s, expected an object", place, ql_json_type_name(spec));
    j->plan = json_is_object(plan) ? json_incref(plan) : NULL;
    j->spec = json_incref(spec);
    return QL_OK;
}

/* A job's record.  job.json in the job's directory is the truth, written whole at every change:
 *
 *   "version" 1, "id", "state", "rev" (changes so far), "attempt" (workers so far, 0: none yet), "created", "changed" (RFC 3339)
 *   "stuck"   attempts in a row that brought no layer; "steps_done": how far any attempt came, for
 *             comparison with the next (runner.c)
 *   "exit_code", "reason"   of the last end: the worker's code or null, one line
 *   "gpus"    ids of those that its last worker had, "0,2"; "" on the processor
 *   "key", "body_sha256"    Idempotency-Key or null; of the body as it came
 *   "plan"    what `qalib plan` said of it, or null; "spec" as in calib/daemon/spec.h
 */
#ifndef CALIB_DAEMON_JOB_H
#define CALIB_DAEMON_JOB_H

#include <jansson.h>

#include "calib/daemon/state.h"
#include "host/mem.h"

enum { JOB_ID_LENGTH = 26, JOB_KEY_MOST = 128, JOB_TIME_SIZE = 32, JOB_GPUS_SIZE = 320 };

typedef struct job {
    char id[JOB_ID_LENGTH + 1]; /* ULID: sorts by time of creation */
    job_state state;
    int64_t rev, attempt, priority, stuck, steps_done;
    int exit_code; /* -1: none */
    char created[JOB_TIME_SIZE], changed[JOB_TIME_SIZE];
    char key[JOB_KEY_MOST + 1]; /* "": none */
    char body_sha256[65];
    char reason[512];
    char gpus[JOB_GPUS_SIZE]; /* "0,2": ids that it holds or held last; "" on the processor */
    json_t *plan, *spec;      /* NULL: none */
} job;

void job_free(job *j); /* the documents */

/* One line of what anybody wrote: control characters and what is not UTF-8 become '?'. */
void job_set_reason(job *j, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* 26 digits of Crockford's base 32: milliseconds since 1970, then 80 random bits.  Larger than `after` whatever the clock says. */
ql_status job_make_id(const char *after, char id[JOB_ID_LENGTH + 1]);
bool job_is_id(const char *text);

/* "2026-01-31T12:00:00.123Z" */
void job_now(char text[JOB_TIME_SIZE]);

ql_status job_to_json(const job *j, json_t **document);
/* QL_FORMAT names `place` and the field; then nothing is to be freed. */
ql_status job_from_json(const json_t *document, const char *place, job *j);

/* What GET shows: the record without the body's hash. */
ql_status job_show(const job *j, json_t **document);

#endif

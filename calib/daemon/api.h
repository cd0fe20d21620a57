/* The daemon's interface, without the server: a request in, a response out.  The document is openapi.json beside this file.
 *
 *   request q = {.method = "GET", .path = "/v1/jobs"};
 *   response r;
 *   api_answer(d, &q, &r);                 // always an answer
 *   api_free(&r);
 *
 * Errors are problem+json (RFC 9457) with a stable "code", and "exit_code": what the client's command ends with.
 */
#ifndef CALIB_DAEMON_API_H
#define CALIB_DAEMON_API_H

#include "calib/daemon/schedule.h"

typedef struct service {
    const settings *set;
    store *store;
    schedule *schedule;
    bool stopping;                  /* answers, but takes nothing new */
    int64_t requests[6], submitted; /* answers by hundreds of their status, for metrics */
} service;

enum { MOST_ARGUMENTS = 8 };

typedef struct request {
    const char *method, *path; /* without the query */
    struct {
        const char *name, *value;
    } argument[MOST_ARGUMENTS]; /* of the query, decoded */
    int arguments;
    const char *key; /* Idempotency-Key, NULL without */
    const char *body;
    size_t body_size;
    bool waited; /* answer with what there is */
} request;

typedef struct response {
    int status;
    const char *type;
    char *body; /* ql_mfree; NULL: empty */
    size_t size;
    int64_t next;      /* log: where to go on; -1: none */
    char state[16];    /* log: of the job; "" else */
    char location[64]; /* of a new job */
    char wait_path
        [ATTEMPT_PATH]; /* "" or: answer later, when events_end (or log_end, if wait_log) of it is larger than wait_after */
    bool wait_log;
    int64_t wait_after;
    double wait_s;
} response;

void api_answer(service *d, const request *q, response *r);
void api_free(response *r);

/* For what happens before there is a request. */
void api_problem(response *r, int status, const char *code, int exit_code, const char *detail);

/* Prometheus text. */
ql_status metrics_text(service *d, char **text);

#endif

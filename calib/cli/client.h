/* Talking to qalibd: one request per connection over its socket.
 *
 *   json_t *jobs;
 *   QL_TRY(client_json(args, "GET", "/v1/jobs", NULL, NULL, &jobs));       // --socket, or where the daemon of this user is
 *
 * A problem that the daemon reports becomes a failure with its sentence and its exit code.
 */
#ifndef CALIB_CLI_CLIENT_H
#define CALIB_CLI_CLIENT_H

#include <jansson.h>

#include "calib/cli/cli.h"

typedef struct reply {
    int status;
    char *body; /* ends with a 0 byte that is not counted */
    size_t size;
    int64_t next;   /* Qalib-Next-Offset, or -1 */
    char state[16]; /* Qalib-Job-State, or "" */
} reply;

/* QL_DEVICE: nobody listens, or the answer broke off.  QL_INTERRUPTED after a signal.  Any answer is QL_OK.  key, body: NULL without. */
ql_status client_call(const cli *args, const char *method, const char *path, const char *key, const char *body,
                      reply *r);
void reply_free(reply *r);

/* The failure that an answer of 400 and above stands for; QL_OK for the others. */
ql_status client_problem(const reply *r);

/* Both, and the answer's object (json_decref); NULL if it is empty. */
ql_status client_json(const cli *args, const char *method, const char *path, const char *key, const char *body,
                      json_t **document);

/* The first status with that exit code: what a command ends with when a job did. */
ql_status client_status_of(int exit_code);

/* What somebody else wrote, for a terminal: control characters become '?'. */
void client_print(FILE *out, const char *text);

#define CLIENT_OPTIONS                                                                                                 \
    {                                                                                                                  \
        "socket", 's', "PATH", false,                                                                                  \
            "where qalibd listens (default: $XDG_RUNTIME_DIR/qalib/socket, or ~/.local/state/qalib/socket)"            \
    }

#endif

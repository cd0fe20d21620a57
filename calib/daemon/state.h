/* What a job can be, and what it may become: one table, asked before every change.
 *
 *   QUEUED -> STARTING -> RUNNING -> FINALIZING -> SUCCEEDED
 *
 *   STARTING    `qalib plan` says whether it can work here; memory and GPUs are reserved
 *   RUNNING     a worker exists, or existed when the machine died
 *   FINALIZING  the worker ended well; its report is being filed
 *   PAUSING, CANCELLING   asked for; the worker finishes its layer
 *   INTERRUPTED the worker ended too early, and its work can be resumed; then RETRY_WAIT, or QUEUED at once
 *   PAUSED      by somebody, or because the disk is full
 *   SUCCEEDED, FAILED, CANCELLED   the end, unless somebody asks for another try of the last two
 */
#ifndef CALIB_DAEMON_STATE_H
#define CALIB_DAEMON_STATE_H

#include <stdbool.h>
#include <stdint.h>

/* name, what it may become */
#define JOB_STATES(X)                                                                                                  \
    X(QUEUED, TO(STARTING) | TO(PAUSED) | TO(CANCELLED))                                                               \
    X(STARTING, TO(RUNNING) | TO(QUEUED) | TO(PAUSED) | TO(CANCELLED) | TO(FAILED) | TO(RETRY_WAIT))                   \
    X(RUNNING, TO(FINALIZING) | TO(PAUSING) | TO(CANCELLING) | TO(INTERRUPTED) | TO(PAUSED) | TO(FAILED))              \
    X(PAUSING, TO(PAUSED) | TO(FINALIZING) | TO(CANCELLING) | TO(FAILED))                                              \
    X(CANCELLING, TO(CANCELLED) | TO(FINALIZING))                                                                      \
    X(FINALIZING, TO(SUCCEEDED) | TO(FAILED))                                                                          \
    X(INTERRUPTED, TO(RETRY_WAIT) | TO(QUEUED) | TO(PAUSED) | TO(CANCELLED) | TO(FAILED))                              \
    X(RETRY_WAIT, TO(QUEUED) | TO(PAUSED) | TO(CANCELLED))                                                             \
    X(PAUSED, TO(QUEUED) | TO(CANCELLED))                                                                              \
    X(SUCCEEDED, 0)                                                                                                    \
    X(FAILED, TO(QUEUED))                                                                                              \
    X(CANCELLED, TO(QUEUED))

typedef enum job_state {
#define JOB_STATE_ENUM(name, next) JOB_##name,
    JOB_STATES(JOB_STATE_ENUM)
#undef JOB_STATE_ENUM
        JOB_STATE_COUNT
} job_state;

const char *job_state_name(job_state state); /* "QUEUED" */
bool job_state_find(const char *name, job_state *state);

bool job_may_become(job_state from, job_state to);
bool job_is_over(job_state state);    /* SUCCEEDED, FAILED, CANCELLED */
bool job_holds(job_state state);      /* devices and memory: STARTING, RUNNING, PAUSING, CANCELLING */
bool job_has_worker(job_state state); /* RUNNING, PAUSING, CANCELLING */

/* ---- how an attempt ended, and what follows from it ------------------------------------------------------------------------ */

typedef struct attempt_end {
    int exit_code;      /* 0..255, or -1: ended by `signal`, or unknown */
    int signal;         /* 0: none */
    bool no_space;      /* the message says that the disk is full */
    bool out_of_memory; /* the kernel says that it killed it for memory */
} attempt_end;

typedef enum job_verdict {
    VERDICT_DONE,      /* exit code 0 */
    VERDICT_RESUME,    /* a clean stop, or a death: try again, backing off, up to MOST_RETRIES times without progress */
    VERDICT_ONCE_MORE, /* may be bad luck: one more try without progress */
    VERDICT_WAIT_DISK, /* paused until there is space */
    VERDICT_FAIL       /* the same would happen again */
} job_verdict;

enum { MOST_RETRIES = 3 };

job_verdict job_judge(const attempt_end *end);

/* Tries left for that verdict after `stuck` ends in a row that brought nothing? */
bool job_may_retry(job_verdict verdict, int64_t stuck);

/* base * 2^stuck, at most 30 times base, +-20 % by `random` in [0, 1). */
double job_backoff(double base_s, int64_t stuck, double random);

#endif

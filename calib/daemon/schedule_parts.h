/* What the files of the scheduler share. */
#ifndef CALIB_DAEMON_SCHEDULE_PARTS_H
#define CALIB_DAEMON_SCHEDULE_PARTS_H

#include "calib/daemon/launch.h"
#include "calib/daemon/schedule.h"

enum { MOST_RUNS = 64 };

typedef enum run_kind { RUN_PLAN, RUN_WORKER } run_kind;

/* A job that holds something: its plan is being made, or it has a worker. */
typedef struct run {
    char id[JOB_ID_LENGTH + 1];
    run_kind kind;
    pid_t pid;       /* our child: the planner, or the runner; 0: adopted, or reaped */
    int wait_status; /* of a planner that was reaped */
    int scheme;      /* which of the job's is being planned */
    int64_t attempt;
    reservation holds;
    int wish;  /* signal that the runner shall get; 0: none */
    bool told; /* it got it */
    double told_at;
    double failed_at; /* a change that could not be stored is tried again a little later */
} run;

/* Another try of a job in RETRY_WAIT, when the time has come.  The times live in memory: no decision hangs on a wall clock. */
typedef struct retry {
    struct retry *next;
    char id[JOB_ID_LENGTH + 1];
    double due;
} retry;

struct schedule {
    const settings *set;
    store *store;
    devices devices;
    pid_t doctor;
    run runs[MOST_RUNS];
    int n_runs;
    retry *retries;
    bool stopping;
    double next_disk_check, next_look; /* next_look: at the queue, also when nothing seems to have changed */
    schedule_counts counts;
};

double schedule_now(void);

run *schedule_find(schedule *c, const char *id); /* NULL: holds nothing */
void schedule_drop(schedule *c, run *r);         /* releases; other runs may move in memory */

/* schedule_start.c */
void schedule_start_some(schedule *c);
void schedule_take_plan(schedule *c, run *r); /* its planner ended */
uint64_t schedule_memory(const job *j);       /* of the host, as far as it is planned */
/* schedule_end.c */
void schedule_look_after(schedule *c, run *r); /* a worker: delivers wishes, files its end */
ql_status schedule_wait_retry(schedule *c, job *j);
void schedule_retry_due(schedule *c);
void schedule_check_disks(schedule *c);

#endif

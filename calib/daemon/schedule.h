/* Who works when: queued jobs become processes, ended processes become results.
 *
 * A job goes to the front by priority, then by age.  It starts when GPUs or a place on the processor are free and `qalib plan`,
 * run as a child, has said that it can work and how much memory it takes.  One that must wait keeps what it waits for from
 * those behind it, so that large jobs do not starve; jobs that need nothing of it may pass.
 *
 * Workers have a parent of their own (calib/daemon/runner.h).  Whether one lives is asked of the lock that it holds, never of process
 * numbers, so a new daemon finds the workers of an old one, and one that is starting is never started twice.
 */
#ifndef CALIB_DAEMON_SCHEDULE_H
#define CALIB_DAEMON_SCHEDULE_H

#include "calib/daemon/devices.h"
#include "calib/daemon/settings.h"
#include "calib/daemon/store.h"

typedef struct schedule schedule;

/* Finds what an earlier daemon left: living workers are adopted, ended ones filed, dead ones queued again. */
ql_status schedule_open(const settings *set, store *s, schedule **out);
void schedule_close(schedule *c); /* workers live on; NULL is allowed */

/* Looks at everything once; the sooner after SIGCHLD the better, else five times a second. */
void schedule_tick(schedule *c);

/* A job came, or may have become possible: the next tick looks at the queue. */
void schedule_wake(schedule *c);
bool schedule_woken(const schedule *c);

/* No more starts; workers are asked to stop at their next layer.  idle: none is left. */
void schedule_stop(schedule *c);
bool schedule_idle(const schedule *c);

const devices *schedule_devices(const schedule *c);

/* What people ask for, of a loaded job.  Asking twice is fine; QL_MISMATCH: a job in that state cannot. */
ql_status schedule_cancel(schedule *c, job *j);
ql_status schedule_pause(schedule *c, job *j);
ql_status schedule_resume(schedule *c, job *j);
ql_status schedule_retry(schedule *c, job *j);

/* What happened since the start, for metrics. */
typedef struct schedule_counts {
    int64_t started, succeeded, failed, cancelled, retried, adopted, orphaned;
    double busy_s; /* of workers that ended */
} schedule_counts;
const schedule_counts *schedule_count(const schedule *c);

#endif

/* What becomes of a job whose worker ended, and what people ask for. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <time.h>
#include <unistd.h>

#include "calib/daemon/attempt.h"
#include "calib/daemon/schedule_parts.h"
#include "calib/daemon/session.h"
#include "formats/json.h"
#include "host/file.h"
#include "host/log.h"

enum { RUNNER_PATIENCE_S = 10 };

static ql_status attempt_path(const schedule *c, const run *r, const char *name, ql_arena *arena, char **path) {
    char below[64];
    snprintf(below, sizeof below, "attempt-%lld/%s", (long long)r->attempt, name);
    return store_path(c->store, r->id, below, arena, path);
}

/* ---- other tries --------------------------------------------------------------------------------------------------------------- */

static double random_fraction(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)(t.tv_nsec / 1000 % 1000) / 1000; /* enough to part jobs that failed together */
}

ql_status schedule_wait_retry(schedule *c, job *j) {
    retry *r = ql_malloc(sizeof *r);
    if (!r) return ql_fail(QL_NOMEM, "no memory for a retry");
    *r = (retry){.next = c->retries};
    memcpy(r->id, j->id, sizeof r->id);
    r->due = schedule_now() + job_backoff(c->set->retry_s, j->stuck - 1, random_fraction());
    c->retries = r;
    return QL_OK;
}

static void queue_again(schedule *c, const char *id) {
    job j;
    if (store_load(c->store, id, &j) != QL_OK) return; /* removed meanwhile */
    if (j.state == JOB_RETRY_WAIT && store_change(c->store, &j, JOB_QUEUED) != QL_OK) {
        ql_log(QL_ERROR, "job %s: %s", id, ql_last_error());
        (void)schedule_wait_retry(c, &j);
    }
    schedule_wake(c);
    job_free(&j);
}

void schedule_retry_due(schedule *c) {
    double now = schedule_now();
    for (retry **link = &c->retries; *link;) {
        retry *r = *link;
        if (r->due > now) {
            link = &r->next;
            continue;
        }
        *link = r->next;
        queue_again(c, r->id);
        ql_mfree(r);
    }
}

typedef struct paused_jobs {
    char id[MOST_RUNS][JOB_ID_LENGTH + 1];
    int count;
} paused_jobs;

static ql_status take_starved(void *context, const index_row *row) {
    paused_jobs *p = context;
    if (strncmp(row->reason, "no space: ", 10) == 0) memcpy(p->id[p->count++], row->id, JOB_ID_LENGTH + 1);
    return QL_OK;
}

/* Jobs that a full disk paused go on when there is room for all that they planned. */
void schedule_check_disks(schedule *c) {
    paused_jobs p = {.count = 0};
    if (index_next(store_index(c->store), JOB_PAUSED, MOST_RUNS, take_starved, &p) != QL_OK) return;
    for (int i = 0; i < p.count; i++) {
        job j;
        uint64_t room = 0;
        if (store_load(c->store, p.id[i], &j) != QL_OK) continue;
        uint64_t need = (uint64_t)json_integer_value(json_object_get(j.plan, "disk_bytes"));
        const char *output = json_string_value(json_object_get(j.spec, "output"));
        if (output && ql_dir_free_bytes(output, &room) == QL_OK && room > need) (void)schedule_resume(c, &j);
        job_free(&j);
    }
}

/* ---- the end of a worker ----------------------------------------------------------------------------------------------------------- */

static void take_exit(schedule *c, const run *r, job *j, attempt_exit *e) {
    ql_arena *arena;
    char *dir;
    *e = (attempt_exit){.end = {.exit_code = -1}};
    snprintf(e->reason, sizeof e->reason, "the worker was killed with its runner, or the machine went down");
    if (ql_arena_open(NULL, &arena) != QL_OK) return;
    bool known = attempt_path(c, r, "", arena, &dir) == QL_OK && attempt_read_exit(dir, e) == QL_OK;
    if (!known) {
        *e = (attempt_exit){.end = {.exit_code = -1}};
        snprintf(e->reason, sizeof e->reason, "the worker was killed with its runner, or the machine went down");
        c->counts.orphaned++;
    }
    ql_arena_close(arena);
    if (e->log_lost) ql_log(QL_WARNING, "job %s: there was no room for all of its log", j->id);
    c->counts.busy_s += e->seconds;
    if (e->steps_done > j->steps_done) j->stuck = 0;
    if (e->steps_done > j->steps_done) j->steps_done = e->steps_done;
    j->exit_code = e->end.exit_code;
    job_set_reason(j, "%s", e->end.exit_code == 0 ? "" : e->reason);
}

static ql_status succeed(schedule *c, job *j) {
    QL_TRY(store_change(c->store, j, JOB_FINALIZING));
    QL_TRY(store_change(c->store, j, JOB_SUCCEEDED));
    c->counts.succeeded++;
    return QL_OK;
}

static ql_status give_up(schedule *c, job *j) {
    c->counts.failed++;
    return store_change(c->store, j, JOB_FAILED);
}

static ql_status try_again(schedule *c, job *j, job_verdict verdict) {
    if (c->stopping) { /* no fault of the job: the next daemon starts it again at once */
        job_set_reason(j, "the daemon stopped");
        return store_change(c->store, j, JOB_INTERRUPTED);
    }
    QL_TRY(store_change(c->store, j, JOB_INTERRUPTED));
    if (!job_may_retry(verdict, j->stuck)) return give_up(c, j);
    j->stuck++;
    c->counts.retried++;
    QL_TRY(store_change(c->store, j, JOB_RETRY_WAIT));
    return schedule_wait_retry(c, j);
}

static ql_status pause_for_space(schedule *c, job *j) {
    char said[sizeof j->reason];
    snprintf(said, sizeof said, "%s", j->reason);
    job_set_reason(j, "no space: %s", said);
    return store_change(c->store, j, JOB_PAUSED);
}

static ql_status file_end(schedule *c, job *j, const attempt_exit *e) {
    job_verdict verdict = job_judge(&e->end);
    if (verdict == VERDICT_DONE) return succeed(c, j);
    if (j->state == JOB_CANCELLING) {
        c->counts.cancelled++;
        return store_change(c->store, j, JOB_CANCELLED);
    }
    if (verdict == VERDICT_FAIL) return give_up(c, j);
    if (j->state == JOB_PAUSING) return store_change(c->store, j, JOB_PAUSED);
    return verdict == VERDICT_WAIT_DISK ? pause_for_space(c, j) : try_again(c, j, verdict);
}

static void take_end(schedule *c, run *r) {
    attempt_exit e;
    job j;
    ql_status status = store_load(c->store, r->id, &j);
    if (status == QL_MISSING) {
        schedule_drop(c, r);
        return;
    }
    if (status == QL_OK) {
        take_exit(c, r, &j, &e);
        status = file_end(c, &j, &e);
        job_free(&j);
    }
    if (status == QL_OK) {
        schedule_drop(c, r);
        return;
    }
    ql_log(QL_ERROR, "job %s: %s", r->id, ql_last_error());
    r->failed_at = schedule_now();
}

/* ---- a living worker ---------------------------------------------------------------------------------------------------------------- */

/* Number of the runner; false while it has not written it. */
static bool read_pid(const schedule *c, const run *r, pid_t *runner) {
    ql_arena *arena;
    char *path;
    json_t *pids = NULL;
    int64_t number = 0;
    if (ql_arena_open(NULL, &arena) != QL_OK) return false;
    bool read = attempt_path(c, r, "runner.json", arena, &path) == QL_OK && ql_json_load(path, 4096, &pids) == QL_OK &&
                ql_json_int(pids, path, "pid", 2, INT32_MAX, &number) == QL_OK;
    json_decref(pids);
    ql_arena_close(arena);
    *runner = (pid_t)number;
    return read;
}

/* The number may belong to another process by now, if the runner of an adopted job died: only one of ours leads its own session. */
static bool is_runner(pid_t pid) { return getsid(pid) == pid; }

static void send_wish(schedule *c, run *r) {
    pid_t runner = r->pid;
    if (runner <= 0 && !read_pid(c, r, &runner)) return;
    int fd = pidfd_open(runner, 0);
    if (fd < 0) return; /* gone: the lock will tell */
    if (is_runner(runner) && pidfd_send_signal(fd, r->wish, NULL, 0) == 0) {
        r->told = true;
        r->told_at = schedule_now();
    }
    close(fd);
}

/* A runner that does not end what it was told to end, or left something behind when it was killed. */
static void clean_up(schedule *c, run *r) {
    const runner_settings *set = &c->set->runner;
    double patience = RUNNER_PATIENCE_S + (r->wish == SIGUSR1 ? set->layer_s : set->grace_s);
    pid_t runner;
    if (!read_pid(c, r, &runner)) return;
    bool gone = kill(runner, 0) != 0 || !is_runner(runner);
    bool late = r->told && schedule_now() - r->told_at > patience;
    if (gone || late) session_kill(runner);
    if (late && !gone) kill(runner, SIGKILL);
}

void schedule_look_after(schedule *c, run *r) {
    ql_arena *arena;
    char *path;
    int fd = -1;
    if (ql_arena_open(NULL, &arena) != QL_OK) return;
    ql_status status = attempt_path(c, r, "runner.lock", arena, &path);
    if (status == QL_OK) status = launch_lock(path, &fd);
    ql_arena_close(arena);
    if (fd >= 0 || status != QL_OK) { /* nobody of it lives; or its directory is gone */
        if (fd >= 0) close(fd);
        take_end(c, r);
        return;
    }
    if (r->wish && !r->told) send_wish(c, r);
    clean_up(c, r);
}

/* ---- what people ask for ---------------------------------------------------------------------------------------------------------------- */

static void stop_planner(schedule *c, const char *id) {
    run *r = schedule_find(c, id);
    if (!r) return;
    if (r->pid > 0) kill(r->pid, SIGKILL); /* reaped by number, whoever that was */
    schedule_drop(c, r);
}

static ql_status tell_worker(schedule *c, job *j, job_state to, int wish) {
    run *r = schedule_find(c, j->id);
    QL_TRY(store_change(c->store, j, to));
    if (!r) return QL_OK;
    r->wish = wish;
    r->told = false;
    send_wish(c, r);
    return QL_OK;
}

ql_status schedule_cancel(schedule *c, job *j) {
    if (j->state == JOB_CANCELLED || j->state == JOB_CANCELLING) return QL_OK;
    if (job_has_worker(j->state)) return tell_worker(c, j, JOB_CANCELLING, SIGTERM);
    bool planning = j->state == JOB_STARTING;
    job_set_reason(j, "cancelled before it ran%s", j->attempt ? " again" : "");
    QL_TRY(store_change(c->store, j, JOB_CANCELLED));
    if (planning) stop_planner(c, j->id);
    c->counts.cancelled++;
    return QL_OK;
}

ql_status schedule_pause(schedule *c, job *j) {
    if (j->state == JOB_PAUSED || j->state == JOB_PAUSING) return QL_OK;
    if (j->state == JOB_RUNNING) return tell_worker(c, j, JOB_PAUSING, SIGUSR1);
    bool planning = j->state == JOB_STARTING;
    job_set_reason(j, "paused");
    QL_TRY(store_change(c->store, j, JOB_PAUSED));
    if (planning) stop_planner(c, j->id);
    return QL_OK;
}

static ql_status queue_fresh(schedule *c, job *j) {
    j->stuck = 0;
    j->reason[0] = 0;
    j->exit_code = -1;
    QL_TRY(store_change(c->store, j, JOB_QUEUED));
    schedule_wake(c);
    return QL_OK;
}

ql_status schedule_resume(schedule *c, job *j) {
    if (j->state != JOB_PAUSED)
        return ql_fail(QL_MISMATCH, "job %s is %s, not paused", j->id, job_state_name(j->state));
    return queue_fresh(c, j);
}

ql_status schedule_retry(schedule *c, job *j) {
    char other[JOB_ID_LENGTH + 1];
    if (j->state == JOB_RETRY_WAIT) return queue_fresh(c, j);
    if (j->state != JOB_FAILED && j->state != JOB_CANCELLED)
        return ql_fail(QL_MISMATCH, "job %s is %s; failed and cancelled jobs can be tried again", j->id,
                       job_state_name(j->state));
    QL_TRY(index_find_output(store_index(c->store), json_string_value(json_object_get(j->spec, "output")), other));
    if (other[0]) return ql_fail(QL_MISMATCH, "job %s writes to the same output now", other);
    json_decref(j->plan);
    j->plan = NULL; /* the machine may be another one */
    return queue_fresh(c, j);
}

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "calib/daemon/schedule_parts.h"
#include "host/log.h"

enum { DISK_CHECK_S = 30, LOOK_S = 5 };

double schedule_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

run *schedule_find(schedule *c, const char *id) {
    for (int i = 0; i < c->n_runs; i++)
        if (strcmp(c->runs[i].id, id) == 0) return &c->runs[i];
    return NULL;
}

void schedule_drop(schedule *c, run *r) {
    devices_release(&c->devices, &r->holds);
    *r = c->runs[--c->n_runs];
    schedule_wake(c);
}

void schedule_wake(schedule *c) { c->next_look = 0; }
bool schedule_woken(const schedule *c) { return c->next_look == 0 && c->devices.known && !c->stopping; }

const devices *schedule_devices(const schedule *c) { return &c->devices; }
const schedule_counts *schedule_count(const schedule *c) { return &c->counts; }
bool schedule_idle(const schedule *c) { return c->n_runs == 0; }

/* ---- devices ---------------------------------------------------------------------------------------------------------------- */

static void start_doctor(schedule *c) {
    static char command[] = "doctor", json[] = "--json";
    char *words[] = {command, json, NULL}, path[4096];
    snprintf(path, sizeof path, "%s/doctor.json", c->set->state_dir);
    launch l = {.program = c->set->engine, .words = words, .out = path, .keep = -1};
    if (launch_start(&l, &c->doctor) == QL_OK) return;
    ql_log(QL_WARNING, "no GPUs: %s", ql_last_error());
    c->doctor = 0;
    c->devices.known = true;
}

/* What adopted workers hold can be told only when the devices are known. */
static void adopt_devices(schedule *c) {
    for (int i = 0; i < c->n_runs; i++) {
        job j;
        if (c->runs[i].kind != RUN_WORKER || store_load(c->store, c->runs[i].id, &j) != QL_OK) continue;
        devices_adopt(&c->devices, j.gpus, schedule_memory(&j), &c->runs[i].holds);
        job_free(&j);
    }
}

static void take_doctor(schedule *c) {
    char path[4096];
    snprintf(path, sizeof path, "%s/doctor.json", c->set->state_dir);
    devices_from_doctor(path, &c->devices);
    ql_log(QL_INFO, "%d GPUs", c->devices.n_gpus);
    c->doctor = 0;
    adopt_devices(c);
}

static ql_status open_devices(schedule *c) {
    c->devices = (devices){.cpu_places = c->set->cpu_jobs, .memory = c->set->memory_bytes};
    if (!c->set->gpus) start_doctor(c);
    else QL_TRY(devices_parse(c->set->gpus, &c->devices));
    if (c->devices.known) adopt_devices(c);
    return QL_OK;
}

/* ---- what an earlier daemon left ---------------------------------------------------------------------------------------------- */

typedef struct found_jobs {
    char id[2 * MOST_RUNS][JOB_ID_LENGTH + 1];
    int count;
} found_jobs;

static ql_status take_id(void *context, const index_row *row) {
    found_jobs *found = context;
    memcpy(found->id[found->count++], row->id, JOB_ID_LENGTH + 1);
    return QL_OK;
}

/* Its worker, alive or not, is looked after like any other from the next tick on; what it was told is told again. */
static void adopt(schedule *c, const job *j) {
    run *r = &c->runs[c->n_runs++];
    *r = (run){.kind = RUN_WORKER, .attempt = j->attempt};
    memcpy(r->id, j->id, sizeof r->id);
    if (j->state == JOB_CANCELLING) r->wish = SIGTERM;
    if (j->state == JOB_PAUSING) r->wish = SIGUSR1;
    c->counts.adopted++;
}

static ql_status reconcile(schedule *c, job *j) {
    switch (j->state) {
    case JOB_STARTING:
    case JOB_INTERRUPTED: return store_change(c->store, j, JOB_QUEUED);
    case JOB_RETRY_WAIT: return schedule_wait_retry(c, j);
    case JOB_FINALIZING: return store_change(c->store, j, JOB_SUCCEEDED);
    default: adopt(c, j); return QL_OK;
    }
}

static ql_status reconcile_state(schedule *c, job_state state) {
    found_jobs found;
    char after[JOB_ID_LENGTH + 1] = "";
    do {
        found.count = 0;
        QL_TRY(index_list(store_index(c->store), state, after, MOST_RUNS, take_id, &found));
        for (int i = 0; i < found.count; i++) {
            job j;
            if (job_has_worker(state) && c->n_runs == MOST_RUNS)
                return ql_fail(QL_INTERNAL, "more than %d workers", MOST_RUNS);
            QL_TRY(store_load(c->store, found.id[i], &j));
            ql_status status = reconcile(c, &j);
            job_free(&j);
            QL_TRY(status);
            memcpy(after, found.id[i], sizeof after);
        }
    } while (found.count == MOST_RUNS);
    return QL_OK;
}

ql_status schedule_open(const settings *set, store *s, schedule **out) {
    static const job_state states[] = {JOB_STARTING, JOB_INTERRUPTED, JOB_RETRY_WAIT, JOB_FINALIZING,
                                       JOB_RUNNING,  JOB_PAUSING,     JOB_CANCELLING};
    *out = NULL;
    schedule *c = ql_malloc(sizeof *c);
    if (!c) return ql_fail(QL_NOMEM, "no memory for the schedule");
    memset(c, 0, sizeof *c);
    c->set = set;
    c->store = s;
    ql_status status = QL_OK;
    for (size_t i = 0; status == QL_OK && i < sizeof states / sizeof states[0]; i++)
        status = reconcile_state(c, states[i]);
    if (status == QL_OK) status = open_devices(c);
    if (status == QL_OK) *out = c;
    else schedule_close(c);
    return status;
}

void schedule_close(schedule *c) {
    if (!c) return;
    for (retry *r = c->retries, *next; r; r = next) {
        next = r->next;
        ql_mfree(r);
    }
    ql_mfree(c);
}

/* ---- the pulse -------------------------------------------------------------------------------------------------------------------- */

static void reap(schedule *c) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid == c->doctor) take_doctor(c);
        for (int i = 0; i < c->n_runs; i++)
            if (c->runs[i].pid == pid) c->runs[i].pid = 0, c->runs[i].wait_status = status;
    }
}

void schedule_tick(schedule *c) {
    double now = schedule_now();
    reap(c);
    for (int i = c->n_runs; i-- > 0;) { /* backwards: a run that ends is replaced by the last one */
        run *r = &c->runs[i];
        if (r->failed_at > 0 && now - r->failed_at < 1) continue;
        if (r->kind == RUN_WORKER) schedule_look_after(c, r);
        else if (r->pid == 0) schedule_take_plan(c, r);
    }
    if (c->stopping) return;
    schedule_retry_due(c);
    if (now >= c->next_disk_check) {
        schedule_check_disks(c);
        c->next_disk_check = now + DISK_CHECK_S;
    }
    if (!c->devices.known || now < c->next_look) return;
    c->next_look = now + LOOK_S;
    schedule_start_some(c);
}

void schedule_stop(schedule *c) {
    c->stopping = true;
    for (int i = 0; i < c->n_runs; i++) {
        run *r = &c->runs[i];
        if (r->kind == RUN_PLAN && r->pid > 0) kill(r->pid, SIGKILL);
        if (r->kind == RUN_WORKER && r->wish == 0) r->wish = SIGUSR1;
    }
}

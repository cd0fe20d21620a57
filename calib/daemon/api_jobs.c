/* Everything under /v1/jobs. */
#include <stdio.h>
#include <string.h>

#include "calib/daemon/api_parts.h"
#include "calib/daemon/events.h"
#include "formats/json.h"
#include "host/file.h"

enum { LIST_USUAL = 100, LIST_MOST = 1000, WAIT_MOST_S = 60, LOG_AT_ONCE = 1 << 18, REPORT_MOST = 64 << 20 };

static void show_job(response *r, int status, const job *j) {
    json_t *document;
    ql_status result = job_show(j, &document);
    if (result == QL_OK) api_json(r, status, document);
    else api_fail(r, result);
}

/* ---- submitting --------------------------------------------------------------------------------------------------------------- */

static ql_status check_key(const char *key) {
    size_t length = key ? strlen(key) : 1;
    if (length >= 1 && length <= JOB_KEY_MOST &&
        (!key || strspn(key, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                             "0123456789-_.:+/=") == length))
        return QL_OK;
    return ql_fail(QL_USAGE, "Idempotency-Key: expected 1 to %d letters, digits or -_.:+/=", JOB_KEY_MOST);
}

static ql_status count_live(service *d, int64_t *live) {
    int64_t count[JOB_STATE_COUNT];
    QL_TRY(index_counts(store_index(d->store), count));
    *live = 0;
    for (job_state s = 0; s < JOB_STATE_COUNT; s++) *live += job_is_over(s) ? 0 : count[s];
    return QL_OK;
}

static void answer_submit(service *d, submit_result result, const job *j, response *r) {
    char detail[128];
    const int exists = ql_status_exit_code(QL_DISK);
    snprintf(r->location, sizeof r->location, "/v1/jobs/%s", j->id);
    switch (result) {
    case SUBMIT_NEW:
        d->submitted++;
        schedule_wake(d->schedule);
        show_job(r, 201, j);
        break;
    case SUBMIT_KNOWN: show_job(r, 200, j); break;
    case SUBMIT_KEY_TAKEN:
        snprintf(detail, sizeof detail, "this Idempotency-Key came with another body before, as job %s", j->id);
        api_problem(r, 409, "key-taken", exists, detail);
        break;
    case SUBMIT_OUTPUT_TAKEN:
        snprintf(detail, sizeof detail, "job %s writes to this output", j->id);
        api_problem(r, 409, "output-taken", exists, detail);
        break;
    }
}

/* What this machine cannot do is said before the job waits its turn. */
static ql_status check_launcher(const service *d, json_t **spec) {
    spec_gpus asked;
    spec_find_gpus(*spec, &asked);
    if (asked.ranks == 1 || d->set->mpirun) return QL_OK;
    json_decref(*spec);
    *spec = NULL;
    return ql_fail(QL_DEVICE,
                   "%d ranks need mpirun, and the daemon found none: install Open MPI, or start qalibd with --mpirun",
                   asked.ranks);
}

void api_submit(service *d, const request *q, const char *id, response *r) {
    submit_result result;
    int64_t live = 0;
    json_t *spec = NULL;
    job j;
    (void)id;
    if (d->stopping) {
        api_problem(r, 503, "stopping", ql_status_exit_code(QL_DEVICE), "the daemon is stopping");
        return;
    }
    ql_status status = check_key(q->key);
    if (status == QL_OK) status = spec_parse(q->body ? q->body : "", q->body_size, &spec);
    if (status == QL_OK) status = check_launcher(d, &spec);
    if (status == QL_OK) status = count_live(d, &live);
    if (status == QL_OK && live >= d->set->live_jobs) {
        api_problem(r, 429, "too-many-jobs", ql_status_exit_code(QL_DISK),
                    "the queue is full; wait, cancel jobs, or start the daemon with a larger --live-jobs");
        json_decref(spec);
        return;
    }
    if (status == QL_OK) status = store_submit(d->store, spec, q->body, q->body_size, q->key, &result, &j);
    json_decref(spec);
    if (status != QL_OK) {
        api_fail(r, status);
        return;
    }
    answer_submit(d, result, &j, r);
    job_free(&j);
}

/* ---- looking ------------------------------------------------------------------------------------------------------------------- */

static ql_status add_row(void *context, const index_row *row) {
    json_t *code = row->exit_code < 0 ? json_null() : json_integer(row->exit_code);
    json_t *line = json_pack("{s:s, s:s, s:I, s:I, s:s, s:s, s:s, s:s, s:s, s:o}", "id", row->id, "state",
                             job_state_name(row->state), "priority", (json_int_t)row->priority, "attempt",
                             (json_int_t)row->attempt, "created", row->created, "changed", row->changed, "model",
                             row->model, "output", row->output, "reason", row->reason, "exit_code", code);
    return line && json_array_append_new(context, line) == 0 ? QL_OK : ql_fail(QL_NOMEM, "no memory for the list");
}

void api_list(service *d, const request *q, const char *id, response *r) {
    const char *name = api_argument(q, "state"), *after = api_argument(q, "after");
    job_state state = JOB_STATE_COUNT;
    int64_t limit = LIST_USUAL;
    json_t *jobs = json_array();
    (void)id;
    ql_status status = jobs ? api_number(q, "limit", 1, LIST_MOST, &limit) : ql_fail(QL_NOMEM, "no memory");
    if (status == QL_OK && name && !job_state_find(name, &state))
        status = ql_fail(QL_USAGE, "request: state=%.40s: there is no such state", name);
    if (status == QL_OK && after && !job_is_id(after))
        status = ql_fail(QL_USAGE, "request: after=%.40s: expected the id of a job", after);
    if (status == QL_OK) status = index_list(store_index(d->store), state, after ? after : "", limit, add_row, jobs);
    if (status != QL_OK) {
        json_decref(jobs);
        api_fail(r, status);
        return;
    }
    /* The next page begins behind the last row; a page that is not full is the last. */
    const json_t *last = (int64_t)json_array_size(jobs) == limit ? json_array_get(jobs, (size_t)limit - 1) : NULL;
    json_t *next = last ? json_incref(json_object_get(last, "id")) : json_null();
    api_json(r, 200, json_pack("{s:o, s:o}", "jobs", jobs, "next", next));
}

/* The job of the path, or the answer that there is none. */
static bool load(service *d, const char *id, job *j, response *r) {
    ql_status status = store_load(d->store, id, j);
    if (status != QL_OK) api_fail(r, status);
    return status == QL_OK;
}

void api_show(service *d, const request *q, const char *id, response *r) {
    job j;
    (void)q;
    if (!load(d, id, &j, r)) return;
    show_job(r, 200, &j);
    job_free(&j);
}

static ql_status wait_for(response *r, const char *path, bool of_log, int64_t after, int64_t seconds) {
    snprintf(r->wait_path, sizeof r->wait_path, "%s", path);
    r->wait_log = of_log;
    r->wait_after = after;
    r->wait_s = (double)seconds;
    return QL_OK;
}

static ql_status answer_events(service *d, const request *q, const job *j, ql_arena *arena, response *r) {
    int64_t after = 0, wait = 0, next;
    char *path;
    json_t *events;
    QL_TRY(api_number(q, "after", 0, INT64_MAX, &after));
    QL_TRY(api_number(q, "wait", 0, WAIT_MOST_S, &wait));
    QL_TRY(store_path(d->store, j->id, "events.jsonl", arena, &path));
    if (wait > 0 && !q->waited && !job_is_over(j->state) && events_end(path) <= after)
        return wait_for(r, path, false, after, wait);
    QL_TRY(events_read(path, after, &events, &next));
    api_json(r, 200,
             json_pack("{s:o, s:I, s:s, s:b}", "events", events, "next", (json_int_t)next, "state",
                       job_state_name(j->state), "over", job_is_over(j->state)));
    return QL_OK;
}

void api_events(service *d, const request *q, const char *id, response *r) {
    ql_arena *arena;
    job j;
    if (!load(d, id, &j, r)) return;
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) {
        status = answer_events(d, q, &j, arena, r);
        ql_arena_close(arena);
    }
    if (status != QL_OK) api_fail(r, status);
    job_free(&j);
}

static ql_status answer_log(service *d, const request *q, const job *j, ql_arena *arena, response *r) {
    int64_t attempt = j->attempt, offset = 0, wait = 0;
    char name[48], *dir;
    QL_TRY(api_number(q, "attempt", 1, j->attempt > 0 ? j->attempt : 1, &attempt));
    QL_TRY(api_number(q, "offset", 0, INT64_MAX, &offset));
    QL_TRY(api_number(q, "wait", 0, WAIT_MOST_S, &wait));
    snprintf(name, sizeof name, "attempt-%lld", (long long)attempt);
    QL_TRY(store_path(d->store, j->id, name, arena, &dir));
    if (wait > 0 && !q->waited && !job_is_over(j->state) && log_end(dir) <= offset)
        return wait_for(r, dir, true, offset, wait);
    r->body = ql_malloc(LOG_AT_ONCE);
    if (!r->body) return ql_fail(QL_NOMEM, "no memory for the log");
    QL_TRY(log_read(dir, &offset, r->body, LOG_AT_ONCE, &r->size));
    r->status = 200;
    r->type = "text/plain; charset=utf-8";
    r->next = offset;
    snprintf(r->state, sizeof r->state, "%s", job_state_name(j->state));
    return QL_OK;
}

void api_log(service *d, const request *q, const char *id, response *r) {
    ql_arena *arena;
    job j;
    if (!load(d, id, &j, r)) return;
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) {
        status = answer_log(d, q, &j, arena, r);
        ql_arena_close(arena);
    }
    if (status != QL_OK) api_fail(r, status);
    job_free(&j);
}

/* What the last worker wrote on stdout when it ended well. */
static ql_status answer_report(service *d, const job *j, ql_arena *arena, response *r) {
    char name[64], *path, *text;
    size_t size;
    snprintf(name, sizeof name, "attempt-%lld/report.json", (long long)j->attempt);
    QL_TRY(store_path(d->store, j->id, name, arena, &path));
    if (!ql_path_exists(path))
        return ql_fail(QL_MISSING, "job %s is %s and has no report", j->id, job_state_name(j->state));
    QL_TRY(ql_file_load(path, REPORT_MOST, arena, &text, &size));
    r->body = ql_malloc(size + 1);
    if (!r->body) return ql_fail(QL_NOMEM, "no memory for the report");
    memcpy(r->body, text, size);
    r->size = size;
    r->status = 200;
    r->type = "application/json";
    return QL_OK;
}

void api_report(service *d, const request *q, const char *id, response *r) {
    ql_arena *arena;
    job j;
    (void)q;
    if (!load(d, id, &j, r)) return;
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) {
        status = answer_report(d, &j, arena, r);
        ql_arena_close(arena);
    }
    if (status != QL_OK) api_fail(r, status);
    job_free(&j);
}

/* ---- changing --------------------------------------------------------------------------------------------------------------------- */

/* A state that forbids it is a conflict, not a bad request. */
static void fail_change(response *r, ql_status status) {
    if (status == QL_MISMATCH) api_problem(r, 409, "wrong-state", ql_status_exit_code(QL_DISK), ql_last_error());
    else api_fail(r, status);
}

void api_act(service *d, const request *q, const char *id, response *r) {
    static const struct {
        const char *name;
        ql_status (*act)(schedule *, job *);
    } acts[] = {{"/cancel", schedule_cancel},
                {"/pause", schedule_pause},
                {"/resume", schedule_resume},
                {"/retry", schedule_retry}};
    const char *name = strrchr(q->path, '/');
    ql_status status = ql_fail(QL_INTERNAL, "no such act");
    job j;
    if (!load(d, id, &j, r)) return;
    for (size_t i = 0; i < sizeof acts / sizeof acts[0]; i++)
        if (strcmp(acts[i].name, name) == 0) status = acts[i].act(d->schedule, &j);
    if (status == QL_OK) show_job(r, 200, &j);
    else fail_change(r, status);
    job_free(&j);
}

void api_remove(service *d, const request *q, const char *id, response *r) {
    (void)q;
    ql_status status = store_remove(d->store, id);
    if (status == QL_OK) r->status = 204;
    else fail_change(r, status);
}

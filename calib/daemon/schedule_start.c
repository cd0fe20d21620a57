/* From the queue to a worker. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calib/daemon/schedule_parts.h"
#include "formats/json.h"
#include "host/file.h"
#include "host/log.h"

enum { LOOKED_AT = 256, PLAN_MOST = 1 << 20 };

/* The plan is that of one rank; each has its own copy of a block. */
uint64_t schedule_memory(const job *j) {
    spec_gpus asked;
    spec_find_gpus(j->spec, &asked);
    return (uint64_t)asked.ranks * (uint64_t)json_integer_value(json_object_get(j->plan, "peak_host_bytes"));
}

/* A change that could not be stored (the disk is full, say) leaves the run; the next tick but some tries it again. */
static void leave(schedule *c, run *r, ql_status status) {
    if (status == QL_OK) schedule_drop(c, r);
    else {
        ql_log(QL_ERROR, "job %s: %s", r->id, ql_last_error());
        r->failed_at = schedule_now();
    }
}

static ql_status recipe_path(const schedule *c, const job *j, ql_arena *arena, char **path) {
    *path = NULL;
    return json_object_get(j->spec, "recipe") ? store_path(c->store, j->id, "recipe.yaml", arena, path) : QL_OK;
}

static ql_status append_words(ql_arena *arena, char ***words, char *const more[]) {
    size_t n = 0, m = 0;
    char **all;
    while ((*words)[n]) n++;
    while (more[m]) m++;
    QL_TRY(ql_take(arena, n + m + 1, sizeof *all, &all));
    memcpy(all, more, m * sizeof *all);
    memcpy(all + m, *words, n * sizeof *all);
    *words = all;
    return QL_OK;
}

/* ---- the plan ----------------------------------------------------------------------------------------------------------------- */

static ql_status plan_words(const schedule *c, const run *r, const job *j, const char *scheme, ql_arena *arena,
                            char ***words) {
    static char command[] = "plan", json[] = "--json", cpu[] = "--device=cpu", cuda[] = "--device=cuda";
    char *memory, *recipe;
    QL_TRY(recipe_path(c, j, arena, &recipe));
    QL_TRY(spec_plan_words(j->spec, recipe, scheme, arena, words));
    QL_TRY(ql_arena_format(arena, &memory, "--max-host-mem=%llu", (unsigned long long)c->devices.memory));
    return append_words(arena, words, (char *[]){command, json, r->holds.on_cpu ? cpu : cuda, memory, NULL});
}

/* Plans the run's scheme; *more is false when there is none left. */
static ql_status start_planner(schedule *c, run *r, const job *j, bool *more) {
    ql_arena *arena;
    char *scheme = NULL, **words, *out, *err, gpus[GPU_LIST_SIZE];
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = spec_scheme(j->spec, r->scheme, arena, &scheme);
    *more = status == QL_OK && scheme;
    if (*more) {
        devices_list(&c->devices, &r->holds, gpus);
        status = plan_words(c, r, j, scheme, arena, &words);
        if (status == QL_OK) status = store_path(c->store, j->id, "plan.json", arena, &out);
        if (status == QL_OK) status = store_path(c->store, j->id, "plan.err", arena, &err);
        if (status == QL_OK)
            status = launch_start(&(launch){.program = c->set->engine,
                                            .words = words,
                                            .out = out,
                                            .err = err,
                                            .visible_gpus = gpus,
                                            .keep = -1},
                                  &r->pid);
    }
    ql_arena_close(arena);
    return status;
}

/* Several outputs of one pass: memory of the largest, disk of all. */
static ql_status add_plan(schedule *c, job *j) {
    ql_arena *arena;
    char *path;
    json_t *one = NULL;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = store_path(c->store, j->id, "plan.json", arena, &path);
    if (status == QL_OK) status = ql_json_load(path, PLAN_MOST, &one);
    int64_t host = 0, device = 0, disk = 0;
    double seconds = 0;
    if (status == QL_OK) status = ql_json_int(one, path, "peak_host_bytes", 0, INT64_MAX, &host);
    if (status == QL_OK) status = ql_json_int(one, path, "peak_device_bytes", 0, INT64_MAX, &device);
    if (status == QL_OK) status = ql_json_int(one, path, "disk_bytes", 0, INT64_MAX, &disk);
    if (status == QL_OK) status = ql_json_real(one, path, "seconds", 0, 1e12, &seconds);
    if (status == QL_OK) {
        int64_t host_before = json_integer_value(json_object_get(j->plan, "peak_host_bytes"));
        int64_t device_before = json_integer_value(json_object_get(j->plan, "peak_device_bytes"));
        disk += json_integer_value(json_object_get(j->plan, "disk_bytes"));
        seconds += json_real_value(json_object_get(j->plan, "seconds"));
        json_t *both =
            json_pack("{s:I, s:I, s:I, s:f}", "peak_host_bytes", (json_int_t)(host > host_before ? host : host_before),
                      "peak_device_bytes", (json_int_t)(device > device_before ? device : device_before), "disk_bytes",
                      (json_int_t)disk, "seconds", seconds);
        json_decref(j->plan);
        j->plan = both;
        if (!both) status = ql_fail(QL_NOMEM, "no memory for a plan");
    }
    json_decref(one);
    ql_arena_close(arena);
    return status;
}

/* The last line that qalib wrote on stderr. */
static void read_complaint(schedule *c, job *j) {
    ql_arena *arena;
    char *path, *text = NULL;
    size_t size = 0;
    if (ql_arena_open(NULL, &arena) != QL_OK) return;
    if (store_path(c->store, j->id, "plan.err", arena, &path) == QL_OK &&
        ql_file_load(path, PLAN_MOST, arena, &text, &size) == QL_OK) {
        while (size > 0 && text[size - 1] == '\n') text[--size] = 0;
        char *line = strrchr(text, '\n');
        job_set_reason(j, "%s", line ? line + 1 : text);
    }
    ql_arena_close(arena);
}

static ql_status refuse(schedule *c, job *j, int wait_status) {
    bool exited = WIFEXITED(wait_status);
    j->exit_code = exited ? WEXITSTATUS(wait_status) : -1;
    read_complaint(c, j);
    if (!exited) job_set_reason(j, "qalib plan was killed by signal %d", WTERMSIG(wait_status));
    if (exited && !j->reason[0]) job_set_reason(j, "%s plan ended with code %d", c->set->engine, j->exit_code);
    if (j->exit_code == 73) { /* plan says that of the disk alone */
        char said[sizeof j->reason];
        snprintf(said, sizeof said, "%s", j->reason);
        job_set_reason(j, "no space: %s", said);
        return store_change(c->store, j, JOB_PAUSED);
    }
    if (exited || !job_may_retry(VERDICT_RESUME, j->stuck)) return store_change(c->store, j, JOB_FAILED);
    j->stuck++;
    QL_TRY(store_change(c->store, j, JOB_RETRY_WAIT));
    return schedule_wait_retry(c, j);
}

/* ---- the worker --------------------------------------------------------------------------------------------------------------- */

/* What only full-precision statistics of rows can use: others pass it by. */
static ql_status cache_words(const settings *set, ql_arena *arena, char ***words) {
    char *dir, *limit;
    if (set->cache_bytes == 0) return QL_OK;
    QL_TRY(ql_arena_format(arena, &dir, "--cache=%s/cache", set->state_dir));
    QL_TRY(ql_arena_format(arena, &limit, "--cache-limit=%llu", (unsigned long long)set->cache_bytes));
    return append_words(arena, words, (char *[]){dir, limit, NULL});
}

/* Before the worker's own: the ranks share what the processor has, so nobody is bound to a part of it. */
static ql_status launcher_words(const settings *set, int ranks, ql_arena *arena, char ***words) {
    static char count[] = "-n", root[] = "--allow-run-as-root", more[] = "--oversubscribe", bind[] = "--bind-to",
                none[] = "none";
    char *mpirun, *number;
    if (ranks == 1) return QL_OK;
    if (!set->mpirun) return ql_fail(QL_DEVICE, "%d ranks need mpirun, and there is none", ranks);
    QL_TRY(ql_arena_string(arena, set->mpirun, &mpirun));
    QL_TRY(ql_arena_format(arena, &number, "%d", ranks));
    return append_words(arena, words, (char *[]){mpirun, root, more, bind, none, count, number, NULL});
}

static ql_status worker_words(const schedule *c, const job *j, bool on_cpu, ql_arena *arena, char ***words) {
    static char command[] = "quantize", json[] = "--json", log[] = "--log-format=json", resume[] = "--resume",
                cpu[] = "--device=cpu", cuda[] = "--device=cuda";
    spec_gpus asked;
    char *recipe, *engine, *dir;
    QL_TRY(recipe_path(c, j, arena, &recipe));
    QL_TRY(spec_quantize_words(j->spec, recipe, arena, words));
    QL_TRY(cache_words(c->set, arena, words));
    QL_TRY(ql_arena_string(arena, c->set->engine, &engine));
    QL_TRY(append_words(arena, words, (char *[]){engine, command, json, log, resume, on_cpu ? cpu : cuda, NULL}));
    spec_find_gpus(j->spec, &asked);
    QL_TRY(launcher_words(c->set, asked.ranks, arena, words));
    QL_TRY(store_path(c->store, j->id, "", arena, &dir));
    return runner_words(&c->set->runner, dir, j->attempt, *words, arena, words);
}

static ql_status make_attempt_dir(const schedule *c, const job *j, ql_arena *arena, char **dir) {
    char name[32];
    snprintf(name, sizeof name, "attempt-%lld", (long long)j->attempt);
    QL_TRY(store_path(c->store, j->id, name, arena, dir));
    if (mkdir(*dir, 0777) != 0 && errno != EEXIST) return ql_fail_errno("%s: cannot create the directory", *dir);
    return QL_OK;
}

/* First the lock, then the word RUNNING, then the process: whoever dies in between, nobody starts a second worker. */
static ql_status start_worker(schedule *c, run *r, job *j, ql_arena *arena) {
    char *dir, *lock, **words, gpus[GPU_LIST_SIZE];
    int fd;
    j->attempt++;
    j->exit_code = -1;
    j->reason[0] = 0;
    devices_list(&c->devices, &r->holds, gpus);
    snprintf(j->gpus, sizeof j->gpus, "%s", gpus);
    QL_TRY(make_attempt_dir(c, j, arena, &dir));
    QL_TRY(worker_words(c, j, r->holds.on_cpu, arena, &words));
    QL_TRY(ql_arena_format(arena, &lock, "%s/runner.lock", dir));
    QL_TRY(launch_lock(lock, &fd));
    if (fd < 0) return ql_fail(QL_DISK, "%s: held by another process", lock);
    ql_status status = store_change(c->store, j, JOB_RUNNING);
    if (status == QL_OK) {
        r->kind = RUN_WORKER;
        r->attempt = j->attempt;
        c->counts.started++;
        launch l = {.program = c->set->self, .words = words, .visible_gpus = gpus, .keep = fd, .detached = true};
        if (launch_start(&l, &r->pid) != QL_OK) /* then nobody holds the lock, and the next tick finds that */
            ql_log(QL_ERROR, "job %s: %s", j->id, ql_last_error());
    }
    close(fd);
    return status;
}

static ql_status go_on(schedule *c, run *r, job *j) {
    bool more = false;
    if (!j->plan || r->scheme > 0) QL_TRY(start_planner(c, r, j, &more));
    if (more) return QL_OK;
    uint64_t memory = schedule_memory(j);
    spec_gpus asked;
    spec_find_gpus(j->spec, &asked);
    devices_release(&c->devices, &r->holds); /* once more, with the memory that is known now */
    if (devices_reserve(&c->devices, &asked, memory, &r->holds) != FIT_NOW) {
        job_set_reason(j, "waits for %llu bytes of memory", (unsigned long long)memory);
        QL_TRY(store_change(c->store, j, JOB_QUEUED));
        schedule_drop(c, r);
        return QL_OK;
    }
    ql_arena *arena;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = start_worker(c, r, j, arena);
    ql_arena_close(arena);
    return status;
}

/* The job is STARTING; what goes wrong between here and its worker ends in FAILED. */
static void go_on_or_fail(schedule *c, run *r, job *j) {
    char id[JOB_ID_LENGTH + 1];
    memcpy(id, r->id, sizeof id);
    ql_status status = go_on(c, r, j);
    if (status == QL_OK) return;
    ql_log(QL_ERROR, "job %s: %s", id, ql_last_error());
    if (j->state != JOB_STARTING) return;
    job_set_reason(j, "%s", ql_last_error());
    j->exit_code = ql_status_exit_code(status);
    leave(c, schedule_find(c, id), store_change(c->store, j, JOB_FAILED));
}

void schedule_take_plan(schedule *c, run *r) {
    job j;
    ql_status status = store_load(c->store, r->id, &j);
    if (status != QL_OK) {
        leave(c, r, status);
        return;
    }
    bool feasible = WIFEXITED(r->wait_status) && WEXITSTATUS(r->wait_status) == 0;
    if (c->stopping) {
        leave(c, r, store_change(c->store, &j, JOB_QUEUED));
    } else if (!feasible || add_plan(c, &j) != QL_OK) {
        if (feasible) job_set_reason(&j, "%s", ql_last_error());
        leave(c, r, refuse(c, &j, r->wait_status));
    } else {
        r->scheme++;
        go_on_or_fail(c, r, &j);
    }
    job_free(&j);
}

/* ---- the queue ------------------------------------------------------------------------------------------------------------------ */

typedef struct front {
    char id[LOOKED_AT][JOB_ID_LENGTH + 1];
    int count;
} front;

static ql_status take_row(void *context, const index_row *row) {
    front *f = context;
    memcpy(f->id[f->count++], row->id, JOB_ID_LENGTH + 1);
    return QL_OK;
}

/* Tries one; `kept` collects what jobs that must wait keep from those behind them. */
static ql_status try_job(schedule *c, const char *id, bool kept[2]) {
    spec_gpus asked;
    reservation holds;
    job j;
    QL_TRY(store_load(c->store, id, &j));
    spec_find_gpus(j.spec, &asked);
    bool on_gpu = asked.count > 0 || (asked.count < 0 && c->devices.n_gpus > 0);
    fit when = kept[on_gpu] ? FIT_LATER : devices_reserve(&c->devices, &asked, schedule_memory(&j), &holds);
    ql_status status = QL_OK;
    if (when == FIT_LATER) {
        kept[on_gpu] = true;
        job_free(&j);
        return QL_OK;
    }
    if (when == FIT_NOW) status = store_change(c->store, &j, JOB_STARTING);
    if (when == FIT_NOW && status != QL_OK) devices_release(&c->devices, &holds);
    if (when == FIT_NOW && status == QL_OK) {
        run *r = &c->runs[c->n_runs++];
        *r = (run){.kind = RUN_PLAN, .holds = holds};
        memcpy(r->id, id, sizeof r->id);
        go_on_or_fail(c, r, &j);
    }
    if (when == FIT_NEVER) {
        status = store_change(c->store, &j, JOB_STARTING);
        job_set_reason(&j,
                       "this machine has %d GPUs, %lld places on the processor and %llu bytes for jobs, which the "
                       "job does not fit into",
                       c->devices.n_gpus, (long long)c->devices.cpu_places, (unsigned long long)c->devices.memory);
        j.exit_code = ql_status_exit_code(QL_DEVICE);
        if (status == QL_OK) status = store_change(c->store, &j, JOB_FAILED);
    }
    job_free(&j);
    return status;
}

void schedule_start_some(schedule *c) {
    front f = {.count = 0};
    bool kept[2] = {false, false}; /* on the processor, on GPUs */
    if (index_next(store_index(c->store), JOB_QUEUED, LOOKED_AT, take_row, &f) != QL_OK)
        ql_log(QL_ERROR, "%s", ql_last_error());
    for (int i = 0; i < f.count && c->n_runs < MOST_RUNS && !(kept[0] && kept[1]); i++) {
        if (try_job(c, f.id[i], kept) == QL_OK) continue;
        ql_log(QL_ERROR, "job %s: %s", f.id[i], ql_last_error());
        break;
    }
}

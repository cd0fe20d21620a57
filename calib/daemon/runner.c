#include "calib/daemon/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "calib/daemon/events.h"
#include "calib/daemon/job.h"
#include "calib/daemon/losses.h"
#include "calib/daemon/oom.h"
#include "calib/daemon/session.h"
#include "formats/json.h"
#include "host/file.h"
#include "host/log.h"

enum {
    LINE_MOST = 1 << 14,
    REPORT_MOST = 64 << 20,
    READ_AT_ONCE = 1 << 15,
    OWN_WORDS = 9,
    PIPE_READS = 64,
    LEFT_TRIES = 50,
    LEFT_MS = 10
};

static const double idle_share = 1e-3; /* of a processor: who computes no more stands still */

typedef struct runner {
    char dir[ATTEMPT_PATH], events[ATTEMPT_PATH];
    runner_settings set;
    pid_t worker;
    int signals, out, err; /* signalfd, and the worker's stdout and stderr; -1 when closed */
    log_writer log;
    char line[LINE_MOST]; /* of stderr, until its end */
    size_t line_size;
    bool line_too_long;
    ql_file *report;
    int64_t report_size;
    json_t *progress;                           /* not told yet */
    double started, told, seen_alive, deadline; /* seconds; deadline 0: none */
    int64_t cpu_ticks;                          /* when it was last seen alive */
    int64_t oom_kills;
    int status; /* of wait */
    bool ended;
    attempt_exit result;
    losses losses;
} runner;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- the worker -------------------------------------------------------------------------------------------------------------- */

/* The kernel's choice when memory runs out, rather than the daemon; and it does not outlive its runner. */
static void become_worker(const runner *r, char *const argv[], const int out[2], const int err[2], pid_t parent) {
    sigset_t none;
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (score >= 0) {
        if (write(score, "500", 3) != 3) errno = 0; /* a preference, no need */
        close(score);
    }
    umask(r->set.umask);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(70);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDONLY);
    if (null < 0 || dup2(null, 0) < 0 || dup2(out[1], 1) < 0 || dup2(err[1], 2) < 0) _exit(70);
    execv(argv[0], argv);
    dprintf(2, "{\"level\":\"error\",\"message\":\"%s cannot be started\"}\n", argv[0]);
    _exit(66);
}

static ql_status start_worker(runner *r, char *const argv[]) {
    int out[2], err[2];
    pid_t parent = getpid();
    if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) return ql_fail_errno("pipe");
    r->worker = fork();
    if (r->worker == 0) become_worker(r, argv, out, err, parent);
    if (r->worker < 0) return ql_fail_errno("cannot start a process");
    setpgid(r->worker, r->worker); /* whichever of the two comes first */
    close(out[1]);
    close(err[1]);
    r->out = out[0];
    r->err = err[0];
    fcntl(r->out, F_SETFL, O_NONBLOCK);
    fcntl(r->err, F_SETFL, O_NONBLOCK);
    return QL_OK;
}

static void write_pids(const runner *r) {
    char path[ATTEMPT_PATH + 16];
    json_t *d = json_pack("{s:i, s:i}", "pid", (int)getpid(), "worker", (int)r->worker);
    snprintf(path, sizeof path, "%s/runner.json", r->dir);
    if (!d || ql_json_save(d, path) != QL_OK)
        ql_log(QL_WARNING, "%s: not written", path); /* for people; the lock decides */
    json_decref(d);
}

/* ---- what it says ------------------------------------------------------------------------------------------------------------ */

/* A job that collects statistics first does so in as many steps as it has layers: behind them, every step counts as more. */
static void take_progress(runner *r, json_t *line) {
    int64_t done = json_integer_value(json_object_get(line, "done"));
    const char *work = json_string_value(json_object_get(line, "job"));
    char ts[JOB_TIME_SIZE];
    if (work && strcmp(work, "quantize") == 0) done += json_integer_value(json_object_get(line, "steps"));
    if (done > r->result.steps_done) r->result.steps_done = done;
    job_now(ts);
    json_object_del(line, "event");
    json_object_set_new(line, "type", json_string("progress"));
    json_object_set_new(line, "ts", json_string(ts));
    json_decref(r->progress);
    r->progress = json_incref(line);
}

/* At most ten a second: a worker may be quick, or mad. */
static void tell_progress(runner *r, bool now) {
    if (!r->progress || (!now && now_s() - r->told < 0.1)) return;
    events_append(r->events, r->progress);
    losses_tell(&r->losses, r->events);
    json_decref(r->progress);
    r->progress = NULL;
    r->told = now_s();
}

static void take_line(runner *r) {
    json_t *line;
    if (r->line_too_long || r->line_size == 0 || r->line[0] != '{') return;
    if (ql_json_parse("worker", r->line, r->line_size, &line) != QL_OK) return;
    const char *event = json_string_value(json_object_get(line, "event"));
    const char *level = json_string_value(json_object_get(line, "level"));
    const char *message = json_string_value(json_object_get(line, "message"));
    if (event && strcmp(event, "progress") == 0) take_progress(r, line);
    else if (level && message && strcmp(level, "error") == 0)
        snprintf(r->result.reason, sizeof r->result.reason, "%s", message);
    json_decref(line);
}

static void take_stderr(runner *r, const char *data, size_t size) {
    log_write(&r->log, data, size);
    for (size_t i = 0; i < size; i++) {
        if (data[i] == '\n') {
            take_line(r);
            r->line_size = 0;
            r->line_too_long = false;
        } else if (r->line_size < LINE_MOST) {
            r->line[r->line_size++] = data[i];
        } else {
            r->line_too_long = true;
        }
    }
}

/* A report that does not fit on the disk, or anywhere, is dropped; the job's own report.json lies beside its output. */
static void take_stdout(runner *r, const char *data, size_t size) {
    r->report_size += (int64_t)size;
    if (!r->report) return;
    if (r->report_size <= REPORT_MOST && ql_file_write(r->report, data, size) == QL_OK) return;
    ql_file_abort(r->report);
    r->report = NULL;
}

/* Reads what is there; closes the pipe at its end.  Returns whether anything came. */
static bool drain(runner *r, int *fd, void (*take)(runner *, const char *, size_t)) {
    char data[READ_AT_ONCE];
    if (*fd < 0) return false;
    ssize_t got = read(*fd, data, sizeof data);
    if (got > 0) {
        take(r, data, (size_t)got);
        r->seen_alive = now_s();
        return true;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    close(*fd);
    *fd = -1;
    return false;
}

/* ---- is it alive ---------------------------------------------------------------------------------------------------------------- */

static void look_at_the_clock(runner *r) {
    const double ticks_per_s = (double)sysconf(_SC_CLK_TCK);
    double now = now_s();
    int64_t ticks = session_ticks(getpid());
    /* A launcher that waits for ranks which stand still computes a little, too. */
    if (ticks < r->cpu_ticks || (double)(ticks - r->cpu_ticks) > idle_share * r->set.hang_s * ticks_per_s) {
        r->seen_alive = now;
        r->cpu_ticks = ticks;
    }
    if (now - r->seen_alive > r->set.hang_s) {
        r->result.hung = true;
        session_kill(getpid());
    }
    if (r->deadline > 0 && now > r->deadline) session_kill(getpid());
}

static void take_signal(runner *r) {
    struct signalfd_siginfo info;
    while (read(r->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGCHLD) {
            int status; /* also of what the worker left to us */
            for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
                if (pid == r->worker) r->ended = true, r->status = status;
        } else { /* to the worker alone: it stops its children itself */
            double patience = info.ssi_signo == SIGUSR1 ? r->set.layer_s : r->set.grace_s;
            double until = now_s() + patience;
            if (r->deadline == 0 || until < r->deadline) r->deadline = until;
            kill(r->worker, (int)info.ssi_signo);
        }
    }
}

/* ---- from start to end ------------------------------------------------------------------------------------------------------------ */

static void watch(runner *r) {
    double period = r->set.hang_s / 10 < 1 ? r->set.hang_s / 10 : 1;
    while (!r->ended) {
        struct pollfd fds[] = {{r->signals, POLLIN, 0}, {r->out, POLLIN, 0}, {r->err, POLLIN, 0}};
        poll(fds, 3, (int)(1000 * period) + 1);
        drain(r, &r->out, take_stdout);
        drain(r, &r->err, take_stderr);
        tell_progress(r, false);
        take_signal(r);
        if (!r->ended) look_at_the_clock(r);
    }
    for (int i = 0; i < LEFT_TRIES && session_kill(getpid()) > 0; i++) poll(NULL, 0, LEFT_MS); /* what it left behind */
    for (int i = 0; i < PIPE_READS && drain(r, &r->out, take_stdout);) i++; /* what a pipe can hold, and no more: */
    for (int i = 0; i < PIPE_READS && drain(r, &r->err, take_stderr);) i++; /* somebody who escaped may still write */
    tell_progress(r, true);
}

/* By which signal the worker ended, 0: by none.  mpirun says it of a rank as shells do, in a code above 128; the codes of a clean stop
 * by a signal (130, 143) are the worker's own words. */
static int signal_of(int status) {
    static const int deaths[] = {SIGKILL, SIGSEGV, SIGABRT, SIGBUS, SIGILL, SIGFPE};
    if (!WIFEXITED(status)) return WTERMSIG(status);
    for (size_t i = 0; i < sizeof deaths / sizeof deaths[0]; i++)
        if (WEXITSTATUS(status) == 128 + deaths[i]) return deaths[i];
    return 0;
}

static void conclude(runner *r) {
    struct rusage usage;
    attempt_exit *e = &r->result;
    bool exited = signal_of(r->status) == 0;
    getrusage(RUSAGE_CHILDREN, &usage);
    e->seconds = now_s() - r->started;
    e->peak_bytes = (int64_t)usage.ru_maxrss * 1024;
    e->end.exit_code = exited ? WEXITSTATUS(r->status) : -1;
    e->end.signal = signal_of(r->status);
    int64_t kills = oom_kills();
    e->end.out_of_memory = e->end.signal == SIGKILL && kills > r->oom_kills;
    if (e->hung) snprintf(e->reason, sizeof e->reason, "no sign of life for %.0f s; killed", r->set.hang_s);
    else if (e->end.out_of_memory)
        snprintf(e->reason, sizeof e->reason, "killed by the kernel for memory (cgroup oom_kill %lld -> %lld)",
                 (long long)r->oom_kills, (long long)kills);
    else if (!exited) snprintf(e->reason, sizeof e->reason, "killed by signal %d", e->end.signal);
    if (r->report && e->end.exit_code == 0) (void)ql_file_commit(r->report, NULL);
    else ql_file_abort(r->report);
    r->report = NULL;
    e->log_lost = r->log.failed;
    attempt_release_room(r->dir);
    if (attempt_write_exit(r->dir, e) != QL_OK) ql_log(QL_ERROR, "%s", ql_last_error());
}

static ql_status run(runner *r, char *const argv[]) {
    char report[ATTEMPT_PATH + 16];
    sigset_t caught;
    sigemptyset(&caught);
    sigaddset(&caught, SIGTERM);
    sigaddset(&caught, SIGUSR1);
    sigaddset(&caught, SIGCHLD);
    if (sigprocmask(SIG_SETMASK, &caught, NULL) != 0) return ql_fail_errno("sigprocmask");
    r->signals = signalfd(-1, &caught, SFD_CLOEXEC | SFD_NONBLOCK);
    if (r->signals < 0) return ql_fail_errno("signalfd");
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* what the worker leaves behind comes to us */
    attempt_reserve_room(r->dir);
    log_open(&r->log, r->dir, r->set.log_bytes);
    snprintf(report, sizeof report, "%s/report.json", r->dir);
    if (ql_file_create(report, 0, &r->report) != QL_OK) r->report = NULL;
    r->oom_kills = oom_kills();
    r->started = r->seen_alive = now_s();
    losses_open(&r->losses, argv);
    QL_TRY(start_worker(r, argv));
    write_pids(r);
    watch(r);
    conclude(r);
    log_close(&r->log);
    return QL_OK;
}

ql_status runner_words(const runner_settings *set, const char *job_dir, int64_t attempt, char *const worker[],
                       ql_arena *arena, char ***words) {
    size_t count = 0;
    while (worker[count]) count++;
    QL_TRY(ql_take(arena, OWN_WORDS + count, sizeof **words, words));
    QL_TRY(ql_arena_string(arena, "--runner", &(*words)[0]));
    QL_TRY(ql_arena_string(arena, job_dir, &(*words)[1]));
    QL_TRY(ql_arena_format(arena, &(*words)[2], "%lld", (long long)attempt));
    QL_TRY(ql_arena_format(arena, &(*words)[3], "%lld", (long long)set->log_bytes));
    QL_TRY(ql_arena_format(arena, &(*words)[4], "%g", set->grace_s));
    QL_TRY(ql_arena_format(arena, &(*words)[5], "%g", set->layer_s));
    QL_TRY(ql_arena_format(arena, &(*words)[6], "%g", set->hang_s));
    QL_TRY(ql_arena_format(arena, &(*words)[7], "%o", (unsigned)set->umask));
    for (size_t i = 0; i < count; i++) (*words)[8 + i] = worker[i];
    return QL_OK;
}

int runner_main(int argc, char *argv[]) {
    static runner r; /* one per process */
    if (argc < 2 + OWN_WORDS - 1) return 64;
    r = (runner){.signals = -1, .out = -1, .err = -1, .result = {.end = {.exit_code = -1}}};
    r.set = (runner_settings){strtoll(argv[4], NULL, 10), strtod(argv[5], NULL), strtod(argv[6], NULL),
                              strtod(argv[7], NULL), (mode_t)strtol(argv[8], NULL, 8)};
    snprintf(r.dir, sizeof r.dir, "%s/attempt-%s", argv[2], argv[3]);
    snprintf(r.events, sizeof r.events, "%s/events.jsonl", argv[2]);
    ql_status status = run(&r, argv + 9);
    if (status == QL_OK) return 0;
    snprintf(r.result.reason, sizeof r.result.reason, "%s", ql_last_error());
    r.result.end.exit_code = ql_status_exit_code(status);
    (void)attempt_write_exit(r.dir, &r.result);
    return 70;
}

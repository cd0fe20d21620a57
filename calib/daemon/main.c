/* qalibd: options, and the one loop. */
#include <errno.h>
#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calib/daemon/http.h"
#include "calib/daemon/notify.h"
#include "calib/daemon/schedule_parts.h"
#include "calib/daemon/where.h"
#include "calib/machine.h"
#include "host/file.h"
#include "host/log.h"

enum { TICK_MS = 200, IDLE_MS = 1000, TEXTFILE_S = 15 };

/* ---- options ------------------------------------------------------------------------------------------------------------------ */

static const char usage[] =
    "Usage: qalibd [options]\n\n"
    "Quantizes models day and night: takes jobs over HTTP on a Unix socket, queues them, runs qalib for each, and "
    "loses none.\n"
    "qalib submit, jobs, show, logs, cancel, pause, resume, retry and rm talk to it.\n\n"
    "  --state DIR          jobs and their index (default: $XDG_STATE_HOME/qalib or ~/.local/state/qalib); a local "
    "disk\n"
    "  --socket PATH        where it listens (default: $XDG_RUNTIME_DIR/qalib/socket, or DIR/socket)\n"
    "  --rebuild            make the index anew from the jobs' directories, then go on\n"
    "  --gpus LIST          ids of the GPUs that jobs may have, or none (default: those that qalib doctor finds)\n"
    "  --cpu-jobs N         jobs on the processor at one time (default: 1)\n"
    "  --memory SIZE        host memory that all jobs together may take, in MiB (default: what there is)\n"
    "  --cache SIZE         statistics kept for later jobs on the same model and rows, in MiB; 0: none (default: "
    "20480)\n"
    "  --live-jobs N        jobs that are not over, at most (default: 20000)\n"
    "  --connections N      at one time (default: 256)\n"
    "  --idle-timeout S     seconds that a connection may say nothing (default: 10)\n"
    "  --retry-base S       seconds before the second try of a job that broke off; doubles (default: 30)\n"
    "  --grace S            seconds that a cancelled worker has to stop (default: 30)\n"
    "  --layer-grace S      seconds that a worker has to finish its layer when it shall stop (default: 600)\n"
    "  --hang-timeout S     seconds without computing or a word, after which a worker is killed (default: 600)\n"
    "  --log-limit MIB      of each attempt's log; its middle is dropped (default: 64)\n"
    "  --engine PATH        qalib (default: beside qalibd)\n"
    "  --mpirun PATH        starts jobs of several ranks (default: that of PATH, if there is one)\n"
    "  --textfile FILE      metrics for node_exporter, every 15 s (default: none)\n"
    "  --log-format FORMAT  messages on stderr as text or json (default: text)\n"
    "  --help, --version\n\n"
    "Signals: SIGTERM or SIGINT lets workers finish their layer; a second one leaves them running, and the next qalibd "
    "takes them\n"
    "over. Exit codes are those of qalib.\n\n"
    "Examples:\n"
    "  qalibd --state ~/jobs --socket ~/jobs/socket\n"
    "  curl --unix-socket ~/jobs/socket http://q/v1/jobs\n";

enum option_id {
    STATE = 256,
    SOCKET,
    REBUILD,
    GPUS,
    CPU_JOBS,
    MEMORY,
    CACHE,
    LIVE,
    CONNECTIONS,
    IDLE,
    RETRY,
    GRACE,
    LAYER,
    HANG,
    LOG_LIMIT,
    ENGINE,
    MPIRUN,
    TEXTFILE,
    LOG_FORMAT,
    HELP,
    VERSION
};

static const struct option options[] = {
    {"state", required_argument, NULL, STATE},
    {"socket", required_argument, NULL, SOCKET},
    {"rebuild", no_argument, NULL, REBUILD},
    {"gpus", required_argument, NULL, GPUS},
    {"cpu-jobs", required_argument, NULL, CPU_JOBS},
    {"memory", required_argument, NULL, MEMORY},
    {"cache", required_argument, NULL, CACHE},
    {"live-jobs", required_argument, NULL, LIVE},
    {"connections", required_argument, NULL, CONNECTIONS},
    {"idle-timeout", required_argument, NULL, IDLE},
    {"retry-base", required_argument, NULL, RETRY},
    {"grace", required_argument, NULL, GRACE},
    {"layer-grace", required_argument, NULL, LAYER},
    {"hang-timeout", required_argument, NULL, HANG},
    {"log-limit", required_argument, NULL, LOG_LIMIT},
    {"engine", required_argument, NULL, ENGINE},
    {"mpirun", required_argument, NULL, MPIRUN},
    {"textfile", required_argument, NULL, TEXTFILE},
    {"log-format", required_argument, NULL, LOG_FORMAT},
    {"help", no_argument, NULL, HELP},
    {"version", no_argument, NULL, VERSION},
    {NULL, 0, NULL, 0},
};

static ql_status read_number(const char *option, double least, double most, double *value) {
    char *end;
    double number = strtod(optarg, &end);
    if (end == optarg || *end || !(number >= least && number <= most))
        return ql_fail(QL_USAGE, "--%s \"%.40s\": expected a number from %g to %g", option, optarg, least, most);
    *value = number;
    return QL_OK;
}

static ql_status read_count(const char *option, int64_t least, int64_t most, int64_t *value) {
    double number = 0;
    QL_TRY(read_number(option, (double)least, (double)most, &number));
    *value = (int64_t)number;
    return (double)*value == number ? QL_OK
                                    : ql_fail(QL_USAGE, "--%s \"%.40s\": expected a whole number", option, optarg);
}

static ql_status take_option(int id, settings *set) {
    int64_t mib = 0;
    switch (id) {
    case STATE: set->state_dir = optarg; return QL_OK;
    case SOCKET: set->socket_path = optarg; return QL_OK;
    case REBUILD: set->rebuild = true; return QL_OK;
    case GPUS: set->gpus = optarg; return QL_OK;
    case ENGINE: set->engine = optarg; return QL_OK;
    case MPIRUN: set->mpirun = optarg; return QL_OK;
    case TEXTFILE: set->textfile = optarg; return QL_OK;
    case CPU_JOBS: return read_count("cpu-jobs", 0, MOST_RUNS, &set->cpu_jobs);
    case LIVE: return read_count("live-jobs", 1, 1000000, &set->live_jobs);
    case CONNECTIONS: return read_count("connections", 1, 4096, &set->connections);
    case IDLE: return read_count("idle-timeout", 1, 3600, &set->idle_s);
    case RETRY: return read_number("retry-base", 0, 86400, &set->retry_s);
    case GRACE: return read_number("grace", 0.1, 86400, &set->runner.grace_s);
    case LAYER: return read_number("layer-grace", 0.1, 864000, &set->runner.layer_s);
    case HANG: return read_number("hang-timeout", 0.5, 864000, &set->runner.hang_s);
    case LOG_LIMIT:
        QL_TRY(read_count("log-limit", 1, 1 << 20, &mib));
        set->runner.log_bytes = mib << 20;
        return QL_OK;
    case MEMORY:
        QL_TRY(read_count("memory", 1, 1 << 30, &mib));
        set->memory_bytes = (uint64_t)mib << 20;
        return QL_OK;
    case CACHE:
        QL_TRY(read_count("cache", 0, 1 << 30, &mib));
        set->cache_bytes = (uint64_t)mib << 20;
        return QL_OK;
    case LOG_FORMAT:
        if (strcmp(optarg, "json") != 0 && strcmp(optarg, "text") != 0)
            return ql_fail(QL_USAGE, "--log-format \"%.40s\": expected text or json", optarg);
        ql_log_open(strcmp(optarg, "json") == 0, QL_INFO);
        return QL_OK;
    default: return ql_fail(QL_USAGE, "an option is unknown or lacks its value; \"qalibd --help\" lists them");
    }
}

/* The first mpirun of PATH. */
static ql_status find_mpirun(ql_arena *arena, const char **out) {
    const char *path = getenv("PATH");
    char *found;
    for (size_t length; path && *path; path += length + (path[length] == ':')) {
        length = strcspn(path, ":");
        if (path[0] != '/') continue; /* not what a working directory happens to hold */
        QL_TRY(ql_arena_format(arena, &found, "%.*s/mpirun", (int)length, path));
        if (access(found, X_OK) != 0) continue;
        *out = found;
        return QL_OK;
    }
    return QL_OK;
}

/* Everything that has no default of its own. */
static ql_status fill_in(settings *set, ql_arena *arena) {
    char self[PATH_MAX], state[PATH_MAX], *text;
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0) return ql_fail_errno("/proc/self/exe");
    self[length] = 0;
    QL_TRY(ql_arena_string(arena, self, &text));
    set->self = text;
    if (!set->engine) {
        QL_TRY(ql_arena_format(arena, &text, "%s/qalib", dirname(self)));
        set->engine = text;
    }
    if (access(set->engine, X_OK) != 0) return ql_fail_errno("%s: the engine (--engine)", set->engine);
    if (!set->mpirun) QL_TRY(find_mpirun(arena, &set->mpirun));
    else if (access(set->mpirun, X_OK) != 0) return ql_fail_errno("%s: the launcher (--mpirun)", set->mpirun);
    if (!set->state_dir) {
        QL_TRY(where_state(arena, &text));
        set->state_dir = text;
    }
    QL_TRY(ql_dir_make(set->state_dir));
    if (!realpath(set->state_dir, state)) return ql_fail_errno("%s", set->state_dir);
    QL_TRY(ql_arena_string(arena, state, &text)); /* runners are told absolute paths */
    set->state_dir = text;
    if (!set->socket_path) {
        QL_TRY(where_socket(arena, &text));
        set->socket_path = text;
        QL_TRY(ql_arena_string(arena, text, &text));
        QL_TRY(ql_dir_make(dirname(text)));
    }
    return QL_OK;
}

static ql_status read_settings(int argc, char *argv[], ql_arena *arena, settings *set, bool *done) {
    *set = (settings){.connections = 256,
                      .live_jobs = 20000,
                      .cpu_jobs = 1,
                      .idle_s = 10,
                      .memory_bytes = machine_memory_total(),
                      .cache_bytes = 20480ull << 20,
                      .retry_s = 30,
                      .runner = {.log_bytes = 64 << 20, .grace_s = 30, .layer_s = 600, .hang_s = 600}};
    *done = false;
    opterr = 0;
    for (int id; (id = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (id == HELP || id == 'h' || id == VERSION) {
            if (id == VERSION) printf("qalibd %s\n", ql_version());
            else fputs(usage, stdout);
            *done = true;
            return QL_OK;
        }
        if (id == '?')
            return ql_fail(QL_USAGE, "%.60s: unknown, or its value is missing; \"qalibd --help\" lists options",
                           argv[optind - 1]);
        QL_TRY(take_option(id, set));
    }
    if (optind < argc) return ql_fail(QL_USAGE, "qalibd takes no argument \"%.60s\"", argv[optind]);
    return fill_in(set, arena);
}

/* ---- the loop ---------------------------------------------------------------------------------------------------------------------- */

typedef struct loop {
    service service;
    http *http;
    int signals, asked_to_stop;
    double next_textfile;
} loop;

static ql_status catch_signals(int *fd) {
    sigset_t caught;
    sigemptyset(&caught);
    sigaddset(&caught, SIGTERM);
    sigaddset(&caught, SIGINT);
    sigaddset(&caught, SIGCHLD);
    signal(SIGPIPE, SIG_IGN);
    *fd = -1;
    if (sigprocmask(SIG_SETMASK, &caught, NULL) == 0) *fd = signalfd(-1, &caught, SFD_CLOEXEC | SFD_NONBLOCK);
    return *fd >= 0 ? QL_OK : ql_fail_errno("signalfd");
}

static void take_signals(loop *l) {
    struct signalfd_siginfo info;
    while (read(l->signals, &info, sizeof info) == (ssize_t)sizeof info)
        if (info.ssi_signo != SIGCHLD) l->asked_to_stop++;
    if (l->asked_to_stop == 0 || l->service.stopping) return;
    l->service.stopping = true;
    notify_send("STOPPING=1\nSTATUS=workers finish their layers");
    ql_log(QL_INFO, "stopping: workers finish their layers; a second signal leaves them to the next daemon");
    schedule_stop(l->service.schedule);
}

static void write_textfile(loop *l) {
    char *text;
    double now = schedule_now();
    if (!l->service.set->textfile || now < l->next_textfile) return;
    l->next_textfile = now + TEXTFILE_S;
    ql_status status = metrics_text(&l->service, &text);
    if (status == QL_OK) {
        status = ql_file_save(l->service.set->textfile, text, strlen(text));
        ql_mfree(text);
    }
    if (status != QL_OK) ql_log(QL_WARNING, "%s", ql_last_error());
}

static void run_loop(loop *l) {
    double next_tick = 0;
    while (!(l->service.stopping && (schedule_idle(l->service.schedule) || l->asked_to_stop > 1))) {
        bool busy = !schedule_idle(l->service.schedule) || http_waiting(l->http) > 0;
        struct pollfd fds[] = {{http_descriptor(l->http), POLLIN, 0}, {l->signals, POLLIN, 0}};
        if (poll(fds, 2, http_patience_ms(l->http, busy ? TICK_MS : IDLE_MS)) < 0 && errno != EINTR) break;
        http_run(l->http);
        take_signals(l);
        double now = schedule_now();
        if (now < next_tick && !fds[1].revents && !schedule_woken(l->service.schedule)) continue;
        next_tick = now + (busy ? TICK_MS : IDLE_MS) / 1000.0;
        schedule_tick(l->service.schedule);
        http_tick(l->http);
        write_textfile(l);
        notify_send(l->service.stopping ? "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=30000000" : "WATCHDOG=1");
    }
}

static ql_status serve(const settings *set) {
    loop l = {.service = {.set = set}, .signals = -1};
    int listener = -1;
    bool made = false;
    QL_TRY(catch_signals(&l.signals));
    ql_status status = store_open(set->state_dir, set->rebuild, &l.service.store);
    if (status == QL_OK) status = socket_open(set->socket_path, &listener, &made);
    if (status == QL_OK) status = schedule_open(set, l.service.store, &l.service.schedule);
    if (status == QL_OK) status = http_open(&l.service, listener, &l.http);
    if (status == QL_OK) {
        notify_send("READY=1\nSTATUS=taking jobs");
        ql_log(QL_INFO, "qalibd %s listens on %s, state in %s", ql_version(), set->socket_path, set->state_dir);
        run_loop(&l);
    }
    http_close(l.http);
    if (listener >= 0) close(listener);
    if (made) socket_remove(set->socket_path);
    schedule_close(l.service.schedule);
    store_close(l.service.store);
    close(l.signals);
    return status;
}

int main(int argc, char *argv[]) {
    settings set;
    ql_arena *arena;
    bool done = false;
    mode_t before = umask(0077);
    if (argc > 1 && strcmp(argv[1], "--runner") == 0) return runner_main(argc, argv);
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) {
        status = read_settings(argc, argv, arena, &set, &done);
        set.runner.umask = before;
        if (status == QL_OK && !done) status = serve(&set);
        ql_arena_close(arena);
    }
    int code = ql_status_exit_code(status);
    if (status != QL_OK && ql_log_is_json()) ql_log(QL_ERROR, "error[%d]: %s", code, ql_last_error());
    else if (status != QL_OK) fprintf(stderr, "qalibd: error[%d]: %s\n", code, ql_last_error());
    return code;
}

/* qalib jobs, show, logs, cancel, pause, resume, retry, rm: what the daemon has, and what shall become of it. */
#include <string.h>
#include <unistd.h>

#include "calib/cli/client.h"
#include "calib/daemon/job.h"
#include "formats/json.h"
#include "host/status.h"

enum { PATH_ROOM = 192, LOG_WAIT_S = 25 };

static const cli_option socket_only[] = {
    CLIENT_OPTIONS,
    {NULL, 0, NULL, false, NULL},
};

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static void print_json(const json_t *document) {
    json_dumpf(document, stdout, JSON_INDENT(2));
    putchar('\n');
}

static ql_status job_path(const char *id, const char *below, char path[PATH_ROOM]) {
    if (!job_is_id(id)) return ql_fail(QL_USAGE, "\"%.40s\" is not the id of a job; qalib jobs lists them", id);
    snprintf(path, PATH_ROOM, "/v1/jobs/%s%s", id, below);
    return QL_OK;
}

/* ---- jobs -------------------------------------------------------------------------------------------------------------------------- */

static ql_status fetch_all(const cli *args, json_t *all) {
    const char *state = cli_value(args, "state");
    job_state known;
    char path[PATH_ROOM], after[JOB_ID_LENGTH + 1] = "";
    if (state && !job_state_find(state, &known))
        return ql_fail(QL_USAGE, "--state %.40s: there is no such state", state);
    do {
        json_t *page;
        snprintf(path, sizeof path, "/v1/jobs?limit=1000%s%s%s%s", state ? "&state=" : "", state ? state : "",
                 *after ? "&after=" : "", after);
        QL_TRY(client_json(args, "GET", path, NULL, NULL, &page));
        json_array_extend(all, json_object_get(page, "jobs"));
        snprintf(after, sizeof after, "%s", text_of(page, "next"));
        json_decref(page);
    } while (*after);
    return QL_OK;
}

static void print_row(const json_t *record) {
    printf("%-26s  %-11s  %3lld  %4lld  ", text_of(record, "id"), text_of(record, "state"),
           (long long)json_integer_value(json_object_get(record, "attempt")),
           (long long)json_integer_value(json_object_get(record, "priority")));
    client_print(stdout, text_of(record, "output"));
    if (*text_of(record, "reason")) fputs("  ", stdout), client_print(stdout, text_of(record, "reason"));
    putchar('\n');
}

static ql_status run_jobs(const cli *args) {
    json_t *all = json_array(), *record;
    size_t i;
    if (!all) return ql_fail(QL_NOMEM, "no memory for the list");
    ql_status status = fetch_all(args, all);
    if (status == QL_OK && cli_has(args, "json")) {
        json_t *document = json_pack("{s:O}", "jobs", all);
        print_json(document);
        json_decref(document);
    } else if (status == QL_OK) {
        printf("%-26s  %-11s  %3s  %4s  %s\n", "job", "state", "try", "prio", "output");
        json_array_foreach(all, i, record) print_row(record);
    }
    json_decref(all);
    return status;
}

static const cli_option jobs_options[] = {
    {"state", 0, "NAME", false, "only jobs in that state, for instance RUNNING"},
    CLIENT_OPTIONS,
    {NULL, 0, NULL, false, NULL},
};

const cli_command cmd_jobs = {
    .name = "jobs",
    .summary = "list the daemon's jobs",
    .options = jobs_options,
    .examples = "qalib jobs\nqalib jobs --state FAILED --json",
    .run = run_jobs,
};

/* ---- show ---------------------------------------------------------------------------------------------------------------------------- */

static void print_fields(const json_t *object, int indent) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        char *text = json_is_string(value) || json_is_object(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY);
        printf("%*s%s: ", indent, "", key);
        client_print(stdout, json_is_string(value) ? json_string_value(value) : text ? text : "");
        putchar('\n');
        free(text);
        if (json_is_object(value)) print_fields(value, indent + 2);
    }
}

static ql_status run_show(const cli *args) {
    char path[PATH_ROOM];
    json_t *record;
    QL_TRY(job_path(cli_positional(args, 0), "", path));
    QL_TRY(client_json(args, "GET", path, NULL, NULL, &record));
    if (cli_has(args, "json")) print_json(record);
    else print_fields(record, 0);
    json_decref(record);
    return QL_OK;
}

const cli_command cmd_show = {
    .name = "show",
    .summary = "everything about one of the daemon's jobs",
    .positional = "ID",
    .options = socket_only,
    .examples = "qalib show 01ARZ3NDEKTSV4RRFFQ69G5FAV",
    .run = run_show,
};

/* ---- logs ---------------------------------------------------------------------------------------------------------------------------- */

/* A line of JSON as its message; anything else as it is, but for what a terminal would obey. */
static void print_line(const char *line, size_t length) {
    json_t *object;
    char *copy = ql_malloc(length + 1);
    if (!copy) return;
    memcpy(copy, line, length);
    copy[length] = 0;
    const char *message = NULL;
    if (copy[0] == '{' && ql_json_parse("log", copy, length, &object) == QL_OK) {
        message = json_string_value(json_object_get(object, "message"));
        if (message) printf("%s: ", text_of(object, "level")), client_print(stdout, message);
        else if (*text_of(object, "phase")) {
            printf("%lld/%lld ", (long long)json_integer_value(json_object_get(object, "done")),
                   (long long)json_integer_value(json_object_get(object, "steps")));
            client_print(stdout, text_of(object, "phase"));
            message = "";
        }
        json_decref(object);
    }
    if (!message) client_print(stdout, copy);
    putchar('\n');
    ql_mfree(copy);
}

/* Whole lines only; what is left over begins the next piece.  raw: as it came. */
static size_t print_log(const char *text, size_t size, bool raw, bool last) {
    size_t used = 0;
    if (raw) {
        fwrite(text, 1, size, stdout);
        fflush(stdout);
        return size;
    }
    for (const char *end; (end = memchr(text + used, '\n', size - used));) {
        print_line(text + used, (size_t)(end - text) - used);
        used = (size_t)(end - text) + 1;
    }
    if (last && used < size) print_line(text + used, size - used), used = size;
    fflush(stdout);
    return used;
}

static bool is_over(const char *state) {
    job_state s;
    return job_state_find(state, &s) && job_is_over(s);
}

/* Asks from the last whole line on; a line longer than a piece is printed in parts. */
static ql_status follow_log(const cli *args, const char *id, int64_t attempt) {
    bool follow = cli_has(args, "follow"), raw = cli_has(args, "json"), over = false;
    int64_t offset = 0;
    while (!over) {
        char below[96], path[PATH_ROOM], which[40] = "";
        reply r;
        if (attempt > 0) snprintf(which, sizeof which, "&attempt=%lld", (long long)attempt);
        snprintf(below, sizeof below, "/log?offset=%lld&wait=%d%s", (long long)offset, follow ? LOG_WAIT_S : 0, which);
        QL_TRY(job_path(id, below, path));
        QL_TRY(client_call(args, "GET", path, NULL, NULL, &r));
        ql_status status = client_problem(&r);
        if (status == QL_OK) {
            bool nothing = r.size == 0, ended = is_over(r.state);
            size_t used = print_log(r.body, r.size, raw, ended || !follow);
            if (used == 0 && r.size > 0 && r.size >= 1 << 18) used = print_log(r.body, r.size, raw, true);
            offset = r.next - (int64_t)(r.size - used);
            over = nothing && (ended || !follow);
        }
        reply_free(&r);
        QL_TRY(status);
        QL_TRY(cli_check_signal());
        if (follow && !over) usleep(100000); /* a log that grows without end is read in pieces */
    }
    return QL_OK;
}

static ql_status run_logs(const cli *args) {
    int64_t attempt = 0;
    QL_TRY(cli_int(args, "attempt", 1, INT32_MAX, &attempt));
    return follow_log(args, cli_positional(args, 0), attempt);
}

static const cli_option logs_options[] = {
    {"follow", 'F', NULL, false, "go on until the job is over"},
    {"attempt", 0, "N", false, "of an earlier try (default: the last)"},
    CLIENT_OPTIONS,
    {NULL, 0, NULL, false, NULL},
};

const cli_command cmd_logs = {
    .name = "logs",
    .summary = "what a job's worker said",
    .positional = "ID",
    .options = logs_options,
    .details = "With --json the lines as they are.",
    .examples = "qalib logs 01ARZ3NDEKTSV4RRFFQ69G5FAV --follow",
    .run = run_logs,
};

/* ---- cancel, pause, resume, retry, rm --------------------------------------------------------------------------------------------------- */

static ql_status act_on_all(const cli *args, const char *method, const char *below) {
    json_t *jobs = json_array();
    ql_status status = jobs ? QL_OK : ql_fail(QL_NOMEM, "no memory for the list");
    const char *id;
    for (int i = 0; status == QL_OK && (id = cli_positional(args, i)); i++) {
        char path[PATH_ROOM];
        json_t *record = NULL;
        status = job_path(id, below, path);
        if (status == QL_OK) status = client_json(args, method, path, NULL, NULL, &record);
        if (status == QL_OK && !cli_has(args, "json"))
            printf("%s %s\n", id, record ? text_of(record, "state") : "removed");
        if (record) json_array_append_new(jobs, record);
    }
    if (status == QL_OK && cli_has(args, "json")) {
        json_t *document = json_pack("{s:O}", "jobs", jobs);
        print_json(document);
        json_decref(document);
    }
    json_decref(jobs);
    return status;
}

static ql_status run_cancel(const cli *args) { return act_on_all(args, "POST", "/cancel"); }
static ql_status run_pause(const cli *args) { return act_on_all(args, "POST", "/pause"); }
static ql_status run_resume(const cli *args) { return act_on_all(args, "POST", "/resume"); }
static ql_status run_retry(const cli *args) { return act_on_all(args, "POST", "/retry"); }
static ql_status run_rm(const cli *args) { return act_on_all(args, "DELETE", ""); }

#define ACT(word, what, example)                                                                                       \
    const cli_command cmd_##word = {.name = #word,                                                                     \
                                    .summary = what,                                                                   \
                                    .positional = "ID...",                                                             \
                                    .options = socket_only,                                                            \
                                    .examples = example,                                                               \
                                    .run = run_##word}

ACT(cancel, "end jobs; what they finished stays resumable", "qalib cancel 01ARZ3NDEKTSV4RRFFQ69G5FAV");
ACT(pause, "let jobs finish their layer and wait", "qalib pause 01ARZ3NDEKTSV4RRFFQ69G5FAV");
ACT(resume, "queue paused jobs again", "qalib resume 01ARZ3NDEKTSV4RRFFQ69G5FAV");
ACT(retry, "queue failed or cancelled jobs again; finished layers are kept", "qalib retry 01ARZ3NDEKTSV4RRFFQ69G5FAV");
ACT(rm, "remove jobs that are over from the daemon, not their outputs", "qalib rm 01ARZ3NDEKTSV4RRFFQ69G5FAV");

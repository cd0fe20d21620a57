/* qalib submit: a job for the daemon, said as to qalib quantize. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "calib/cli/client.h"
#include "calib/daemon/job.h"
#include "calib/daemon/spec.h"
#include "formats/json.h"
#include "host/file.h"
#include "host/log.h"
#include "host/status.h"

enum { KEY_SIZE = 128, WAIT_S = 25, GONE_S = 30 };

/* ---- the request ----------------------------------------------------------------------------------------------------------------- */

/* From the root, without "." and doubled slashes: the daemon has no directory of ours, and compares outputs by name. */
static ql_status absolute(const char *path, ql_arena *arena, char **out) {
    char *whole, *to;
    if (path[0] == '/') {
        QL_TRY(ql_arena_string(arena, path, &whole));
    } else {
        char *here = getcwd(NULL, 0);
        if (!here) return ql_fail_errno("the working directory");
        ql_status status = ql_arena_format(arena, &whole, "%s/%s", here, path);
        free(here);
        QL_TRY(status);
    }
    *out = to = whole;
    for (const char *part = whole; *part;) {
        part += strspn(part, "/");
        size_t length = strcspn(part, "/");
        bool nothing = length == 0 || (length == 1 && part[0] == '.');
        if (!nothing) {
            *to++ = '/';
            memmove(to, part, length);
            to += length;
        }
        part += length;
    }
    if (to == whole) *to++ = '/';
    *to = 0;
    return QL_OK;
}

static const cli_option options[];

/* The value as the request carries it; NULL: not given, or not for the daemon. */
static ql_status value_of(const cli *args, const char *option, ql_arena *arena, const char **value) {
    static const char *const paths[] = {"model", "output", "calib", "stats", "imatrix", "work"};
    const char *text = cli_value(args, option);
    char *changed;
    size_t size;
    *value = text;
    if (!text) return QL_OK;
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
        if (strcmp(option, paths[i]) == 0) {
            QL_TRY(absolute(text, arena, &changed));
            *value = changed;
        }
    if (strcmp(option, "recipe") == 0) {
        QL_TRY(ql_file_load(text, SPEC_MOST_BYTES, arena, &changed, &size));
        *value = changed;
    }
    return QL_OK;
}

static ql_status take_table(const cli *args, const cli_option *table, ql_arena *arena, json_t *spec) {
    const char *value;
    for (; table->name; table++) {
        if (!spec_has_option(table->name)) continue;
        QL_TRY(value_of(args, table->name, arena, &value));
        if (value) QL_TRY(spec_set(spec, table->name, value));
    }
    return QL_OK;
}

/* --device, as everywhere: cpu, cuda, or one GPU by number. */
static ql_status take_device(const cli *args, json_t *spec) {
    const char *device = cli_value(args, "device");
    if (!device || strcmp(device, "auto") == 0) return QL_OK;
    if (cli_has(args, "gpus")) return ql_fail(QL_USAGE, "--device and --gpus: give one of them");
    if (strcmp(device, "cpu") == 0) return spec_set(spec, "gpus", "0");
    if (strcmp(device, "cuda") == 0) return spec_set(spec, "gpus", "1");
    if (strncmp(device, "cuda:", 5) != 0)
        return ql_fail(QL_USAGE, "--device \"%s\": expected auto, cpu, cuda or cuda:N", device);
    char list[32];
    snprintf(list, sizeof list, "%.20s,", device + 5);
    return spec_set(spec, "gpus", list);
}

/* What quantize would refuse at once is refused here, in its words. */
static ql_status check_recipes(const cli *args, const json_t *spec, ql_arena *arena) {
    recipe r;
    char *name;
    for (int i = 0;; i++) {
        QL_TRY(spec_scheme(spec, i, arena, &name));
        if (!name) return QL_OK;
        QL_TRY(cli_recipe(args, *name ? name : NULL, arena, &r));
        if (recipe_needs_data(&r) && !cli_has(args, "calib") && !cli_has(args, "stats"))
            return ql_fail(QL_USAGE, "this recipe needs data: --calib tokens.h5 or --stats DIR");
    }
}

static ql_status make_request(const cli *args, ql_arena *arena, char **body) {
    json_t *spec = json_object();
    if (!spec) return ql_fail(QL_NOMEM, "no memory for the request");
    ql_status status = take_table(args, options, arena, spec);
    if (status == QL_OK) status = take_table(args, cli_recipe_options, arena, spec);
    if (status == QL_OK && cli_has(args, "threads")) status = spec_set(spec, "threads", cli_value(args, "threads"));
    if (status == QL_OK) status = take_device(args, spec);
    if (status == QL_OK) status = check_recipes(args, spec, arena);
    if (status == QL_OK) status = ql_json_canonical(spec, arena, body);
    json_decref(spec);
    return status;
}

/* Pressing Enter twice makes one job; asking again when it is over makes another one, once. */
static ql_status submit(const cli *args, const char *body, json_t **record) {
    unsigned char digest[32];
    char hash[65], key[KEY_SIZE];
    const char *given = cli_value(args, "key");
    ql_sha256(body, strlen(body), digest);
    ql_hex(digest, sizeof digest, hash);
    snprintf(key, sizeof key, "%s", hash);
    for (;;) {
        QL_TRY(client_json(args, "POST", "/v1/jobs", given ? given : key, body, record));
        const char *state = json_string_value(json_object_get(*record, "state"));
        const char *id = json_string_value(json_object_get(*record, "id"));
        job_state s;
        bool over = state && job_state_find(state, &s) && job_is_over(s);
        if (given || !over || !id) return QL_OK;
        snprintf(key, sizeof key, "%.64s:%.26s", hash, id);
        json_decref(*record);
    }
}

/* ---- waiting --------------------------------------------------------------------------------------------------------------------- */

typedef struct watch {
    const cli *args;
    char id[JOB_ID_LENGTH + 1];
    progress *bar;
    char work[16]; /* that it shows: calibrate, then quantize, or quantize alone */
    int64_t next;
    bool over;
    time_t gone_since; /* 0: the daemon answers */
} watch;

static ql_status show_event(watch *w, const json_t *event) {
    const char *type = json_string_value(json_object_get(event, "type"));
    if (type && strcmp(type, "progress") == 0) {
        int64_t steps = json_integer_value(json_object_get(event, "steps"));
        const char *happens = json_string_value(json_object_get(event, "phase"));
        const char *work = json_string_value(json_object_get(event, "job"));
        if (work && strncmp(work, w->work, sizeof w->work - 1) != 0) {
            progress_close(w->bar);
            w->bar = NULL;
            snprintf(w->work, sizeof w->work, "%s", work);
        }
        if (!w->bar) QL_TRY(progress_open(cli_progress(w->args), w->work, steps, &w->bar));
        progress_step(w->bar, json_integer_value(json_object_get(event, "done")), happens ? happens : "");
        return QL_OK;
    }
    const char *state = json_string_value(json_object_get(event, "state"));
    const char *reason = json_string_value(json_object_get(event, "reason"));
    if (state) ql_log(QL_INFO, "job %s: %s%s%s", w->id, state, reason && *reason ? ": " : "", reason ? reason : "");
    return QL_OK;
}

static ql_status take_events(watch *w, const json_t *answer) {
    size_t i;
    json_t *event;
    json_array_foreach(json_object_get(answer, "events"), i, event) QL_TRY(show_event(w, event));
    w->next = json_integer_value(json_object_get(answer, "next"));
    w->over = json_is_true(json_object_get(answer, "over")) && i == 0;
    return QL_OK;
}

/* A daemon that is started anew finds the job again; so do we, for half a minute. */
static ql_status poll_events(watch *w) {
    char path[160];
    json_t *answer;
    snprintf(path, sizeof path, "/v1/jobs/%s/events?after=%lld&wait=%d", w->id, (long long)w->next, WAIT_S);
    ql_status status = client_json(w->args, "GET", path, NULL, NULL, &answer);
    if (status == QL_DEVICE) {
        time_t now = time(NULL);
        if (!w->gone_since) w->gone_since = now;
        if (now - w->gone_since > GONE_S) return status;
        struct timespec pause = {.tv_nsec = 200000000};
        nanosleep(&pause, NULL);
        return cli_check_signal();
    }
    QL_TRY(status);
    w->gone_since = 0;
    status = take_events(w, answer);
    json_decref(answer);
    return status;
}

static ql_status wait_until_over(const cli *args, const char *id) {
    watch w = {.args = args};
    ql_status status = QL_OK;
    snprintf(w.id, sizeof w.id, "%s", id);
    while (status == QL_OK && !w.over) status = poll_events(&w);
    progress_close(w.bar);
    if (status == QL_INTERRUPTED) return ql_fail(status, "the job goes on: qalib show %s", id);
    return status;
}

/* The code that its worker ended with, and a sentence. */
static ql_status verdict(const json_t *record) {
    const char *state = json_string_value(json_object_get(record, "state"));
    const char *reason = json_string_value(json_object_get(record, "reason")),
               *id = json_string_value(json_object_get(record, "id"));
    const json_t *code = json_object_get(record, "exit_code");
    if (state && strcmp(state, "SUCCEEDED") == 0) return QL_OK;
    ql_status status = json_is_integer(code) && json_integer_value(code) >= 64 && json_integer_value(code) <= 78
                           ? client_status_of((int)json_integer_value(code))
                           : QL_INTERRUPTED;
    return ql_fail(status, "job %s %s%s%s", id, state ? state : "?", reason && *reason ? ": " : "",
                   reason ? reason : "");
}

/* ---- the command ------------------------------------------------------------------------------------------------------------------- */

/* The record once more, and the report of a job that ended well. */
static ql_status fetch_result(const cli *args, json_t **record) {
    char path[64], report[80];
    json_t *document = NULL;
    snprintf(path, sizeof path, "/v1/jobs/%s", json_string_value(json_object_get(*record, "id")));
    snprintf(report, sizeof report, "%s/report", path);
    json_decref(*record);
    QL_TRY(client_json(args, "GET", path, NULL, NULL, record));
    const char *state = json_string_value(json_object_get(*record, "state"));
    if (state && strcmp(state, "SUCCEEDED") == 0) (void)client_json(args, "GET", report, NULL, NULL, &document);
    json_object_set_new(*record, "report", document ? document : json_null());
    return QL_OK;
}

static ql_status run_job(const cli *args, json_t **record) {
    ql_arena *arena;
    char *body, id[JOB_ID_LENGTH + 1];
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = make_request(args, arena, &body);
    if (status == QL_OK) status = submit(args, body, record);
    ql_arena_close(arena);
    if (status != QL_OK || !cli_has(args, "wait")) return status;
    snprintf(id, sizeof id, "%s", json_string_value(json_object_get(*record, "id")));
    QL_TRY(wait_until_over(args, id));
    return fetch_result(args, record);
}

static ql_status run(const cli *args) {
    json_t *record = NULL;
    ql_status status = run_job(args, &record);
    if (status == QL_OK && cli_has(args, "json")) json_dumpf(record, stdout, JSON_INDENT(2)), putchar('\n');
    else if (status == QL_OK) printf("%s\n", json_string_value(json_object_get(record, "id")));
    if (status == QL_OK && cli_has(args, "wait")) status = verdict(record);
    json_decref(record);
    return status;
}

static const cli_option options[] = {
    {"model", 'm', "DIR", true, "model directory (config.json and safetensors, 16 or 32 bits)"},
    {"output", 'o', "DIR", true, "where the model goes, or with --scheme OUTPUT/<scheme>"},
    {"calib", 'c', "FILE", false, "calibration rows (qalib tokenize)"},
    {"stats", 0, "DIR", false, "statistics of qalib calibrate instead"},
    {"imatrix", 0, "FILE", false, "importance of inputs for a GGUF file instead"},
    {"statistics", 0, "MODE", false, "of --calib: propagated or fp, as in quantize"},
    {"work", 'w', "DIR", false, "committed layers and journal (default: OUTPUT.work)"},
    {"format", 'f', "NAME", false, "file format, as in quantize"},
    {"shard-size", 0, "BYTES", false, "largest file, for instance 500MB (default: 5GB)"},
    {"gpus", 0, "N|ID,...", false,
     "how many GPUs, or which (\"3,\" is the one of that number; default: one if there are any)"},
    {"ranks", 0, "N", false,
     "processes that share the job under mpirun, one per GPU (default: as many as GPUs; on the processor 1)"},
    {"comm-timeout", 0, "S", false, "ranks give up when another one is missing for so long (default: 600)"},
    CLI_PRECISION_OPTION,
    CLI_PLACE_OPTION,
    CLI_SAVE_OPTION,
    {"priority", 0, "N", false, "-100 to 100, higher first (default: 0)"},
    {"key", 0, "TEXT", false, "submitting again with the same key is the same job (default: made from the request)"},
    {"wait", 0, NULL, false, "until the job is over; exits with its code"},
    CLIENT_OPTIONS,
    {NULL, 0, NULL, false, NULL},
};

const cli_command cmd_submit = {
    .name = "submit",
    .summary = "give a job to the daemon (qalibd)",
    .options = options,
    .shared = cli_recipe_options,
    .details =
        "Takes what qalib quantize takes and prints the job's id.  A job that was killed goes on by itself; the same "
        "job twice is one job while it lives.",
    .examples = "qalib submit -m MODEL -o OUT --scheme W4A16-GPTQ-g128 --calib tokens.h5\n"
                "qalib submit -m MODEL -o OUT --bits 8 --method rtn --wait --json",
    .run = run,
};

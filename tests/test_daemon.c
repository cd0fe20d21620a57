/* The daemon's parts that need no server: what a job may become, what it may ask for, and that nothing on the disk gets lost. */
#include "tests/scratch.h"

#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calib/daemon/api.h"
#include "calib/daemon/devices.h"
#include "calib/daemon/events.h"
#include "calib/daemon/spec.h"
#include "calib/daemon/store.h"
#include "host/fault.h"

/* ---- states ---------------------------------------------------------------------------------------------------------------- */

/* The drawing of reliability, as a matrix: rows from, columns to, in the order of the enumeration. */
static const char *const legal[JOB_STATE_COUNT] = {
    /*             QSRPCFIWPSFC */
    /* QUEUED      */ ".X......X..X",
    /* STARTING    */ "X.X....XX.XX",
    /* RUNNING     */ "...XXXX.X.X.",
    /* PAUSING     */ "....XX..X.X.",
    /* CANCELLING  */ ".....X.....X",
    /* FINALIZING  */ ".........XX.",
    /* INTERRUPTED */ "X......XX.XX",
    /* RETRY_WAIT  */ "X.......X..X",
    /* PAUSED      */ "X..........X",
    /* SUCCEEDED   */ "............",
    /* FAILED      */ "X...........",
    /* CANCELLED   */ "X...........",
};

static void every_pair_of_states(void **state) {
    (void)state;
    assert_int_equal(JOB_STATE_COUNT, 12);
    for (job_state from = 0; from < JOB_STATE_COUNT; from++)
        for (job_state to = 0; to < JOB_STATE_COUNT; to++)
            if (job_may_become(from, to) != (legal[from][to] == 'X'))
                fail_msg("%s -> %s", job_state_name(from), job_state_name(to));
    assert_false(job_may_become(JOB_STATE_COUNT, JOB_QUEUED));
    assert_false(job_may_become(JOB_QUEUED, JOB_STATE_COUNT));
}

/* From every state a job can end, and be cancelled unless it is over or its end is being filed. */
static void no_state_is_a_trap(void **state) {
    (void)state;
    for (job_state from = 0; from < JOB_STATE_COUNT; from++) {
        unsigned reached = 1u << from, before = 0;
        while (reached != before) {
            before = reached;
            for (job_state s = 0; s < JOB_STATE_COUNT; s++)
                for (job_state to = 0; to < JOB_STATE_COUNT; to++)
                    if (reached & 1u << s && job_may_become(s, to)) reached |= 1u << to;
        }
        assert_true(reached & 1u << JOB_SUCCEEDED);
        bool cancels = job_may_become(from, JOB_CANCELLED) || job_may_become(from, JOB_CANCELLING);
        assert_int_equal(cancels, !job_is_over(from) && from != JOB_FINALIZING);
    }
}

static void state_names_are_read_back(void **state) {
    job_state found;
    (void)state;
    for (job_state s = 0; s < JOB_STATE_COUNT; s++) {
        assert_true(job_state_find(job_state_name(s), &found));
        assert_int_equal(found, s);
    }
    assert_false(job_state_find("queued", &found));
    assert_false(job_state_find("?", &found));
}

static void ends_are_judged_by_code(void **state) {
    static const struct {
        int code;
        job_verdict verdict;
    } rows[] = {{0, VERDICT_DONE},       {64, VERDICT_FAIL},      {65, VERDICT_FAIL},      {66, VERDICT_FAIL},
                {69, VERDICT_ONCE_MORE}, {70, VERDICT_ONCE_MORE}, {71, VERDICT_ONCE_MORE}, {73, VERDICT_FAIL},
                {74, VERDICT_RESUME},    {75, VERDICT_RESUME},    {77, VERDICT_FAIL},      {78, VERDICT_FAIL},
                {130, VERDICT_RESUME},   {143, VERDICT_RESUME},   {-1, VERDICT_RESUME},    {1, VERDICT_FAIL}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(job_judge(&(attempt_end){.exit_code = rows[i].code}), rows[i].verdict);
    assert_int_equal(job_judge(&(attempt_end){.exit_code = 73, .no_space = true}), VERDICT_WAIT_DISK);
    assert_int_equal(job_judge(&(attempt_end){.exit_code = -1, .signal = 9, .out_of_memory = true}), VERDICT_ONCE_MORE);
    assert_true(job_may_retry(VERDICT_RESUME, 2));
    assert_false(job_may_retry(VERDICT_RESUME, 3));
    assert_true(job_may_retry(VERDICT_ONCE_MORE, 0));
    assert_false(job_may_retry(VERDICT_ONCE_MORE, 1));
    assert_false(job_may_retry(VERDICT_FAIL, 0));
}

/* 30 s, 60 s, ... at most 15 minutes, each 20 % more or less. */
static void backoff_doubles_up_to_a_quarter_of_an_hour(void **state) {
    static const double middle[] = {30, 60, 120, 240, 480, 900, 900};
    (void)state;
    for (int n = 0; n < 7; n++) {
        assert_true(job_backoff(30, n, 0) > 0.799 * middle[n] && job_backoff(30, n, 0) < 0.801 * middle[n]);
        assert_true(job_backoff(30, n, 0.5) > 0.999 * middle[n] && job_backoff(30, n, 0.5) < 1.001 * middle[n]);
        assert_true(job_backoff(30, n, 1) > 1.199 * middle[n] && job_backoff(30, n, 1) < 1.201 * middle[n]);
    }
    assert_true(job_backoff(30, INT64_MAX, 0) < 900);
}

/* ---- what a job asks for ------------------------------------------------------------------------------------------------------ */

static ql_status parse(const char *text) {
    json_t *spec;
    ql_status status = spec_parse(text, strlen(text), &spec);
    json_decref(spec);
    return status;
}

#define BODY(more) "{\"model\": \"/m\", \"output\": \"/o\"" more "}"

static void bodies_are_refused_with_one_line(void **state) {
    (void)state;
    assert_ok(parse(BODY("")));
    assert_refused(parse(""), QL_FORMAT, "request");
    assert_refused(parse("[]"), QL_FORMAT, "expected an object");
    assert_refused(parse("{\"output\": \"/o\"}"), QL_FORMAT, "\"model\" is missing");
    assert_refused(parse("{\"model\": \"/m\"}"), QL_FORMAT, "\"output\" is missing");
    assert_refused(parse(BODY(", \"modle\": 1")), QL_FORMAT, "model");
    assert_refused(parse(BODY(", \"bits\": 4, \"bits\": 4")), QL_FORMAT, "duplicate");
    assert_refused(parse(BODY(", \"bits\": 4.0")), QL_FORMAT, "bits");
    assert_refused(parse(BODY(", \"bits\": -9223372036854775808")), QL_FORMAT, "bits");
    assert_refused(parse(BODY(", \"bits\": 99999999999999999999")), QL_FORMAT, "");
    assert_refused(parse(BODY(", \"sym\": 1")), QL_FORMAT, "true or false");
    assert_refused(parse(BODY(", \"damp\": 1e400")), QL_FORMAT, "");
    assert_refused(parse(BODY(", \"calib\": \"tokens.h5\"")), QL_USAGE, "absolute");
    assert_refused(parse(BODY(", \"calib\": \"/a\\u001b[2J\"")), QL_USAGE, "control");
    assert_refused(parse(BODY(", \"calib\": \"/a\", \"stats\": \"/b\"")), QL_USAGE, "not both");
    assert_refused(parse(BODY(", \"priority\": 101")), QL_FORMAT, "priority");
    assert_refused(parse(BODY(", \"gpus\": [0, 1, 0]")), QL_USAGE, "twice");
    assert_refused(parse(BODY(", \"gpus\": []")), QL_USAGE, "gpus");
    assert_refused(parse(BODY(", \"gpus\": [\"0\"]")), QL_USAGE, "entry 0");
    assert_refused(parse(BODY(", \"gpus\": \"all\"")), QL_FORMAT, "gpus");
    assert_ok(parse(BODY(", \"gpus\": 0, \"ranks\": 4")));
    assert_ok(parse(BODY(", \"gpus\": [1, 3], \"ranks\": 2")));
    assert_refused(parse(BODY(", \"gpus\": 1, \"ranks\": 2")), QL_USAGE, "each rank takes one GPU");
    assert_refused(parse(BODY(", \"ranks\": 0")), QL_FORMAT, "ranks");
    assert_refused(parse(BODY(", \"ranks\": 65")), QL_FORMAT, "ranks");
    assert_refused(parse(BODY(", \"scheme\": \"W4A17-GPTQ\"")), QL_USAGE, "W4A17");
    assert_refused(parse(BODY(", \"scheme\": \"FP8,,NF4\"")), QL_USAGE, "scheme");
    assert_refused(parse(BODY(", \"scheme\": \"FP8\", \"recipe\": \"version: 1\\n\"")), QL_USAGE, "one of them");
}

static void recipes_of_bodies_are_read(void **state) {
    (void)state;
    assert_ok(parse(BODY(", \"recipe\": \"version: 1\\nbits: 3\\n\"")));
    assert_refused(parse(BODY(", \"recipe\": \"version: 1\\nbitz: 3\\n\"")), QL_MISMATCH, "bits");
    assert_refused(parse(BODY(", \"recipe\": \"a: &a [1]\\nb: *a\\n\"")), QL_MISMATCH, "recipe");
    assert_refused(parse(BODY(", \"recipe\": \"version: !!int 1\\n\"")), QL_MISMATCH, "recipe");
}

static void bodies_of_more_than_a_megabyte(void **state) {
    size_t size = SPEC_MOST_BYTES + 1;
    char *text = malloc(size);
    json_t *spec;
    (void)state;
    assert_non_null(text);
    memset(text, ' ', size);
    memcpy(text, BODY(""), strlen(BODY("")));
    assert_refused(spec_parse(text, size, &spec), QL_USAGE, "at most 1048576");
    assert_ok(spec_parse(text, size - 1, &spec));
    json_decref(spec);
    memset(text, '[', size);
    memcpy(text, "{\"a\":", 5);
    assert_refused(spec_parse(text, size - 1, &spec), QL_FORMAT, "nested deeper");
    free(text);
}

static void expect_words(char **words, const char *expected) {
    char line[1024] = "";
    for (; *words; words++) snprintf(line + strlen(line), sizeof line - strlen(line), "%s ", *words);
    assert_string_equal(line, expected);
}

static void specs_become_command_lines(void **state) {
    static const char body[] = BODY(", \"work\": \"/w\", \"scheme\": \"FP8,NF4\", \"sym\": true, \"asym\": false, "
                                    "\"group_size\": -1, \"damp\": 0.125, \"gpus\": [3, 1], \"priority\": -7");
    spec_gpus gpus;
    ql_arena *arena;
    json_t *spec;
    char **words, *name;
    (void)state;
    assert_ok(ql_arena_open(NULL, &arena));
    assert_ok(spec_parse(body, strlen(body), &spec));
    assert_ok(spec_quantize_words(spec, NULL, arena, &words));
    expect_words(words, "--model=/m --output=/o --work=/w --scheme=FP8,NF4 --group-size=-1 --sym --damp=0.125 ");
    assert_ok(spec_scheme(spec, 1, arena, &name));
    assert_string_equal(name, "NF4");
    assert_ok(spec_plan_words(spec, NULL, name, arena, &words));
    expect_words(words, "--model=/m --output=/o --scheme=NF4 --group-size=-1 --sym --damp=0.125 ");
    assert_ok(spec_scheme(spec, 2, arena, &name));
    assert_null(name);
    assert_int_equal(spec_priority(spec), -7);
    spec_find_gpus(spec, &gpus);
    assert_true(gpus.by_id && gpus.count == 2 && gpus.id[0] == 3 && gpus.id[1] == 1 && gpus.ranks == 2);
    json_decref(spec);
    assert_ok(
        spec_parse(BODY(", \"recipe\": \"version: 1\\n\""), strlen(BODY(", \"recipe\": \"version: 1\\n\"")), &spec));
    assert_ok(spec_quantize_words(spec, "/r.yaml", arena, &words));
    expect_words(words, "--model=/m --output=/o --recipe=/r.yaml ");
    spec_find_gpus(spec, &gpus);
    assert_true(!gpus.by_id && gpus.count == -1 && gpus.ranks == 1);
    json_decref(spec);
    ql_arena_close(arena);
}

/* ---- the store ---------------------------------------------------------------------------------------------------------------- */

static ql_status submit(store *s, int number, const char *key, submit_result *result, char id[JOB_ID_LENGTH + 1]) {
    char body[128];
    json_t *spec;
    job j;
    int size =
        snprintf(body, sizeof body, "{\"model\": \"/m\", \"output\": \"/o%d\", \"priority\": %d}", number, number % 3);
    QL_TRY(spec_parse(body, (size_t)size, &spec));
    ql_status status = store_submit(s, spec, body, (size_t)size, key, result, &j);
    json_decref(spec);
    if (status == QL_OK) memcpy(id, j.id, sizeof j.id);
    if (status == QL_OK) job_free(&j);
    return status;
}

static void change(store *s, const char *id, job_state to) {
    job j;
    assert_ok(store_load(s, id, &j));
    assert_ok(store_change(s, &j, to));
    job_free(&j);
}

static job_state state_of(store *s, const char *id) {
    job j;
    assert_ok(store_load(s, id, &j));
    job_free(&j);
    return j.state;
}

static int64_t jobs_in(store *s, job_state which) {
    int64_t count[JOB_STATE_COUNT], sum = 0;
    assert_ok(index_counts(store_index(s), count));
    for (job_state i = 0; i < JOB_STATE_COUNT; i++)
        if (which == JOB_STATE_COUNT || which == i) sum += count[i];
    return sum;
}

static void keys_make_submitting_repeatable(void **state) {
    char first[JOB_ID_LENGTH + 1], second[JOB_ID_LENGTH + 1];
    submit_result result;
    store *s;
    assert_ok(store_open(*state, false, &s));
    assert_ok(submit(s, 1, "key", &result, first));
    assert_int_equal(result, SUBMIT_NEW);
    for (int i = 0; i < 100; i++) {
        assert_ok(submit(s, 1, "key", &result, second));
        assert_int_equal(result, SUBMIT_KNOWN);
        assert_string_equal(first, second);
    }
    assert_ok(submit(s, 2, "key", &result, second));
    assert_int_equal(result, SUBMIT_KEY_TAKEN);
    assert_ok(submit(s, 1, NULL, &result, second));
    assert_int_equal(result, SUBMIT_OUTPUT_TAKEN);
    assert_string_equal(first, second);
    assert_int_equal(jobs_in(s, JOB_STATE_COUNT), 1);
    change(s, first, JOB_CANCELLED);
    assert_ok(submit(s, 1, NULL, &result, second)); /* its output is free again */
    assert_int_equal(result, SUBMIT_NEW);
    assert_true(strcmp(first, second) < 0);
    store_close(s);
}

static void a_change_counts_once(void **state) {
    char id[JOB_ID_LENGTH + 1];
    submit_result result;
    job mine, theirs;
    store *s;
    assert_ok(store_open(*state, false, &s));
    assert_ok(submit(s, 1, NULL, &result, id));
    assert_ok(store_load(s, id, &mine));
    assert_ok(store_load(s, id, &theirs));
    assert_ok(store_change(s, &theirs, JOB_STARTING));
    assert_refused(store_change(s, &mine, JOB_CANCELLED), QL_MISMATCH, "no longer QUEUED");
    assert_int_equal(mine.state, JOB_QUEUED);
    assert_refused(store_change(s, &theirs, JOB_SUCCEEDED), QL_MISMATCH, "cannot become SUCCEEDED");
    assert_int_equal(state_of(s, id), JOB_STARTING);
    assert_refused(store_remove(s, id), QL_MISMATCH, "cancel it");
    job_free(&mine);
    job_free(&theirs);
    change(s, id, JOB_CANCELLED);
    assert_ok(store_remove(s, id));
    assert_refused(store_load(s, id, &mine), QL_MISSING, id);
    assert_refused(store_load(s, "../../../../../../etc/passwd", &mine), QL_MISSING, "no job");
    store_close(s);
}

static ql_status collect(void *context, const index_row *row) {
    char *text = context;
    snprintf(text + strlen(text), 4096 - strlen(text), "%s ", strrchr(row->output, '/') + 1);
    return QL_OK;
}

static void priorities_come_first_then_age(void **state) {
    char id[JOB_ID_LENGTH + 1], text[4096] = "";
    submit_result result;
    store *s;
    assert_ok(store_open(*state, false, &s));
    for (int i = 0; i < 6; i++) assert_ok(submit(s, i, NULL, &result, id));
    assert_ok(index_next(store_index(s), JOB_QUEUED, 5, collect, text));
    assert_string_equal(text, "o2 o5 o1 o4 o0 ");
    text[0] = 0;
    assert_ok(index_list(store_index(s), JOB_STATE_COUNT, "", 3, collect, text));
    assert_string_equal(text, "o0 o1 o2 ");
    text[0] = 0;
    assert_ok(index_list(store_index(s), JOB_QUEUED, id, 3, collect, text));
    assert_string_equal(text, "");
    store_close(s);
}

/* The directories alone tell everything: without the index, with a damaged one, and with one that says something else. */
static void the_index_is_made_from_the_directories(void **state) {
    char ids[5][JOB_ID_LENGTH + 1], before[4096] = "", after[4096];
    submit_result result;
    store *s;
    assert_ok(store_open(*state, false, &s));
    for (int i = 0; i < 5; i++) assert_ok(submit(s, i, i == 3 ? "k" : NULL, &result, ids[i]));
    change(s, ids[1], JOB_STARTING);
    change(s, ids[1], JOB_RUNNING);
    change(s, ids[2], JOB_CANCELLED);
    assert_ok(index_list(store_index(s), JOB_STATE_COUNT, "", 9, collect, before));
    store_close(s);
    for (int way = 0; way < 4; way++) {
        const char *db = scratch_path(state, "queue.db");
        sqlite3 *raw;
        if (way == 1) assert_int_equal(unlink(db), 0);
        if (way == 2) scratch_write(db, "no database at all, but long enough to be looked at as one.....", 64);
        if (way == 3) {
            assert_int_equal(sqlite3_open(db, &raw), SQLITE_OK);
            assert_int_equal(sqlite3_exec(raw, "DELETE FROM job WHERE priority=0", NULL, NULL, NULL), SQLITE_OK);
            sqlite3_close(raw);
        }
        if (way == 2) (void)unlink(scratch_path(state, "queue.db-wal"));
        assert_ok(store_open(*state, way == 0, &s));
        after[0] = 0;
        assert_ok(index_list(store_index(s), JOB_STATE_COUNT, "", 9, collect, after));
        assert_string_equal(before, after);
        assert_int_equal(state_of(s, ids[1]), JOB_RUNNING);
        assert_int_equal(jobs_in(s, JOB_CANCELLED), 1);
        assert_ok(submit(s, 3, "k", &result, ids[0]));
        assert_int_equal(result, SUBMIT_KNOWN);
        store_close(s);
    }
}

static void directories_that_come_and_go(void **state) {
    char ids[3][JOB_ID_LENGTH + 1], path[4096], command[8300];
    submit_result result;
    store *s, *second;
    assert_ok(store_open(*state, false, &s));
    for (int i = 0; i < 3; i++) assert_ok(submit(s, i, NULL, &result, ids[i]));
    assert_refused(store_open(*state, false, &second), QL_DISK, "in use by process");
    store_close(s);
    snprintf(path, sizeof path, "%s/jobs/%s", (const char *)*state, ids[0]);
    assert_ok(ql_dir_remove(path));
    snprintf(path, sizeof path, "%s/jobs/%s/job.json", (const char *)*state, ids[1]);
    scratch_write(path, "{\"id\": 1", 8);
    snprintf(command, sizeof command, "mkdir %s/new/x %s/trash/y", (const char *)*state, (const char *)*state);
    assert_int_equal(system(command), 0);
    assert_ok(store_open(*state, false, &s));
    assert_int_equal(jobs_in(s, JOB_STATE_COUNT), 1);
    assert_int_equal(state_of(s, ids[2]), JOB_QUEUED);
    assert_false(ql_path_exists(scratch_path(state, "new/x")));
    assert_false(ql_path_exists(scratch_path(state, "trash/y")));
    store_close(s);
}

#ifdef QL_FAULTS
enum { STEPS = 4 };
static const job_state steps[STEPS] = {JOB_STARTING, JOB_RUNNING, JOB_FINALIZING, JOB_SUCCEEDED};

/* Submits, goes through the states, and tells after each what it was told is done. */
static void live_until_the_fault(const char *dir, const char *fault, int acknowledged) {
    char id[JOB_ID_LENGTH + 1];
    submit_result result;
    store *s;
    job j;
    ql_fault_set(fault);
    if (store_open(dir, false, &s) != QL_OK) _exit(1);
    if (submit(s, 1, "key", &result, id) != QL_OK || write(acknowledged, "+", 1) != 1) _exit(1);
    for (int i = 0; i < STEPS; i++) {
        if (store_load(s, id, &j) != QL_OK) _exit(1);
        ql_status status = store_change(s, &j, steps[i]);
        job_free(&j);
        if (status != QL_OK || write(acknowledged, "+", 1) != 1) _exit(1);
    }
    _exit(0);
}

/* What was acknowledged is there, at most one step more, and submitting again makes no second job. */
static void expect_nothing_lost(const char *dir, const char *fault, int64_t acknowledged) {
    char id[JOB_ID_LENGTH + 1];
    submit_result result;
    store *s;
    assert_ok(store_open(dir, false, &s));
    int64_t jobs = jobs_in(s, JOB_STATE_COUNT);
    if (jobs > 1 || (acknowledged > 0 && jobs == 0)) fail_msg("%s: %lld jobs", fault, (long long)jobs);
    assert_ok(submit(s, 1, "key", &result, id));
    assert_int_equal(result, jobs ? SUBMIT_KNOWN : SUBMIT_NEW);
    assert_int_equal(jobs_in(s, JOB_STATE_COUNT), 1);
    int64_t reached = 0;
    job_state now = state_of(s, id);
    for (int i = 0; i < STEPS; i++)
        if (now == steps[i]) reached = i + 1;
    if (acknowledged > 0 && (reached < acknowledged - 1 || reached > acknowledged))
        fail_msg("%s: %s after %lld acknowledged changes", fault, job_state_name(now), (long long)acknowledged - 1);
    store_close(s);
}

static void faults_at_every_call(void **state) {
    static const char *const sites[] = {"open", "write", "fsync", "rename"}, *const actions[] = {"kill", "once"};
    for (int i = 0; i < 8; i++)
        for (int n = 1, code = -1; code != 0; n++) {
            char fault[32], dir[32], plus[8];
            int ends[2], status;
            snprintf(fault, sizeof fault, "%s:%d:%s", sites[i / 2], n, actions[i % 2]);
            snprintf(dir, sizeof dir, "%d-%d", i, n);
            assert_int_equal(pipe(ends), 0);
            pid_t child = fork();
            if (child == 0) live_until_the_fault(scratch_path(state, dir), fault, ends[1]);
            close(ends[1]);
            assert_int_equal(waitpid(child, &status, 0), child);
            ssize_t acknowledged = read(ends[0], plus, sizeof plus);
            close(ends[0]);
            code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
            expect_nothing_lost(scratch_path(state, dir), fault, acknowledged);
        }
}
#endif

static void ids_grow_whatever_the_clock_says(void **state) {
    char id[JOB_ID_LENGTH + 1], last[JOB_ID_LENGTH + 1] = "7ZZZZZZZZZZZZZZZZZZZZZZZZX";
    (void)state;
    assert_ok(job_make_id("", id));
    assert_true(job_is_id(id));
    assert_ok(job_make_id(last, id));
    assert_string_equal(id, "7ZZZZZZZZZZZZZZZZZZZZZZZZY");
    assert_ok(job_make_id("70000000000ZZZZZZZZZZZZZZZ", id));
    assert_string_equal(id, "70000000001000000000000000");
    assert_false(job_is_id("7ZZZZZZZZZZZZZZZZZZZZZZZZU"));
    assert_false(job_is_id("../../../../../../etc/pass"));
}

static void events_survive_a_torn_line(void **state) {
    const char *path = scratch_path(state, "events.jsonl");
    json_t *event = json_pack("{s:s}", "type", "a"), *events;
    int64_t next, end;
    events_append(path, event);
    FILE *file = fopen(path, "a");
    assert_non_null(file);
    fputs("{\"type\": \"to", file);
    fclose(file);
    events_append(path, event);
    assert_ok(events_read(path, 0, &events, &next));
    assert_int_equal(json_array_size(events), 2);
    end = events_end(path);
    assert_int_equal(next, end);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(events, 1), "seq")), end);
    json_decref(events);
    assert_ok(events_read(path, end, &events, &next));
    assert_true(json_array_size(events) == 0 && next == end);
    json_decref(events);
    json_decref(event);
}

/* ---- the interface, without a server --------------------------------------------------------------------------------------- */

static int ask(service *d, const char *method, const char *path, const char *key, const char *body, char *text,
               size_t room) {
    request q = {.method = method, .path = path, .key = key, .body = body, .body_size = body ? strlen(body) : 0};
    response r;
    api_answer(d, &q, &r);
    snprintf(text, room, "%s", r.body ? r.body : "");
    api_free(&r);
    return r.status;
}

static void open_service(const char *dir, const settings *set, service *d) {
    *d = (service){.set = set};
    assert_ok(store_open(dir, false, &d->store));
    assert_ok(schedule_open(set, d->store, &d->schedule));
}

static void close_service(service *d) {
    schedule_close(d->schedule);
    store_close(d->store);
}

static settings quiet_settings(const char *dir) {
    return (settings){.state_dir = dir,
                      .engine = "/bin/false",
                      .self = "/bin/false",
                      .gpus = "none",
                      .live_jobs = 2,
                      .cpu_jobs = 1,
                      .memory_bytes = 1 << 30};
}

static void answers_have_their_status(void **state) {
    settings set = quiet_settings(*state);
    char text[8192], path[96], id[JOB_ID_LENGTH + 1];
    service d;
    open_service(*state, &set, &d);
    assert_int_equal(ask(&d, "POST", "/v1/jobs", "a", BODY(""), text, sizeof text), 201);
    memcpy(id, strstr(text, "\"id\":\"") + 6, JOB_ID_LENGTH);
    id[JOB_ID_LENGTH] = 0;
    assert_int_equal(ask(&d, "POST", "/v1/jobs", "a", BODY(""), text, sizeof text), 200);
    assert_int_equal(ask(&d, "POST", "/v1/jobs", "a", BODY(", \"bits\": 4"), text, sizeof text), 409);
    assert_non_null(strstr(text, "key-taken"));
    assert_int_equal(ask(&d, "POST", "/v1/jobs", NULL, BODY(""), text, sizeof text), 409);
    assert_non_null(strstr(text, "output-taken"));
    assert_int_equal(ask(&d, "POST", "/v1/jobs", "b\n", BODY(""), text, sizeof text), 400);
    assert_int_equal(ask(&d, "POST", "/v1/jobs", NULL, "{\"model\": \"/m\", \"output\": \"/p\"}", text, sizeof text),
                     201);
    assert_int_equal(ask(&d, "POST", "/v1/jobs", NULL, "{\"model\": \"/m\", \"output\": \"/q\"}", text, sizeof text),
                     429);
    snprintf(path, sizeof path, "/v1/jobs/%s/resume", id);
    assert_int_equal(ask(&d, "POST", path, NULL, NULL, text, sizeof text), 409);
    snprintf(path, sizeof path, "/v1/jobs/%s", id);
    assert_int_equal(ask(&d, "DELETE", path, NULL, NULL, text, sizeof text), 409);
    snprintf(path, sizeof path, "/v1/jobs/%s/pause", id);
    assert_int_equal(ask(&d, "POST", path, NULL, NULL, text, sizeof text), 200);
    snprintf(path, sizeof path, "/v1/jobs/%s/cancel", id);
    for (int i = 0; i < 2; i++) assert_int_equal(ask(&d, "POST", path, NULL, NULL, text, sizeof text), 200);
    snprintf(path, sizeof path, "/v1/jobs/%s", id);
    assert_int_equal(ask(&d, "DELETE", path, NULL, NULL, text, sizeof text), 204);
    assert_int_equal(ask(&d, "GET", path, NULL, NULL, text, sizeof text), 404);
    assert_int_equal(ask(&d, "GET", "/v1/jobs/", NULL, NULL, text, sizeof text), 404);
    assert_int_equal(ask(&d, "GET", "/V1/jobs", NULL, NULL, text, sizeof text), 404);
    assert_int_equal(ask(&d, "PATCH", "/v1/jobs", NULL, NULL, text, sizeof text), 405);
    assert_int_equal(ask(&d, "HEAD", "/healthz", NULL, NULL, text, sizeof text), 200);
    assert_int_equal(
        ask(&d, "POST", "/v1/jobs", NULL, "{\"model\": \"/m\", \"output\": \"/q\", \"ranks\": 2}", text, sizeof text),
        422);
    assert_non_null(strstr(text, "no-launcher"));
    d.stopping = true;
    assert_int_equal(ask(&d, "GET", "/readyz", NULL, NULL, text, sizeof text), 503);
    assert_int_equal(ask(&d, "POST", "/v1/jobs", NULL, BODY(""), text, sizeof text), 503);
    close_service(&d);
}

#ifdef QL_FAULTS
/* Memory that is refused once, at any place of any request: an answer, no crash, no half job, and the next request is fine. */
static void memory_that_fails_in_a_request(void **state) {
    static const struct {
        const char *method, *path, *body;
    } calls[] = {{"POST", "/v1/jobs", "{\"model\": \"/m\", \"output\": \"/p\", \"recipe\": \"version: 1\\n\"}"},
                 {"GET", "/v1/jobs", NULL},
                 {"GET", "/v1/jobs/{id}", NULL},
                 {"GET", "/v1/jobs/{id}/events", NULL},
                 {"GET", "/v1/jobs/{id}/log", NULL},
                 {"GET", "/v1/jobs/{id}/report", NULL},
                 {"POST", "/v1/jobs/{id}/pause", NULL},
                 {"GET", "/metrics", NULL},
                 {"GET", "/v1/openapi.json", NULL}};
    settings set = quiet_settings(*state);
    char text[65536], path[96], id[JOB_ID_LENGTH + 1], fault[32];
    service d;
    open_service(*state, &set, &d);
    assert_int_equal(ask(&d, "POST", "/v1/jobs", "k", BODY(""), text, sizeof text), 201);
    memcpy(id, strstr(text, "\"id\":\"") + 6, JOB_ID_LENGTH);
    id[JOB_ID_LENGTH] = 0;
    for (size_t c = 0; c < sizeof calls / sizeof calls[0]; c++)
        for (int n = 1, status = 503; status >= 500 && n < 2000; n++) {
            const char *hole = strstr(calls[c].path, "{id}");
            snprintf(path, sizeof path, "%s", calls[c].path);
            if (hole) snprintf(path, sizeof path, "/v1/jobs/%s%s", id, hole + 4);
            snprintf(fault, sizeof fault, "malloc:%d:once", n);
            ql_fault_set(fault);
            status = ask(&d, calls[c].method, path, c == 0 ? "m" : NULL, calls[c].body, text, sizeof text);
            bool passed = ql_fault_passages() < n;
            ql_fault_set(NULL);
            if (!passed && status < 400) status = 599; /* it did without; go on */
            if (status >= 600 || (status < 500 && !passed && status != 404)) fail_msg("%s: %d: %s", path, status, text);
        }
    assert_int_equal(jobs_in(d.store, JOB_STATE_COUNT), 2);
    close_service(&d);
}
#endif

/* ---- logs and devices ----------------------------------------------------------------------------------------------------- */

/* Byte i of the log is its position modulo 251: whatever is read shows where it comes from. */
static void a_log_keeps_its_head_and_its_tail(void **state) {
    enum { LIMIT = 64 << 10, ALL = 1 << 20, PIECE = 1000 };
    unsigned char piece[PIECE];
    log_writer log;
    int64_t position = 0, kept = 0, skipped = 0, before;
    size_t size;
    log_open(&log, *state, LIMIT);
    for (int64_t at = 0; at < ALL; at += PIECE) {
        for (int i = 0; i < PIECE; i++) piece[i] = (unsigned char)((at + i) % 251);
        log_write(&log, piece, PIECE);
    }
    log_close(&log);
    assert_int_equal(log_end(*state), log.position);
    do {
        before = position;
        assert_ok(log_read(*state, &position, (char *)piece, PIECE, &size));
        int64_t first = position - (int64_t)size;
        for (size_t i = 0; i < size; i++) assert_int_equal(piece[i], (first + (int64_t)i) % 251);
        skipped += first - before;
        kept += (int64_t)size;
    } while (size > 0);
    assert_int_equal(position, log.position);
    assert_int_equal(kept + skipped, log.position);
    assert_true(kept <= LIMIT && kept > LIMIT * 3 / 4);
    position = 0;
    assert_ok(log_read(*state, &position, (char *)piece, PIECE, &size));
    assert_int_equal(position, size); /* the head is there */
}

static void ends_are_read_back(void **state) {
    attempt_exit e = {.end = {.exit_code = 73}, .hung = true, .steps_done = 7, .peak_bytes = 1LL << 40, .seconds = 1.5};
    attempt_exit back;
    assert_refused(attempt_read_exit(*state, &back), QL_MISSING, "exit.json");
    strcpy(e.reason, "error[73]: /o: cannot write: No space left on device");
    assert_ok(attempt_write_exit(*state, &e));
    assert_ok(attempt_read_exit(*state, &back));
    assert_string_equal(back.reason, e.reason);
    assert_true(back.hung && back.end.no_space && back.end.exit_code == 73 && back.steps_done == 7 &&
                back.peak_bytes == 1LL << 40 && back.seconds == 1.5);
    strcpy(e.reason, "error[73]: /o: exists");
    assert_ok(attempt_write_exit(*state, &e));
    assert_ok(attempt_read_exit(*state, &back));
    assert_false(back.end.no_space);
}

static void gpus_go_by_number_and_by_name(void **state) {
    devices d = {.cpu_places = 1, .memory = UINT64_MAX};
    const spec_gpus one = {.count = 1}, two = {.count = 2}, usual = {.count = -1, .ranks = 1}, none = {.count = 0};
    const spec_gpus third = {.count = 1, .id = {7}, .by_id = true}, absent = {.count = 1, .id = {9}, .by_id = true};
    reservation a, b, c;
    char list[GPU_LIST_SIZE];
    (void)state;
    assert_refused(devices_parse("0,1,0", &d), QL_USAGE, "--gpus");
    assert_refused(devices_parse("0,", &d), QL_USAGE, "--gpus");
    assert_refused(devices_parse("a", &d), QL_USAGE, "--gpus");
    assert_ok(devices_parse("4,5,7", &d));
    assert_int_equal(devices_reserve(&d, &third, 0, &a), FIT_NOW);
    devices_list(&d, &a, list);
    assert_string_equal(list, "7");
    assert_int_equal(devices_reserve(&d, &third, 0, &b), FIT_LATER);
    assert_int_equal(devices_reserve(&d, &absent, 0, &b), FIT_NEVER);
    assert_int_equal(devices_reserve(&d, &two, 0, &b), FIT_NOW);
    devices_list(&d, &b, list);
    assert_string_equal(list, "4,5");
    assert_int_equal(devices_reserve(&d, &usual, 0, &c), FIT_LATER);
    assert_int_equal(devices_reserve(&d, &none, 0, &c), FIT_NOW);
    assert_true(c.on_cpu);
    assert_int_equal(devices_reserve(&d, &none, 0, &(reservation){0}), FIT_LATER);
    devices_release(&d, &b);
    assert_int_equal(devices_reserve(&d, &one, 0, &b), FIT_NOW);
    devices_adopt(&d, "5,99", 0, &c);
    devices_list(&d, &c, list);
    assert_string_equal(list, "5");
    devices four = {.cpu_places = 1, .memory = UINT64_MAX};
    assert_ok(devices_parse("0,1,2,3", &four));
    assert_int_equal(devices_reserve(&four, &(spec_gpus){.count = -1, .ranks = 3}, 0, &a), FIT_NOW);
    assert_int_equal(a.n_gpus, 3);
    devices before = {.cpu_places = 1, .memory = 1000};
    assert_ok(devices_parse("none", &before));
    assert_int_equal(devices_reserve(&before, &usual, 1001, &a), FIT_NEVER);
    assert_int_equal(devices_reserve(&before, &usual, 600, &a), FIT_NOW);
    before.cpu_places = 2;
    assert_int_equal(devices_reserve(&before, &usual, 401, &b), FIT_LATER);
    assert_int_equal(devices_reserve(&before, &usual, 400, &b), FIT_NOW);
    assert_int_equal(devices_reserve(&before, &one, 1, &b), FIT_NEVER);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_of_states),
        cmocka_unit_test(no_state_is_a_trap),
        cmocka_unit_test(state_names_are_read_back),
        cmocka_unit_test(ends_are_judged_by_code),
        cmocka_unit_test(backoff_doubles_up_to_a_quarter_of_an_hour),
        cmocka_unit_test(bodies_are_refused_with_one_line),
        cmocka_unit_test(recipes_of_bodies_are_read),
        cmocka_unit_test(bodies_of_more_than_a_megabyte),
        cmocka_unit_test(specs_become_command_lines),
        scratch_test(keys_make_submitting_repeatable),
        scratch_test(a_change_counts_once),
        scratch_test(priorities_come_first_then_age),
        scratch_test(the_index_is_made_from_the_directories),
        scratch_test(directories_that_come_and_go),
#ifdef QL_FAULTS
        scratch_test(faults_at_every_call),
#endif
        cmocka_unit_test(ids_grow_whatever_the_clock_says),
        scratch_test(events_survive_a_torn_line),
        scratch_test(answers_have_their_status),
#ifdef QL_FAULTS
        scratch_test(memory_that_fails_in_a_request),
#endif
        scratch_test(a_log_keeps_its_head_and_its_tail),
        scratch_test(ends_are_read_back),
        cmocka_unit_test(gpus_go_by_number_and_by_name),
    };
    if (ql_path_exists("/dev/shm"))
        setenv("TMPDIR", "/dev/shm", 0); /* hundreds of syncs, of which none is to be measured */
    return cmocka_run_group_tests(tests, NULL, NULL);
}

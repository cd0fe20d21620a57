/* The journal: whatever happens between two calls, what it says afterwards is true. */
#include "tests/scratch.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calib/journal.h"
#include "host/fault.h"

enum { LAYERS = 4 };

static json_t *fingerprint(void) {
    json_t *f =
        json_pack("{s:i, s:{s:i, s:s}, s:s}", "seed", 1, "recipe", "bits", 4, "method", "gptq", "tokens_sha256", "aa");
    assert_non_null(f);
    return f;
}

static ql_status open_with(const char *dir, journal_mode mode, json_t *f, journal **j) {
    ql_status status = journal_open(dir, mode, f, LAYERS, j);
    json_decref(f);
    return status;
}

static ql_status open_as(const char *dir, journal_mode mode, journal **j) {
    return open_with(dir, mode, fingerprint(), j);
}

/* What a job does for a layer: its file, then its line. */
static ql_status do_layer(journal *j, int64_t layer) {
    char data[64];
    ql_arena *arena;
    char *path;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = journal_layer_path(journal_dir(j), layer, arena, &path);
    snprintf(data, sizeof data, "weights of layer %d", (int)layer);
    if (status == QL_OK) status = ql_file_save(path, data, strlen(data));
    json_t *record = json_pack("{s:f}", "loss", 0.5 + (double)layer);
    if (status == QL_OK) status = record ? journal_commit(j, layer, record) : QL_NOMEM;
    json_decref(record);
    ql_arena_close(arena);
    return status;
}

static void run_job(const char *dir, int64_t layers) {
    journal *j;
    assert_ok(open_as(dir, JOURNAL_NEW, &j));
    for (int64_t layer = 0; layer < layers; layer++) assert_ok(do_layer(j, layer));
    journal_close(j);
}

static void expect_done(const char *dir, int64_t done) {
    journal *j;
    assert_ok(open_as(dir, JOURNAL_RESUME, &j));
    assert_int_equal(journal_done(j), done);
    for (int64_t layer = 0; layer < done; layer++) {
        assert_ok(journal_check_layer(j, layer));
        assert_true(json_real_value(json_object_get(journal_record(j, layer), "loss")) == 0.5 + (double)layer);
    }
    assert_null(journal_record(j, done));
    journal_close(j);
}

/* ---- a job's life ---------------------------------------------------------------------------------------------------------- */

static void layers_are_kept_in_order(void **state) {
    const char *dir = scratch_path(state, "a/b");
    journal *j;
    run_job(dir, 2);
    assert_refused(open_as(dir, JOURNAL_NEW, &j), QL_DISK, "resumable: 2/4 layers, use --resume");
    expect_done(dir, 2);
    assert_ok(open_as(dir, JOURNAL_RESUME, &j));
    assert_refused(journal_commit(j, 3, NULL), QL_INVALID, "cannot follow 2 of 4");
    assert_refused(journal_commit(j, 2, NULL), QL_DISK, "no file of layer 2");
    assert_refused(journal_finish(j, NULL), QL_INVALID, "cannot end after 2");
    assert_ok(do_layer(j, 2));
    assert_ok(do_layer(j, 3));
    assert_false(journal_finished(j));
    assert_ok(journal_finish(j, NULL));
    assert_true(journal_finished(j));
    journal_close(j);
    assert_refused(open_as(dir, JOURNAL_NEW, &j), QL_DISK, "the job is complete: 4/4");
    assert_ok(open_as(dir, JOURNAL_RESUME, &j));
    assert_true(journal_finished(j));
    assert_ok(journal_truncate(j, 1));
    assert_false(journal_finished(j));
    assert_ok(do_layer(j, 1));
    journal_close(j);
    expect_done(dir, 2);
}

static void resume_begins_where_nothing_was_begun(void **state) {
    journal *j;
    assert_ok(open_as(*state, JOURNAL_RESUME, &j));
    assert_int_equal(journal_done(j), 0);
    journal_close(j);
    run_job(*state, 1); /* nothing was done: JOURNAL_NEW has nothing to lose */
}

static void statistics_are_layers_too(void **state) {
    journal *j;
    assert_ok(open_as(*state, JOURNAL_NEW, &j));
    scratch_write(scratch_path(state, "layer-0000.h5"), "sums", 4);
    assert_ok(journal_commit(j, 0, NULL));
    journal_close(j);
    assert_ok(open_as(*state, JOURNAL_RESUME, &j));
    assert_ok(journal_check_layer(j, 0));
    assert_true(json_is_null(journal_record(j, 0)));
    journal_close(j);
}

/* ---- C7: damage ------------------------------------------------------------------------------------------------------------ */

static void any_torn_tail_is_dropped(void **state) {
    run_job(*state, 3);
    char path[4096];
    snprintf(path, sizeof path, "%s/journal.jsonl", (const char *)*state);
    size_t size, again;
    char *bytes = scratch_read(path, &size);
    size_t two = (size_t)(strchr(strchr(bytes, '\n') + 1, '\n') + 1 - bytes);
    for (size_t cut = two; cut < size; cut++) {
        scratch_write(path, bytes, cut);
        scratch_write(scratch_path(state, "layer-0002.safetensors"), "x", 1);
        expect_done(*state, 2);
        free(scratch_read(path, &again));
        assert_int_equal(again, two); /* the tail is gone from the file: the next line stands on its own */
        assert_false(ql_path_exists(scratch_path(state, "layer-0002.safetensors")));
    }
    /* A tail whose length is right but whose bytes never reached the disk. */
    memset(bytes + two, 0, size - two);
    bytes[size - 1] = '\n';
    scratch_write(path, bytes, size);
    expect_done(*state, 2);
    free(bytes);
}

static void expect_refusal(void **state, const char *text, size_t size, const char *words) {
    journal *j;
    scratch_write(scratch_path(state, "journal.jsonl"), text, size);
    assert_refused(open_as(*state, JOURNAL_RESUME, &j), QL_FORMAT, words);
    assert_false(ql_path_exists(scratch_path(state, "lock")));
}

static void damage_before_the_tail_is_refused(void **state) {
    run_job(*state, 3);
    size_t size;
    char *bytes = scratch_read(scratch_path(state, "journal.jsonl"), &size), mixed[4096];
    char *one = strchr(bytes, '\n') + 1, *two = strchr(one, '\n') + 1;
    size_t a = (size_t)(one - bytes), b = (size_t)(two - one), c = size - a - b;
    for (size_t at = 0; at + 1 < a + b; at += 7) { /* a bit anywhere in the first two of three lines */
        if (bytes[at] == '\n') continue;
        bytes[at] ^= 1;
        expect_refusal(state, bytes, size, "is damaged (wrong checksum); to go on from layer");
        bytes[at] ^= 1;
    }
    memcpy(mixed, bytes, a), memcpy(mixed + a, bytes, a);
    expect_refusal(state, mixed, 2 * a,
                   "line 2 repeats a layer; to go on from layer 1 delete it and all lines behind it");
    memcpy(mixed + a, two, c);
    expect_refusal(state, mixed, a + c, "line 2 is out of order");
    memcpy(mixed, one, b), memcpy(mixed + b, bytes, a);
    expect_refusal(state, mixed, a + b, "line 1 is out of order");
    scratch_write(scratch_path(state, "journal.jsonl"), "", 0); /* empty: from the beginning */
    expect_done(*state, 0);
    free(bytes);
}

static void a_checksum_does_not_vouch_for_the_content(void **state) {
    run_job(*state, 0);
    /* CRC-32C from an independent implementation; "123456789" has e3069283 there. */
    static const char *const lines[] = {
        "a2db3121 {\"event\":\"layer\",\"layer\":-1}\n",
        "9f0a9e8b {\"event\":\"dance\"}\n",
        "54ec70a0 {\"event\":\"finish\"}\n",
        "b83dbc6b [1]\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        expect_refusal(state, lines[i], strlen(lines[i]), "journal.jsonl");
}

/* ---- C8 -------------------------------------------------------------------------------------------------------------------- */

static void one_bit_of_a_layer_is_noticed(void **state) {
    run_job(*state, 2);
    const char *path = scratch_path(state, "layer-0001.safetensors");
    size_t size;
    char *bytes = scratch_read(path, &size);
    journal *j;
    assert_ok(open_as(*state, JOURNAL_RESUME, &j));
    for (size_t bit = 0; bit < 8 * size; bit += 5) {
        bytes[bit / 8] ^= (char)(1 << bit % 8);
        scratch_write(path, bytes, size);
        assert_refused(journal_check_layer(j, 1), QL_FORMAT, "layer-0001.safetensors");
        bytes[bit / 8] ^= (char)(1 << bit % 8);
    }
    scratch_write(path, bytes, size - 1);
    assert_refused(journal_check_layer(j, 1), QL_FORMAT, "committed were");
    unlink(path);
    assert_refused(journal_check_layer(j, 1), QL_FORMAT, "is missing");
    assert_ok(journal_check_layer(j, 0));
    assert_ok(journal_truncate(j, 1));
    assert_ok(do_layer(j, 1));
    journal_close(j);
    expect_done(*state, 2);
    free(bytes);
}

/* ---- C9 -------------------------------------------------------------------------------------------------------------------- */

static void every_changed_field_is_listed(void **state) {
    journal *j;
    run_job(*state, 1);
    json_t *changed = json_pack("{s:i, s:{s:i, s:s, s:b}, s:i}", "seed", 2, "recipe", "bits", 3, "method", "gptq",
                                "symmetric", 1, "tokens_sha256", 7);
    assert_refused(open_with(*state, JOURNAL_RESUME, changed, &j), QL_MISMATCH, "4 differences");
    assert_non_null(strstr(ql_last_error(), "seed was 1, is 2"));
    assert_non_null(strstr(ql_last_error(), "recipe.bits was 4, is 3"));
    assert_non_null(strstr(ql_last_error(), "recipe.symmetric was nothing, is true"));
    assert_non_null(strstr(ql_last_error(), "tokens_sha256 was \"aa\", is 7"));
    expect_done(*state, 1);
    unlink(scratch_path(state, "fingerprint.json"));
    assert_refused(open_as(*state, JOURNAL_RESUME, &j), QL_MISMATCH, "fingerprint.json: is missing");
}

/* ---- C10 ------------------------------------------------------------------------------------------------------------------- */

static void a_second_process_is_refused(void **state) {
    journal *j, *second;
    char words[64];
    assert_ok(open_as(*state, JOURNAL_NEW, &j));
    snprintf(words, sizeof words, "in use by process %d on ", (int)getpid());
    assert_refused(open_as(*state, JOURNAL_RESUME, &second), QL_DISK, words);
    pid_t child = fork();
    if (child == 0) _exit(open_as(*state, JOURNAL_RESUME, &second) == QL_DISK ? 0 : 1);
    int result;
    waitpid(child, &result, 0);
    assert_int_equal(result, 0);
    journal_close(j);
    expect_done(*state, 0);
    assert_false(ql_path_exists(scratch_path(state, "lock")));
}

static void lock_text(char text[512], const char *host, const char *boot, long pid, long start) {
    char real_host[65] = {0}, real_boot[65] = {0};
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%64s", real_boot), 1);
    fclose(file);
    gethostname(real_host, sizeof real_host - 1);
    snprintf(text, 512, "host %s boot %s pid %ld start %ld\n", host ? host : real_host, boot ? boot : real_boot, pid,
             start);
}

static void stale_locks_are_taken_over(void **state) {
    static const struct {
        const char *host, *boot;
        long pid, start;
        bool stale;
    } locks[] = {
        {NULL, "00000000-0000-0000-0000-000000000000", 1, 1, true}, /* before a reboot */
        {NULL, NULL, 999999999, 1, true},                           /* a process that is gone */
        {NULL, NULL, 1, 99, true},                                  /* its number belongs to another one now */
        {"elsewhere", "00000000-0000-0000-0000-000000000000", 1, 1, false},
    };
    const char *path = scratch_path(state, "lock");
    for (size_t i = 0; i < sizeof locks / sizeof locks[0]; i++) {
        char text[512];
        journal *j;
        lock_text(text, locks[i].host, locks[i].boot, locks[i].pid, locks[i].start);
        scratch_write(path, text, strlen(text));
        if (locks[i].stale) expect_done(*state, 0);
        else
            assert_refused(open_as(*state, JOURNAL_RESUME, &j), QL_DISK,
                           "process 1 on elsewhere; if that process is gone");
        if (!locks[i].stale) assert_true(ql_path_exists(path));
    }
    scratch_write(path, "host", 4); /* its owner died while writing it */
    expect_done(*state, 0);
}

/* Where nobody reaps orphans, a killed owner keeps its number and start. */
static void a_dead_owner_that_nobody_buried(void **state) {
    pid_t child = fork();
    if (child == 0) {
        journal *j;
        _exit(open_as(*state, JOURNAL_RESUME, &j) == QL_OK ? 0 : 1);
    }
    siginfo_t info;
    assert_int_equal(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0); /* it stays a zombie */
    assert_int_equal(info.si_status, 0);
    assert_true(ql_path_exists(scratch_path(state, "lock")));
    expect_done(*state, 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

/* Of many processes that find a stale lock at one time, exactly one gets in. */
static void takers_do_not_race(void **state) {
    enum { TAKERS = 12 };
    int gate[2];
    for (int round = 0; round < 5; round++) {
        pid_t takers[TAKERS];
        char text[512], go;
        lock_text(text, NULL, NULL, 999999999, 1);
        scratch_write(scratch_path(state, "lock"), text, strlen(text));
        assert_int_equal(pipe(gate), 0);
        for (int i = 0; i < TAKERS; i++)
            if ((takers[i] = fork()) == 0) {
                journal *j;
                close(gate[1]);
                if (read(gate[0], &go, 1) != 0) _exit(2);
                if (open_as(*state, JOURNAL_RESUME, &j) != QL_OK) _exit(1);
                usleep(300000); /* long enough for the slowest other one to try */
                _exit(0);       /* like a kill: the lock stays behind */
            }
        close(gate[0]), close(gate[1]);
        int inside = 0, result;
        for (int i = 0; i < TAKERS; i++) {
            waitpid(takers[i], &result, 0);
            assert_true(WIFEXITED(result) && WEXITSTATUS(result) <= 1);
            inside += WEXITSTATUS(result) == 0;
        }
        assert_int_equal(inside, 1);
    }
}

/* ---- C6, C11: a crash or a failure at every call ------------------------------------------------------------------------------- */

#ifdef QL_FAULTS
static const char *const sites[] = {"open", "write", "fsync", "rename", "read", "allocate", "malloc"};

static bool has_temporaries(const char *dir) {
    char command[4200];
    snprintf(command, sizeof command, "ls '%s' | grep -q '\\.tmp$'", dir);
    return system(command) == 0;
}

/* One layer under a fault, in a child.  False when the fault was not reached. */
static bool commit_under(const char *dir, const char *setting, bool in_recovery) {
    pid_t child = fork();
    if (child == 0) {
        journal *j;
        json_t *f = fingerprint();
        if (in_recovery) ql_fault_set(setting);
        ql_status status = open_with(dir, JOURNAL_RESUME, f, &j);
        if (status != QL_OK) _exit(1);
        if (!in_recovery) ql_fault_set(setting);
        status = do_layer(j, journal_done(j));
        ql_fault_set(NULL);
        journal_close(j);
        _exit(status == QL_OK ? 0 : 1);
    }
    int result;
    waitpid(child, &result, 0);
    return !WIFEXITED(result) || WEXITSTATUS(result) != 0;
}

/* Afterwards the journal says `before`, or one layer more; and the next attempt succeeds. */
static int64_t expect_either(const char *dir, int64_t before) {
    journal *j;
    assert_ok(open_as(dir, JOURNAL_RESUME, &j));
    int64_t done = journal_done(j);
    assert_true(done == before || done == before + 1);
    for (int64_t layer = 0; layer < done; layer++) assert_ok(journal_check_layer(j, layer));
    assert_false(has_temporaries(dir));
    journal_close(j);
    return done;
}

static void try_all(void **state, const char *action, bool in_recovery) {
    const char *dir = *state;
    for (size_t s = 0; s < sizeof sites / sizeof sites[0]; s++)
        for (int n = 1; n < 200; n++) {
            char setting[64];
            ql_dir_remove(dir);
            run_job(dir, 1);
            FILE *torn = fopen(scratch_path(state, "journal.jsonl"), "a"); /* recovery has something to do */
            fputs("torn", torn);
            fclose(torn);
            scratch_write(scratch_path(state, "layer-0001.safetensors.tmp"), "x", 1);
            snprintf(setting, sizeof setting, "%s:%d:%s", sites[s], n, action);
            if (!commit_under(dir, setting, in_recovery)) break;
            int64_t done = expect_either(dir, 1);
            assert_false(commit_under(dir, "none:0", false));
            assert_int_equal(expect_either(dir, done), done + 1);
        }
}

static void a_crash_at_every_call_of_a_commit(void **state) { try_all(state, "kill", false); }
static void a_failure_at_every_call_of_a_commit(void **state) { try_all(state, "once", false); }
static void a_crash_at_every_call_of_a_recovery(void **state) { try_all(state, "kill", true); }
static void a_failure_at_every_call_of_a_recovery(void **state) { try_all(state, "once", true); }

/* An append that failed half-way, followed by one that does not, in the same process. */
static void a_failed_append_can_be_repeated(void **state) {
    journal *j;
    assert_ok(open_as(*state, JOURNAL_NEW, &j));
    ql_fault_set("fsync:3"); /* of the layer's file, of its directory, of the line */
    assert_int_equal(do_layer(j, 0), QL_IO);
    ql_fault_set(NULL);
    assert_int_equal(journal_done(j), 0);
    assert_ok(do_layer(j, 0));
    journal_close(j);
    expect_done(*state, 1);
}
#else
static void faults_need_their_build(void **state) {
    (void)state;
    print_message("skipped: crashes and failures need a build with QALIB_FAULTS\n");
    skip();
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        scratch_test(layers_are_kept_in_order),
        scratch_test(resume_begins_where_nothing_was_begun),
        scratch_test(statistics_are_layers_too),
        scratch_test(any_torn_tail_is_dropped),
        scratch_test(damage_before_the_tail_is_refused),
        scratch_test(a_checksum_does_not_vouch_for_the_content),
        scratch_test(one_bit_of_a_layer_is_noticed),
        scratch_test(every_changed_field_is_listed),
        scratch_test(a_second_process_is_refused),
        scratch_test(stale_locks_are_taken_over),
        scratch_test(a_dead_owner_that_nobody_buried),
        scratch_test(takers_do_not_race),
#ifdef QL_FAULTS
        scratch_test(a_crash_at_every_call_of_a_commit),
        scratch_test(a_failure_at_every_call_of_a_commit),
        scratch_test(a_crash_at_every_call_of_a_recovery),
        scratch_test(a_failure_at_every_call_of_a_recovery),
        scratch_test(a_failed_append_can_be_repeated),
#else
        scratch_test(faults_need_their_build),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Power loss: whatever a file system made of the changes that nobody had synced, the journal says what was done.
 *
 * A job's calls are taped.  Then, for every moment of the tape, directories are built that a file system may show after a power loss at
 * that moment (tests/tape.h).  The lock is left out: after a power loss its owner is gone, which tests/test_journal.c covers. */
#include "tests/tape.h"

#include <dirent.h>
#include <limits.h>
#include <unistd.h>

#include "calib/journal.h"
#include "host/rng.h"

enum { LAYERS = 2, STATES = 300 };

/* ---- the job ---------------------------------------------------------------------------------------------------------------- */

static ql_status open_journal(const char *dir, journal **j) {
    json_t *fingerprint = json_pack("{s:i}", "seed", 1);
    ql_status status = journal_open(dir, JOURNAL_RESUME, fingerprint, LAYERS, j);
    json_decref(fingerprint);
    return status;
}

static int steps_done(const journal *j) { return (int)journal_done(j) + journal_finished(j); }

static ql_status do_layer(journal *j, int64_t layer) {
    char path[PATH_MAX], data[2][64];
    ql_file *file;
    ql_status status = QL_OK;
    snprintf(path, sizeof path, "%s/layer-%04d.safetensors", journal_dir(j), (int)layer);
    QL_TRY(ql_file_create(path, 0, &file));
    for (int part = 0; status == QL_OK && part < 2; part++) {
        snprintf(data[part], sizeof data[part], "part %d of layer %d", part, (int)layer);
        status = ql_file_write(file, data[part], strlen(data[part]));
    }
    if (status == QL_OK) status = ql_file_commit(file, NULL);
    else ql_file_abort(file);
    json_t *record = json_pack("{s:I}", "layer", (json_int_t)layer);
    if (status == QL_OK) status = journal_commit(j, layer, record);
    json_decref(record);
    return status;
}

/* The job's next step: a layer, or the last line. */
static ql_status do_step(journal *j) {
    int done = steps_done(j);
    tape_promise(done, done + 1);
    QL_TRY(done < LAYERS ? do_layer(j, done) : journal_finish(j, NULL));
    tape_promise(done + 1, done + 1);
    return QL_OK;
}

/* From wherever it stands to `steps`.  What it says to be done when it opens is a promise too. */
static ql_status run(const char *dir, int steps) {
    journal *j;
    QL_TRY(open_journal(dir, &j));
    ql_status status = QL_OK;
    tape_promise(steps_done(j), steps_done(j));
    while (status == QL_OK && steps_done(j) < steps) status = do_step(j);
    journal_close(j);
    return status;
}

/* Files beside the journal's own: the layers that are done, or something is left over. */
static int layer_files(const char *dir) {
    static const char *const own[] = {".", "..", "lock", "fingerprint.json", "journal.jsonl"};
    int count = 0;
    DIR *files = opendir(dir);
    assert_non_null(files);
    for (struct dirent *file; (file = readdir(files));) {
        count++;
        for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) count -= strcmp(file->d_name, own[i]) == 0;
    }
    closedir(files);
    return count;
}

/* ---- the judge -------------------------------------------------------------------------------------------------------------- */

/* The journal opens, says what was promised, vouches for its layers, leaves no strays, and the job can go on to its end. */
static bool is_right(const char *dir, const change *promised) {
    journal *j;
    if (open_journal(dir, &j) != QL_OK) return false;
    bool right =
        steps_done(j) >= promised->lowest && steps_done(j) <= promised->highest && layer_files(dir) == journal_done(j);
    for (int64_t layer = 0; layer < journal_done(j); layer++)
        right = right && journal_check_layer(j, layer) == QL_OK &&
                json_integer_value(json_object_get(journal_record(j, layer), "layer")) == layer;
    journal_close(j);
    return right && run(dir, LAYERS + 1) == QL_OK;
}

typedef struct tally {
    int states, wrong;
    char what[1024]; /* the first wrong one */
} tally;

static void describe(const world *w, tally *t) {
    static const char *const kinds[] = {"name", "rename", "remove", "write", "cut"};
    static const char *const outcomes[] = {"kept", "lost", "zeros", "half"};
    int length = snprintf(t->what, sizeof t->what, "before change %d: %s; ", w->moment, ql_last_error());
    for (int i = 0; i < w->moment && length < (int)sizeof t->what; i++)
        if (w->what[i] != KEPT)
            length +=
                snprintf(t->what + length, sizeof t->what - (size_t)length, "%d (%s %d %s) %s, ", i,
                         kinds[tape.changes[i].kind], tape.changes[i].node, tape.changes[i].name, outcomes[w->what[i]]);
}

static void judge(const char *root, const world *w, const change *promised, tally *t) {
    char disk[PATH_MAX], dir[PATH_MAX + 8];
    snprintf(disk, sizeof disk, "%s/disk", root);
    snprintf(dir, sizeof dir, "%s/a/job", disk);
    assert_ok(ql_dir_remove(disk));
    tape_build(w, disk);
    t->states++;
    if (is_right(dir, promised) || t->wrong++ > 0) return;
    describe(w, t);
}

/* All combinations while there are few, else some at random. */
static void judge_moment(const char *root, int moment, int ignored, tally *t) {
    int open[CHANGES], count = 0;
    uint64_t states = 1;
    world w = {.moment = moment};
    const change *promised = NULL;
    for (int i = 0; i < moment; i++) {
        if (tape.changes[i].kind == PROMISE) promised = &tape.changes[i];
        if (!tape_is_open(i, moment, ignored)) continue;
        open[count++] = i;
        states = states > STATES ? states : states * (uint64_t)tape_outcomes(&tape.changes[i]);
    }
    if (!promised) return;
    bool all = states <= STATES;
    for (uint64_t s = 0; s < (all ? states : STATES); s++) {
        uint64_t digits = s;
        for (int i = 0; i < count; i++) {
            uint64_t n = (uint64_t)tape_outcomes(&tape.changes[open[i]]);
            w.what[open[i]] = (outcome)((all ? digits : ql_random(s, (uint64_t)i)) % n);
            digits /= n;
        }
        judge(root, &w, promised, t);
    }
}

/* From `from` to the end of the tape.  A moment at which more changes are made before the next sync or promise needs no judgement:
 * its states are among those of the last such moment, with these changes lost. */
static tally judge_moments(const char *root, int from, int ignored) {
    tally t = {0};
    assert_false(tape.on);
    for (int moment = from; moment <= tape.count; moment++)
        if (moment == tape.count || tape.changes[moment].kind >= SYNC) judge_moment(root, moment, ignored, &t);
    return t;
}

static void expect_right(tally t) {
    if (t.wrong) fail_msg("%d of %d states are wrong; the first, %s", t.wrong, t.states, t.what);
}

/* The tape tells all: with everything kept it makes the directory that there is. */
static void expect_complete_tape(const char *root) {
    char path[PATH_MAX], command[3 * PATH_MAX];
    world w = {.moment = tape.count};
    snprintf(path, sizeof path, "%s/disk", root);
    assert_ok(ql_dir_remove(path));
    tape_build(&w, path);
    snprintf(command, sizeof command, "diff -r '%s/a' '%s/a'", root, path);
    assert_int_equal(system(command), 0);
}

/* ---- the tests -------------------------------------------------------------------------------------------------------------- */

static void at_any_moment_of_a_job(void **state) {
    const char *dir = scratch_path(state, "a/job");
    tape_begin(*state, 0);
    assert_ok(run(dir, LAYERS + 1));
    tape.on = false;
    expect_complete_tape(*state);
    tally t = judge_moments(*state, 0, -1);
    print_message("%d states of %d moments\n", t.states, tape.count + 1);
    expect_right(t);
}

/* Layers whose files turned out damaged are made again over them. */
static void while_layers_are_made_again(void **state) {
    const char *dir = scratch_path(state, "a/job");
    journal *j;
    tape_begin(*state, 0);
    assert_ok(run(dir, LAYERS + 1));
    int from = tape.count;
    assert_ok(open_journal(dir, &j));
    tape_promise(0, LAYERS + 1);
    assert_ok(journal_truncate(j, 0));
    tape_promise(0, 0);
    while (steps_done(j) <= LAYERS) assert_ok(do_step(j));
    journal_close(j);
    tape.on = false;
    expect_complete_tape(*state);
    expect_right(judge_moments(*state, from, -1));
}

/* One call fails, a second process goes on with what the first one left in memory, and then the power fails. */
static void after_a_failure_at_any_call(void **state) {
    const char *parent = scratch_path(state, "a"), *dir = scratch_path(state, "a/job");
    ql_status status = QL_IO;
    for (int n = 1; status != QL_OK; n++) {
        assert_ok(ql_dir_remove(parent));
        tape_begin(*state, n);
        status = run(dir, LAYERS + 1);
        int from = tape.count;
        tape.fail_at = 0;
        assert_ok(run(dir, LAYERS + 1));
        tape.on = false;
        expect_complete_tape(*state);
        if (status != QL_OK) expect_right(judge_moments(*state, from, -1));
    }
}

/* The judge sees what a sync is for: without any one of those of a commit, some state is wrong. */
static void without_one_sync_of_a_commit(void **state) {
    journal *j;
    int syncs = 0;
    tape_begin(*state, 0);
    assert_ok(open_journal(scratch_path(state, "a/job"), &j));
    assert_ok(do_step(j));
    int from = tape.count;
    assert_ok(do_step(j));
    journal_close(j);
    tape.on = false;
    for (int i = from; i < tape.count; i++) {
        if (tape.changes[i].kind != SYNC) continue;
        assert_true(judge_moments(*state, i, i).wrong > 0);
        syncs++;
    }
    assert_int_equal(syncs, 3); /* of the layer's file, of its name, of the line */
}

int main(void) {
    if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 0); /* thousands of directories that need no disk */
    const struct CMUnitTest tests[] = {
        scratch_test(at_any_moment_of_a_job),
        scratch_test(while_layers_are_made_again),
        scratch_test(after_a_failure_at_any_call),
        scratch_test(without_one_sync_of_a_commit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

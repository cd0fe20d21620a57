/* The door to the disk: after any failure a file is the old one or the new one, whole, and nothing else lies around. */
#include "tests/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/fault.h"

static void expect_content(const char *path, const char *text) {
    size_t size;
    char *data = scratch_read(path, &size);
    assert_string_equal(data, text);
    free(data);
}

/* ---- writing ---------------------------------------------------------------------------------------------------------------- */

static void a_file_appears_with_its_digest(void **state) {
    const char *path = scratch_path(state, "f"), *temporary = scratch_path(state, "f.tmp");
    unsigned char sha256[32];
    char hex[65];
    ql_file *file;
    scratch_write(temporary, "left by a killed process", 24);
    assert_ok(ql_file_create(path, 3, &file));
    assert_ok(ql_file_write(file, "a", 1));
    assert_false(ql_path_exists(path));
    assert_ok(ql_file_write(file, "bc", 2));
    assert_ok(ql_file_commit(file, sha256));
    ql_hex(sha256, 32, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"); /* FIPS 180 */
    expect_content(path, "abc");
    assert_ok(ql_file_sha256(path, sha256));
    ql_hex(sha256, 32, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_ok(ql_file_create(path, 0, &file));
    assert_ok(ql_file_write(file, "x", 1));
    ql_file_abort(file);
    expect_content(path, "abc");
    assert_false(ql_path_exists(temporary));
}

/* A process that may write so many bytes and no more: writes come back short, then fail. */
static void short_writes_leave_nothing(void **state) {
    static char data[100000];
    const char *path = scratch_path(state, "f"), *temporary = scratch_path(state, "f.tmp");
    for (rlim_t bytes = 0; bytes < sizeof data; bytes += 9973) {
        pid_t child = fork();
        if (child == 0) {
            signal(SIGXFSZ, SIG_IGN);
            setrlimit(RLIMIT_FSIZE, &(struct rlimit){bytes, bytes});
            ql_status status = ql_file_save(path, data, sizeof data);
            _exit(status == QL_DISK || status == QL_IO ? 0 : 1);
        }
        int result;
        waitpid(child, &result, 0);
        assert_int_equal(result, 0);
        assert_false(ql_path_exists(path) || ql_path_exists(temporary));
    }
}

static void a_full_disk_is_said_before_the_work(void **state) {
    char dir[4096], path[4200];
    ql_file *file;
    snprintf(dir, sizeof dir, "%s/disk", (const char *)*state);
    snprintf(path, sizeof path, "%s/f", dir);
    assert_ok(ql_dir_make(dir));
    if (mount("tmpfs", dir, "tmpfs", 0, "size=1m") != 0) {
        print_message("skipped: no tmpfs can be mounted here (%s)\n", strerror(errno));
        skip();
    }
    ql_status status = ql_file_create(path, 2 << 20, &file);
    ql_file_abort(file);
    uint64_t free_bytes = 0;
    ql_status asked = ql_dir_free_bytes(path, &free_bytes); /* of a file that is not there: its file system */
    umount(dir);
    assert_int_equal(status, QL_DISK);
    assert_non_null(strstr(ql_last_error(), "No space left"));
    assert_int_equal(asked, QL_OK);
    assert_int_equal(free_bytes, 1 << 20);
}

#ifdef QL_FAULTS
static ql_status save(const char *path) { return ql_file_save(path, "new", 3); }
static ql_status adopt(const char *path) {
    char temporary[4200];
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    scratch_write(temporary, "new", 3);
    return ql_file_adopt(temporary, path);
}

/* Every call of the protocol fails once, or from then on always; or the process dies in it. */
static void every_failure_leaves_old_or_new(void **state) {
    static const char *const sites[] = {"malloc", "open", "allocate", "write", "fsync", "rename"};
    static const char *const actions[] = {"once", "always", "kill"};
    static ql_status (*const protocols[])(const char *) = {save, adopt};
    const char *path = scratch_path(state, "f"), *temporary = scratch_path(state, "f.tmp");
    for (int i = 0; i < 2 * 6 * 3 * 5; i++) {
        ql_status (*protocol)(const char *) = protocols[i % 2];
        const char *site = sites[i / 2 % 6], *action = actions[i / 12 % 3];
        char setting[64];
        scratch_write(path, "old", 3);
        unlink(temporary);
        snprintf(setting, sizeof setting, "%s:%d:%s", site, i / 36 + 1, action);
        pid_t child = fork();
        if (child == 0) {
            ql_fault_set(setting);
            ql_status status = protocol(path);
            _exit(ql_status_exit_code(status));
        }
        int result;
        waitpid(child, &result, 0);
        int code = WIFEXITED(result) ? WEXITSTATUS(result) : -1; /* -1: killed */
        size_t size;
        char *data = scratch_read(path, &size);
        bool is_new = strcmp(data, "new") == 0;
        if (!is_new && strcmp(data, "old") != 0) fail_msg("%s: \"%s\"", setting, data);
        if (code == 0 && !is_new) fail_msg("%s: success, but the old file", setting);
        if (code > 0 && code != 71 && code != 73 && code != 74) fail_msg("%s: exit code %d", setting, code);
        if (code >= 0 && ql_path_exists(temporary)) fail_msg("%s: a temporary file stays", setting);
        free(data);
    }
}

/* After a failed fsync the kernel may call the pages clean: a second one would lie. */
static void fsync_is_never_repeated(void **state) {
    ql_fault_set("fsync:1:always");
    ql_status status = ql_file_save(scratch_path(state, "f"), "new", 3);
    long passages = ql_fault_passages();
    ql_fault_set(NULL);
    assert_int_equal(status, QL_IO);
    assert_int_equal(passages, 1);
    assert_non_null(strstr(ql_last_error(), "f.tmp: cannot sync: Input/output error"));
}

static void reading_reports_errors_of_the_disk(void **state) {
    const char *path = scratch_path(state, "f");
    char data[4];
    ql_source *source;
    scratch_write(path, "data", 4);
    assert_ok(ql_source_open(path, NULL, &source));
    ql_fault_set("read:1");
    ql_status status = ql_source_read(source, data, 4, 0);
    ql_fault_set(NULL);
    assert_int_equal(status, QL_IO);
    assert_non_null(strstr(ql_last_error(), "f: cannot read at byte 0: Input/output error"));
    ql_source_close(source);
}
#else
static void faults_need_their_build(void **state) {
    (void)state;
    print_message("skipped: failures of the disk need a build with QALIB_FAULTS\n");
    skip();
}
#endif

static void appended_lines_stand_behind_each_other(void **state) {
    const char *path = scratch_path(state, "f");
    assert_ok(ql_file_append(path, "one\n", 4));
    assert_ok(ql_file_append(path, "two\n", 4));
    expect_content(path, "one\ntwo\n");
    assert_refused(ql_file_append(*state, "x", 1), QL_IO, "cannot open for appending: Is a directory");
}

/* ---- reading ---------------------------------------------------------------------------------------------------------------- */

static void only_regular_files_are_read(void **state) {
    ql_source *source;
    const char *fifo = scratch_path(state, "fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_refused(ql_source_open(fifo, NULL, &source), QL_FORMAT, "fifo: not a regular file"); /* and does not wait */
    assert_refused(ql_source_open(*state, NULL, &source), QL_FORMAT, "not a regular file");
    assert_refused(ql_source_open("/dev/zero", NULL, &source), QL_FORMAT, "not a regular file");
    assert_refused(ql_source_open(scratch_path(state, "none"), NULL, &source), QL_MISSING, "none");
    assert_int_equal(symlink("loop", scratch_path(state, "loop")), 0);
    assert_int_equal(ql_source_open(scratch_path(state, "loop"), NULL, &source), QL_IO);
}

static void links_stay_beneath_the_root(void **state) {
    const char *root = scratch_path(state, "root"), *sibling = scratch_path(state, "root-not");
    char path[4200];
    ql_source *source;
    assert_ok(ql_dir_make(root));
    assert_ok(ql_dir_make(sibling));
    snprintf(path, sizeof path, "%s/secret", sibling);
    scratch_write(path, "secret", 6);
    snprintf(path, sizeof path, "%s/own", root);
    scratch_write(path, "own", 3);
    snprintf(path, sizeof path, "%s/inside", root);
    assert_int_equal(symlink("own", path), 0);
    assert_ok(ql_source_open(path, root, &source));
    ql_source_close(source);
    static const char *const targets[] = {"../root-not/secret", "/etc/passwd", "../../../../../../../../etc/passwd"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/link%d", root, i);
        assert_int_equal(symlink(targets[i], path), 0);
        assert_refused(ql_source_open(path, root, &source), QL_FORMAT, "refused");
    }
    snprintf(path, sizeof path, "%s/../root-not/secret", root);
    assert_refused(ql_source_open(path, root, &source), QL_FORMAT, "refused");
}

static void a_file_that_shrinks_is_an_error_not_a_signal(void **state) {
    const char *path = scratch_path(state, "f");
    char data[8];
    ql_source *source;
    scratch_write(path, "12345678", 8);
    assert_ok(ql_source_open(path, NULL, &source));
    assert_int_equal(truncate(path, 5), 0);
    assert_refused(ql_source_read(source, data, 8, 0), QL_IO, "became shorter while it was read");
    assert_refused(ql_source_read(source, data, 1, 7), QL_IO, "became shorter");
    assert_refused(ql_source_read(source, data, 5, 0), QL_IO,
                   "changed while it was read"); /* all there, but of which file? */
    ql_source_close(source);
    scratch_write(path, "12345678", 8);
    assert_ok(ql_source_open(path, NULL, &source));
    usleep(20000); /* a tick of the file system's clock */
    scratch_write(path, "abcdefgh", 8);
    assert_refused(ql_source_read(source, data, 8, 0), QL_IO, "changed while it was read");
    ql_source_close(source);
    unlink(path); /* another file under the name: what was opened is read on */
    scratch_write(path, "abcdefgh", 8);
    assert_ok(ql_source_open(path, NULL, &source));
    assert_ok(ql_file_save(path, "ABCDEFGH", 8));
    assert_ok(ql_source_read(source, data, 8, 0));
    assert_memory_equal(data, "abcdefgh", 8);
    assert_refused(ql_source_read(source, data, 2, 7), QL_FORMAT, "bytes 7 to 9 asked for, file has 8");
    assert_refused(ql_source_read(source, data, 1, UINT64_MAX), QL_FORMAT, "asked for");
    ql_source_close(source);
}

/* Two reads of one file of 8 bytes, and what happened between them.  Pauses: a tick of the file system's clock. */
static void what_happens_between_two_reads(void **state) {
    const char *path = scratch_path(state, "f");
    char data[8], other[4096];
    snprintf(other, sizeof other, "%s.other", path);
    for (int event = 0; event < 4; event++) {
        ql_source *source;
        struct stat before;
        scratch_write(path, "12345678", 8);
        assert_ok(ql_source_open(path, NULL, &source));
        assert_ok(ql_source_read(source, data, 4, 0));
        assert_int_equal(stat(path, &before), 0);
        const struct timespec times[2] = {before.st_atim, before.st_mtim};
        usleep(20000);
        scratch_write(other, "abcdefgh", 8);
        if (event == 0) assert_int_equal(rename(other, path), 0); /* replaced: the one that was opened is read on */
        if (event == 1) assert_int_equal(link(path, scratch_path(state, "g")), 0); /* a second name changes nothing */
        if (event >= 2) scratch_write(path, "abcdefgh", 8);                        /* rewritten in place */
        if (event == 3) assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);  /* as if it had not been */
        if (event < 2) assert_ok(ql_source_read(source, data + 4, 4, 4));
        else assert_refused(ql_source_read(source, data + 4, 4, 4), QL_IO, "changed while it was read");
        if (event < 2) assert_memory_equal(data, "12345678", 8);
        ql_source_close(source);
        unlink(path);
    }
}

static void a_limit_comes_before_the_memory(void **state) {
    const char *path = scratch_path(state, "f");
    ql_arena *arena;
    char *data;
    size_t size;
    scratch_write(path, "123", 3);
    assert_ok(ql_arena_open(NULL, &arena));
    assert_refused(ql_file_load(path, 2, arena, &data, &size), QL_FORMAT, "3 bytes, at most 2 are allowed");
    assert_int_equal(truncate(path, (off_t)1 << 40), 0);
    assert_refused(ql_file_load(path, 100, arena, &data, &size), QL_FORMAT, "1099511627776 bytes");
    assert_int_equal(truncate(path, 3), 0);
    assert_ok(ql_file_load(path, 3, arena, &data, &size));
    assert_int_equal(size, 3);
    assert_string_equal(data, "123");
    ql_arena_close(arena);
}

/* ---- signals ---------------------------------------------------------------------------------------------------------------- */

static void on_alarm(int number) { (void)number; }

static void storms_of_signals_change_nothing(void **state) {
    enum { SIZE = 8 << 20 };
    const char *path = scratch_path(state, "f");
    struct sigaction action = {.sa_handler = on_alarm}, old; /* without SA_RESTART: calls fail with EINTR */
    struct itimerval storm = {{0, 200}, {0, 200}}, calm = {{0, 0}, {0, 0}};
    unsigned char before[32], after[32];
    char *data = malloc(SIZE);
    assert_non_null(data);
    for (size_t i = 0; i < SIZE; i++) data[i] = (char)(i * 2654435761u >> 24);
    ql_sha256(data, SIZE, before);
    sigaction(SIGALRM, &action, &old);
    setitimer(ITIMER_REAL, &storm, NULL);
    ql_status status = ql_file_save(path, data, SIZE);
    if (status == QL_OK) status = ql_file_sha256(path, after);
    setitimer(ITIMER_REAL, &calm, NULL);
    sigaction(SIGALRM, &old, NULL);
    assert_ok(status);
    assert_memory_equal(before, after, 32);
    free(data);
}

/* ---- directories ------------------------------------------------------------------------------------------------------------ */

static void directories_are_made_and_removed(void **state) {
    const char *deep = scratch_path(state, "a/b/c"), *file = scratch_path(state, "file"),
               *outside = scratch_path(state, "outside");
    char text[8200], path[8300];
    bool empty;
    assert_ok(ql_dir_make(deep));
    assert_ok(ql_dir_make(deep));
    assert_ok(ql_dir_is_empty(deep, &empty));
    assert_true(empty);
    assert_ok(ql_dir_is_empty(scratch_path(state, "none"), &empty));
    assert_true(empty);
    scratch_write(file, "x", 1);
    assert_refused(ql_dir_make(file), QL_DISK, "exists and is not a directory");
    memset(text, 'n', sizeof text - 1), text[sizeof text - 1] = 0;
    assert_refused(ql_dir_make(text), QL_DISK, "a path of 8199 bytes");
    text[300] = 0; /* a name may have 255 bytes */
    snprintf(path, sizeof path, "%s/%s", (const char *)*state, text);
    assert_refused(ql_dir_make(path), QL_DISK, "File name too long");
    assert_ok(ql_dir_make(outside)); /* removing a link does not remove what it names */
    snprintf(path, sizeof path, "%s/a/link", (const char *)*state);
    assert_int_equal(symlink(outside, path), 0);
    snprintf(path, sizeof path, "%s/a", (const char *)*state);
    assert_ok(ql_dir_remove(path));
    assert_ok(ql_dir_remove(path));
    assert_false(ql_path_exists(path));
    assert_true(ql_path_exists(outside));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        scratch_test(a_file_appears_with_its_digest),
        scratch_test(short_writes_leave_nothing),
        scratch_test(a_full_disk_is_said_before_the_work),
#ifdef QL_FAULTS
        scratch_test(every_failure_leaves_old_or_new),
        scratch_test(fsync_is_never_repeated),
        scratch_test(reading_reports_errors_of_the_disk),
#else
        scratch_test(faults_need_their_build),
#endif
        scratch_test(appended_lines_stand_behind_each_other),
        scratch_test(only_regular_files_are_read),
        scratch_test(links_stay_beneath_the_root),
        scratch_test(a_file_that_shrinks_is_an_error_not_a_signal),
        scratch_test(what_happens_between_two_reads),
        scratch_test(a_limit_comes_before_the_memory),
        scratch_test(storms_of_signals_change_nothing),
        scratch_test(directories_are_made_and_removed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The thread that ends a rank whose main thread hangs.  What it does ends the process, so every case is a process of its own; all run
 * at the same time, as most of the time is spent waiting. */
#include "tests/test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "host/comm_transport.h"
#include "host/file.h"
#include "tests/make.h"

enum { INTERRUPTED = 75, UNTOUCHED = 42 };

static char dir[MAKE_PATH];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What the process has lived through: a sleep that a stop does not shorten. */
static void live(double seconds) {
    for (int i = 0; i < (int)(100 * seconds); i++) usleep(10000);
}

/* ---- a transport that can hang ---------------------------------------------------------------------------------------------- */

static atomic_bool asked_to_fail;

static void hang(void) {
    for (;;) pause();
}

static ql_status start_well(void *state, uint32_t number, const ql_message *out, int n_out, const ql_message *in,
                            int n_in) {
    (void)state, (void)number, (void)out, (void)n_out, (void)in, (void)n_in;
    return QL_OK;
}
static ql_status start_and_hang(void *state, uint32_t number, const ql_message *out, int n_out, const ql_message *in,
                                int n_in) {
    (void)state, (void)number, (void)out, (void)n_out, (void)in, (void)n_in;
    if (number == 3) hang();
    return QL_OK;
}
static ql_status poll_done(void *state, bool *done, uint64_t *missing) {
    (void)state, (void)missing;
    *done = true;
    return QL_OK;
}
/* The second time it is asked. */
static ql_status poll_and_hang(void *state, bool *done, uint64_t *missing) {
    static int polls;
    (void)state;
    *done = false;
    *missing = 2 | 8; /* ranks 1 and 3 */
    if (++polls == 2) hang();
    return QL_OK;
}
static ql_status poll_never(void *state, bool *done, uint64_t *missing) {
    (void)state;
    *done = false;
    *missing = 2 | 8; /* ranks 1 and 3 */
    return QL_OK;
}
static void stop_well(void *state) { (void)state; }
static void tell_nobody(void *state, const ql_note *note) { (void)state, (void)note; }
static bool hear_nothing(void *state, ql_note *note) {
    (void)state, (void)note;
    return false;
}
static void close_well(void *state, bool failed, int exit_code) { (void)state, (void)failed, (void)exit_code; }
static ql_status ask(void *state) {
    (void)state;
    return asked_to_fail ? ql_fail(QL_INTERRUPTED, "the network is gone") : QL_OK;
}
static void abort_and_note(void *state) { (void)ql_file_save(state, "x", 1); /* the parent looks */ }

/* Rank 0 of two, with two steps behind it. */
static ql_comm *open_rank(ql_transport transport, double seconds, const char *name) {
    static ql_transport own;
    static char flight[MAKE_PATH + 64], abort_file[MAKE_PATH + 64];
    ql_comm *comm;
    char byte = 0;
    snprintf(flight, sizeof flight, "%s/%s.json", dir, name);
    snprintf(abort_file, sizeof abort_file, "%s/%s.aborted", dir, name);
    own = transport;
    own.poll = poll_done;
    assert_ok(ql_comm_make(&own, abort_file, 0, 2, (int[]){0, 2}, seconds, &comm));
    ql_comm_record(comm, flight);
    const ql_message message = {1, &byte, 1};
    for (int i = 0; i < 2; i++) assert_ok(ql_comm_exchange(comm, "before", &message, 1, NULL, 0));
    own.poll = transport.poll;
    return comm;
}

static const ql_transport well = {"well",       start_well, poll_done, stop_well, tell_nobody,
                                  hear_nothing, close_well, false,     ask,       abort_and_note};

/* ---- the cases: each returns the exit code of its process, if it comes so far ---------------------------------------------------- */

static int exchange(ql_comm *comm) {
    char byte = 0;
    const ql_message message = {1, &byte, 1};
    ql_status status = ql_comm_exchange(comm, "together", &message, 1, NULL, 0);
    return status == QL_OK ? UNTOUCHED : ql_status_exit_code(status) + 100;
}

static int hang_in_start(void) {
    ql_transport t = well;
    t.start = start_and_hang;
    return exchange(open_rank(t, 0.3, "start"));
}

static int hang_in_poll(void) {
    ql_transport t = well;
    t.poll = poll_and_hang;
    return exchange(open_rank(t, 0.3, "poll"));
}

/* Without a hang the deadline is the main thread's, with a status and not with an exit. */
static int miss(void) {
    ql_transport t = well;
    t.poll = poll_never;
    return exchange(open_rank(t, 0.3, "miss"));
}

/* Row D5: long work, a stalled read, between two steps. */
static int work_long(void) {
    ql_comm *comm = open_rank(well, 0.3, "work");
    live(4.5);
    return exchange(comm);
}

/* What the network says while this rank works. */
static int fail_in_background(void) {
    ql_comm *comm = open_rank(well, 60, "background");
    live(0.3);
    asked_to_fail = true;
    live(20);
    return exchange(comm);
}

/* A failure that is over before the main thread has had its time. */
static int fail_for_a_moment(void) {
    ql_comm *comm = open_rank(well, 60, "moment");
    asked_to_fail = true;
    live(0.4);
    asked_to_fail = false;
    live(2);
    return exchange(comm);
}

/* ---- processes that are stopped for longer than anybody waits, and go on ----------------------------------------------------------- */

static ql_status poll_slowly(void *state, bool *done, uint64_t *missing) {
    (void)state, (void)missing;
    live(1.5);
    *done = true;
    return QL_OK;
}

static int stop_in_a_poll(void) {
    ql_transport t = well;
    t.poll = poll_slowly;
    return exchange(open_rank(t, 0.3, "slow"));
}

static ql_status exchange_with(ql_comm *comm, int rank) {
    char out = 0, in;
    const ql_message to = {rank, &out, 1}, from = {rank, &in, 1};
    return ql_comm_exchange(comm, "together", &to, 1, &from, 1);
}

static void *come_late(void *of) {
    live(1.5);
    return exchange_with(of, 0) == QL_OK ? of : NULL;
}

/* The rank that waits knows that it stood still as well. */
static int stop_between_polls(void) {
    ql_comm *comms[2];
    pthread_t other;
    void *result;
    assert_ok(ql_comm_open_loopback(2, 3, comms));
    pthread_create(&other, NULL, come_late, comms[1]);
    ql_status status = exchange_with(comms[0], 1);
    pthread_join(other, &result);
    return status == QL_OK && result ? UNTOUCHED : 1;
}

/* ---- all of them -------------------------------------------------------------------------------------------------------------- */

/* most: seconds until the end; with deadline and grace 3.3, for somebody who is not in a hurry. */
static const struct {
    const char *name;
    int (*run)(void);
    int expected;
    bool stopped;
    double least, most;
} cases[] = {
    {"start", hang_in_start, INTERRUPTED, false, 3, 8},
    {"poll", hang_in_poll, INTERRUPTED, false, 3, 8},
    {"miss", miss, INTERRUPTED + 100, false, 0.2, 3},
    {"work", work_long, UNTOUCHED, false, 4, 9},
    {"background", fail_in_background, INTERRUPTED, false, 1, 6},
    {"moment", fail_for_a_moment, UNTOUCHED, false, 2, 7},
    {"slow", stop_in_a_poll, UNTOUCHED, true, 4.5, 10},
    {"between", stop_between_polls, UNTOUCHED, true, 4.5, 10},
};
enum { CASES = sizeof cases / sizeof cases[0] };
static int code[CASES];
static double seconds[CASES];

static void signal_stopped(const pid_t pid[], int signal) {
    for (int i = 0; i < CASES; i++)
        if (cases[i].stopped && !seconds[i]) kill(pid[i], signal);
}

/* Stopped from 0.7 to 5.2 s: longer than deadline and grace. */
static int run_all(void **state) {
    (void)state;
    pid_t pid[CASES], ended;
    int status, left = CASES, polls = 0;
    double begin = now();
    make_dir(dir);
    fflush(NULL);
    for (int i = 0; i < CASES; i++) {
        pid[i] = fork();
        if (pid[i] == 0) _exit(cases[i].run());
    }
    for (; left > 0 && now() - begin < 30; polls++) {
        usleep(20000);
        if (polls == 35) signal_stopped(pid, SIGSTOP);
        if (polls == 260) signal_stopped(pid, SIGCONT);
        while ((ended = waitpid(-1, &status, WNOHANG)) > 0) {
            for (int i = 0; i < CASES; i++) {
                if (pid[i] != ended) continue;
                seconds[i] = now() - begin;
                code[i] = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
                left--;
            }
        }
    }
    for (int i = 0; i < CASES; i++)
        if (!seconds[i]) kill(pid[i], SIGKILL);
    return 0;
}

static int remove_all(void **state) {
    (void)state;
    return ql_dir_remove(dir) == QL_OK ? 0 : -1;
}

static void check(const char *name) {
    for (int i = 0; i < CASES; i++) {
        if (strcmp(cases[i].name, name) != 0) continue;
        if (code[i] != cases[i].expected || seconds[i] < cases[i].least || seconds[i] > cases[i].most)
            fail_msg("%s: exit code %d, expected %d, after %.1f s, expected %.1f to %.1f", name, code[i],
                     cases[i].expected, seconds[i], cases[i].least, cases[i].most);
        return;
    }
    fail_msg("no case \"%s\"", name);
}

/* What the process has left: its last step is not done. */
static void check_flight(const char *name, const char *why, bool is_done) {
    char path[MAKE_PATH + 64], *text;
    size_t size;
    ql_arena *arena;
    snprintf(path, sizeof path, "%s/%s.json", dir, name);
    assert_ok(ql_arena_open(NULL, &arena));
    assert_ok(ql_file_load(path, 1 << 20, arena, &text, &size));
    assert_non_null(strstr(text, why));
    assert_non_null(strstr(text, "\"number\":2,\"what\":\"before\""));
    assert_int_equal(strstr(text, "\"number\":3,\"what\":\"together\"") != NULL, !is_done);
    assert_int_equal(strstr(text, "\"done_s\":null") != NULL, !is_done);
    ql_arena_close(arena);
    snprintf(path, sizeof path, "%s/%s.aborted", dir, name);
    assert_true(ql_path_exists(path));
}

static void a_main_thread_that_hangs_ends(void **state) {
    (void)state;
    check("start");
    check_flight("start", "rank 0 hangs in step 3, 'together', for more than 0 s\"", false);
    check("poll");
    check_flight("poll", "rank 0 hangs in step 3, 'together', for more than 0 s, without ranks 1, 3\"", false);
}

static void a_main_thread_that_comes_back_ends_by_itself(void **state) {
    (void)state;
    char path[MAKE_PATH + 64];
    check("miss");
    snprintf(path, sizeof path, "%s/miss.aborted", dir);
    assert_false(ql_path_exists(path));
}

static void work_between_two_steps_has_no_deadline(void **state) {
    (void)state;
    check("work");
}

static void a_failure_in_the_background_is_not_waited_for(void **state) {
    (void)state;
    check("background");
    check_flight("background", "rank 0 behind step 2, 'before': the network is gone\"", true);
    check("moment");
}

static void a_process_that_was_stopped_goes_on(void **state) {
    (void)state;
    check("slow");
    check("between");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_main_thread_that_hangs_ends),
        cmocka_unit_test(a_main_thread_that_comes_back_ends_by_itself),
        cmocka_unit_test(work_between_two_steps_has_no_deadline),
        cmocka_unit_test(a_failure_in_the_background_is_not_waited_for),
        cmocka_unit_test(a_process_that_was_stopped_goes_on),
    };
    return cmocka_run_group_tests(tests, run_all, remove_all);
}

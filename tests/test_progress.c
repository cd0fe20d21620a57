/* Progress: how often it speaks, the remaining time, and that a bar never wraps.  The clock and the stream are ours. */
#include "tests/test.h"

#include <fcntl.h>
#include <unistd.h>

#include "calib/progress.h"

static double now;
static double test_clock(void) { return now; }

static int ends[2];
static char seen[65536];

static progress *open_on_pipe(progress_style style, int64_t steps, int width) {
    assert_int_equal(pipe(ends), 0);
    fcntl(ends[1], F_SETPIPE_SZ, 1 << 16);
    progress *p;
    assert_ok(progress_open(style, "job", steps, &p));
    now = 1000;
    progress_redirect(p, ends[1], width, test_clock);
    return p;
}

static const char *close_and_read(progress *p) {
    progress_close(p);
    close(ends[1]);
    size_t used = 0;
    ssize_t got;
    while ((got = read(ends[0], seen + used, sizeof seen - 1 - used)) > 0) used += (size_t)got;
    seen[used] = 0;
    close(ends[0]);
    return seen;
}

static int count(const char *text, char c) {
    int n = 0;
    for (; *text; text++) n += *text == c;
    return n;
}

/* 100 steps of 2 s: the first, one each 30 s or just after (30, 60, ... 180), and the end. */
static void plain_lines_every_thirty_seconds(void **state) {
    (void)state;
    progress *p = open_on_pipe(PROGRESS_PLAIN, 100, 80);
    for (int i = 0; i <= 100; i++) {
        progress_step(p, i, "layer");
        if (i < 100) now += 2;
    }
    const char *text = close_and_read(p);
    assert_int_equal(count(text, '\n'), 1 + 6 + 1);
    assert_int_equal(count(text, '\r'), 0);
    assert_non_null(strstr(text, "job:  15 % (15/100), 2.0 s per step, 2:50 left, layer\n"));
    assert_non_null(strstr(text, "job: 100 of 100 steps in 3:20\n"));
}

static void json_line_per_step(void **state) {
    (void)state;
    progress *p = open_on_pipe(PROGRESS_JSON, 3, 80);
    for (int i = 0; i <= 3; i++) {
        progress_step(p, i, "a \"b\"");
        progress_step(p, i, "same step");
        now += 0.5;
    }
    const char *text = close_and_read(p);
    assert_int_equal(count(text, '\n'), 5);
    assert_non_null(strstr(
        text, "\"done\":2,\"steps\":3,\"phase\":\"a ?b?\",\"elapsed_s\":1.000,\"step_s\":0.500,\"left_s\":0.500"));
}

static void json_line_says_where_the_time_went(void **state) {
    (void)state;
    progress *p = open_on_pipe(PROGRESS_JSON, 3, 80);
    phases spent = {.seconds = {[PHASE_READ] = 0.25, [PHASE_FORWARD] = 1.5},
                    .memory = {[PHASE_FORWARD] = 7, [PHASE_READ] = 9}};
    progress_watch(p, &spent);
    progress_step(p, 1, "a");
    spent.seconds[PHASE_FORWARD] = 2;
    progress_step(p, 2, "b");
    const char *text = close_and_read(p);
    assert_non_null(strstr(text, ",\"device_bytes\":9,\"phases\":{\"read\":0.250,\"forward\":1.500}}\n"));
    assert_non_null(strstr(text, "{\"read\":0.250,\"forward\":2.000}}\n"));
}

static void bar_never_reaches_the_last_column(void **state) {
    (void)state;
    progress *p = open_on_pipe(PROGRESS_BAR, 80, 40);
    for (int i = 0; i <= 80; i++) {
        progress_step(p, i, "layer with a very long name of a module that goes on and on");
        now += 100;
    }
    char *text = (char *)close_and_read(p);
    assert_int_equal(count(text, '\n'), 1);
    int shown = 0;
    for (char *line = strtok(text, "\r"); line; line = strtok(NULL, "\r")) {
        char *end = strstr(line, "\033[K");
        if (end) assert_true(end - line <= 39);
        shown++;
    }
    assert_true(shown >= 81);
}

static void bar_is_not_redrawn_for_every_word(void **state) {
    (void)state;
    progress *p = open_on_pipe(PROGRESS_BAR, 2, 80);
    progress_step(p, 0, "start");
    for (int i = 0; i < 1000; i++, now += 0.001) progress_step(p, 0, "phase");
    /* The first, then ten in this second at most, then the erasure. */
    assert_true(count(close_and_read(p), '\r') <= 1 + 10 + 1);
}

/* A resumed job: the steps that were done before do not count for the speed. */
static void resumed_job_starts_with_unknown_speed(void **state) {
    (void)state;
    progress *p = open_on_pipe(PROGRESS_PLAIN, 80, 80);
    progress_step(p, 43, "resumed");
    now += 60;
    progress_step(p, 44, "next");
    const char *text = close_and_read(p);
    assert_non_null(strstr(text, "job:  53 % (43/80), resumed\n"));
    assert_non_null(strstr(text, "1:00 per step, 36:00 left, next\n"));
}

static void none_says_nothing(void **state) {
    (void)state;
    progress *p = open_on_pipe(PROGRESS_NONE, 3, 80);
    progress_step(p, 1, "x");
    assert_string_equal(close_and_read(p), "");
    p = open_on_pipe(PROGRESS_JSON, 0, 80); /* no steps at all */
    assert_int_equal(count(close_and_read(p), '\n'), 1);
}

static void durations(void **state) {
    (void)state;
    char text[DURATION_SIZE];
    static const struct {
        double seconds;
        const char *text;
    } rows[] = {{0, "0.0 s"},        {59.94, "59.9 s"}, {60, "1:00"}, {3599.6, "1:00:00"},
                {86399, "23:59:59"}, {-1, "?"},         {1e300, "?"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        progress_duration(text, rows[i].seconds);
        assert_string_equal(text, rows[i].text);
    }
}

static void dumb_terminals_get_lines(void **state) {
    (void)state;
    setenv("TERM", "dumb", 1);
    assert_int_equal(progress_auto(), PROGRESS_PLAIN);
    unsetenv("TERM");
    assert_int_equal(progress_auto(), PROGRESS_PLAIN);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_lines_every_thirty_seconds),
        cmocka_unit_test(json_line_per_step),
        cmocka_unit_test(json_line_says_where_the_time_went),
        cmocka_unit_test(bar_never_reaches_the_last_column),
        cmocka_unit_test(bar_is_not_redrawn_for_every_word),
        cmocka_unit_test(resumed_job_starts_with_unknown_speed),
        cmocka_unit_test(none_says_nothing),
        cmocka_unit_test(durations),
        cmocka_unit_test(dumb_terminals_get_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The command line: words against the tables of a made-up command, exit codes, signals, streams. */
#include "tests/test.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "calib/daemon/spec.h"
#include "host/log.h"

static ql_status (*behaviour)(const cli *args);
static ql_status run_fake(const cli *args) { return behaviour(args); }

static const cli_option fake_options[] = {
    {"model", 'm', "DIR", true, "directory of the model to read, described in a sentence that is long enough to wrap"},
    {"shard-size", 0, "SIZE", false, "size of a shard"},
    {"sym", 's', NULL, false, "symmetric"},
    {0},
};
static const cli_command fake = {
    .name = "fake",
    .summary = "A command for tests.",
    .positional = "PATH...",
    .options = fake_options,
    .shared = cli_recipe_options,
    .details = "Details of it.",
    .examples = "qalib fake -m DIR a b",
    .run = run_fake,
};
static const cli_command *const commands[] = {&fake, NULL};

static ql_arena *arena;
static int open_arena(void **state) {
    (void)state;
    return ql_arena_open(NULL, &arena) != QL_OK;
}
static int close_arena(void **state) {
    (void)state;
    ql_arena_close(arena);
    return 0;
}

/* The words of a command line, and their number. */
#define WORDS(...)                                                                                                     \
    (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)), (char **)(const char *[]) { __VA_ARGS__ }
#define PARSE(out, ...) cli_parse(&fake, WORDS(__VA_ARGS__), arena, out)

static void options_in_every_spelling(void **state) {
    (void)state;
    cli *args;
    assert_ok(PARSE(&args, "a", "--model", "x", "-b4", "-s", "--group-size=-1", "-g", "-1", "--", "-b", "--model"));
    assert_string_equal(cli_value(args, "model"), "x");
    assert_string_equal(cli_value(args, "bits"), "4");
    assert_string_equal(cli_value(args, "group-size"), "-1");
    assert_true(cli_has(args, "sym"));
    assert_false(cli_has(args, "quiet"));
    assert_string_equal(cli_positional(args, 0), "a");
    assert_string_equal(cli_positional(args, 1), "-b");
    assert_string_equal(cli_positional(args, 2), "--model");
    assert_null(cli_positional(args, 3));
    assert_null(cli_positional(args, -1));

    assert_ok(PARSE(&args, "-m", "first", "-sqmlast", "-", "--model=="));
    assert_string_equal(cli_value(args, "model"), "=");
    assert_true(cli_has(args, "sym") && cli_has(args, "quiet"));
    assert_string_equal(cli_positional(args, 0), "-");
}

static void help_needs_nothing_else(void **state) {
    (void)state;
    cli *args;
    assert_ok(PARSE(&args, "-h"));
    assert_true(cli_has(args, "help"));
}

static void refusals_name_the_word(void **state) {
    (void)state;
    cli *args;
    assert_refused(PARSE(&args, "a", "-m", "x", "--groupsize", "1"), QL_USAGE, "did you mean --group-size?");
    assert_refused(PARSE(&args, "a", "-m", "x", "--thread=2"), QL_USAGE, "did you mean --threads?");
    assert_refused(PARSE(&args, "a", "-m", "x", "--wibblewobble"), QL_USAGE, "qalib fake --help");
    assert_refused(PARSE(&args, "a", "-m", "x", "-sz"), QL_USAGE, "unknown option -z in \"-sz\"");
    assert_refused(PARSE(&args, "a", "-m", "x", "--sym=1"), QL_USAGE, "--sym takes no value");
    assert_refused(PARSE(&args, "a", "-m"), QL_USAGE, "--model DIR");
    assert_refused(PARSE(&args, "a", "--model", "--sym"), QL_USAGE, "--model=--sym");
    assert_refused(PARSE(&args, "a", "--sym"), QL_USAGE, "fake needs --model DIR");
    assert_refused(PARSE(&args, "-m", "x"), QL_USAGE, "fake needs PATH");
    assert_refused(PARSE(&args, "a", "-m", "x", "--threads", "-1"), QL_USAGE, "from 0 to 4096");
    assert_refused(PARSE(&args, "a", "-m", "x", "--progress", "dots"), QL_USAGE, "auto, bar, plain, none");
}

static void one_positional_argument(void **state) {
    (void)state;
    cli_command one = fake;
    cli *args;
    one.positional = "PATH";
    char *const words[] = {(char *)"-mx", (char *)"a", (char *)"b"};
    assert_refused(cli_parse(&one, 3, words, arena, &args), QL_USAGE, "\"b\" is one too many");
    one.positional = NULL;
    assert_refused(cli_parse(&one, 2, words, arena, &args), QL_USAGE, "takes no argument \"a\"");
    assert_ok(cli_parse(&one, 1, words, arena, &args));
}

static void numbers_are_whole_words_in_range(void **state) {
    (void)state;
    static const char *const bad[] = {"", " 4", "4 ", "4x", "0x4", "9", "1", "99999999999999999999", "4.0", "nan"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cli *args;
        assert_ok(PARSE(&args, "a", "-mx", "--bits", bad[i]));
        int64_t bits = 7;
        assert_refused(cli_int(args, "bits", 2, 8, &bits), QL_USAGE, "expected a whole number from 2 to 8");
        assert_int_equal(bits, 7);
    }
    static const char *const bad_real[] = {"", "0,01", "1e", "nan", "inf", "0x1p-3", "1.5", "-0.1"};
    for (size_t i = 0; i < sizeof bad_real / sizeof bad_real[0]; i++) {
        cli *args;
        assert_ok(PARSE(&args, "a", "-mx", "--damp", bad_real[i]));
        double damp = 7;
        assert_refused(cli_real(args, "damp", 0, 1, &damp), QL_USAGE, "from 0 to 1");
    }
    cli *args;
    assert_ok(PARSE(&args, "a", "-mx", "-b", "8", "--damp", "1e-2"));
    int64_t bits = 0, group = 128;
    double damp = 0;
    assert_ok(cli_int(args, "bits", 2, 8, &bits));
    assert_ok(cli_int(args, "group-size", -1, 128, &group));
    assert_ok(cli_real(args, "damp", 0, 1, &damp));
    assert_int_equal(bits, 8);
    assert_int_equal(group, 128);
    assert_true(damp == 0.01);
}

static void lists_are_whole_numbers_with_commas(void **state) {
    (void)state;
    static const char *const bad[] = {"", ",", "1,", ",1", "1,,2", "1, 2", "1;2", "1,9", "-1", "1,2x", "1,99999999999"};
    int32_t *values;
    int64_t count;
    cli *args;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_ok(PARSE(&args, "a", "-mx", "--bits", bad[i]));
        assert_refused(cli_ints(args, "bits", 0, 8, arena, &values, &count), QL_USAGE, "from 0 to 8");
    }
    assert_ok(PARSE(&args, "a", "-mx", "--bits", "8,0,3,3"));
    assert_ok(cli_ints(args, "bits", 0, 8, arena, &values, &count));
    assert_int_equal(count, 4);
    assert_memory_equal(values, ((int32_t[]){8, 0, 3, 3}), 4 * sizeof *values);
    assert_ok(PARSE(&args, "a", "-mx"));
    assert_ok(cli_ints(args, "bits", 0, 8, arena, &values, &count));
    assert_int_equal(count, 0);
}

static void sizes_have_units(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"5GB", 5000000000}, {"1.5MB", 1500000}, {"4GiB", 4294967296}, {"17", 17}, {"2KiB", 2048}};
    cli *args;
    uint64_t bytes;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_ok(PARSE(&args, "a", "-mx", "--shard-size", good[i].text));
        assert_ok(cli_bytes(args, "shard-size", &bytes));
        assert_int_equal(bytes, good[i].bytes);
    }
    static const char *const bad[] = {"", "GB", "-5GB", "5 GB", "5gigabytes", "1e30", "1.2.3", "99999999999TB", "."};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_ok(PARSE(&args, "a", "-mx", "--shard-size", bad[i]));
        assert_refused(cli_bytes(args, "shard-size", &bytes), QL_USAGE, "4GiB");
    }
}

static void choices_are_listed(void **state) {
    (void)state;
    static const char *const choices[] = {"none", "static", NULL};
    cli *args;
    int choice = 5;
    assert_ok(PARSE(&args, "a", "-m", "static"));
    assert_ok(cli_choice(args, "model", choices, &choice));
    assert_int_equal(choice, 1);
    assert_ok(PARSE(&args, "a", "-m", "Static"));
    assert_refused(cli_choice(args, "model", choices, &choice), QL_USAGE, "none, static");
}

/* ---- a recipe from options ---------------------------------------------------------------------------------------------- */

#define RECIPE(r, ...)                                                                                                 \
    (PARSE(&args, "a", "-mx", __VA_ARGS__) == QL_OK ? cli_recipe(args, cli_value(args, "scheme"), arena, r)            \
                                                    : QL_INTERNAL)

static void options_win_over_the_recipe_file(void **state) {
    (void)state;
    char path[] = "/tmp/cli_recipe_XXXXXX";
    const char text[] = "version: 1\nscheme: W3A16-RTN-g64\nsymmetric: false\nact_order: dynamic\ndamp: 0.05\n";
    int fd = mkstemp(path);
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    cli *args;
    recipe r;
    assert_ok(RECIPE(&r, "-q"));
    assert_true(r.base.bits == 4 && r.base.group == 128 && r.base.method == METHOD_GPTQ && r.symmetric && r.sequential);
    assert_ok(RECIPE(&r, "-r", path));
    assert_true(r.base.bits == 3 && r.base.group == 64 && r.base.method == METHOD_RTN && !r.symmetric &&
                r.damp == 0.05);
    assert_ok(RECIPE(&r, "-r", path, "--sym", "--bits", "8", "-g-1", "--act-order=none", "--scale-search", "off"));
    assert_true(r.base.bits == 8 && r.base.group == -1 && r.base.method == METHOD_RTN && r.symmetric &&
                !r.scale_search);
    assert_int_equal(r.act_order, QL_ORDER_NONE);
    assert_ok(RECIPE(&r, "--scheme", "W2A16-GPTQ-g32", "--literature"));
    assert_true(r.base.bits == 2 && r.base.group == 32 && r.literature && !r.scale_search && !r.sequential);
    assert_int_equal(r.act_order, QL_ORDER_NONE);

    assert_refused(RECIPE(&r, "-r", path, "--literature"), QL_MISMATCH, "literature has damp 0.01, but 0.05");
    assert_refused(RECIPE(&r, "--literature", "--sequential", "on"), QL_MISMATCH, "sequential");
    assert_refused(RECIPE(&r, "--sym", "--asym"), QL_USAGE, "give one");
    assert_refused(RECIPE(&r, "-r", path, "--scheme", "W4A16-RTN"), QL_USAGE, "give one");
    assert_refused(RECIPE(&r, "--scheme", "int4"), QL_USAGE, "W4A16-GPTQ-g128");
    assert_refused(RECIPE(&r, "--method", "awq"), QL_USAGE, "rtn, gptq");
    assert_refused(RECIPE(&r, "--bits", "5"), QL_MISMATCH, "expected 2, 3, 4 or 8");
    assert_refused(RECIPE(&r, "-g", "0"), QL_MISMATCH, "group_size 0");
    assert_refused(RECIPE(&r, "--damp", "0"), QL_MISMATCH, "more than 0");
    assert_refused(RECIPE(&r, "--sequential", "maybe"), QL_USAGE, "off, on");
    unlink(path);
}

/* ---- the whole program in a child ------------------------------------------------------------------------------------- */

typedef struct outcome {
    int code;
    char out[8192], err[2048];
} outcome;

static void read_all(int fd, char *text, size_t size) {
    size_t used = 0;
    ssize_t got;
    while (used + 1 < size && (got = read(fd, text + used, size - 1 - used)) > 0) used += (size_t)got;
    text[used] = 0;
    close(fd);
}

/* out: where stdout goes; -1: into outcome.out, -2: closed. */
static outcome run(ql_status (*what)(const cli *), int out, int argc, char *argv[]) {
    outcome o = {0};
    int to[2], err[2];
    assert_int_equal(pipe(to), 0);
    assert_int_equal(pipe(err), 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        behaviour = what;
        if (out == -2) close(STDOUT_FILENO);
        else dup2(out >= 0 ? out : to[1], STDOUT_FILENO);
        dup2(err[1], STDERR_FILENO);
        for (int fd = 3; fd < 64; fd++) close(fd);
        int code = cli_main(commands, argc, argv);
        _exit(code);
    }
    close(to[1]);
    close(err[1]);
    read_all(to[0], o.out, sizeof o.out);
    read_all(err[0], o.err, sizeof o.err);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    o.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return o;
}
#define RUN(what, out, ...) run(what, out, WORDS(__VA_ARGS__))

static ql_status wanted;
static ql_status fail_as_wanted(const cli *args) {
    (void)args;
    return wanted == QL_OK ? QL_OK : ql_fail(wanted, "a fact");
}

static void every_status_has_its_exit_code(void **state) {
    (void)state;
#define ROW(name, code, text) {name, code},
    static const struct {
        ql_status status;
        int code;
    } rows[] = {QL_STATUSES(ROW)};
#undef ROW
    outcome help = RUN(NULL, -1, "qalib", "--help");
    assert_int_equal(help.code, 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        wanted = rows[i].status;
        outcome o = RUN(fail_as_wanted, -1, "qalib", "fake", "-mx", "a");
        assert_int_equal(o.code, ql_status_exit_code(wanted));
        assert_int_equal(o.code, rows[i].code);
        char line[64] = "", documented[16];
        if (o.code) snprintf(line, sizeof line, "qalib: error[%d]: a fact\n", o.code);
        assert_string_equal(o.err, line); /* once, and nothing on success */
        assert_string_equal(o.out, "");
        snprintf(documented, sizeof documented, "\n  %d ", o.code);
        assert_non_null(strstr(help.out, documented));
    }
}

static void errors_as_json_lines(void **state) {
    (void)state;
    wanted = QL_FORMAT;
    outcome o = RUN(fail_as_wanted, -1, "qalib", "fake", "-mx", "a", "--log-format", "json");
    assert_int_equal(o.code, 65);
    assert_non_null(strstr(o.err, "\"level\":\"error\""));
    assert_non_null(strstr(o.err, "error[65]: a fact"));
}

static void commands_are_suggested(void **state) {
    (void)state;
    outcome o = RUN(NULL, -1, "qalib", "fale");
    assert_int_equal(o.code, 64);
    assert_non_null(strstr(o.err, "did you mean fake?"));
    o = RUN(NULL, -1, "qalib");
    assert_int_equal(o.code, 64);
    o = RUN(NULL, -1, "qalib", "--version");
    assert_int_equal(o.code, 0);
    assert_string_equal(o.out, "qalib " QL_VERSION "\n");
}

/* Every option of the tables is in the help, and no line is wider than the terminal except the ones made to be copied. */
static void help_wraps_to_forty_columns(void **state) {
    (void)state;
    static const int widths[] = {40, 80, 100};
    for (size_t i = 0; i < 3; i++) {
        char columns[8];
        snprintf(columns, sizeof columns, "%d", widths[i]);
        setenv("COLUMNS", columns, 1);
        outcome o = RUN(NULL, -1, "qalib", "fake", "--help");
        assert_int_equal(o.code, 0);
        for (const cli_option *option = fake_options; option->name; option++)
            assert_non_null(strstr(o.out, option->name));
        for (const cli_option *option = cli_common_options; option->name; option++)
            assert_non_null(strstr(o.out, option->name));
        assert_non_null(strstr(o.out, "qalib fake -m DIR a b"));
        for (char *line = strtok(o.out, "\n"); line; line = strtok(NULL, "\n"))
            if (strlen(line) > (size_t)widths[i]) fail_msg("%zu columns: %s", strlen(line), line);
    }
    unsetenv("COLUMNS");
}

/* ---- streams ------------------------------------------------------------------------------------------------------------ */

static ql_status print_much(const cli *args) {
    (void)args;
    for (int i = 0; i < 10000; i++) printf("%d\n", i);
    return QL_OK;
}

static void reader_that_leaves_is_no_failure(void **state) {
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    outcome o = RUN(print_much, ends[1], "qalib", "fake", "-mx", "a");
    close(ends[1]);
    assert_int_equal(o.code, 0);
    assert_string_equal(o.err, "");
}

static void full_disk_is_a_failure(void **state) {
    (void)state;
    int full = open("/dev/full", O_WRONLY);
    if (full < 0) {
        print_message("skipped: no /dev/full here\n");
        skip();
    }
    outcome o = RUN(print_much, full, "qalib", "fake", "-mx", "a");
    close(full);
    assert_int_equal(o.code, 74);
}

static ql_status open_a_file(const cli *args) {
    (void)args;
    int fd = open("/dev/null", O_WRONLY);
    return fd > 2 ? QL_OK : ql_fail(QL_INTERNAL, "a file got descriptor %d", fd);
}

static void closed_stdout_is_not_reused(void **state) {
    (void)state;
    outcome o = RUN(open_a_file, -2, "qalib", "fake", "-mx", "a");
    assert_int_equal(o.code, 0);
}

/* ---- signals ------------------------------------------------------------------------------------------------------------ */

static int number;
static ql_status interrupted(const cli *args) {
    (void)args;
    if (cli_check_signal() != QL_OK) return ql_fail(QL_INTERNAL, "a signal before any came");
    raise(number);
    return cli_check_signal();
}

static ql_status interrupted_twice(const cli *args) {
    (void)args;
    raise(SIGINT);
    raise(SIGINT);
    return QL_OK; /* never reached */
}

static void signals_have_their_exit_codes(void **state) {
    (void)state;
    static const struct { int number, code; } rows[] = {{SIGINT, 130}, {SIGTERM, 143}, {SIGUSR1, 75}};
    for (size_t i = 0; i < 3; i++) {
        number = rows[i].number;
        outcome o = RUN(interrupted, -1, "qalib", "fake", "-mx", "a");
        assert_int_equal(o.code, rows[i].code);
        assert_non_null(strstr(o.err, "stopped by SIG"));
    }
    outcome o = RUN(interrupted_twice, -1, "qalib", "fake", "-mx", "a");
    assert_int_equal(o.code, 130);
    assert_string_equal(o.err, "");
}

/* A job can ask the daemon for all that quantize knows; the client takes recipes as quantize does. */
static void the_daemon_knows_every_option_of_quantize(void **state) {
    const cli_option *const tables[] = {cmd_quantize.options, cli_recipe_options};
    (void)state;
    assert_ptr_equal(cmd_submit.shared, cli_recipe_options);
    for (int t = 0; t < 2; t++)
        for (const cli_option *o = tables[t]; o->name; o++)
            if (strcmp(o->name, "resume") != 0 &&
                strncmp(o->name, "cache", 5) != 0 && /* it always resumes; its own cache */
                !spec_has_option(o->name))
                fail_msg("calib/daemon/spec.c has no field for --%s", o->name);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_daemon_knows_every_option_of_quantize),
        cmocka_unit_test(options_in_every_spelling),
        cmocka_unit_test(help_needs_nothing_else),
        cmocka_unit_test(refusals_name_the_word),
        cmocka_unit_test(one_positional_argument),
        cmocka_unit_test(numbers_are_whole_words_in_range),
        cmocka_unit_test(lists_are_whole_numbers_with_commas),
        cmocka_unit_test(sizes_have_units),
        cmocka_unit_test(choices_are_listed),
        cmocka_unit_test(options_win_over_the_recipe_file),
        cmocka_unit_test(every_status_has_its_exit_code),
        cmocka_unit_test(errors_as_json_lines),
        cmocka_unit_test(commands_are_suggested),
        cmocka_unit_test(help_wraps_to_forty_columns),
        cmocka_unit_test(reader_that_leaves_is_no_failure),
        cmocka_unit_test(full_disk_is_a_failure),
        cmocka_unit_test(closed_stdout_is_not_reused),
        cmocka_unit_test(signals_have_their_exit_codes),
    };
    return cmocka_run_group_tests(tests, open_arena, close_arena);
}

/* From words to an exit code: finds the command, runs it, reports once. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "host/log.h"
#include "host/status.h"

/* A closed standard stream would be the first file that the job opens: its text would land in a checkpoint. */
static void fill_standard_streams(void) {
    int fd;
    do fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) close(fd);
}

static int help_width(void) {
    struct winsize size;
    const char *columns = getenv("COLUMNS");
    int width = columns ? atoi(columns) : ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 80;
    return width < 20 ? 80 : width > 100 ? 100 : width;
}

static ql_status run_command(const cli_command *command, int argc, char *const argv[], ql_arena *arena) {
    cli *args;
    QL_TRY(cli_parse(command, argc, argv, arena, &args));
    if (cli_has(args, "help")) {
        cli_print_help(stdout, command, help_width());
        return QL_OK;
    }
    const char *format = cli_value(args, "log-format");
    ql_log_open(format && strcmp(format, "json") == 0, cli_has(args, "quiet") ? QL_WARNING : QL_INFO);
    return command->run(args);
}

static ql_status dispatch(const cli_command *const commands[], int argc, char *const argv[], ql_arena *arena) {
    const char *first = argc > 1 ? argv[1] : NULL;
    if (!first) return ql_fail(QL_USAGE, "a command is missing; \"qalib --help\" lists them");
    if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0) {
        cli_print_overview(stdout, commands, help_width());
        return QL_OK;
    }
    if (strcmp(first, "--version") == 0) {
        printf("qalib %s\n", ql_version());
        return QL_OK;
    }
    const cli_command *command = cli_find_command(commands, first);
    return command ? run_command(command, argc - 2, argv + 2, arena) : cli_unknown_command(commands, first);
}

/* Output that nobody reads any more ("| head") is no failure; output that could not be stored is one. */
static ql_status finish_stdout(void) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return QL_OK;
    struct pollfd reader = {STDOUT_FILENO, POLLOUT, 0};
    if (poll(&reader, 1, 0) == 1 && (reader.revents & (POLLERR | POLLHUP))) return QL_OK;
    return ql_fail(QL_IO, "standard output could not be written completely");
}

static int exit_code(ql_status status) {
    int number = cli_signal();
    if (status == QL_INTERRUPTED && (number == SIGINT || number == SIGTERM)) return 128 + number;
    return ql_status_exit_code(status);
}

static void report(int code) {
    if (ql_log_is_json()) ql_log(QL_ERROR, "error[%d]: %s", code, ql_last_error());
    else fprintf(stderr, "qalib: error[%d]: %s\n", code, ql_last_error());
}

int cli_main(const cli_command *const commands[], int argc, char *const argv[]) {
    fill_standard_streams();
    cli_catch_signals();
    ql_arena *arena;
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) {
        status = dispatch(commands, argc, argv, arena);
        ql_arena_close(arena);
    }
    if (status == QL_OK) status = finish_stdout();
    cli_tell_ranks(status);
    int code = exit_code(status);
    if (status != QL_OK && cli_is_spokesman()) report(code);
    status = cli_close_ranks();
    if (status != QL_OK) report(code = exit_code(status));
    return code;
}

/* Signals only set a flag; the job asks for it where it can stop with everything committed. */
#include <signal.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "host/status.h"

static volatile sig_atomic_t arrived;

static void remember(int number) {
    if (number == SIGINT && arrived) _exit(128 + SIGINT);
    arrived = number;
}

void cli_catch_signals(void) {
    /* SA_RESTART: a clean stop must not look like a failed read.  A lost reader is an error of write(), not a death. */
    struct sigaction action = {.sa_handler = remember, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

int cli_signal(void) { return arrived; }

ql_status cli_check_signal(void) {
    switch (arrived) {
    case 0: return QL_OK;
    case SIGINT: return ql_fail(QL_INTERRUPTED, "stopped by SIGINT");
    case SIGTERM: return ql_fail(QL_INTERRUPTED, "stopped by SIGTERM");
    default: return ql_fail(QL_INTERRUPTED, "stopped by SIGUSR1");
    }
}

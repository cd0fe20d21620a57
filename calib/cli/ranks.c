/* The ranks of a command, from its start to its exit code. */
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "host/log.h"
#include "host/status.h"

static const double default_timeout_s = 600;
static ql_comm *ranks; /* one per process, as MPI has it */

ql_status cli_open_ranks(const cli *args, ql_comm **comm) {
    double seconds = default_timeout_s;
    QL_TRY(cli_real(args, "comm-timeout", 1, 86400, &seconds));
    QL_TRY(ql_comm_open(seconds, &ranks));
    ql_comm_on_wait(ranks, cli_check_signal);
    if (ql_comm_rank(ranks) > 0) ql_log_open(ql_log_is_json(), QL_ERROR);
    *comm = ranks;
    return QL_OK;
}

int cli_threads_of_rank(void) {
    cpu_set_t mine;
    int others = ql_comm_size_of_node(ranks), online = (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (others == 1 || sched_getaffinity(0, sizeof mine, &mine) != 0) return 0;
    if (CPU_COUNT(&mine) < online) return CPU_COUNT(&mine); /* the launcher has shared them out */
    return online > others ? online / others : 1;
}

/* auto is the processor where there is no GPU of that number: asked once more, it says so. */
const char *cli_device_of_rank(const char *device, char own[32]) {
    ql_ctx *probe;
    bool any = strcmp(device, "auto") == 0;
    if (ql_comm_size_of_node(ranks) == 1 || (!any && strcmp(device, "cuda") != 0)) return device;
    snprintf(own, 32, "cuda:%d", ql_comm_rank_of_node(ranks));
    if (any && ql_ctx_open(own, 1, &probe) != QL_OK) return "cpu";
    if (any) ql_ctx_close(probe);
    return own;
}

ql_status cli_use_device(ql_ctx *ctx) { return ql_comm_use_device(ranks, ctx); }

void cli_close_ctx(ql_ctx *ctx) {
    ql_comm_leave_device(ranks);
    ql_ctx_close(ctx);
}

bool cli_is_spokesman(void) { return ql_comm_rank(ranks) == 0; }

void cli_tell_ranks(ql_status status) { ql_comm_fail(ranks, status); }

ql_status cli_close_ranks(void) {
    ql_status status = ql_comm_close(ranks);
    ranks = NULL;
    return status;
}

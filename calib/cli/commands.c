/* The commands, in the order in which a newcomer meets them. */
#include <string.h>

#include "calib/cli/cli.h"
#include "formats/json.h"

const cli_command *const cli_commands[] = {
    &cmd_tokenize, &cmd_quantize,  &cmd_schemes, &cmd_eval,       &cmd_generate, &cmd_verify, &cmd_report,
    &cmd_export,   &cmd_calibrate, &cmd_stats,   &cmd_plan,       &cmd_inspect,  &cmd_doctor, &cmd_bench,
    &cmd_sbatch,   &cmd_submit,    &cmd_jobs,    &cmd_show,       &cmd_logs,     &cmd_cancel, &cmd_pause,
    &cmd_resume,   &cmd_retry,     &cmd_rm,      &cmd_completion, &cmd_manual,   NULL,
};

const cli_command *cli_find_command(const cli_command *const commands[], const char *name) {
    for (; *commands; commands++)
        if (strcmp((*commands)->name, name) == 0) return *commands;
    return NULL;
}

ql_status cli_unknown_command(const cli_command *const commands[], const char *name) {
    const char *names[64];
    int count = 0;
    while (commands[count] && count < 63) {
        names[count] = commands[count]->name;
        count++;
    }
    names[count] = NULL;
    const char *meant = ql_nearest_word(name, names);
    if (meant) return ql_fail(QL_USAGE, "unknown command \"%s\"; did you mean %s?", name, meant);
    return ql_fail(QL_USAGE, "unknown command \"%s\"; \"qalib --help\" lists them", name);
}

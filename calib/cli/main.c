/* The program: its commands, in the order in which a newcomer meets them. */
#include "calib/cli/cli.h"

static const cli_command *const commands[] = {
    &cmd_tokenize, &cmd_quantize,  &cmd_schemes, &cmd_eval, &cmd_generate, &cmd_verify, &cmd_report,
    &cmd_export,   &cmd_calibrate, &cmd_stats,   &cmd_plan, &cmd_inspect,  &cmd_doctor, &cmd_bench,
    &cmd_sbatch,   &cmd_submit,    &cmd_jobs,    &cmd_show, &cmd_logs,     &cmd_cancel, &cmd_pause,
    &cmd_resume,   &cmd_retry,     &cmd_rm,      NULL,
};

int main(int argc, char **argv) { return cli_main(commands, argc, argv); }

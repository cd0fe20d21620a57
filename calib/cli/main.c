/* The program: its commands, in the order in which a newcomer meets them. */
#include "calib/cli/cli.h"

static const cli_command *const commands[] = {
    &cmd_inspect, &cmd_plan, &cmd_doctor, &cmd_verify, NULL,
};

int main(int argc, char **argv) { return cli_main(commands, argc, argv); }

#include "calib/cli/cli.h"

int main(int argc, char **argv) { return cli_main(cli_commands, argc, argv); }

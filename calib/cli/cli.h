/* The command line: one table of commands, one table of options per command.  Help, errors with suggestions, and completion derive
 * from the tables; a command reads its values by name.
 *
 *   ql_status cmd_eval(const cli *args) {
 *       const char *model = cli_value(args, "model");          // NULL if not given; required ones are checked before
 *       int64_t bits = 4;  QL_TRY(cli_int(args, "bits", 2, 8, &bits));
 *
 * Data goes to stdout, messages to stderr.  The returned status becomes the exit code; main prints ql_last_error().
 */
#ifndef CALIB_CLI_H
#define CALIB_CLI_H

#include <stdio.h>

#include "calib/layer.h"
#include "calib/recipe.h"
#include "host/comm.h"
#include "host/mem.h"

typedef struct cli_option {
    const char *name;     /* long name without dashes */
    char letter;          /* short form or 0 */
    const char *argument; /* "DIR", "N", ...; NULL: a switch */
    bool required;
    const char *help;
} cli_option;

typedef struct cli cli;

typedef struct cli_command {
    const char *name, *summary;
    /* "PATH" if one positional argument is taken (required), "PATH..." if one or more, "[PATH]" if one or none, NULL if none. */
    const char *positional;
    /* Tables that end with a NULL name: its own options, and ones that several commands take alike (cli_recipe_options) or
     * NULL.  The common ones (--help, --json, --device, --threads, ...) are added. */
    const cli_option *options, *shared;
    const cli_option *passed; /* of another command, for one that makes its command line; NULL: none */
    const char *details, *examples;
    ql_status (*run)(const cli *args);
} cli_command;

const char *cli_value(const cli *args, const char *option); /* last one wins; NULL if not given */
bool cli_has(const cli *args, const char *option);
const char *cli_positional(const cli *args, int index); /* NULL beyond the last */
/* QL_USAGE for anything but a whole number in range; *value stays when the option was not given. */
ql_status cli_int(const cli *args, const char *option, int64_t least, int64_t most, int64_t *value);
/* "1,15,27" into the arena; *count is 0 when the option was not given. */
ql_status cli_ints(const cli *args, const char *option, int64_t least, int64_t most, ql_arena *arena, int32_t **values,
                   int64_t *count);
ql_status cli_real(const cli *args, const char *option, double least, double most, double *value);
/* Index in `choices` (NULL-terminated); QL_USAGE lists them. */
ql_status cli_choice(const cli *args, const char *option, const char *const choices[], int *value);
/* "5GB", "500MB" (powers of ten), "4GiB" (powers of two) or plain bytes. */
ql_status cli_bytes(const cli *args, const char *option, uint64_t *value);
/* The options that say what to do with a model, for commands whose `shared` table this is.  cli_recipe puts them together: defaults,
 * then the recipe file or the scheme (one name of --scheme's list, NULL without), then the single options, then recipe_check. */
extern const cli_option cli_recipe_options[];
ql_status cli_recipe(const cli *args, const char *scheme, ql_arena *arena, recipe *r);
ql_status cli_recipe_over(const cli *args, recipe *r); /* the last two steps alone */
/* Which statistics --statistics, the scheme and the recipe ask for, of rows or (from_store) of --stats; QL_USAGE for what cannot be. */
ql_status cli_statistics(const cli *args, const char *scheme, const recipe *r, bool from_store, statistics_mode *mode);

/* Opens the context that --device and --threads ask for, through which ranks with a GPU each send their messages. */
ql_status cli_open_ctx(const cli *args, ql_ctx **ctx);
void cli_close_ctx(ql_ctx *ctx); /* NULL is allowed */

/* How rows pass there: --precision, by default BF16 on a GPU and FP32 on a processor, and the others if the command has them. */
#define CLI_PRECISION_OPTION                                                                                           \
    { "precision", 0, "TYPE", false, "of activations: fp32 or bf16 (default: bf16 on a GPU, fp32 on a processor)" }
#define CLI_PLACE_OPTION                                                                                               \
    {                                                                                                                  \
        "max-device-mem", 0, "SIZE", false,                                                                            \
            "activations wait in host memory where the job would take more (default: what is free)"                    \
    }
#define CLI_SAVE_OPTION                                                                                                \
    {                                                                                                                  \
        "save-every", 0, "SECONDS", false,                                                                             \
            "save activations about so often, for --resume; 0: never, all layers pass again (default: 60)"             \
    }
ql_status cli_pass(const cli *args, ql_ctx *ctx, pass_setting *pass);
/* Joins the other processes that a launcher has started with this one; NULL: there are none.  cli_main tells them how it ends.  Messages
 * of the ranks behind 0 are left out, and the processors of a machine are shared between its ranks. */
ql_status cli_open_ranks(const cli *args, ql_comm **comm);
/* What quantize takes besides a recipe. */
extern const cli_option cli_quantize_options[];

/* calib/cli/bench_whole.c: bench block and bench --rates. */
ql_status cli_bench_whole(const cli *args);

/* How progress is to be shown, from --progress, --quiet and --log-format. */
progress_style cli_progress(const cli *args);

/* SIGINT, SIGTERM and SIGUSR1 set a flag; long work asks between steps.  QL_INTERRUPTED after one; a second SIGINT ends the
 * process at once.  The exit code is 130 or 143 for the signals of those names, 75 for SIGUSR1. */
ql_status cli_check_signal(void);

/* ---- what main and the tests use ---------------------------------------------------------------------------------------- */

extern const cli_command *const cli_commands[]; /* of qalib; ends with NULL */
const cli_command *cli_find_command(const cli_command *const commands[], const char *name); /* NULL: there is none */
ql_status cli_unknown_command(const cli_command *const commands[], const char *name); /* QL_USAGE with what was meant */

/* The whole program: finds the command (NULL-terminated list), parses, runs, reports; returns the exit code. */
int cli_main(const cli_command *const commands[], int argc, char *const argv[]);

/* Options may stand before and after positional arguments; "--" ends them.  argv[0] is the first word behind the command's name.  After
 * --help nothing is required.  QL_USAGE says which word is wrong and what was probably meant. */
ql_status cli_parse(const cli_command *command, int argc, char *const argv[], ql_arena *arena, cli **args);

extern const cli_option cli_common_options[]; /* every command takes them; ends with a NULL name */
/* What --progress and --log-format take; NULL ends them. */
extern const char *const cli_progress_choices[], *const cli_log_formats[];
/* What the statuses mean to a shell, the same code several times in a row; ends with a NULL text. */
typedef struct cli_exit {
    int code;
    const char *text;
} cli_exit;
extern const cli_exit cli_exits[];
extern const char cli_about[], cli_examples[]; /* of the whole program */

void cli_print_help(FILE *out, const cli_command *command, int width);
void cli_print_overview(FILE *out, const cli_command *const commands[], int width);

const char *cli_device_of_rank(const char *device, char own[32]); /* of several on a machine each takes its GPU */
int cli_threads_of_rank(void);                                    /* 0: as many as there are processors */
bool cli_is_spokesman(void);                                      /* of all ranks: messages are its business */
void cli_tell_ranks(ql_status status);
ql_status cli_use_device(ql_ctx *ctx);
ql_status cli_close_ranks(void); /* after everything was said: may end the process */

void cli_catch_signals(void);
int cli_signal(void); /* the one that arrived, 0 if none */

extern const cli_command cmd_bench, cmd_tokenize, cmd_calibrate, cmd_quantize, cmd_schemes, cmd_eval, cmd_generate,
    cmd_inspect, cmd_verify, cmd_export, cmd_plan, cmd_doctor, cmd_stats, cmd_submit, cmd_jobs, cmd_show, cmd_logs,
    cmd_cancel, cmd_pause, cmd_resume, cmd_retry, cmd_rm, cmd_sbatch, cmd_report, cmd_completion, cmd_manual;

#endif

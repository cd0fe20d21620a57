/* qalib completion: what a shell needs to finish words, made from the tables of commands and options. */
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/schemes.h"

/* ---- what may stand behind an option -------------------------------------------------------------------------------------------------- */

typedef enum value_kind { FREE, FILES, DIRS, WORDS } value_kind;

/* The words that an option takes, where they are few and fixed; else NULL. */
static const char *const *words_of(const cli_option *o) {
    static const char *const devices[] = {"auto", "cpu", "cuda", "cuda:0", NULL}, *const on_off[] = {"on", "off", NULL};
    static const struct {
        const char *name;
        const char *const *words;
    } known[] = {{"scheme", scheme_names},
                 {"format", output_format_names},
                 {"device", devices},
                 {"progress", cli_progress_choices},
                 {"log-format", cli_log_formats}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(o->name, known[i].name) == 0) return known[i].words;
    return strcmp(o->argument, "on|off") == 0 ? on_off : NULL;
}

/* From the word that stands for the argument in --help. */
static value_kind kind_of(const char *argument) {
    if (strstr(argument, "FILE") || strstr(argument, "PATH") || strstr(argument, "RUN")) return FILES;
    return strstr(argument, "DIR") ? DIRS : FREE;
}

static value_kind option_kind(const cli_option *o) { return words_of(o) ? WORDS : kind_of(o->argument); }

enum { TABLES = 4 };

static const cli_option *table(const cli_command *command, int i) {
    const cli_option *const tables[TABLES] = {command->options, command->passed, command->shared, cli_common_options};
    return tables[i];
}

#define EACH_OPTION(o, command)                                                                                        \
    for (int t = 0; t < TABLES; t++)                                                                                   \
        for (const cli_option *o = table(command, t); o && o->name; o++)

/* A word list of a shell: 'a b c'.  None of ours holds what a shell would read. */
static void print_words(const char *const *words, const char *between) {
    for (int i = 0; words[i]; i++) printf("%s%s", i ? between : "", words[i]);
}

/* ---- bash ----------------------------------------------------------------------------------------------------------------------------- */

static void bash_option(const cli_option *o) {
    static const char *const call[] = {":", "_qalib_files", "_qalib_dirs"};
    if (!o->argument) return;
    printf("        --%s", o->name);
    if (o->letter) printf(" | -%c", o->letter);
    printf(") ");
    if (option_kind(o) == WORDS) {
        printf("_qalib_words '");
        print_words(words_of(o), " ");
        printf("'");
    } else printf("%s", call[option_kind(o)]);
    printf("; return ;;\n");
}

static void bash_command(const cli_command *command) {
    printf("    %s)\n        case $previous in\n", command->name);
    EACH_OPTION(o, command) bash_option(o);
    printf("        esac\n        options='");
    EACH_OPTION(o, command) {
        printf("--%s ", o->name);
        if (o->letter) printf("-%c ", o->letter);
    }
    value_kind kind = command->positional ? kind_of(command->positional) : FREE;
    printf("'\n        positional=%s ;;\n", kind == FILES ? "_qalib_files" : kind == DIRS ? "_qalib_dirs" : ":");
}

static void print_bash(void) {
    printf("# Completion of qalib for bash; made by \"qalib completion bash\".\n"
           "_qalib_files() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$current\"); }\n"
           "_qalib_dirs() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- \"$current\"); }\n"
           "_qalib_words() { mapfile -t COMPREPLY < <(compgen -W \"$1\" -- \"$current\"); }\n"
           "_qalib() {\n"
           "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} options= positional=:\n"
           "    COMPREPLY=()\n"
           "    [ \"$previous\" != = ] || previous=${COMP_WORDS[COMP_CWORD - 2]} # --option=value are three words\n"
           "    if [ \"$current\" = = ]; then current=; fi\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        _qalib_words '--help --version");
    for (const cli_command *const *c = cli_commands; *c; c++) printf(" %s", (*c)->name);
    printf("'\n        return\n    fi\n    case ${COMP_WORDS[1]} in\n");
    for (const cli_command *const *c = cli_commands; *c; c++) bash_command(*c);
    printf("    esac\n    if [[ $current == -* ]]; then _qalib_words \"$options\"; else $positional; fi\n}\n"
           "complete -F _qalib qalib\n");
}

/* ---- zsh ------------------------------------------------------------------------------------------------------------------------------- */

/* Inside '...', and where brackets and colons have a meaning. */
static void print_zsh(const char *text) {
    for (; *text; text++) {
        if (*text == '\'') printf("'\\''");
        else if (strchr("[]:\\", *text)) printf("\\%c", *text);
        else putchar(*text);
    }
}

static void zsh_values(value_kind kind) { printf("%s", kind == FILES ? "_files" : kind == DIRS ? "_files -/" : ""); }

static void zsh_option(const cli_option *o) {
    printf("        ");
    if (o->letter)
        printf("'(-%c --%s)'{-%c%s,--%s%s}'[", o->letter, o->name, o->letter, o->argument ? "+" : "", o->name,
               o->argument ? "=" : "");
    else printf("'--%s%s[", o->name, o->argument ? "=" : "");
    print_zsh(o->help);
    printf("]");
    if (o->argument) {
        printf(":");
        print_zsh(o->argument);
        printf(":");
        if (option_kind(o) == WORDS) {
            printf("(");
            for (const char *const *word = words_of(o); *word; word++) {
                print_zsh(*word);
                printf("%s", word[1] ? " " : ")");
            }
        } else zsh_values(option_kind(o));
    }
    printf("' \\\n");
}

static void zsh_command(const cli_command *command) {
    printf("    %s) _arguments -s \\\n", command->name);
    EACH_OPTION(o, command) zsh_option(o);
    printf("        '*:");
    if (command->positional) {
        print_zsh(command->positional);
        printf(":");
        zsh_values(kind_of(command->positional));
    } else printf(":");
    printf("' ;;\n");
}

static void print_zsh_script(void) {
    printf("#compdef qalib\n# Completion of qalib for zsh; made by \"qalib completion zsh\".\n_qalib() {\n    local -a "
           "commands=(\n");
    for (const cli_command *const *c = cli_commands; *c; c++) {
        printf("        '%s:", (*c)->name);
        print_zsh((*c)->summary);
        printf("'\n");
    }
    printf("    )\n    if ((CURRENT == 2)); then\n        _describe command commands\n        return\n    fi\n"
           "    shift words\n    ((CURRENT--))\n    case $words[1] in\n");
    for (const cli_command *const *c = cli_commands; *c; c++) zsh_command(*c);
    printf("    esac\n}\nif [ \"$funcstack[1]\" = _qalib ]; then _qalib \"$@\"; else compdef _qalib qalib; fi\n");
}

static ql_status run(const cli *args) {
    const char *shell = cli_positional(args, 0);
    if (strcmp(shell, "bash") == 0) print_bash();
    else if (strcmp(shell, "zsh") == 0) print_zsh_script();
    else return ql_fail(QL_USAGE, "completion for \"%s\": there is bash and zsh", shell);
    return QL_OK;
}

const cli_command cmd_completion = {
    .name = "completion",
    .summary = "print what bash or zsh needs to complete words of qalib",
    .positional = "SHELL",
    .details = "Installed with the program; for one that is not installed, as below.",
    .examples = "qalib completion bash >qalib.bash && . ./qalib.bash\nqalib completion zsh >_qalib          # in a "
                "folder of $fpath",
    .run = run,
};

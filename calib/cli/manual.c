/* qalib manual: manual pages as text of scdoc, made from the tables that --help prints. */
#include <ctype.h>
#include <string.h>

#include "calib/cli/cli.h"

/* Text of a paragraph: what scdoc would read as bold or underlined, or as a list at the start, is escaped; line ends are spaces. */
static void put(const char *text) {
    if (!isalnum((unsigned char)*text) && *text != '"') putchar('\\');
    for (; *text; text++) {
        if (strchr("\\*_", *text)) putchar('\\');
        putchar(*text == '\n' ? ' ' : *text);
    }
}

static void put_head(const char *page, const char *summary) {
    printf("%s(1) \"Qalib %s\"\n\n# NAME\n\n%s - ", page, ql_version(), page);
    put(summary);
    printf("\n\n# SYNOPSIS\n\n");
}

static void put_options(const char *title, const cli_option *o) {
    if (!o || !o->name) return;
    printf("# %s\n\n", title);
    for (; o->name; o++) {
        if (o->letter) printf("*-%c*, ", o->letter);
        printf("*--%s*", o->name);
        if (o->argument) {
            printf(" _");
            put(o->argument);
            printf("_");
        }
        printf("\n\t");
        put(o->help);
        printf("%s\n\n", o->required ? " (required)" : "");
    }
}

static void put_examples(const char *examples) {
    if (examples) printf("# EXAMPLES\n\n```\n%s\n```\n\n", examples);
}

static void put_command(const cli_command *command) {
    char page[64];
    snprintf(page, sizeof page, "qalib-%s", command->name);
    put_head(page, command->summary);
    printf("*qalib %s* [options]", command->name);
    if (command->positional) {
        printf(" _");
        put(command->positional);
        printf("_");
    }
    printf("\n\n");
    if (command->details) {
        printf("# DESCRIPTION\n\n");
        put(command->details);
        printf("\n\n");
    }
    put_options("OPTIONS", command->options);
    put_options("OPTIONS OF THE JOB", command->passed);
    put_options("RECIPE", command->shared);
    put_options("COMMON OPTIONS", cli_common_options);
    put_examples(command->examples);
    printf("# EXIT STATUS\n\n*qalib*(1) lists the codes.\n\n# SEE ALSO\n\n*qalib*(1)\n");
}

static void put_commands(void) {
    printf("# COMMANDS\n\n");
    for (const cli_command *const *c = cli_commands; *c; c++) {
        printf("*qalib-%s*(1)\n\t", (*c)->name);
        put((*c)->summary);
        printf("\n\n");
    }
}

static void put_exits(void) {
    printf("# EXIT STATUS\n\n");
    for (const cli_exit *e = cli_exits; e->text; e++) {
        if (e == cli_exits || e->code != e[-1].code) printf("*%d*\n", e->code);
        printf("\t");
        put(e->text);
        printf("%s\n\n", e[1].text && e[1].code == e->code ? ";" : "");
    }
}

static void put_overview(void) {
    put_head("qalib", "quantize large language models");
    printf("*qalib* _COMMAND_ [options]++\n*qalib* _COMMAND_ *--help*++\n*qalib* *--version*\n\n# DESCRIPTION\n\n");
    put(cli_about);
    printf(" Data goes to standard output, messages to standard error.\n\n");
    put_commands();
    put_options("COMMON OPTIONS", cli_common_options);
    put_exits();
    put_examples(cli_examples);
    printf("# SEE ALSO\n\n*qalibd*(8)\n");
}

static ql_status run(const cli *args) {
    const char *name = cli_positional(args, 0);
    const cli_command *command = name ? cli_find_command(cli_commands, name) : NULL;
    if (name && !command) return cli_unknown_command(cli_commands, name);
    if (command) put_command(command);
    else put_overview();
    return QL_OK;
}

const cli_command cmd_manual = {
    .name = "manual",
    .summary = "print the manual page of the program or of a command, as text of scdoc",
    .positional = "[COMMAND]",
    .details = "The pages are installed with the program where scdoc was there to make them.",
    .examples = "qalib manual\nqalib manual quantize | scdoc | man -l -",
    .run = run,
};

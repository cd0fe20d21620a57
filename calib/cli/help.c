/* Help texts, made from the tables and wrapped to the width of the terminal. */
#include <string.h>

#include "calib/cli/cli.h"

/* Prints `text` word by word within `width` columns; the cursor stands at `column`, further lines start at `indent`. */
static void print_wrapped(FILE *out, const char *text, int column, int indent, int width) {
    bool line_start = true;
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (!line_start && column + 1 + length > width) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
            line_start = true;
        }
        fprintf(out, "%s%.*s", line_start ? "" : " ", length, text);
        column += length + !line_start;
        line_start = false;
        text += length;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

/* Two columns: a term, and what it means; on a narrow terminal, or after a long term, the meaning goes below. */
static void print_entry(FILE *out, const char *term, const char *meaning, int indent, int width) {
    bool narrow = width < 60;
    if (narrow) indent = 6;
    int used = fprintf(out, "  %s", term);
    if (narrow || used + 2 > indent) fprintf(out, "\n%*s", indent, "");
    else fprintf(out, "%*s", indent - used, "");
    print_wrapped(out, meaning, indent, indent, width);
}

static void print_options(FILE *out, const cli_option *options, int width) {
    for (; options && options->name; options++) {
        char term[96], letter[8] = "    ";
        if (options->letter) snprintf(letter, sizeof letter, "-%c, ", options->letter);
        snprintf(term, sizeof term, "%s--%s%s%s", letter, options->name, options->argument ? " " : "",
                 options->argument ? options->argument : "");
        char meaning[512];
        snprintf(meaning, sizeof meaning, "%s%s", options->help, options->required ? " (required)" : "");
        print_entry(out, term, meaning, 30, width);
    }
}

/* Examples keep their lines: they are made to be copied. */
static void print_examples(FILE *out, const char *lines) {
    while (*lines) {
        int length = (int)strcspn(lines, "\n");
        fprintf(out, "  %.*s\n", length, lines);
        lines += length + (lines[length] == '\n');
    }
}

void cli_print_help(FILE *out, const cli_command *command, int width) {
    fprintf(out, "Usage: qalib %s [options]%s%s\n\n", command->name, command->positional ? " " : "",
            command->positional ? command->positional : "");
    print_wrapped(out, command->summary, 0, 0, width);
    if (command->options && command->options->name) fprintf(out, "\nOptions:\n");
    print_options(out, command->options, width);
    if (command->passed) fprintf(out, "\nOf the job:\n");
    print_options(out, command->passed, width);
    if (command->shared) fprintf(out, "\nRecipe:\n");
    print_options(out, command->shared, width);
    fprintf(out, "\nCommon options:\n");
    print_options(out, cli_common_options, width);
    if (command->details) {
        fputc('\n', out);
        print_wrapped(out, command->details, 0, 0, width);
    }
    if (command->examples) {
        fprintf(out, "\nExamples:\n");
        print_examples(out, command->examples);
    }
}

#define TEXT(name, code, text) {code, text},
const cli_exit cli_exits[] = {
    QL_STATUSES(TEXT){130, "stopped by SIGINT (Ctrl-C); a second one ends the program at once"},
    {143, "stopped by SIGTERM"},
    {0, NULL},
};
#undef TEXT

const char cli_about[] = "Quantizes large language models: a Hugging Face checkpoint in, a quantized one out.";
const char cli_examples[] = "qalib plan -m MODEL --method gptq --bits 4 --group-size 128\n"
                            "qalib quantize -m MODEL -o OUT --method gptq --bits 4 --group-size 128 --calib tokens.h5\n"
                            "qalib eval -m OUT --base MODEL --tokens eval.h5";

static void print_exit_codes(FILE *out, int width) {
    fprintf(out, "\nExit codes:\n");
    for (const cli_exit *e = cli_exits; e->text; e++) {
        char code[8] = "";
        if (e == cli_exits || e->code != e[-1].code) snprintf(code, sizeof code, "%d", e->code);
        print_entry(out, code, e->text, 8, width);
    }
}

void cli_print_overview(FILE *out, const cli_command *const commands[], int width) {
    fprintf(out, "Usage: qalib COMMAND [options]\n       qalib COMMAND --help\n       qalib --version\n\n");
    print_wrapped(out, cli_about, 0, 0, width);
    fprintf(out, "\nCommands:\n");
    for (; *commands; commands++) print_entry(out, (*commands)->name, (*commands)->summary, 14, width);
    fprintf(out, "\nCommon options:\n");
    print_options(out, cli_common_options, width);
    print_exit_codes(out, width);
    fprintf(out, "\nExamples:\n");
    print_examples(out, cli_examples);
}

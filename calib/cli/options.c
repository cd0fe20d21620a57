/* Options: the words of the command line against the tables. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/cli/cli.h"
#include "formats/json.h"
#include "host/log.h"
#include "host/status.h"

typedef struct given {
    const cli_option *option;
    const char *value; /* "" for a switch */
} given;

struct cli {
    const cli_command *command;
    given *given;
    int n_given;
    const char **positional;
    int n_positional;
};

const cli_option cli_common_options[] = {
    {"json", 0, NULL, false, "one JSON object on stdout instead of text"},
    {"device", 0, "NAME", false, "auto, cpu, cuda or cuda:N (default: auto)"},
    {"threads", 0, "N", false, "CPU threads (default: all that the process may use)"},
    {"progress", 0, "STYLE", false, "auto, bar, plain or none (default: auto)"},
    {"log-format", 0, "FORMAT", false, "messages on stderr as text or json (default: text)"},
    {"quiet", 'q', NULL, false, "warnings and errors only"},
    {"help", 'h', NULL, false, "this text"},
    {0},
};
const char *const cli_progress_choices[] = {"auto", "bar", "plain", "none", NULL};
const char *const cli_log_formats[] = {"text", "json", NULL};

/* ---- finding -------------------------------------------------------------------------------------------------------- */

static const cli_option *find_in(const cli_option *table, const char *name, size_t length, char letter) {
    for (; table && table->name; table++)
        if (letter ? table->letter == letter : strncmp(table->name, name, length) == 0 && !table->name[length])
            return table;
    return NULL;
}

/* By name (letter 0) or by letter; the command's own options come first. */
static const cli_option *find(const cli_command *command, const char *name, size_t length, char letter) {
    const cli_option *option = find_in(command->options, name, length, letter);
    if (!option) option = find_in(command->shared, name, length, letter);
    if (!option) option = find_in(command->passed, name, length, letter);
    return option ? option : find_in(cli_common_options, name, length, letter);
}

enum { MAX_OPTIONS = 128 };

static const char *nearest_option(const cli_command *command, const char *name) {
    const cli_option *tables[] = {command->options, command->shared, command->passed, cli_common_options};
    const char *names[MAX_OPTIONS + 1];
    int count = 0;
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const cli_option *o = tables[t]; o && o->name && count < MAX_OPTIONS; o++) names[count++] = o->name;
    names[count] = NULL;
    return ql_nearest_word(name, names);
}

static ql_status unknown_long(const cli_command *command, const char *word, const char *name, size_t length) {
    char typed[64];
    snprintf(typed, sizeof typed, "%.*s", (int)(length < sizeof typed ? length : sizeof typed - 1), name);
    const char *meant = nearest_option(command, typed);
    if (meant) return ql_fail(QL_USAGE, "unknown option %s; did you mean --%s?", word, meant);
    return ql_fail(QL_USAGE, "unknown option %s; \"qalib %s --help\" lists them", word, command->name);
}

/* ---- parsing -------------------------------------------------------------------------------------------------------- */

typedef struct words {
    char *const *argv;
    int argc, next;
} words;

/* The value of an option is the rest of its word, or the next word unless that is another long option. */
static ql_status take_value(cli *args, const cli_option *option, const char *attached, words *line) {
    const char *value = attached ? attached : "";
    if (option->argument && !attached) {
        const char *next = line->next < line->argc ? line->argv[line->next] : NULL;
        if (!next)
            return ql_fail(QL_USAGE, "option --%s needs a value: --%s %s", option->name, option->name,
                           option->argument);
        if (strncmp(next, "--", 2) == 0)
            return ql_fail(QL_USAGE, "option --%s needs a value, but %s follows; --%s=%s passes it", option->name, next,
                           option->name, next);
        value = next;
        line->next++;
    }
    args->given[args->n_given++] = (given){option, value};
    return QL_OK;
}

static ql_status take_long(cli *args, const char *word, words *line) {
    const char *name = word + 2, *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    const cli_option *option = find(args->command, name, length, 0);
    if (!option) return unknown_long(args->command, word, name, length);
    if (!option->argument && equals) return ql_fail(QL_USAGE, "option --%s takes no value (%s)", option->name, word);
    return take_value(args, option, equals ? equals + 1 : NULL, line);
}

/* "-o DIR", "-oDIR", and switches in one word: "-qh". */
static ql_status take_letters(cli *args, const char *word, words *line) {
    for (const char *letter = word + 1; *letter; letter++) {
        const cli_option *option = find(args->command, NULL, 0, *letter);
        if (!option)
            return ql_fail(QL_USAGE, "unknown option -%c in \"%s\"; \"qalib %s --help\" lists them", *letter, word,
                           args->command->name);
        if (option->argument) return take_value(args, option, letter[1] ? letter + 1 : NULL, line);
        args->given[args->n_given++] = (given){option, ""};
    }
    return QL_OK;
}

static ql_status check_required(const cli *args, const cli_option *o) {
    for (; o && o->name; o++)
        if (o->required && !cli_has(args, o->name))
            return ql_fail(QL_USAGE, "%s needs --%s %s: %s", args->command->name, o->name,
                           o->argument ? o->argument : "", o->help);
    return QL_OK;
}

static ql_status check_complete(const cli *args) {
    const cli_command *command = args->command;
    QL_TRY(check_required(args, command->options));
    QL_TRY(check_required(args, command->passed));
    const char *expected = command->positional;
    if (!expected && args->n_positional > 0)
        return ql_fail(QL_USAGE, "%s takes no argument \"%s\"", command->name, args->positional[0]);
    if (expected && *expected != '[' && args->n_positional == 0)
        return ql_fail(QL_USAGE, "%s needs %s", command->name, expected);
    if (expected && !strstr(expected, "...") && args->n_positional > 1)
        return ql_fail(QL_USAGE, "%s takes one %s; \"%s\" is one too many", command->name, expected,
                       args->positional[1]);
    return QL_OK;
}

/* Common options are checked for every command, whether it uses them or not. */
static ql_status check_common(const cli *args) {
    int64_t threads;
    int choice;
    QL_TRY(cli_int(args, "threads", 0, 4096, &threads));
    QL_TRY(cli_choice(args, "log-format", cli_log_formats, &choice));
    return cli_choice(args, "progress", cli_progress_choices, &choice);
}

ql_status cli_parse(const cli_command *command, int argc, char *const argv[], ql_arena *arena, cli **out) {
    QL_TRY(ql_take(arena, 1, sizeof **out, out));
    cli *args = *out;
    args->command = command;
    size_t most = 1; /* options can be as many as letters */
    for (int i = 0; i < argc; i++) most += strlen(argv[i]);
    QL_TRY(ql_take(arena, most, sizeof *args->given, &args->given));
    QL_TRY(ql_take(arena, (size_t)argc + 1, sizeof *args->positional, &args->positional));
    words line = {argv, argc, 0};
    bool only_positional = false;
    while (line.next < argc) {
        const char *word = argv[line.next++];
        if (only_positional || word[0] != '-' || !word[1]) args->positional[args->n_positional++] = word;
        else if (strcmp(word, "--") == 0) only_positional = true;
        else if (word[1] == '-') QL_TRY(take_long(args, word, &line));
        else QL_TRY(take_letters(args, word, &line));
    }
    if (cli_has(args, "help")) return QL_OK;
    QL_TRY(check_complete(args));
    return check_common(args);
}

/* ---- values ---------------------------------------------------------------------------------------------------------- */

const char *cli_value(const cli *args, const char *option) {
    for (int i = args->n_given; i-- > 0;)
        if (strcmp(args->given[i].option->name, option) == 0) return args->given[i].value;
    return NULL;
}

bool cli_has(const cli *args, const char *option) { return cli_value(args, option) != NULL; }

const char *cli_positional(const cli *args, int index) {
    return index >= 0 && index < args->n_positional ? args->positional[index] : NULL;
}

/* A whole number in range that ends at `end`, else false. */
static bool read_whole(const char *text, const char *end, int64_t least, int64_t most, int64_t *value) {
    char *behind;
    errno = 0;
    long long number = strtoll(text, &behind, 10);
    bool whole = behind != text && behind == end && errno == 0 && !strchr(" \t\n\v\f\r", text[0]);
    if (!whole || number < least || number > most) return false;
    *value = number;
    return true;
}

ql_status cli_int(const cli *args, const char *option, int64_t least, int64_t most, int64_t *value) {
    const char *text = cli_value(args, option);
    if (!text || read_whole(text, text + strlen(text), least, most, value)) return QL_OK;
    return ql_fail(QL_USAGE, "--%s \"%s\": expected a whole number from %lld to %lld", option, text, (long long)least,
                   (long long)most);
}

ql_status cli_ints(const cli *args, const char *option, int64_t least, int64_t most, ql_arena *arena, int32_t **values,
                   int64_t *count) {
    const char *text = cli_value(args, option), *word = text;
    *values = NULL;
    *count = 0;
    if (!text) return QL_OK;
    QL_TRY(ql_take(arena, strlen(text) + 1, sizeof **values, values)); /* as many as letters, at most */
    for (;; word++) {
        int64_t value;
        const char *end = word + strcspn(word, ",");
        if (!read_whole(word, end, least, most, &value))
            return ql_fail(QL_USAGE, "--%s \"%.60s\": expected whole numbers from %lld to %lld, separated by commas",
                           option, text, (long long)least, (long long)most);
        (*values)[(*count)++] = (int32_t)value;
        word = end;
        if (!*word) return QL_OK;
    }
}

ql_status cli_real(const cli *args, const char *option, double least, double most, double *value) {
    const char *text = cli_value(args, option);
    if (!text) return QL_OK;
    char *end;
    double number = strtod(text, &end);
    bool plain = *text && !*end && strspn(text, "+-0123456789.eE") == strlen(text); /* no hex, no "inf" */
    if (!plain || !(number >= least && number <= most))
        return ql_fail(QL_USAGE, "--%s \"%s\": expected a number from %g to %g", option, text, least, most);
    *value = number;
    return QL_OK;
}

ql_status cli_choice(const cli *args, const char *option, const char *const choices[], int *value) {
    const char *text = cli_value(args, option);
    if (!text) return QL_OK;
    char list[512] = "";
    for (int i = 0; choices[i]; i++) {
        if (strcmp(choices[i], text) == 0) {
            *value = i;
            return QL_OK;
        }
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", choices[i]);
    }
    return ql_fail(QL_USAGE, "--%s \"%s\": expected one of %s", option, text, list);
}

ql_status cli_bytes(const cli *args, const char *option, uint64_t *value) {
    static const struct {
        const char *suffix;
        double factor;
    } units[] = {{"", 1},      {"B", 1},        {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    const char *text = cli_value(args, option);
    if (!text) return QL_OK;
    size_t digits = strspn(text, "0123456789.");
    char *end;
    double number = strtod(text, &end);
    if (digits == 0 || end != text + digits) number = -1;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
        if (strcmp(text + digits, units[i].suffix) == 0 && number >= 0 && number * units[i].factor < 0x1p62) {
            *value = (uint64_t)(number * units[i].factor);
            return QL_OK;
        }
    return ql_fail(QL_USAGE, "--%s \"%s\": expected a size such as 5GB, 500MB or 4GiB", option, text);
}

ql_status cli_open_ctx(const cli *args, ql_ctx **ctx) {
    const char *device = cli_value(args, "device");
    char own[32];
    int64_t threads = cli_threads_of_rank();
    QL_TRY(cli_int(args, "threads", 0, 4096, &threads));
    QL_TRY(ql_ctx_open(cli_device_of_rank(device ? device : "auto", own), (int)threads, ctx));
    ql_status status = cli_use_device(*ctx);
    if (status == QL_OK) return QL_OK;
    ql_ctx_close(*ctx);
    *ctx = NULL;
    return status;
}

ql_status cli_pass(const cli *args, ql_ctx *ctx, pass_setting *pass) {
    static const char *const types[] = {"fp32", "bf16", NULL};
    int type = strncmp(ql_ctx_device(ctx), "cuda", 4) == 0;
    *pass = (pass_setting){0};
    QL_TRY(cli_choice(args, "precision", types, &type));
    pass->bf16 = type == 1;
    pass->save_every = 60;
    QL_TRY(cli_real(args, "save-every", 0, 1e9, &pass->save_every));
    return cli_bytes(args, "max-device-mem", &pass->device_memory);
}

progress_style cli_progress(const cli *args) {
    if (cli_has(args, "quiet")) return PROGRESS_NONE;
    if (ql_log_is_json()) return PROGRESS_JSON;
    static const progress_style styles[] = {PROGRESS_NONE, PROGRESS_BAR, PROGRESS_PLAIN, PROGRESS_NONE};
    int choice = 0;
    (void)cli_choice(args, "progress", cli_progress_choices, &choice); /* checked when the line was parsed */
    return choice == 0 ? progress_auto() : styles[choice];
}

/* qalib inspect: what a model directory, a safetensors file or a file of tokens or statistics holds. */
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include "calib/cli/cli.h"
#include "calib/inspect.h"
#include "host/status.h"

/* Names come from files: their control bytes must not reach a terminal. */
static void print_text(const char *text) {
    for (; *text; text++) putchar((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text);
}

static void print_scalar(const json_t *value) {
    if (json_is_string(value)) print_text(json_string_value(value));
    else if (json_is_integer(value)) printf("%lld", (long long)json_integer_value(value));
    else if (json_is_real(value)) printf("%.6g", json_real_value(value));
    else printf("%s", json_is_true(value) ? "yes" : json_is_false(value) ? "no" : "none");
}

/* Objects and lists of scalars on one line: "dtype BF16, shape [4096, 4096], bytes 33554432". */
static void print_inline(const json_t *value) {
    const char *key, *comma = "";
    json_t *entry;
    size_t i;
    if (json_is_object(value)) {
        json_object_foreach((json_t *)value, key, entry) {
            printf("%s", comma);
            print_text(key);
            putchar(' ');
            print_inline(entry);
            comma = ", ";
        }
    } else if (json_is_array(value)) {
        putchar('[');
        json_array_foreach(value, i, entry) {
            printf("%s", comma);
            print_inline(entry);
            comma = ", ";
        }
        putchar(']');
    } else {
        print_scalar(value);
    }
}

/* The document for people: scalars as they are, one line per entry of lists and objects. */
static void print_document(const json_t *document) {
    const char *key, *name;
    json_t *value, *entry;
    size_t i;
    json_object_foreach((json_t *)document, key, value) {
        printf("%s:%s", key, json_is_object(value) || json_is_array(value) ? "\n" : " ");
        if (json_is_object(value)) {
            json_object_foreach(value, name, entry) {
                printf("  ");
                print_text(name);
                printf(": ");
                print_inline(entry);
                putchar('\n');
            }
        } else if (json_is_array(value)) {
            json_array_foreach(value, i, entry) {
                printf("  ");
                print_inline(entry);
                putchar('\n');
            }
        } else {
            print_scalar(value);
            putchar('\n');
        }
    }
}

static ql_status run(const cli *args) {
    json_t *document = NULL;
    const inspect_request request = {
        .path = cli_positional(args, 0),
        .stats = cli_has(args, "stats"),
        .check_finite = cli_has(args, "check-finite"),
    };
    QL_TRY(inspect_path(&request, &document));
    if (cli_has(args, "json")) {
        json_dumpf(document, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        print_document(document);
    }
    json_decref(document);
    return QL_OK;
}

static const cli_option options[] = {
    {"stats", 's', NULL, false, "also read all values: least, greatest, mean and standard deviation of each tensor"},
    {"check-finite", 0, NULL, false, "also read all values: exit 65 and name the first NaN or infinity"},
    {0},
};

const cli_command cmd_inspect = {
    .name = "inspect",
    .summary = "tensors, types, sizes and quantization of a model directory or file",
    .positional = "PATH",
    .options = options,
    .details =
        "PATH is a model directory, a .safetensors or GGUF file, a token or statistics file (.h5), or a directory of "
        "statistics. The fields of "
        "--json are listed in calib/inspect.h.",
    .examples = "qalib inspect MODEL --json\nqalib inspect MODEL --check-finite\nqalib inspect "
                "model-00001-of-00002.safetensors",
    .run = run,
};

/* qalib schemes: what --scheme understands. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/schemes.h"

enum { USUAL_ROW = 4096 };

static json_t *split(const char *list) {
    json_t *words = json_array();
    for (const char *word = list; *word;) {
        size_t length = strcspn(word, ",");
        json_array_append_new(words, json_stringn(word, length));
        word += length + (word[length] == ',');
    }
    return words;
}

static json_t *describe(const char *name, const named_scheme *s) {
    const recipe *r = &s->recipe;
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:I, s:s, s:s, s:s, s:s, s:b, s:o, s:f}", "name", name, "mode",
                     statistics_names[scheme_statistics(r)], "format", output_format_names[s->format], "method",
                     method_names[r->base.method], "type", type_names[r->base.type], "bits", r->base.bits, "group_size",
                     (json_int_t)r->base.group, "granularity", s->granularity, "activations",
                     activation_names[r->activations], "kv_cache", kv_cache_names[r->kv_cache], "smoothing",
                     smoothing_names[r->smoothing], "importance", recipe_statistics(r) != 0, "targets",
                     split(s->targets), "bits_per_weight", scheme_bits_per_weight(r, USUAL_ROW));
}

static ql_status run(const cli *args) {
    json_t *list = json_array();
    for (int i = 0; scheme_names[i]; i++) {
        named_scheme s;
        QL_TRY(scheme_find(scheme_names[i], &s));
        json_array_append_new(list, describe(scheme_names[i], &s));
        if (cli_has(args, "json")) continue;
        if (i == 0)
            printf("%-18s %-19s %-11s %5s  %-5s %s\n", "scheme", "format", "statistics", "bits", "data", "loaded by");
        printf("%-18s %-19s %-11s %5.2f  %-5s %s\n", scheme_names[i], output_format_names[s.format],
               statistics_names[scheme_statistics(&s.recipe)], scheme_bits_per_weight(&s.recipe, USUAL_ROW),
               recipe_needs_data(&s.recipe)   ? "yes"
               : recipe_statistics(&s.recipe) ? "used"
                                              : "no",
               s.targets);
    }
    if (cli_has(args, "json")) json_dumpf(list, stdout, JSON_INDENT(2)), putchar('\n');
    json_decref(list);
    return QL_OK;
}

static const cli_option options[] = {{NULL, 0, NULL, false, NULL}};

const cli_command cmd_schemes = {
    .name = "schemes",
    .summary = "what quantize --scheme understands: names, formats, bits per weight",
    .options = options,
    .details =
        "W2A16, W3A16, W4A16 and W8A16 go with -GPTQ, -RTN or -HQQ and -g32, -g64, -g128 or nothing, also where the "
        "list does not "
        "name them.  Bits are those of rows of 4096 weights.",
    .examples = "qalib schemes\nqalib schemes --json",
    .run = run,
};

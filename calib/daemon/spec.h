/* What a job asks for: the body of POST /v1/jobs, one JSON object.
 *
 *   {"model": "/models/llama", "output": "/out/llama-w4", "calib": "/data/tokens.h5", "scheme": "W4A16-GPTQ-g128", "priority": 5}
 *
 * The fields are qalib quantize's options with _ for -, from one table (spec.c), and
 *   recipe    the text of a YAML recipe, not a path: the job keeps what it was asked for
 *   gpus      how many, or a list of ids; without it one if there are any; 0: on the processor
 *   ranks     processes that share the job under mpirun, one per GPU (as many as GPUs; 1 on the processor)
 *   priority  -100 .. 100, higher first (0)
 *
 * Paths are absolute: the daemon has no working directory of its users.  A body is refused with one line; what only the model can
 * say is found by `qalib plan` before the job starts.
 */
#ifndef CALIB_DAEMON_SPEC_H
#define CALIB_DAEMON_SPEC_H

#include <jansson.h>

#include "host/mem.h"

enum { SPEC_MOST_BYTES = 1 << 20, SPEC_MOST_PRIORITY = 100, SPEC_MOST_GPUS = 64 };

typedef struct spec_gpus {
    int count;              /* -1: as many as are usual */
    int id[SPEC_MOST_GPUS]; /* the first `count`, if `by_id` */
    bool by_id;
    int ranks; /* processes that share the job: one per GPU, or so many on the processor */
} spec_gpus;

/* Parses and checks.  QL_FORMAT: not such an object; QL_USAGE: a value that cannot be; QL_MISMATCH: recipe or scheme.  *spec belongs
 * to the caller (json_decref). */
ql_status spec_parse(const char *text, size_t size, json_t **spec);

int64_t spec_priority(const json_t *spec);
void spec_find_gpus(const json_t *spec, spec_gpus *gpus);

/* The i-th of the names of "scheme" ("a,b,c"), or NULL; without a scheme the 0-th is "" (one output, no name). */
ql_status spec_scheme(const json_t *spec, int i, ql_arena *arena, char **name);

/* Words for `qalib quantize` or `qalib plan`, without program and command, NULL at the end.  scheme: which of them to plan.
 * recipe_path: where the recipe's text stands, NULL if the spec has none. */
ql_status spec_quantize_words(const json_t *spec, const char *recipe_path, ql_arena *arena, char ***words);
ql_status spec_plan_words(const json_t *spec, const char *recipe_path, const char *scheme, ql_arena *arena,
                          char ***words);

/* Adds the field of an option as the command line says it ("4", "0.1", "" for a switch; gpus: "2", or ids with commas: "0,1", "3,").
 * QL_USAGE: not such a value. */
ql_status spec_set(json_t *spec, const char *option, const char *text);

/* Is there a field for this option of quantize? */
bool spec_has_option(const char *option);

#endif

/* Any bytes as the body of POST /v1/jobs.  What is accepted must become command lines of clean words, and be accepted again as it is
 * stored. */
#include <stdlib.h>
#include <string.h>

#include "calib/daemon/spec.h"
#include "formats/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_words(char **words) {
    for (; *words; words++)
        if (strncmp(*words, "--", 2) != 0 || strpbrk(*words, "\n\r\x1b")) abort();
}

static ql_status try(const json_t *spec, ql_arena *arena) {
    char **words, *scheme, *stored;
    json_t *again;
    spec_gpus gpus;
    QL_TRY(spec_quantize_words(spec, "/recipe.yaml", arena, &words));
    check_words(words);
    QL_TRY(spec_scheme(spec, 0, arena, &scheme));
    QL_TRY(spec_plan_words(spec, "/recipe.yaml", scheme, arena, &words));
    check_words(words);
    spec_find_gpus(spec, &gpus);
    if (gpus.count > SPEC_MOST_GPUS || llabs(spec_priority(spec)) > SPEC_MOST_PRIORITY) abort();
    QL_TRY(ql_json_canonical(spec, arena, &stored));
    if (strlen(stored) > SPEC_MOST_BYTES) return QL_OK; /* escapes make it longer than it came */
    if (spec_parse(stored, strlen(stored), &again) != QL_OK || !json_equal(spec, again)) abort();
    json_decref(again);
    return QL_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ql_arena *arena;
    json_t *spec;
    if (spec_parse((const char *)data, size, &spec) != QL_OK) return 0;
    if (ql_arena_open(NULL, &arena) == QL_OK) {
        (void)try(spec, arena);
        ql_arena_close(arena);
    }
    json_decref(spec);
    return 0;
}

/* Any bytes as config.json, and as generation_config.json.  What is accepted has sizes that can be worked with: tensors with names and shapes, finite tables. */
#include <math.h>
#include <stdlib.h>

#include "formats/generation.h"
#include "formats/json.h"
#include "formats/model_config.h"
#include "host/log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static ql_status try(const json_t *json, ql_arena *arena) {
    model_config config;
    float *cosines, *sines;
    const int32_t *ends;
    int64_t n_ends;
    (void)generation_parse_ends(json, "generation_config.json", 100, arena, &ends, &n_ends);
    QL_TRY(model_config_parse(json, "config.json", arena, &config));
    char name[NAME_SIZE];
    int64_t shape[2], count = model_tensor(&config, 0, NULL, NULL);
    for (int64_t i = 0; i < count; i++) {
        model_tensor(&config, i, name, shape);
        if (!name[0] || shape[0] <= 0 || shape[1] < 0) abort();
    }
    size_t pairs = (size_t)config.head_dim / 2;
    QL_TRY(ql_take(arena, 3 * pairs, sizeof *cosines, &cosines));
    QL_TRY(ql_take(arena, 3 * pairs, sizeof *sines, &sines));
    QL_TRY(rope_tables(&config, 3, 100000, cosines, sines));
    for (size_t i = 0; i < 3 * pairs; i++)
        if (!isfinite(cosines[i]) || !isfinite(sines[i])) abort();
    return QL_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ql_arena *arena;
    json_t *json;
    ql_log_open(false, QL_ERROR);
    if (ql_arena_open(NULL, &arena) != QL_OK) return 0;
    if (ql_json_parse("config.json", (const char *)data, size, &json) == QL_OK) (void)try(json, arena);
    json_decref(json);
    ql_arena_close(arena);
    return 0;
}

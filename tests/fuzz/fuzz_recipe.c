/* Any bytes as a recipe.  What is accepted must write a recipe.yaml that reads back the same. */
#include <stdlib.h>
#include <string.h>

#include "calib/recipe.h"
#include "host/status.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static ql_status try(const char *text, size_t size, ql_arena *arena) {
    recipe first, again;
    module_rule rule;
    char *yaml, *yaml_again;
    recipe_defaults(&first);
    QL_TRY(recipe_parse("fuzz", text, size, arena, &first));
    QL_TRY(recipe_check(&first));
    (void)recipe_rule(&first, "model.layers.11.self_attn.q_proj", &rule);
    QL_TRY(recipe_yaml(&first, arena, &yaml));
    recipe_defaults(&again);
    if (recipe_parse("again", yaml, strlen(yaml), arena, &again) != QL_OK) abort();
    QL_TRY(recipe_yaml(&again, arena, &yaml_again));
    if (strcmp(yaml, yaml_again) != 0) abort();
    return QL_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ql_arena *arena;
    if (ql_arena_open(NULL, &arena) != QL_OK) return 0;
    (void)try((const char *)data, size, arena);
    ql_arena_close(arena);
    return 0;
}

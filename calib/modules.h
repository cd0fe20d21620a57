/* What happens to every module of a model: the recipe's rule, unless the file cannot hold the result.
 *
 * Files have conditions (GPTQ: K % 32, N % 32 and K % group).  A module that breaks one of them stays in 16 bits together with the ones that runtimes
 * fuse with it (q, k, v; gate, up); all of them are named in one warning.  What loaders demand beyond that: calib/targets.h.
 */
#ifndef CALIB_MODULES_H
#define CALIB_MODULES_H

#include "calib/recipe.h"
#include "formats/layout.h"

typedef struct module_table {
    int64_t layers;
    module_rule *rules;         /* [layers * LINEARS] */
    const char *const *skipped; /* names of the modules left in 16 bits, NULL-terminated */
    int64_t n_skipped;
} module_table;

/* QL_MISMATCH if nothing is left to quantize. */
ql_status modules_resolve(const recipe *r, layout_id layout, const model_config *config, ql_arena *arena,
                          module_table *out);

/* The same for a GGUF file: its mix decides about every module.  skipped: those whose values have 16 bits. */
ql_status modules_of_gguf(const gguf_plan *plan, ql_arena *arena, module_table *out);

static inline const module_rule *modules_rule(const module_table *table, int64_t layer, linear_id id) {
    return &table->rules[layer * LINEARS + id];
}

#endif

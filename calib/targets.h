/* What runtimes demand of the modules of each kind of file, beyond what the file itself can hold (calib/modules.h): `plan --target`. */
#ifndef CALIB_TARGETS_H
#define CALIB_TARGETS_H

#include "calib/modules.h"

/* The runtimes that --target knows. */
typedef enum target_id {
    TARGET_VLLM,
    TARGET_TRANSFORMERS,
    TARGET_EXLLAMAV2,
    TARGET_LLAMA_CPP,
    TARGET_OLLAMA,
    TARGETS
} target_id;
extern const char *const target_names[TARGETS + 1]; /* ends with NULL */

/* Why this target cannot load the result: the first module and the limit that it breaks, in *reason; NULL if it can.  ranks: over
 * which the runtime splits the outputs of q, k, v, gate and up, and the inputs of o and down; 1: not at all. */
ql_status target_obstacle(const module_table *table, const recipe *r, const model_config *config, layout_id layout,
                          target_id target, int64_t ranks, ql_arena *arena, char **reason);

#endif

/* The texts of an output directory, as pure functions. */
#ifndef CALIB_OUTPUT_TEXT_H
#define CALIB_OUTPUT_TEXT_H

#include "calib/output.h"
#include "calib/output_plan.h"

/* The source's config.json byte for byte, but for quantization_config (NULL: left alone) and torch_dtype or dtype. */
ql_status output_config_text(const char *source, const json_t *quantization_config, ql_dtype dtype, ql_arena *arena,
                             char **text);

/* model.safetensors.index.json */
ql_status output_index_text(const output_plan *plan, ql_arena *arena, char **text);

/* What a model is called: "org/name" of a Hugging Face cache, else its directory. */
ql_status output_base_model(const char *dir, ql_arena *arena, char **name);

/* README.md.  source_dir: for the name of the base model and its licence.  scheme NULL: dense. */
ql_status output_card_text(const char *source_dir, const layout_scheme *scheme, const output_texts *texts,
                           ql_arena *arena, char **text);

/* Indented JSON with a final newline. */
ql_status output_json_text(const json_t *document, size_t flags, ql_arena *arena, char **text);

#endif

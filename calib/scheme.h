/* What the config of an output says about how its modules are stored. */
#ifndef CALIB_SCHEME_H
#define CALIB_SCHEME_H

#include "calib/modules.h"

typedef enum output_format {
    OUTPUT_GPTQ,
    OUTPUT_GPTQ_V2,
    OUTPUT_AWQ,
    OUTPUT_COMPRESSED,
    OUTPUT_FP8,
    OUTPUT_BITSANDBYTES,
    OUTPUT_DENSE,
    OUTPUT_GGUF
} output_format;
extern const char *const output_format_names[]; /* "gptq", "gptq_v2", ...; ends with NULL */

/* A dense output is made of what a GPTQ file could hold; GGUF files are no layout (formats/layout_gguf.h). */
layout_id output_layout(output_format format);

/* Blocks go into GGUF files and nowhere else.  QL_MISMATCH. */
ql_status scheme_check_format(const recipe *r, output_format format);

/* QL_MISMATCH: a file of this format cannot say it.  Names live in `arena`, the list of what is skipped in `modules`. */
ql_status scheme_make(const recipe *r, output_format format, const module_table *modules, ql_arena *arena,
                      layout_scheme *out);

#endif

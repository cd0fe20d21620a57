/* Where generated text ends: "eos_token_id" of generation_config.json or, where that says nothing, of config.json.  A number, a list of
 * numbers, or nothing: then only the number of tokens ends a text. */
#ifndef FORMATS_GENERATION_H
#define FORMATS_GENERATION_H

#include "formats/checkpoint.h"

/* ids: in the arena, at most as many as `vocab`, every one below it (QL_FORMAT names the file and the value). */
ql_status generation_ends(const checkpoint *ck, int64_t vocab, ql_arena *arena, const int32_t **ids, int64_t *count);

/* The same of one document. */
ql_status generation_parse_ends(const json_t *document, const char *place, int64_t vocab, ql_arena *arena,
                                const int32_t **ids, int64_t *count);

#endif

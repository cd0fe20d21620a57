/* What is different about a part whose output is a GGUF file: types come from the mix, and all tensors go into one file.
 *
 * Committed with each layer are the encoded blocks of its linears, not their importance: encoding is the longer half of the work,
 * and a job that is killed then has at most one layer to encode again, besides embedding and head, which are encoded while the file is
 * written.  Rows are committed in the order of the checkpoint and moved when they are written.
 */
#ifndef CALIB_PART_GGUF_H
#define CALIB_PART_GGUF_H

#include "calib/output.h"
#include "calib/part.h"

/* Resolves tensors and rules, reads the importance of a file; refuses what the file could not hold or llama.cpp could not run. */
ql_status part_gguf_open(part *p);
/* Committed layers and the rest of the source -> model.gguf. */
ql_status part_gguf_write(part *p, output *out);
double part_gguf_bits(const part *p); /* of the linears, per weight */

/* The keys of the file; gguf_meta_free in any case.  important: the encoder knew how much each input counts. */
ql_status part_gguf_meta(const checkpoint *ck, const gguf_plan *plan, bool important, ql_arena *arena, gguf_meta *meta);

#endif

/* The parts of inspect_path that live in files of their own. */
#ifndef CALIB_INSPECT_PARTS_H
#define CALIB_INSPECT_PARTS_H

#include <jansson.h>

#include "host/mem.h"

/* {kind: "gguf", version, bytes, metadata: {...}, dtypes: {...}, tensors: [...]} */
ql_status inspect_gguf(const char *path, ql_arena *arena, json_t *document);

#endif

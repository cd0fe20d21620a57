/* A two-layer model directory for tests of readers and writers: q and k/v heads differ, no width is square, q, k, v have biases. */
#ifndef TESTS_TINY_MODEL_H
#define TESTS_TINY_MODEL_H

#include "formats/checkpoint.h"
#include "formats/layout.h"

typedef struct tiny_model {
    bool tied;
    ql_dtype dtype;    /* of all tensors */
    float norm_weight; /* one element of the last norm; 0: like the others */
} tiny_model;

/* config.json with an unusual key order, model.safetensors, tokenizer files, LICENSE, README.md. */
void tiny_write(const char *dir, const tiny_model *model);
void tiny_save(const char *dir, const char *name, const char *text);
json_t *tiny_load(const char *dir, const char *name);

/* The modules of one layer, rounded to nearest on asymmetric or symmetric grids as `scheme` says; skipped ones stay zero. */
void tiny_quantize(const checkpoint *ck, const model_config *config, int64_t layer, const layout_scheme *scheme,
                   ql_arena *arena, qmodule modules[LINEARS]);

/* Whole bytes of a file. */
char *tiny_read(const char *dir, const char *name, size_t *size, ql_arena *arena);

#endif

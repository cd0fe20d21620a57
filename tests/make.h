/* Tiny checkpoints for tests: a Hugging Face directory of any supported architecture with random weights.
 *
 *   char dir[MAKE_PATH];
 *   make_dir(dir);                                               // an empty temporary directory; ql_dir_remove when done
 *   make_model model = make_tiny(ARCH_QWEN3);
 *   model.shards = 3;
 *   assert_ok(make_checkpoint(dir, &model));
 *
 * The values depend on (seed, tensor name, index) alone: the same model in other shards or another dtype has the same weights,
 * rounded.  make_value tells them to a reference without reading the file.
 */
#ifndef TESTS_MAKE_H
#define TESTS_MAKE_H

#include "formats/checkpoint.h"
#include "formats/model_config.h"

enum { MAKE_PATH = 512 };

typedef struct make_model {
    arch arch;
    int64_t vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, max_position;
    bool attention_bias, mlp_bias; /* llama and qwen3; llama */
    bool tied_embeddings;
    ql_dtype dtype; /* QL_F32, QL_F16 or QL_BF16, of all tensors */
    int shards;     /* 1: model.safetensors; more: that many files with an index */
    uint64_t seed;
    float norm_weight; /* one element of the last norm; 0: like the others */
    const char *
        extra; /* further members of config.json, for instance "\"sliding_window\": 8"; replaces members of the same name */
} make_model;

/* vocab 96, hidden 64, intermediate 128, 2 layers, 4 heads of 32 over 2 key-value heads, 128 positions, untied, BF16, one file.
 * n != k in every Linear but o_proj's input is 128 wide too; all widths are multiples of 64. */
make_model make_tiny(arch which);

/* Writes config.json and the weights into an existing directory. */
ql_status make_checkpoint(const char *dir, const make_model *model);

/* Element i of a tensor before rounding to the dtype: norms about 1, biases about 0.1, matrices about 1 / sqrt(k). */
double make_value(uint64_t seed, const char *tensor, int64_t k, int64_t i);

/* A new directory under TMPDIR or /tmp; the test fails if there is none. */
void make_dir(char dir[MAKE_PATH]);

/* dir/name as bytes, whatever they are; the test fails if it cannot be written. */
void make_file(const char *dir, const char *name, const void *data, size_t size);
void make_text(const char *dir, const char *name, const char *text);

/* Setup and teardown of a test, or a group of them, that reads one file: *state is the place. */
#define MAKE_PLACE_FILE "file"
typedef struct make_place {
    char dir[MAKE_PATH], path[MAKE_PATH + 16]; /* path: of MAKE_PLACE_FILE */
    ql_arena *arena;
} make_place;
int make_place_open(void **state);
int make_place_close(void **state);

#endif

/* One module as a directory that a reader of quantized checkpoints takes: for the tests of layouts. */
#ifndef TESTS_LAYOUT_DIR_H
#define TESTS_LAYOUT_DIR_H

#include "formats/layout.h"
#include "tests/test.h"

#define LAYOUT_MODULE "model.layers.0.self_attn.q_proj"

extern ql_arena *layout_arena;
extern char layout_dir[64];
int layout_setup(void **state), layout_teardown(void **state);

/* Codes of all values, an output that clips, zero points over the whole range (or the middle), the least FP16 scale. */
qmodule layout_module(int64_t n, int64_t k, int bits, int64_t group, bool symmetric);
/* Slow and obvious: bit i of the stream is bit i % 32 of word i / 32; expects zeros. */
void layout_set_bits(uint32_t *stream, int64_t first, int bits, uint32_t value);
uint32_t layout_code(const qmodule *q, int64_t n, int64_t k); /* bit by bit from the stream */

void layout_save_text(const char *name, const char *text);
void layout_save_quantization(json_t *quantization_config); /* as config.json; takes the reference */
void layout_save_tensors(const layout_tensors *tensors);
void layout_write(const layout_scheme *scheme, const qmodule *q, layout_tensors *tensors); /* all of it */
void layout_drop(layout_tensors *tensors, const char *suffix);
int layout_index(const layout_tensors *tensors, const char *suffix); /* fails the test if there is none */
ql_status layout_read_back(int64_t n, int64_t k, qmodule *out);
/* Configs of a directory that is otherwise right, each of which is refused: with this status, and these words. */
typedef struct layout_lie {
    const char *config;
    ql_status status;
    const char *words;
} layout_lie;
void layout_refuse_lies(const layout_lie *lies, size_t count, int64_t n, int64_t k);
void layout_assert_same(const qmodule *a, const qmodule *b);
/* Every weight of `back` is scale * (code - zero) of `q`, in float. */
void layout_assert_weights(const qmodule *q, const qmodule *back);

#endif

#include "tests/layout_dir.h"

#include <unistd.h>

#include "formats/json.h"
#include "host/mat.h"
#include "host/num.h"
#include "host/rng.h"

ql_arena *layout_arena;
char layout_dir[64];

int layout_setup(void **state) {
    (void)state;
    snprintf(layout_dir, sizeof layout_dir, "/tmp/qalib-layout-XXXXXX");
    if (!mkdtemp(layout_dir)) return -1;
    return ql_arena_open(NULL, &layout_arena) == QL_OK ? 0 : -1;
}

int layout_teardown(void **state) {
    (void)state;
    ql_arena_close(layout_arena);
    return ql_dir_remove(layout_dir) == QL_OK ? 0 : -1;
}

void layout_set_bits(uint32_t *stream, int64_t first, int bits, uint32_t value) {
    for (int b = 0; b < bits; b++)
        if (value >> b & 1) stream[(first + b) / 32] |= 1u << (first + b) % 32;
}

uint32_t layout_code(const qmodule *q, int64_t n, int64_t k) {
    const uint32_t *row = q->codes + n * ql_packed_words(q->k, q->bits);
    uint32_t value = 0;
    for (int b = 0; b < q->bits; b++) value |= (row[(k * q->bits + b) / 32] >> (k * q->bits + b) % 32 & 1u) << b;
    return value;
}

qmodule layout_module(int64_t n, int64_t k, int bits, int64_t group, bool symmetric) {
    qmodule q = {.name = LAYOUT_MODULE, .n = n, .k = k, .bits = bits, .group = group};
    int64_t words = ql_packed_words(k, bits), groups = ql_groups(k, group);
    uint32_t most = (1u << bits) - 1;
    assert_ok(ql_take(layout_arena, (size_t)(n * words), sizeof *q.codes, &q.codes));
    assert_ok(ql_take(layout_arena, (size_t)(n * groups), sizeof *q.scale, &q.scale));
    assert_ok(ql_take(layout_arena, (size_t)(n * groups), sizeof *q.zero, &q.zero));
    for (int64_t r = 0; r < n; r++) {
        for (int64_t c = 0; c < k; c++)
            layout_set_bits(q.codes + r * words, c * bits, bits,
                            r == 1 ? most : (uint32_t)ql_random((uint64_t)r, (uint64_t)c) & most);
        for (int64_t g = 0; g < groups; g++) {
            uint64_t i = (uint64_t)(r * groups + g);
            q.scale[i] = ql_round_f16((float)(0.001 + ql_random_uniform(3, i)));
            q.zero[i] = (uint8_t)(symmetric ? 1u << (bits - 1) : (uint32_t)ql_random(4, i) & most);
        }
    }
    q.scale[groups - 1] = 0x1p-24f; /* the smallest F16 above 0 */
    return q;
}

void layout_save_text(const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", layout_dir, name);
    assert_ok(ql_file_save(path, text, strlen(text)));
}

void layout_save_quantization(json_t *quantization_config) {
    json_t *config = json_pack("{s:s, s:o}", "model_type", "llama", "quantization_config", quantization_config);
    char *text = json_dumps(config, JSON_INDENT(2));
    layout_save_text("config.json", text);
    free(text);
    json_decref(config);
}

void layout_save_tensors(const layout_tensors *tensors) {
    char path[128];
    st_writer *writer;
    st_tensor sorted[LAYOUT_MAX_TENSORS];
    snprintf(path, sizeof path, "%s/model.safetensors", layout_dir);
    memcpy(sorted, tensors->tensor, sizeof sorted);
    assert_ok(st_writer_open(path, sorted, tensors->count, NULL, &writer));
    for (int s = 0; s < tensors->count; s++)
        for (int t = 0; t < tensors->count; t++)
            if (strcmp(sorted[s].name, tensors->tensor[t].name) == 0)
                assert_ok(st_writer_put(writer, &sorted[s], tensors->data[t]));
    assert_ok(st_writer_commit(writer, NULL));
}

void layout_write(const layout_scheme *scheme, const qmodule *q, layout_tensors *tensors) {
    json_t *quantization;
    assert_ok(layout_config(scheme, &quantization));
    layout_save_quantization(quantization);
    assert_ok(layout_encode(scheme, q, layout_arena, tensors));
    layout_save_tensors(tensors);
}

int layout_index(const layout_tensors *tensors, const char *suffix) {
    for (int t = 0; t < tensors->count; t++)
        if (strcmp(tensors->tensor[t].name + strlen(LAYOUT_MODULE) + 1, suffix) == 0) return t;
    fail_msg("no tensor %s", suffix);
    return -1;
}

void layout_drop(layout_tensors *tensors, const char *suffix) {
    int gone = layout_index(tensors, suffix);
    for (int t = gone; t + 1 < tensors->count; t++) {
        tensors->tensor[t] = tensors->tensor[t + 1];
        tensors->data[t] = tensors->data[t + 1];
    }
    tensors->count--;
}

ql_status layout_read_back(int64_t n, int64_t k, qmodule *out) {
    checkpoint *ck;
    layout_scheme scheme;
    assert_ok(checkpoint_open(layout_dir, &ck));
    ql_status status = layout_read(ck, &scheme);
    if (status == QL_OK) status = layout_decode(ck, &scheme, LAYOUT_MODULE, n, k, layout_arena, out);
    checkpoint_close(ck);
    return status;
}

void layout_refuse_lies(const layout_lie *lies, size_t count, int64_t n, int64_t k) {
    for (size_t i = 0; i < count; i++) {
        qmodule back;
        json_t *config = json_loads(lies[i].config, 0, NULL);
        if (!config) fail_msg("%s", lies[i].config);
        layout_save_quantization(config);
        ql_status status = layout_read_back(n, k, &back);
        if (status != lies[i].status || !strstr(ql_last_error(), lies[i].words))
            fail_msg("%s: %d, %s", lies[i].config, (int)status, ql_last_error());
    }
}

void layout_assert_same(const qmodule *a, const qmodule *b) {
    int64_t groups = ql_groups(a->k, a->group);
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->bits, b->bits);
    assert_int_equal(a->group, b->group);
    assert_memory_equal(a->codes, b->codes, (size_t)(a->n * ql_packed_words(a->k, a->bits)) * sizeof *a->codes);
    assert_memory_equal(a->scale, b->scale, (size_t)(a->n * groups) * sizeof *a->scale);
    assert_memory_equal(a->zero, b->zero, (size_t)(a->n * groups));
    assert_int_equal(a->g_idx == NULL, b->g_idx == NULL);
    if (a->g_idx) assert_memory_equal(a->g_idx, b->g_idx, (size_t)a->k * sizeof *a->g_idx);
}

void layout_assert_weights(const qmodule *q, const qmodule *back) {
    float *w;
    int64_t groups = ql_groups(q->k, q->group);
    assert_ok(ql_take(layout_arena, (size_t)(q->n * q->k), sizeof *w, &w));
    qmodule_dequantize(back, w);
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t k = 0; k < q->k; k++) {
            int64_t g = n * groups + (q->g_idx ? q->g_idx[k] : k / q->group);
            float expected = q->scale[g] * (float)((int)layout_code(q, n, k) - (int)q->zero[g]);
            if (w[n * q->k + k] != expected) fail_msg("weight [%d, %d]", (int)n, (int)k);
        }
}

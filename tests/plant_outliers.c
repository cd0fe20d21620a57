/* plant_outliers IN OUT: the same BF16 model with outliers in its activations, which real models of some size have and small ones lack.
 * Four channels behind each norm of a block grow 64-fold, and the weights that read them shrink as much: powers of two, so that the
 * function is the same bit for bit before quantization.  OUT gets model.safetensors; the other files are copied by whoever calls. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/checkpoint.h"
#include "formats/model_config.h"
#include "host/num.h"
#include "host/rng.h"

enum { CHANNELS = 4 };
static const float FACTOR = 64;

static void need(ql_status status) {
    if (status == QL_OK) return;
    fprintf(stderr, "plant_outliers: %s\n", ql_last_error());
    exit(1);
}

static void scale_column(uint16_t *values, const st_tensor *t, int64_t column, float factor) {
    int64_t cols = t->rank == 2 ? t->shape[1] : t->shape[0], rows = t->rank == 2 ? t->shape[0] : 1;
    for (int64_t r = 0; r < rows; r++) {
        uint16_t *value = &values[r * cols + column];
        *value = ql_f32_to_bf16(ql_bf16_to_f32(*value) * factor);
    }
}

/* Is it the norm before attention or the MLP (1), a weight that reads it (2), or neither (0)?  Which: 0 attention, 1 MLP. */
static int role_of(const char *name, int64_t *layer, int *which) {
    static const char *const readers[] = {"q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight",
                                          "up_proj.weight"};
    static const char prefix[] = "model.layers.";
    const char *last = strrchr(name, '.'), *kind = last;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0 || !last) return 0;
    *layer = atoll(name + sizeof prefix - 1);
    while (kind > name && kind[-1] != '.') kind--;
    *which = strcmp(kind, "post_attention_layernorm.weight") == 0;
    if (*which || strcmp(kind, "input_layernorm.weight") == 0) return 1;
    for (int i = 0; i < 5; i++)
        if (strcmp(kind, readers[i]) == 0) return *which = i > 2, 2;
    return 0;
}

static void plant(uint16_t *values, const st_tensor *t, int64_t hidden) {
    int64_t layer;
    int which, role = role_of(t->name, &layer, &which);
    for (int i = 0; role && i < CHANNELS; i++) {
        /* one channel in each quarter, so that none is hit twice */
        int64_t quarter = hidden / CHANNELS;
        int64_t channel =
            i * quarter + (int64_t)(ql_random((uint64_t)(2 * layer + which), (uint64_t)i) % (uint64_t)quarter);
        scale_column(values, t, channel, role == 1 ? FACTOR : 1 / FACTOR);
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return 64;
    checkpoint *ck;
    ql_arena *arena;
    st_writer *writer;
    model_config config;
    st_tensor *tensors;
    char path[4096];
    need(ql_arena_open(NULL, &arena));
    need(checkpoint_open(argv[1], &ck));
    need(model_config_parse(checkpoint_config(ck), argv[1], arena, &config));
    int64_t count = checkpoint_count(ck);
    need(ql_take(arena, (size_t)count, sizeof *tensors, &tensors));
    for (int64_t i = 0; i < count; i++) tensors[i] = *checkpoint_at(ck, i);
    snprintf(path, sizeof path, "%s/model.safetensors", argv[2]);
    need(st_writer_open(path, tensors, count, NULL, &writer));
    for (int64_t i = 0; i < count; i++) {
        const st_tensor *t = checkpoint_find(ck, tensors[i].name);
        uint16_t *values;
        if (t->dtype != QL_BF16) need(ql_fail(QL_FORMAT, "%s: \"%s\" is not BF16", argv[1], t->name));
        need(ql_take(arena, t->size / 2, sizeof *values, &values));
        need(checkpoint_read(ck, t, values));
        plant(values, t, config.hidden);
        need(st_writer_put(writer, &tensors[i], values));
    }
    need(st_writer_commit(writer, NULL));
    checkpoint_close(ck);
    ql_arena_close(arena);
    return 0;
}

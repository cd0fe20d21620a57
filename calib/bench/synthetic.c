#include "calib/bench/synthetic.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/json.h"
#include "formats/safetensors.h"
#include "formats/tokens.h"
#include "host/mat.h"
#include "host/num.h"
#include "host/rng.h"

enum { VOCABULARY = 1024, SEED = 1 };

/* ---- the shape ---------------------------------------------------------------------------------------------------------- */

static ql_status divide(const char *what, int64_t scale, int64_t *size) {
    if (*size % scale != 0)
        return ql_fail(QL_USAGE, "--scale %lld: %s is %lld, which it does not divide", (long long)scale, what,
                       (long long)*size);
    *size /= scale;
    return QL_OK;
}

static ql_status shrink(synthetic_shape *s, int64_t scale, const char *place, ql_arena *arena) {
    int64_t hidden = s->whole.hidden, mlp = s->whole.intermediate, heads = s->whole.heads;
    int64_t kv_heads = s->whole.kv_heads / scale > 0 ? s->whole.kv_heads / scale : 1;
    QL_TRY(divide("hidden_size", scale, &hidden));
    QL_TRY(divide("intermediate_size", scale, &mlp));
    QL_TRY(divide("num_attention_heads", scale, &heads));
    const struct {
        const char *key;
        int64_t value;
    } fields[] = {
        {"hidden_size", hidden},
        {"intermediate_size", mlp},
        {"num_attention_heads", heads},
        {"num_key_value_heads", kv_heads},
        {"head_dim", s->whole.head_dim},
        {"vocab_size", VOCABULARY},
        {"num_hidden_layers", s->blocks > 1 ? s->blocks : 2},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        json_object_set_new(s->document, fields[i].key, json_integer((json_int_t)fields[i].value));
    json_object_del(s->document, "layer_types"); /* one per layer of the whole model */
    return model_config_parse(s->document, place, arena, &s->config);
}

static ql_status take(json_t *document, const char *place, int64_t scale, int64_t blocks, ql_arena *arena,
                      synthetic_shape *out) {
    *out = (synthetic_shape){.document = document, .blocks = blocks};
    ql_status status = model_config_parse(document, place, arena, &out->whole);
    if (status == QL_OK && out->whole.is_quantized)
        status = ql_fail(QL_MISMATCH, "%s: is quantized already (quantization_config)", place);
    if (status == QL_OK) status = shrink(out, scale, place, arena);
    if (status != QL_OK) synthetic_close(out);
    return status;
}

ql_status synthetic_read(const char *path, int64_t scale, int64_t blocks, ql_arena *arena, synthetic_shape *out) {
    json_t *document;
    *out = (synthetic_shape){0};
    QL_TRY(ql_json_load(path, 16 << 20, &document));
    return take(document, path, scale, blocks, arena, out);
}

ql_status synthetic_llama(int64_t hidden, int64_t intermediate, int64_t heads, int64_t kv_heads, int64_t blocks,
                          ql_arena *arena, synthetic_shape *out) {
    *out = (synthetic_shape){0};
    json_t *document = json_pack(
        "{s:[s], s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:f, s:s}", "architectures", "LlamaForCausalLM",
        "model_type", "llama", "hidden_size", (json_int_t)hidden, "intermediate_size", (json_int_t)intermediate,
        "num_attention_heads", (json_int_t)heads, "num_key_value_heads", (json_int_t)kv_heads, "num_hidden_layers",
        (json_int_t)blocks, "vocab_size", (json_int_t)VOCABULARY, "max_position_embeddings", (json_int_t)8192,
        "hidden_act", "silu", "rms_norm_eps", 1e-5, "torch_dtype", "bfloat16");
    if (!document) return ql_fail(QL_NOMEM, "no memory for a config");
    return take(document, "the built-in model", 1, blocks, arena, out);
}

void synthetic_close(synthetic_shape *shape) {
    json_decref(shape->document);
    shape->document = NULL;
}

/* ---- files -------------------------------------------------------------------------------------------------------------- */

/* Norms are one; matrices are normal, about 1 / sqrt(k), so that values keep their size on their way through the blocks. */
static void fill(const st_tensor *t, uint64_t stream, uint16_t *data) {
    bool is_matrix = t->rank == 2;
    int64_t k = t->shape[t->rank - 1], size = k * (is_matrix ? t->shape[0] : 1);
    double width = 1 / sqrt((double)k);
    bool is_bias = strstr(t->name, ".bias") != NULL;
#pragma omp parallel for
    for (int64_t i = 0; i < size; i++) {
        double value = is_matrix ? width * ql_random_normal(stream, (uint64_t)i) : is_bias ? 0 : 1;
        data[i] = ql_f32_to_bf16((float)value);
    }
}

static ql_status list(const synthetic_shape *shape, ql_arena *arena, st_tensor **tensors, int64_t *count) {
    int64_t all = model_tensor(&shape->config, 0, NULL, NULL);
    *count = 0;
    QL_TRY(ql_take(arena, (size_t)all, sizeof **tensors, tensors));
    for (int64_t i = 0; i < all; i++) {
        char name[NAME_SIZE];
        int64_t size[2];
        model_tensor(&shape->config, i, name, size);
        if (shape->blocks == 1 && strncmp(name, "model.layers.1.", 15) == 0) continue; /* nobody reads it */
        st_tensor *t = &(*tensors)[(*count)++];
        *t = (st_tensor){.dtype = QL_BF16, .rank = size[1] ? 2 : 1, .shape = {size[0], size[1]}};
        QL_TRY(ql_arena_string(arena, name, (char **)&t->name));
    }
    return QL_OK;
}

static ql_status put(st_writer *writer, const st_tensor *t, uint64_t stream) {
    uint16_t *data = ql_malloc((size_t)(t->shape[0] * (t->rank == 2 ? t->shape[1] : 1)) * sizeof *data);
    if (!data) return ql_fail(QL_NOMEM, "no memory for %s", t->name);
    fill(t, stream, data);
    ql_status status = st_writer_put(writer, t, data);
    ql_mfree(data);
    return status;
}

static ql_status write_weights(const synthetic_shape *shape, const char *path, ql_arena *arena) {
    st_tensor *tensors;
    st_writer *writer;
    int64_t count;
    QL_TRY(list(shape, arena, &tensors, &count));
    QL_TRY(st_writer_open(path, tensors, count, NULL, &writer));
    ql_status status = QL_OK;
    for (int64_t i = 0; status == QL_OK && i < count; i++) status = put(writer, &tensors[i], SEED + (uint64_t)i);
    if (status == QL_OK) return st_writer_commit(writer, NULL);
    st_writer_abort(writer);
    return status;
}

static ql_status write_tokens(const char *path, int64_t rows, int64_t seq_len, ql_arena *arena) {
    token_file t = {.n_seq = rows, .seq_len = seq_len, .vocab = VOCABULARY, .n_tokens = rows * seq_len};
    QL_TRY(ql_take(arena, (size_t)t.n_tokens, sizeof *t.ids, &t.ids));
    QL_TRY(ql_take(arena, (size_t)rows + 1, sizeof *t.start, &t.start));
    for (int64_t i = 0; i < t.n_tokens; i++) t.ids[i] = (int32_t)(ql_random(SEED, (uint64_t)i) % VOCABULARY);
    for (int64_t r = 0; r <= rows; r++) t.start[r] = r * seq_len;
    return tokens_write(path, &t, "random", SEED);
}

static ql_status write_all(const synthetic_shape *shape, int64_t rows, int64_t seq_len, ql_arena *arena,
                           synthetic_files *files) {
    char *config, *weights;
    QL_TRY(ql_arena_format(arena, (char **)&files->model, "%s/model", files->dir));
    QL_TRY(ql_arena_format(arena, (char **)&files->tokens, "%s/tokens.h5", files->dir));
    QL_TRY(ql_arena_format(arena, (char **)&files->out, "%s/out", files->dir));
    QL_TRY(ql_arena_format(arena, (char **)&files->work, "%s/work", files->dir));
    QL_TRY(ql_arena_format(arena, &config, "%s/config.json", files->model));
    QL_TRY(ql_arena_format(arena, &weights, "%s/model.safetensors", files->model));
    QL_TRY(ql_dir_make(files->model));
    QL_TRY(ql_json_save(shape->document, config));
    QL_TRY(write_weights(shape, weights, arena));
    return write_tokens(files->tokens, rows, seq_len, arena);
}

ql_status synthetic_make(const synthetic_shape *shape, int64_t rows, int64_t seq_len, ql_arena *arena,
                         synthetic_files *files) {
    const char *parent = getenv("TMPDIR");
    char *dir;
    *files = (synthetic_files){0};
    if (seq_len > shape->config.max_position)
        return ql_fail(QL_USAGE, "--seqlen %lld: the model takes %lld tokens at most", (long long)seq_len,
                       (long long)shape->config.max_position);
    QL_TRY(ql_arena_format(arena, &dir, "%s/qalib-bench-XXXXXX", parent && *parent ? parent : "/tmp"));
    if (!mkdtemp(dir)) return ql_fail_errno("%s", dir);
    files->dir = dir;
    return write_all(shape, rows, seq_len, arena, files);
}

void synthetic_remove(const synthetic_files *files) {
    if (files->dir) ql_dir_remove(files->dir);
}

#include "tests/make.h"

#include "tests/test.h"

#include <math.h>

#include "formats/json.h"
#include "host/num.h"
#include "host/rng.h"

make_model make_tiny(arch which) {
    return (make_model){
        .arch = which,
        .vocab = 96,
        .hidden = 64,
        .intermediate = 128,
        .layers = 2,
        .heads = 4,
        .kv_heads = 2,
        .head_dim = 32,
        .max_position = 128,
        .dtype = QL_BF16,
        .shards = 1,
        .seed = 1,
    };
}

/* ---- config.json ------------------------------------------------------------------------------------------------------- */

static ql_status make_config(const make_model *model, json_t **out) {
    static const char *const types[] = {"llama", "mistral", "qwen2", "qwen3"};
    static const char *const classes[] = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
                                          "Qwen3ForCausalLM"};
    const char *dtype = model->dtype == QL_BF16 ? "bfloat16" : model->dtype == QL_F16 ? "float16" : "float32";
    json_t *config =
        json_pack("{s:[s], s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:f, s:f, s:b, s:s}", "architectures",
                  classes[model->arch], "model_type", types[model->arch], "vocab_size", (json_int_t)model->vocab,
                  "hidden_size", (json_int_t)model->hidden, "intermediate_size", (json_int_t)model->intermediate,
                  "num_hidden_layers", (json_int_t)model->layers, "num_attention_heads", (json_int_t)model->heads,
                  "num_key_value_heads", (json_int_t)model->kv_heads, "head_dim", (json_int_t)model->head_dim,
                  "max_position_embeddings", (json_int_t)model->max_position, "hidden_act", "silu", "rms_norm_eps",
                  1e-5, "rope_theta", 10000.0, "tie_word_embeddings", model->tied_embeddings, "torch_dtype", dtype);
    if (model->attention_bias) json_object_set_new(config, "attention_bias", json_true());
    if (model->mlp_bias) json_object_set_new(config, "mlp_bias", json_true());
    if (model->arch == ARCH_MISTRAL) json_object_set_new(config, "sliding_window", json_null());
    *out = config;
    if (!config) return ql_fail(QL_NOMEM, "no memory for a config");
    if (!model->extra) return QL_OK;
    char text[4096];
    snprintf(text, sizeof text, "{%s}", model->extra);
    json_t *extra;
    ql_status status = ql_json_parse("extra", text, strlen(text), &extra);
    if (status == QL_OK && json_object_update(config, extra) != 0) status = ql_fail(QL_NOMEM, "no memory for a config");
    if (status == QL_OK) json_decref(extra);
    return status;
}

/* ---- weights ----------------------------------------------------------------------------------------------------------- */

static uint64_t name_seed(uint64_t seed, const char *name) {
    uint64_t hash = seed ^ 0xcbf29ce484222325ull; /* FNV-1a */
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x100000001b3ull;
    return hash;
}

static bool ends_with(const char *name, const char *end) {
    size_t a = strlen(name), b = strlen(end);
    return a >= b && strcmp(name + a - b, end) == 0;
}

double make_value(uint64_t seed, const char *tensor, int64_t k, int64_t i) {
    double value = ql_random_normal(name_seed(seed, tensor), (uint64_t)i);
    if (ends_with(tensor, "norm.weight")) return 1.0 + 0.1 * value;
    if (ends_with(tensor, ".bias")) return 0.1 * value;
    return value / sqrt((double)k);
}

static void encode(void *data, int64_t i, ql_dtype dtype, float value) {
    if (dtype == QL_F32) ((float *)data)[i] = value;
    else ((uint16_t *)data)[i] = dtype == QL_F16 ? ql_f32_to_f16(value) : ql_f32_to_bf16(value);
}

static ql_status put_tensors(st_writer *writer, const st_tensor *tensors, int64_t count, const make_model *model,
                             void *data) {
    for (int64_t t = 0; t < count; t++) {
        const st_tensor *tensor = &tensors[t];
        int64_t k = tensor->shape[tensor->rank - 1], size = k * (tensor->rank == 2 ? tensor->shape[0] : 1);
        for (int64_t i = 0; i < size; i++)
            encode(data, i, tensor->dtype, (float)make_value(model->seed, tensor->name, k, i));
        if (model->norm_weight != 0 && strcmp(tensor->name, "model.norm.weight") == 0)
            encode(data, 7, tensor->dtype, model->norm_weight);
        QL_TRY(st_writer_put(writer, tensor, data));
    }
    return QL_OK;
}

static ql_status write_shard(const char *path, st_tensor *tensors, int64_t count, const make_model *model, void *data) {
    st_writer *writer;
    QL_TRY(st_writer_open(path, tensors, count, NULL, &writer));
    ql_status status = put_tensors(writer, tensors, count, model, data);
    if (status == QL_OK) return st_writer_commit(writer, NULL);
    st_writer_abort(writer);
    return status;
}

/* The tensors of the model in their order, and the most elements that one has. */
static ql_status list_tensors(const model_config *config, ql_dtype dtype, ql_arena *arena, st_tensor **tensors,
                              int64_t *most) {
    int64_t count = model_tensor(config, 0, NULL, NULL);
    QL_TRY(ql_take(arena, (size_t)count, sizeof **tensors, tensors));
    *most = 0;
    for (int64_t i = 0; i < count; i++) {
        char name[NAME_SIZE];
        int64_t shape[2];
        model_tensor(config, i, name, shape);
        st_tensor *tensor = &(*tensors)[i];
        *tensor = (st_tensor){.dtype = dtype, .rank = shape[1] ? 2 : 1, .shape = {shape[0], shape[1]}};
        QL_TRY(ql_arena_string(arena, name, (char **)&tensor->name));
        int64_t size = shape[0] * (shape[1] ? shape[1] : 1);
        if (size > *most) *most = size;
    }
    return QL_OK;
}

static ql_status write_weights(const char *dir, const make_model *model, const model_config *config, ql_arena *arena) {
    st_tensor *tensors;
    void *data;
    int64_t count = model_tensor(config, 0, NULL, NULL), most;
    QL_TRY(list_tensors(config, model->dtype, arena, &tensors, &most));
    QL_TRY(ql_take(arena, (size_t)most, sizeof(float), &data));
    json_t *index = json_pack("{s:{}, s:{}}", "metadata", "weight_map");
    json_t *weight_map = json_object_get(index, "weight_map");
    ql_status status = QL_OK;
    for (int shard = 0; shard < model->shards && status == QL_OK; shard++) {
        int64_t first = count * shard / model->shards, last = count * (shard + 1) / model->shards;
        char file[64] = "model.safetensors", path[MAKE_PATH + 64];
        if (model->shards > 1) snprintf(file, sizeof file, "model-%05d-of-%05d.safetensors", shard + 1, model->shards);
        snprintf(path, sizeof path, "%s/%s", dir, file);
        status = write_shard(path, tensors + first, last - first, model, data);
        for (int64_t i = first; i < last; i++) json_object_set_new(weight_map, tensors[i].name, json_string(file));
    }
    char path[MAKE_PATH + 64];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    if (status == QL_OK && model->shards > 1) status = ql_json_save(index, path);
    json_decref(index);
    return status;
}

ql_status make_checkpoint(const char *dir, const make_model *model) {
    json_t *json;
    ql_arena *arena;
    model_config config;
    char path[MAKE_PATH + 16];
    snprintf(path, sizeof path, "%s/config.json", dir);
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = make_config(model, &json);
    if (status == QL_OK) status = model_config_parse(json, path, arena, &config);
    if (status == QL_OK) status = write_weights(dir, model, &config, arena);
    if (status == QL_OK) status = ql_json_save(json, path);
    json_decref(json);
    ql_arena_close(arena);
    return status;
}

/* ---- files ------------------------------------------------------------------------------------------------------------- */

void make_dir(char dir[MAKE_PATH]) {
    const char *parent = getenv("TMPDIR");
    int length = snprintf(dir, MAKE_PATH, "%s/qalib-test-XXXXXX", parent && *parent ? parent : "/tmp");
    if (length >= MAKE_PATH || !mkdtemp(dir)) fail_msg("no temporary directory %s", dir);
}

void make_file(const char *dir, const char *name, const void *data, size_t size) {
    char path[MAKE_PATH + 256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0) fail_msg("%s: cannot write", path);
}

void make_text(const char *dir, const char *name, const char *text) { make_file(dir, name, text, strlen(text)); }

int make_place_open(void **state) {
    make_place *p = calloc(1, sizeof *p);
    assert_non_null(p);
    make_dir(p->dir);
    snprintf(p->path, sizeof p->path, "%s/" MAKE_PLACE_FILE, p->dir);
    assert_ok(ql_arena_open(NULL, &p->arena));
    *state = p;
    return 0;
}

int make_place_close(void **state) {
    make_place *p = *state;
    assert_ok(ql_dir_remove(p->dir));
    ql_arena_close(p->arena);
    free(p);
    return 0;
}

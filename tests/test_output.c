/* Output directories: what is in them, how they are split, and what happens when something is in the way. */
#include "tests/test.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calib/output.h"
#include "calib/output_plan.h"
#include "calib/output_text.h"
#include "formats/json.h"
#include "host/fault.h"
#include "host/mat.h"
#include "host/num.h"
#include "tests/tiny_model.h"

static char root[64], source[80], target[80];
static ql_arena *arena;
static checkpoint *ck;
static model_config config;

static int setup(void **state) {
    (void)state;
    snprintf(root, sizeof root, "/tmp/qalib-output-XXXXXX");
    if (!mkdtemp(root)) return -1;
    snprintf(source, sizeof source, "%s/tiny", root);
    snprintf(target, sizeof target, "%s/out", root);
    ck = NULL;
    return ql_arena_open(NULL, &arena) == QL_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    checkpoint_close(ck);
    ql_arena_close(arena);
    return ql_dir_remove(root) == QL_OK ? 0 : -1;
}

static void open_source(const tiny_model *model) {
    tiny_write(source, model);
    assert_ok(checkpoint_open(source, &ck));
    assert_ok(model_config_parse(checkpoint_config(ck), source, arena, &config));
}

static const layout_scheme asymmetric = {
    .bits = 4, .group = 32, .static_groups = true, .true_sequential = true, .version = 1, .damp = 0.05};

static const output_texts some_texts = {
    .recipe_yaml = "version: 1\n", .calibration = "One book.", .metrics = "| a | b |"};

/* The whole job: quantize every layer and write.  grid: how to round when the output is dense. */
static ql_status produce(const char *dir, const output_request *request, const layout_scheme *grid) {
    output *out;
    ql_status status = output_open(dir, ck, &config, request, &out);
    if (status != QL_OK) return status;
    for (int64_t layer = 0; layer < config.layers && status == QL_OK; layer++) {
        qmodule modules[LINEARS];
        tiny_quantize(ck, &config, layer, grid, arena, modules);
        status = output_layer(out, layer, modules, NULL);
    }
    if (status == QL_OK) status = output_finish(out, &some_texts);
    output_close(out);
    return status;
}

static bool exists(const char *dir, const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return ql_path_exists(path);
}

/* Files of a directory whose names begin like this. */
static int count_files(const char *dir, const char *start) {
    int count = 0;
    DIR *stream = opendir(dir);
    assert_non_null(stream);
    for (struct dirent *entry; (entry = readdir(stream));) count += strncmp(entry->d_name, start, strlen(start)) == 0;
    closedir(stream);
    return count;
}

static uint16_t half_at(const checkpoint *from, const char *name, int64_t i) {
    const st_tensor *tensor = checkpoint_find(from, name);
    assert_non_null(tensor);
    uint16_t *data;
    assert_ok(ql_take(arena, tensor->size, 1, &data));
    assert_ok(checkpoint_read(from, tensor, data));
    return data[i];
}

/* ---- contents ------------------------------------------------------------------------------------------------------------------- */

static void quantized_modules_read_back_exactly(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric};
    assert_ok(produce(target, &request, &asymmetric));
    checkpoint *out;
    layout_scheme scheme;
    assert_ok(checkpoint_open(target, &out));
    assert_ok(layout_read(out, &scheme));
    assert_int_equal(checkpoint_file_count(out), 1);
    assert_false(exists(target, "model.safetensors.index.json"));
    for (int64_t layer = 0; layer < 2; layer++) {
        qmodule expected[LINEARS], actual;
        tiny_quantize(ck, &config, layer, &asymmetric, arena, expected);
        for (int id = 0; id < LINEARS; id++) {
            const qmodule *e = &expected[id];
            assert_ok(layout_decode(out, &scheme, e->name, e->n, e->k, arena, &actual));
            assert_memory_equal(actual.codes, e->codes, (size_t)(e->n * ql_packed_words(e->k, 4)) * 4);
            assert_memory_equal(actual.scale, e->scale, (size_t)(e->n * ql_groups(e->k, 32)) * sizeof(float));
            assert_memory_equal(actual.zero, e->zero, (size_t)(e->n * ql_groups(e->k, 32)));
        }
    }
    assert_null(checkpoint_find(out, "model.layers.0.mlp.up_proj.weight"));
    assert_string_equal(checkpoint_find(out, "model.layers.0.self_attn.q_proj.bias")->dtype_name, "F16");
    assert_string_equal(checkpoint_find(out, "lm_head.weight")->dtype_name, "F16");
    uint16_t bf16 = half_at(ck, "model.norm.weight", 5);
    assert_int_equal(half_at(out, "model.norm.weight", 5), ql_f32_to_f16(ql_bf16_to_f32(bf16)));
    checkpoint_close(out);
}

static void every_tensor_is_aligned_to_its_element(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric, .shard_size = 30000};
    assert_ok(produce(target, &request, &asymmetric));
    checkpoint *out;
    assert_ok(checkpoint_open(target, &out));
    for (int64_t i = 0; i < checkpoint_count(out); i++)
        assert_int_equal(checkpoint_at(out, i)->begin % ql_dtype_size(checkpoint_at(out, i)->dtype), 0);
    checkpoint_close(out);
}

static void tied_model_gets_no_head(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_F16, .tied = true});
    const output_request request = {.scheme = &asymmetric};
    assert_ok(produce(target, &request, &asymmetric));
    checkpoint *out;
    assert_ok(checkpoint_open(target, &out));
    assert_null(checkpoint_find(out, "lm_head.weight"));
    assert_non_null(checkpoint_find(out, "model.embed_tokens.weight"));
    checkpoint_close(out);
}

static void shards_hold_whole_modules_and_at_most_their_size(void **state) {
    (void)state;
    enum { SIZE = 20000 };
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric, .shard_size = SIZE};
    assert_ok(produce(target, &request, &asymmetric));
    json_t *index = tiny_load(target, "model.safetensors.index.json");
    json_t *map = json_object_get(index, "weight_map"), *value;
    checkpoint *out;
    assert_ok(checkpoint_open(target, &out));
    assert_true(checkpoint_file_count(out) > 2);
    assert_int_equal(json_object_size(map), checkpoint_count(out));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")),
                     checkpoint_bytes(out));
    for (int64_t f = 0; f < checkpoint_file_count(out); f++) {
        struct stat info;
        assert_int_equal(stat(checkpoint_file(out, f)->path, &info), 0);
        if (info.st_size > SIZE) fail_msg("%s has %lld bytes", checkpoint_file(out, f)->path, (long long)info.st_size);
    }
    const char *name;
    json_object_foreach(map, name, value) {
        char sibling[NAME_SIZE + 16];
        if (!strstr(name, ".qweight")) continue;
        static const char *const parts[] = {"qzeros", "scales", "g_idx"};
        for (int p = 0; p < 3; p++) {
            snprintf(sibling, sizeof sibling, "%.*s.%s", (int)(strlen(name) - strlen(".qweight")), name, parts[p]);
            assert_string_equal(json_string_value(json_object_get(map, sibling)), json_string_value(value));
        }
    }
    json_decref(index);
    checkpoint_close(out);
}

static void same_job_gives_the_same_bytes(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    char other[96];
    snprintf(other, sizeof other, "%s/deeper/again", root);
    const output_request request = {.scheme = &asymmetric, .shard_size = 30000};
    assert_ok(produce(target, &request, &asymmetric));
    assert_ok(produce(other, &request, &asymmetric));
    size_t a, b;
    char *first = tiny_read(target, "SHA256SUMS", &a, arena), *second = tiny_read(other, "SHA256SUMS", &b, arena);
    assert_int_equal(a, b);
    assert_memory_equal(first, second, a);
}

static void sums_name_every_file(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric, .shard_size = 30000};
    assert_ok(produce(target, &request, &asymmetric));
    size_t size;
    char *sums = tiny_read(target, "SHA256SUMS", &size, arena);
    DIR *dir = opendir(target);
    for (struct dirent *entry; (entry = readdir(dir));) {
        unsigned char sha256[32];
        char path[512], line[400], hex[65];
        if (entry->d_name[0] == '.' && (entry->d_name[1] == 0 || entry->d_name[1] == '.')) continue;
        if (strcmp(entry->d_name, "SHA256SUMS") == 0) continue;
        snprintf(path, sizeof path, "%s/%s", target, entry->d_name);
        assert_ok(ql_file_sha256(path, sha256));
        ql_hex(sha256, 32, hex);
        snprintf(line, sizeof line, "%s  %s\n", hex, entry->d_name);
        if (!strstr(sums, line)) fail_msg("%s is not listed", entry->d_name);
    }
    closedir(dir);
}

static void files_are_carried_over_byte_for_byte(void **state) {
    (void)state;
    static const char *const carried[] = {"tokenizer.json", "generation_config.json", "LICENSE.txt"};
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric};
    assert_ok(produce(target, &request, &asymmetric));
    for (int i = 0; i < 3; i++) {
        size_t a, b;
        char *from = tiny_read(source, carried[i], &a, arena), *to = tiny_read(target, carried[i], &b, arena);
        assert_int_equal(a, b);
        assert_memory_equal(from, to, a);
    }
    assert_false(exists(target, "notes.txt"));
}

static void link_out_of_the_source_is_not_followed(void **state) {
    (void)state;
    char link[128];
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric};
    snprintf(link, sizeof link, "%s/vocab.json", source);
    assert_int_equal(symlink("/etc/passwd", link), 0);
    assert_refused(produce(target, &request, &asymmetric), QL_FORMAT, "outside");
    assert_false(exists(target, "config.json"));
}

static void config_changes_only_two_keys(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric};
    assert_ok(produce(target, &request, &asymmetric));
    json_t *from = tiny_load(source, "config.json"), *to = tiny_load(target, "config.json"),
           *side = tiny_load(target, "quantize_config.json");
    assert_string_equal(json_string_value(json_object_get(to, "torch_dtype")), "float16");
    assert_true(json_equal(json_object_get(to, "quantization_config"), side));
    void *a = json_object_iter(from), *b = json_object_iter(to);
    for (; a; a = json_object_iter_next(from, a), b = json_object_iter_next(to, b)) /* the same order */
        assert_string_equal(json_object_iter_key(a), json_object_iter_key(b));
    json_object_del(to, "quantization_config");
    json_object_set(to, "torch_dtype", json_object_get(from, "torch_dtype"));
    assert_true(json_equal(from, to));
    size_t size;
    assert_non_null(strstr(tiny_read(target, "config.json", &size, arena), "\"rms_norm_eps\": 1e-05,"));
    assert_non_null(strstr(tiny_read(target, "config.json", &size, arena), "\"damp_percent\": 0.05,"));
    json_decref(from), json_decref(to), json_decref(side);
}

static void config_text_edits_keys_of_the_top_level_only(void **state) {
    (void)state;
    char *text;
    assert_ok(output_config_text("{\"a\": {\"dtype\": \"x\"}, \"s\": \"\\\"dtype\\\": {\", \"dtype\" : \"float32\"}",
                                 NULL, QL_F16, arena, &text));
    assert_string_equal(text, "{\"a\": {\"dtype\": \"x\"}, \"s\": \"\\\"dtype\\\": {\", \"dtype\" : \"float16\"}");
    assert_ok(output_config_text("{\"torch_dtype\":1e5,\"dtype\":null}", NULL, QL_BF16, arena, &text));
    assert_string_equal(text, "{\"torch_dtype\":\"bfloat16\",\"dtype\":\"bfloat16\"}");
    assert_ok(output_config_text(" { } ", NULL, QL_F16, arena, &text));
    assert_string_equal(text, " { \n  \"torch_dtype\": \"float16\"} ");
    assert_ok(output_config_text("{\"a\": [1, 2]\n}", NULL, QL_F16, arena, &text));
    assert_string_equal(text, "{\"a\": [1, 2],\n  \"torch_dtype\": \"float16\"\n}");
}

static void card_names_base_license_and_loading(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric};
    assert_ok(produce(target, &request, &asymmetric));
    size_t size;
    const char *card = tiny_read(target, "README.md", &size, arena);
    static const char *const expected[] = {"---\nbase_model: \"tiny\"\n",
                                           "base_model_relation: quantized\n",
                                           "quantized_by: qalib\n",
                                           "license: apache-2.0\n",
                                           "- 4-bit\n",
                                           "version: 1\n",
                                           "One book.",
                                           "| a | b |",
                                           "vllm serve",
                                           "AutoModelForCausalLM.from_pretrained",
                                           "ExLlamaV2Config"};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (!strstr(card, expected[i])) fail_msg("the card lacks \"%s\":\n%s", expected[i], card);
    assert_null(strstr(card, "language: en"));
}

static void dense_is_a_plain_checkpoint_of_the_source_type(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = NULL};
    assert_ok(produce(target, &request, &asymmetric));
    checkpoint *out;
    assert_ok(checkpoint_open(target, &out));
    assert_int_equal(checkpoint_count(out), checkpoint_count(ck));
    assert_null(json_object_get(checkpoint_config(out), "quantization_config"));
    assert_string_equal(json_string_value(json_object_get(checkpoint_config(out), "torch_dtype")), "bfloat16");
    assert_false(exists(target, "quantize_config.json"));
    qmodule modules[LINEARS];
    tiny_quantize(ck, &config, 1, &asymmetric, arena, modules);
    const qmodule *q = &modules[LIN_DOWN];
    float *w;
    assert_ok(ql_take(arena, (size_t)(q->n * q->k), sizeof *w, &w));
    qmodule_dequantize(q, w);
    for (int64_t i = 0; i < q->n * q->k; i += 97)
        assert_int_equal(half_at(out, "model.layers.1.mlp.down_proj.weight", i), ql_f32_to_bf16(w[i]));
    assert_int_equal(half_at(out, "model.norm.weight", 3), half_at(ck, "model.norm.weight", 3));
    checkpoint_close(out);
}

static void skipped_and_overridden_modules(void **state) {
    (void)state;
    const char *const skipped[] = {"model.layers.1.mlp.down_proj", NULL};
    const layout_override overrides[] = {{"model.layers.0.mlp.down_proj", 8, -1}};
    layout_scheme scheme = asymmetric, read;
    scheme.skipped = skipped, scheme.overrides = overrides, scheme.n_overrides = 1, scheme.layers = 2;
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &scheme};
    assert_ok(produce(target, &request, &scheme));
    checkpoint *out;
    qmodule q;
    assert_ok(checkpoint_open(target, &out));
    assert_string_equal(checkpoint_find(out, "model.layers.1.mlp.down_proj.weight")->dtype_name, "F16");
    assert_ok(layout_read(out, &read));
    assert_false(layout_has(out, &read, "model.layers.1.mlp.down_proj"));
    assert_ok(layout_decode(out, &read, "model.layers.0.mlp.down_proj", 64, 96, arena, &q));
    assert_int_equal(q.bits, 8);
    assert_int_equal(q.group, 96);
    checkpoint_close(out);
}

/* ---- numbers that do not fit ------------------------------------------------------------------------------------------------------ */

static void trap06_values_beyond_f16_keep_bf16(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16, .norm_weight = 70000});
    const output_request request = {.scheme = &asymmetric};
    assert_ok(produce(target, &request, &asymmetric));
    checkpoint *out;
    assert_ok(checkpoint_open(target, &out));
    assert_string_equal(checkpoint_find(out, "model.norm.weight")->dtype_name, "BF16");
    assert_string_equal(json_string_value(json_object_get(checkpoint_config(out), "torch_dtype")), "bfloat16");
    assert_int_equal(half_at(out, "model.norm.weight", 7), ql_f32_to_bf16(70000));
    assert_string_equal(checkpoint_find(out, "model.layers.0.mlp.up_proj.scales")->dtype_name, "F16");
    checkpoint_close(out);
}

static void largest_f16_value_still_fits(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_F32, .norm_weight = -65504});
    const output_request request = {.scheme = &asymmetric};
    assert_ok(produce(target, &request, &asymmetric));
    checkpoint *out;
    assert_ok(checkpoint_open(target, &out));
    assert_int_equal(half_at(out, "model.norm.weight", 7), 0xfbff);
    checkpoint_close(out);
}

static void nan_in_a_copied_tensor_is_named(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16, .norm_weight = NAN});
    const output_request request = {.scheme = &asymmetric};
    assert_refused(produce(target, &request, &asymmetric), QL_FORMAT, "\"model.norm.weight\" has NaN at element 7");
    assert_false(ql_path_exists(target));
}

/* ---- what is in the way ------------------------------------------------------------------------------------------------------------ */

static void trap01_directory_that_is_not_empty_is_refused(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric, .job = "a"};
    assert_ok(ql_dir_make(target));
    tiny_save(target, "model-00001-of-00009.safetensors", "stale");
    assert_refused(produce(target, &request, &asymmetric), QL_DISK, "is not empty");
    size_t size;
    assert_string_equal(tiny_read(target, "model-00001-of-00009.safetensors", &size, arena), "stale");
    assert_refused(produce(source, &request, &asymmetric), QL_DISK, "is not empty"); /* the input itself */
}

static void trap01_own_incomplete_output_starts_over(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    output *out;
    qmodule modules[LINEARS];
    const output_request request = {.scheme = &asymmetric, .shard_size = 20000, .job = "a"},
                         other = {.scheme = &asymmetric, .job = "b"};
    assert_ok(output_open(target, ck, &config, &request, &out));
    tiny_quantize(ck, &config, 0, &asymmetric, arena, modules);
    assert_ok(output_layer(out, 0, modules, NULL));
    output_close(out); /* killed here */
    assert_true(count_files(target, "model-0") > 0);
    assert_false(exists(target, "config.json"));
    assert_refused(produce(target, &other, &asymmetric), QL_DISK, "another job");
    const output_request whole = {.scheme = &asymmetric, .job = "a"};
    assert_ok(produce(target, &whole, &asymmetric));
    assert_int_equal(count_files(target, "model-0"), 0);
    assert_true(exists(target, "model.safetensors"));
    assert_false(exists(target, ".qalib-incomplete"));
    assert_refused(produce(target, &whole, &asymmetric), QL_DISK, "is not empty"); /* complete now */
}

/* Killed while it said whose directory this is, or while it cleared one: what is left is still known. */
static void trap01_half_a_marker_is_no_obstacle(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request whole = {.scheme = &asymmetric, .job = "a"};
    assert_ok(ql_dir_make(target));
    tiny_save(target, ".qalib-incomplete.tmp", "");
    assert_ok(produce(target, &whole, &asymmetric));
    assert_false(exists(target, ".qalib-incomplete.tmp"));
    assert_ok(ql_dir_remove(target));
    assert_ok(ql_dir_make(target));
    tiny_save(target, ".qalib-incomplete.tmp", "");
    tiny_save(target, "mine.txt", "mine");
    assert_refused(produce(target, &whole, &asymmetric), QL_DISK, "is not empty");
    assert_true(exists(target, "mine.txt"));
}

/* Whatever fails, and whenever: the directory is complete or visibly incomplete, and the same job can start over. */
static void faults_leave_no_loadable_directory(void **state) {
    (void)state;
#ifndef QL_FAULTS
    print_message("skipped: built without fault injection\n");
    skip();
#else
    static const char *const sites[] = {"malloc", "open", "read", "write", "fsync", "rename", "allocate"};
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric, .shard_size = 30000, .job = "a"};
    qmodule modules[2][LINEARS];
    for (int layer = 0; layer < 2; layer++) tiny_quantize(ck, &config, layer, &asymmetric, arena, modules[layer]);
    for (size_t s = 0; s < sizeof sites / sizeof *sites; s++) {
        bool reached = true;
        for (long n = 1; reached; n += 1 + n / 4) {
            char setting[64];
            output *out;
            snprintf(setting, sizeof setting, "%s:%ld:once", sites[s], n);
            ql_fault_set(setting);
            ql_status status = output_open(target, ck, &config, &request, &out);
            for (int layer = 0; layer < 2 && status == QL_OK; layer++)
                status = output_layer(out, layer, modules[layer], NULL);
            if (status == QL_OK) status = output_finish(out, &some_texts);
            reached = ql_fault_passages() >= n;
            ql_fault_set(NULL);
            output_close(out);
            bool complete = exists(target, "config.json") && !exists(target, ".qalib-incomplete");
            if (complete != (status == QL_OK)) fail_msg("%s: %s", setting, ql_last_error());
            if (complete) assert_ok(ql_dir_remove(target));
        }
    }
    assert_ok(produce(target, &request, &asymmetric));
#endif
}

static void target_that_cannot_be_a_directory(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    const output_request request = {.scheme = &asymmetric};
    tiny_save(root, "out", "a file");
    assert_refused(produce(target, &request, &asymmetric), QL_DISK, "not a directory");
    assert_int_equal(unlink(target), 0);
    if (geteuid() == 0) return; /* root may write anywhere */
    assert_int_equal(chmod(root, 0500), 0);
    assert_refused(produce(target, &request, &asymmetric), QL_DENIED, "cannot be written");
    assert_int_equal(chmod(root, 0700), 0);
}

static void layers_out_of_order_are_refused(void **state) {
    (void)state;
    open_source(&(tiny_model){.dtype = QL_BF16});
    output *out;
    qmodule modules[LINEARS];
    const output_texts texts = {0};
    const output_request request = {.scheme = &asymmetric};
    assert_ok(output_open(target, ck, &config, &request, &out));
    tiny_quantize(ck, &config, 1, &asymmetric, arena, modules);
    assert_refused(output_layer(out, 1, modules, NULL), QL_INTERNAL, "before layer 0");
    assert_refused(output_layer(out, 0, modules, NULL), QL_INTERNAL, "waits for this module");
    tiny_quantize(ck, &config, 0, &asymmetric, arena, modules);
    assert_ok(output_layer(out, 0, modules, NULL));
    assert_refused(output_finish(out, &texts), QL_INTERNAL, "layer 1 is missing");
    output_close(out);
}

static void total_size_of_llama_8b(void **state) {
    (void)state;
    const layout_scheme scheme = {.bits = 4, .group = 128, .version = 1};
    const model_config llama = {.arch = ARCH_LLAMA,
                                .vocab = 128256,
                                .hidden = 4096,
                                .intermediate = 14336,
                                .layers = 32,
                                .heads = 32,
                                .kv_heads = 8,
                                .head_dim = 128};
    output_plan plan;
    assert_ok(output_plan_make(&llama, &scheme, QL_F16, 5000000000ull, arena, &plan));
    assert_int_equal(plan.tensor_bytes, 5732835328);
    assert_int_equal(plan.shards, 2);
    assert_ok(output_plan_make(&llama, NULL, QL_F16, 5000000000ull, arena, &plan));
    assert_int_equal(plan.tensor_bytes, 16060522496); /* 8,030,261,248 parameters */
    assert_int_equal(plan.shards, 4);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(quantized_modules_read_back_exactly),
        TEST(every_tensor_is_aligned_to_its_element),
        TEST(tied_model_gets_no_head),
        TEST(shards_hold_whole_modules_and_at_most_their_size),
        TEST(same_job_gives_the_same_bytes),
        TEST(sums_name_every_file),
        TEST(files_are_carried_over_byte_for_byte),
        TEST(link_out_of_the_source_is_not_followed),
        TEST(config_changes_only_two_keys),
        TEST(config_text_edits_keys_of_the_top_level_only),
        TEST(card_names_base_license_and_loading),
        TEST(dense_is_a_plain_checkpoint_of_the_source_type),
        TEST(skipped_and_overridden_modules),
        TEST(trap06_values_beyond_f16_keep_bf16),
        TEST(largest_f16_value_still_fits),
        TEST(nan_in_a_copied_tensor_is_named),
        TEST(trap01_directory_that_is_not_empty_is_refused),
        TEST(trap01_own_incomplete_output_starts_over),
        TEST(trap01_half_a_marker_is_no_obstacle),
        TEST(faults_leave_no_loadable_directory),
        TEST(target_that_cannot_be_a_directory),
        TEST(layers_out_of_order_are_refused),
        TEST(total_size_of_llama_8b),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
